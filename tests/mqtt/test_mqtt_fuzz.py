"""Random payloads for every convention: no exception escapes, and no value is invented. `--long`: a million of each.

What goes in is what the documents show, cut, spliced, with bytes changed, with numbers and words of other payloads, and
plain noise. What comes out is looked up in what went in: a number must stand in the payload (or be the Watt-hours of
its Watt-minutes, or, in Sparkplug B, be there in its encoding), a text too, a switch must be a word of it.
"""

from __future__ import annotations

import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from conftest import device  # type: ignore[import-not-found]
from test_mqtt_homeassistant import BEDROOM, CONTACT, KITCHEN, LIGHT  # type: ignore[import-not-found]
from test_mqtt_many import UPLINK  # type: ignore[import-not-found]
from test_mqtt_sparkplug import MESSAGE  # type: ignore[import-not-found]

from gateway.connectors.mqtt import ttn
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.templates import Refused, Template
from gateway.errors import DecodeError
from gateway.model import Quality, Status, Value

TASMOTA = {
    "Time": "2024-05-16T07:05:21", "DS18B20": {"Id": "0316455E3AFF", "Temperature": 62.4}, "TempUnit": "C",
    "ENERGY": {"Total": 1234.567, "Power": [12, 13], "Factor": 0.63}, "POWER": "ON", "x": None,
}  # fmt: skip
SHELLY = {"src": "p", "method": "NotifyStatus", "params": {"ts": 1631186545.04, "switch:0": {"id": 0, "apower": 8.9,
          "output": True, "aenergy": {"total": 11.679, "by_minute": [0.1, 0.0]}}}}  # fmt: skip
ZIGBEE = {"battery": 97, "temperature": 21.37, "state": "ON", "update": {"state": "idle"}, "last_seen": "x"}


class Preset(NamedTuple):
    config: dict[str, Any]
    said: list[tuple[str, bytes]]
    """Topics and payloads of the documents."""


def text(document: Any) -> bytes:
    return json.dumps(document).encode()


HOME = {"name": "{id}", "format": "homeassistant", "topic": "homeassistant/#"}
PRESETS = {
    "json": Preset({"name": "d", "topic": "t", "timestamp": {"path": "Time", "format": "iso8601"}},
                   [("t", text(TASMOTA))]),
    "each": Preset({"name": "{id}", "topic": "t", "each": "list", "id": "n"},
                   [("t", text({"list": [{"n": "a", "v": 1.5}, {"n": 7, "v": True}]}))]),
    "value": Preset({"name": "d", "topic": "t/+", "format": "value"}, [("t/a", b"21.5"), ("t/b", b"on")]),
    "zigbee2mqtt": Preset({"name": "d", "topic": "z/d", "format": "zigbee2mqtt"},
                          [("z/d", text(ZIGBEE)), ("z/d/availability", b'{"state":"online"}')]),
    "tasmota": Preset({"name": "d", "topic": "tele/d/+", "format": "tasmota"},
                      [("tele/d/SENSOR", text(TASMOTA)), ("tele/d/STATUS8", text({"StatusSNS": TASMOTA})),
                       ("tele/d/LWT", b"Online")]),
    "shelly": Preset({"name": "d", "topic": "d/#", "format": "shelly"},
                     [("d/events/rpc", text(SHELLY)), ("d/status/switch:0", text(SHELLY["params"]["switch:0"])),
                      ("d/online", b"true")]),
    "shelly-gen1": Preset({"name": "d", "topic": "shellies/d/#", "format": "shelly-gen1"},
                          [("shellies/d/relay/0/energy", b"6000"), ("shellies/d/relay/0", b"on"),
                           ("shellies/d/sensor/temperature", b"22.12"), ("shellies/d/online", b"true")]),
    "esphome": Preset({"name": "d", "topic": "k/+/+/state", "format": "esphome"},
                      [("k/sensor/t/state", b"21.3"), ("k/switch/p/state", b"ON"), ("k/status", b"online")]),
    "ttn": Preset({"name": "{d}", "topic": "v3/a/devices/{d}/up", "format": "ttn"},
                  [("v3/a/devices/x/up", text(UPLINK))]),
    "sparkplug": Preset({"name": "{n}.{d}", "topic": "spBv1.0/Plant/+/{n}/{d}", "format": "sparkplug"},
                        [(f"spBv1.0/Plant/{kind}/edge{'/press' if kind[0] == 'D' else ''}", MESSAGE[kind])
                         for kind in ("NBIRTH", "DBIRTH", "DDATA", "NDATA", "DDEATH", "NDEATH")]),
    "homeassistant": Preset(HOME, [
        ("homeassistant/sensor/b/t/config", text(BEDROOM)), ("homeassistant/device/k/config", text(KITCHEN)),
        ("homeassistant/light/kitchen/config", text(LIGHT)), ("homeassistant/binary_sensor/d/c/config", text(CONTACT)),
        (BEDROOM["state_topic"], b'{"temperature": 23.2}'), ("sensorBedroom/state", b'{"temperature": 21}'),
        ("zigbee2mqtt/door", b'{"contact": false}'), ("zigbee2mqtt/door/availability", b'{"state": "online"}'),
        ("homeassistant/light/kitchen/state", b'{"state": "ON", "brightness": 130}'),
    ]),
}  # fmt: skip

SPICES = [
    b"null", b"NaN", b"1e999", b"-1", b"18446744073709551616", b'"ON"', b"true", b"{", b"]", b'"', b"\\ud800", b"0",
    b"\xff", b"\x00", b",", b"{}", b"[]", b"1e5", b'"nan"', b"online", b"offline", b"{{ value }}",
]  # fmt: skip


def spoiled(chance: random.Random, payload: bytes, others: list[bytes]) -> bytes:
    """A payload as no device should send it; in one of five cases as it is."""
    kind = chance.randrange(10)
    at = chance.randrange(len(payload) + 1)
    if kind < 2:
        return payload
    if kind == 2:
        return payload[:at]
    if kind == 3:
        return chance.randbytes(chance.randrange(40))
    if kind == 4:
        other = chance.choice(others)
        return payload[:at] + other[chance.randrange(len(other) + 1) :]
    if kind in (5, 6):
        return payload[:at] + chance.choice(SPICES) + payload[at + chance.randrange(4) :]
    if kind == 7:  # a number becomes another one
        numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", payload))
        if numbers:
            match = chance.choice(numbers)
            return payload[: match.start()] + chance.choice(SPICES) + payload[match.end() :]
    return payload[:at] + bytes((chance.randrange(256),)) + payload[at + 1 :]


def numbers_of(payload: bytes) -> Iterator[float]:
    for found in re.findall(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", payload):
        yield float(found)


def stands_in(value: Value, payload: bytes, preset: str) -> bool:
    """Whether a value can be seen in the payload that it came from."""
    if preset == "sparkplug":
        return encoded(value, payload)
    if isinstance(value, bool):
        return re.search(rb"(?i)on|off|true|false|" + (rb"1|0"), payload) is not None
    if isinstance(value, str):
        return value.encode("unicode_escape").decode() in payload.decode("utf-8", "replace") or value in unescaped(
            payload
        )
    seen = list(numbers_of(payload))
    if preset == "shelly-gen1":
        seen += [number / 60 for number in seen]
    if preset == "ttn":
        seen += [0.0, 1.0, *map(float, range(20))]  # what is absent is 0; gateways are counted
    return any(number == value or math.isclose(number, value, rel_tol=1e-15) for number in seen)


def unescaped(payload: bytes) -> str:
    """All texts of a payload as JSON reads them."""
    found = []
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"', payload):
        try:
            found.append(str(json.loads(match[0])))
        except ValueError:
            pass
    return "\n".join([*found, payload.decode("utf-8", "replace")])


def encoded(value: Value, payload: bytes) -> bool:
    """Sparkplug B: as varint, as float, as double or as text."""
    if isinstance(value, str):
        return value.encode() in payload
    if isinstance(value, bool):
        return True
    candidates = []
    if isinstance(value, int):
        for bits in (8, 16, 32, 64):
            number, out = value % (1 << bits), bytearray()
            while number > 0x7F:
                out.append(number & 0x7F | 0x80)
                number >>= 7
            candidates.append(bytes(out) + bytes((number,)))
        # a varint may be longer than it needs to be: its bits are what counts
        return any(c in payload for c in candidates) or any(v in varints(payload) for v in two_complements(value))
    candidates.append(struct.pack("<d", value))
    if abs(value) < 3.5e38:
        candidates.append(struct.pack("<f", value))
    return any(candidate in payload for candidate in candidates)


def two_complements(value: int) -> set[int]:
    return {value % (1 << bits) for bits in (8, 16, 32, 64)}


def varints(payload: bytes) -> set[int]:
    found = set()
    for start in range(len(payload)):
        number = shift = 0
        for byte in payload[start : start + 10]:
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                found.add(number & (2**64 - 1))
                break
    return found


LONG = pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3_000)])


@pytest.mark.parametrize("count", [3_000, LONG])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_payload_breaks_a_convention_and_no_value_is_invented(preset: str, count: int) -> None:
    chance = random.Random(zlib.crc32(preset.encode()) + count)
    config, said = PRESETS[preset]
    others = [payload for each in PRESETS.values() for _, payload in each.said]
    values = 0
    for number in range(count):
        if number % 500 == 0:
            mapper = Mapper([device(**config)])
            for topic, payload in said:
                mapper.map(topic.encode(), payload, False, number, None)
        topic, payload = chance.choice(said)
        payload = spoiled(chance, payload, others)
        mapped = mapper.map(topic.encode(), payload, chance.random() < 0.1, number * 10**8, None)
        for sample in mapped.samples:
            assert len(set(sample.points)) == len(sample.points) == len(sample.values)
            status = sample.status or (Status.GOOD,) * len(sample.values)
            for value, quality in zip(sample.values, status, strict=True):
                assert (value is None) == (quality.quality is Quality.BAD), (topic, payload)
                if value is not None:
                    values += 1
                    assert not isinstance(value, float) or math.isfinite(value), (topic, payload)
                    assert stands_in(value, payload, preset), (topic, payload, value)
    assert values > count / 50, "the noise leaves something to read"


WORDS = ["value", "value_json", ".a", ".b", "['a']", "[0]", "|", "float", "int", "round", "(", ")", "1", "2.5", "+",
         "-", "*", "/", "default", "{{", "}}", "{%", "%}", " ", "'x'", "is_defined", "upper", ",", "if", "states",
         "__class__", "abs", "multiply", "\\", '"', ".", "==", "~", "é"]  # fmt: skip
DOCUMENTS = ['{"a": {"b": 5}}', '{"a": [1, "2"]}', "21.5", "x", "", '{"a": "nan", "b": null}', "[[[1]]]"]


@pytest.mark.parametrize("count", [5_000, LONG])
def test_every_template_is_refused_or_evaluated_and_nothing_else(count: int) -> None:
    chance = random.Random(count)
    read = 0
    for _ in range(count):
        inner = " ".join(chance.choices(WORDS, k=chance.randrange(1, 9)))
        try:
            template = Template(f"{{{{ {inner} }}}}" if chance.random() < 0.9 else inner)
        except Refused:
            continue
        for document in DOCUMENTS:
            try:
                template.of(document)
            except DecodeError:
                continue
            read += 1
    assert read > count / 50


@pytest.mark.parametrize("count", [5_000, LONG])
def test_every_uplink_is_read_ignored_or_refused(count: int) -> None:
    chance = random.Random(count)
    good = text(UPLINK)
    outcomes: dict[str, int] = {}
    read: Callable[[bytes], object] = lambda payload: ttn.uplink("v3/a/devices/x/up", payload)  # noqa: E731
    for _ in range(count):
        try:
            outcome = "ignored" if read(spoiled(chance, good, [good])) is None else "read"
        except DecodeError:
            outcome = "refused"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["read"] > count / 10
    assert outcomes["refused"] > count / 10
