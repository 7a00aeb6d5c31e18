"""From payloads as devices publish them to readings."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from conftest import device  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.mqtt.config import ANNOUNCED_FORMATS, Format, TimeFormat
from gateway.connectors.mqtt.devices import MAX_AUTO_POINTS, MAX_DEVICES, Mapped
from gateway.connectors.mqtt.formats import document, scalar, time_ms
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.writing import publication
from gateway.errors import DecodeError
from gateway.model import DeviceState, Sample, Status


def heard(mapper: Mapper, topic: str, payload: Any, retained: bool = False) -> Mapped:
    raw = (
        payload
        if isinstance(payload, bytes)
        else payload.encode()
        if isinstance(payload, str)
        else json.dumps(payload).encode()
    )
    return mapper.map(topic.encode(), raw, retained, 5, None)


def one(mapper: Mapper, topic: str, payload: Any, retained: bool = False) -> Sample:
    mapped = heard(mapper, topic, payload, retained)
    assert not mapped.rejected
    (sample,) = mapped.samples
    return sample


def readings(sample: Sample) -> dict[str, Any]:
    """point → value, or (value, unit or reason) where there is something to say."""
    units = sample.units or ("",) * len(sample.points)
    status = sample.status or (Status.GOOD,) * len(sample.points)
    found: dict[str, Any] = {}
    for name, value, unit, quality in zip(sample.points, sample.values, units, status, strict=True):
        found[name] = (value, unit) if unit else value
        if quality is not Status.GOOD:
            found[name] = (value, quality.reason)
    return found


# Tasmota: tasmota.github.io/docs, "Telemetry data"
TASMOTA_SENSOR = {
    "Time": "2024-05-16T07:05:21",
    "DS18B20": {"Id": "0316455E3AFF", "Temperature": 62.4},
    "AM2301": {"Temperature": 21.3, "Humidity": 55.1, "DewPoint": 11.9},
    "BME280": {"Temperature": None, "Humidity": None, "Pressure": 1013.2},
    "ENERGY": {
        "TotalStartTime": "2023-11-01T09:30:25", "Total": 1234.567, "Yesterday": 1.2, "Today": 0.3, "Period": 0,
        "Power": 12, "ApparentPower": 19, "ReactivePower": 15, "Factor": 0.63, "Voltage": 231, "Current": 0.082,
    },
    "PressureUnit": "hPa",
    "TempUnit": "C",
}  # fmt: skip


def test_tasmota_sensor_frames() -> None:
    points = [
        {"name": "flow", "path": "DS18B20.Temperature"},
        {"name": "humidity", "path": "AM2301.Humidity"},
        {"name": "broken", "path": "BME280.Temperature"},
        {"name": "pressure", "path": "BME280.Pressure"},
        {"name": "energy", "path": "ENERGY.Total"},
        {"name": "factor", "path": "ENERGY.Factor"},
        {"name": "absent", "path": "SHT3X.Temperature"},
    ]
    mapper = Mapper([device(topic="tele/boiler/SENSOR", format="tasmota", points=points)])
    assert set(mapper.filters) == {"tele/boiler/SENSOR", "tele/boiler/LWT"}
    assert readings(one(mapper, "tele/boiler/SENSOR", TASMOTA_SENSOR)) == {
        "flow": (62.4, "Cel"),
        "humidity": (55.1, "%RH"),
        "broken": (None, "sensor_fault"),
        "pressure": (1013.2, "hPa"),
        "energy": (1234.567, "kWh"),
        "factor": (0.63, "/"),
    }
    fahrenheit = {"AM2301": {"Temperature": 70.1}, "TempUnit": "F"}
    auto = Mapper([device(topic="tele/boiler/SENSOR", format="tasmota")])
    assert readings(one(auto, "tele/boiler/SENSOR", fahrenheit)) == {"AM2301.Temperature": (70.1, "degF")}


def test_tasmota_state_power_and_last_will() -> None:
    mapper = Mapper([device(topic="tele/boiler/+", format="tasmota")])
    state = {"Time": "2024-05-16T07:05:21", "UptimeSec": 40, "POWER": "ON", "Wifi": {"RSSI": 70, "Signal": -65}}
    assert readings(one(mapper, "tele/boiler/STATE", state)) == {
        "UptimeSec": (40, "s"),
        "POWER": True,
        "Wifi.RSSI": (70, "%"),
        "Wifi.Signal": (-65, "dBm"),
    }
    mapped = heard(mapper, "tele/boiler/LWT", "Offline", retained=True)
    assert [change[:2] for change in mapped.changes] == [("dev", DeviceState.OFFLINE)]
    assert mapped.samples[0].status == (Status.DEVICE_OFFLINE,) * 4
    assert mapped.samples[0].values == (None,) * 4
    assert heard(mapper, "tele/boiler/LWT", "Offline").samples == [], "said once"
    assert heard(mapper, "tele/boiler/STATE", state, retained=True).samples == [], "a stored copy is no sign of life"
    assert [change[1] for change in heard(mapper, "tele/boiler/LWT", "Online").changes] == [DeviceState.ONLINE]
    assert one(mapper, "tele/boiler/STATE", state).status is None


def test_zigbee2mqtt() -> None:
    mapper = Mapper([device(name="{device}", topic="zigbee2mqtt/{device}", format="zigbee2mqtt")])
    assert set(mapper.filters) == {"zigbee2mqtt/+", "zigbee2mqtt/+/availability", "zigbee2mqtt/bridge/state"}
    payload = {
        "battery": 97, "humidity": 61.2, "last_seen": "2024-05-16T07:05:21+02:00", "linkquality": 120,
        "temperature": 21.37, "voltage": 2995, "state": "ON", "update": {"state": "idle", "progress": None},
    }  # fmt: skip
    sample = one(mapper, "zigbee2mqtt/living room", payload)
    assert (sample.device, sample.rule) == ("living_room", "{device}")
    assert readings(sample) == {
        "battery": (97, "%"),
        "humidity": (61.2, "%RH"),
        "linkquality": 120,
        "temperature": (21.37, "Cel"),
        "voltage": 2995,
        "state": True,
    }
    for offline in ('{"state":"offline"}', "offline"):
        changes = heard(mapper, "zigbee2mqtt/living room/availability", offline).changes
        assert [change[:2] for change in changes] == [("living_room", DeviceState.OFFLINE)]
        changes = heard(mapper, "zigbee2mqtt/living room/availability", '{"state":"online"}').changes
        assert [change[:2] for change in changes] == [("living_room", DeviceState.ONLINE)]


def test_zigbee2mqtt_names_with_slashes_and_its_own_topics() -> None:
    mapper = Mapper([device(topic="zigbee2mqtt/#", format="zigbee2mqtt")])
    assert heard(mapper, "zigbee2mqtt/hall/lamp/set", '{"state":"ON"}').samples == []
    assert heard(mapper, "zigbee2mqtt/bridge/devices", "[]").samples == []
    assert readings(one(mapper, "zigbee2mqtt/hall/lamp", {"brightness": 3})) == {"brightness": 3}


# Shelly gen 2: shelly-api-docs.shelly.cloud/gen2, "Notifications"
def notify(params: dict[str, Any], method: str = "NotifyStatus") -> dict[str, Any]:
    return {
        "src": "shellyplus1pm-f008d1d8b8b8",
        "dst": "shellyplus1pm-f008d1d8b8b8/events",
        "method": method,
        "params": params,
    }


def test_shelly_gen_2_frames_hold_only_what_changed() -> None:
    points = [
        {"name": "power", "path": "switch:0.apower"},
        {"name": "on", "path": "switch:0.output"},
        {"name": "energy", "path": "switch:0.aenergy.total"},
    ]
    mapper = Mapper([device(topic="plug/events/rpc", format="shelly", points=points, timestamp={"path": "ts"})])
    assert set(mapper.filters) == {"plug/events/rpc", "plug/online"}
    frame = notify({"ts": 1631186545.04, "switch:0": {"id": 0, "apower": 8.9}})
    sample = one(mapper, "plug/events/rpc", frame)
    assert readings(sample) == {"power": (8.9, "W")}
    assert sample.source_ms == 1631186545040
    frame = notify({"ts": 1631186546.0, "switch:0": {"id": 0, "output": False, "source": "HTTP"}})
    assert readings(one(mapper, "plug/events/rpc", frame)) == {"on": False}
    energy = {"by_minute": [0.1, 0.0, 0.0], "minute_ts": 1631186580, "total": 11.679}
    frame = notify({"ts": 1631186580.0, "switch:0": {"id": 0, "aenergy": energy}})
    assert readings(one(mapper, "plug/events/rpc", frame)) == {"energy": (11.679, "Wh")}
    assert heard(mapper, "plug/events/rpc", notify({"ts": 1.0, "events": []}, "NotifyEvent")) == Mapped(
        [], [], [], True
    )
    assert heard(mapper, "plug/online", "false").changes[0].state is DeviceState.OFFLINE


def test_shelly_gen_2_status_topics() -> None:
    mapper = Mapper([device(topic="plug/status/#", format="shelly")])
    payload = {
        "id": 0, "source": "init", "output": True, "apower": 0.0, "voltage": 225.9, "current": 0.0,
        "aenergy": {"total": 11.679, "by_minute": [0.0, 0.0], "minute_ts": 1654511972},
        "temperature": {"tC": 53.3, "tF": 127.9},
    }  # fmt: skip
    assert readings(one(mapper, "plug/status/switch:0", payload)) == {
        "switch:0.output": True,
        "switch:0.apower": (0.0, "W"),
        "switch:0.voltage": (225.9, "V"),
        "switch:0.current": (0.0, "A"),
        "switch:0.aenergy.total": (11.679, "Wh"),
        "switch:0.temperature.tC": (53.3, "Cel"),
        "switch:0.temperature.tF": (127.9, "degF"),
    }


def test_shelly_gen_1() -> None:
    mapper = Mapper([device(name="{id}", topic="shellies/{id}/#", format="shelly-gen1")])
    assert set(mapper.filters) == {"shellies/+/#"}
    say = {
        "relay/0": ("on", {"relay.0": True}),
        "relay/0/power": ("23.51", {"relay.0.power": (23.51, "W")}),
        "relay/0/energy": ("6000", {"relay.0.energy": (100.0, "Wh")}),
        "emeter/0/returned_energy": ("30", {"emeter.0.returned_energy": (0.5, "Wh")}),
        "emeter/0/total": ("80541.3", {"emeter.0.total": (80541.3, "Wh")}),
        "emeter/0/pf": ("-0.95", {"emeter.0.pf": (-0.95, "/")}),
        "sensor/temperature": ("22.12", {"sensor.temperature": (22.12, "Cel")}),
        "sensor/flood": ("false", {"sensor.flood": False}),
        "input/0": ("1", {"input.0": 1}),
    }
    for key, (payload, expected) in say.items():
        assert readings(one(mapper, f"shellies/plug-1/{key}", payload)) == expected
    for key, payload in {"announce": '{"id":"x"}', "relay/0/command": "on", "input_event/0": '{"event":"S"}'}.items():
        assert heard(mapper, f"shellies/plug-1/{key}", payload).samples == []
    (sample,) = heard(mapper, "shellies/plug-1/online", "false").samples
    assert len(sample.points) == len(say)


def test_esphome() -> None:
    points = [{"name": "temperature", "path": "sensor/temp_1", "unit": "Cel"}, {"name": "pump", "path": "switch/pump"}]
    mapper = Mapper([device(topic="kitchen/+/+/state", format="esphome", points=points)])
    assert set(mapper.filters) == {"kitchen/+/+/state", "kitchen/status"}
    assert readings(one(mapper, "kitchen/sensor/temp_1/state", "21.3")) == {"temperature": 21.3}
    assert readings(one(mapper, "kitchen/sensor/temp_1/state", "nan")) == {"temperature": (None, "sensor_fault")}
    assert readings(one(mapper, "kitchen/switch/pump/state", "ON")) == {"pump": True}
    assert heard(mapper, "kitchen/sensor/other/state", "1").samples == []
    assert heard(mapper, "kitchen/status", "offline").changes[0].state is DeviceState.OFFLINE


def test_a_bare_value() -> None:
    mapper = Mapper([device(topic="plant/level", format="value", points=[{"name": "level"}])])
    for text, expected in {" 21.5\n": 21.5, "-3": -3, "on": True, "closed": "closed", "1e3": 1000.0}.items():
        assert readings(one(mapper, "plant/level", text)) == {"level": expected}
    wide = Mapper([device(topic="plant/+/level", format="value")])
    assert readings(one(wide, "plant/tank/level", "7")) == {"tank.level": 7}


def test_retained_is_uncertain_unless_the_payload_says_when() -> None:
    stamp = {"path": "t", "format": "iso8601"}
    mapper = Mapper([device(topic="a", points=[{"name": "n"}, {"name": "bad"}], timestamp=stamp)])
    old = one(mapper, "a", {"n": 1, "bad": None}, retained=True)
    assert old.status == (Status.RETAINED, Status.SENSOR_FAULT)
    assert old.source_ms is None
    dated = one(mapper, "a", {"n": 1, "t": "2024-05-16T07:05:21Z"}, retained=True)
    assert (dated.status, dated.source_ms) == (None, 1715843121000)
    no_zone = one(mapper, "a", {"n": 1, "t": "2024-05-16T07:05:21"}, retained=True)
    assert (no_zone.status, no_zone.source_ms) == ((Status.RETAINED,), None)
    assert heard(mapper, "a", b"", retained=True) == Mapped([], [], [], True)


@pytest.mark.parametrize(
    ("form", "raw", "expected"),
    [
        ("unix", 1715843121, 1715843121000),
        ("unix", "1715843121.5", 1715843121500),
        ("unix_ms", 1715843121000, 1715843121000),
        ("unix", 12, None),
        ("unix_ms", 1715843121, None),
        ("unix", True, None),
        ("unix", float("inf"), None),
        ("unix", {"a": 1}, None),
        ("iso8601", "2024-05-16T09:05:21+02:00", 1715843121000),
        ("iso8601", 5, None),
        ("iso8601", "yesterday", None),
    ],
)
def test_times_are_sane_or_not_there(form: str, raw: Any, expected: int | None) -> None:
    assert time_ms(TimeFormat(form), raw) == expected


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xfe", b"[" * 100_000, b'{"n": 1', b"", b"x" * 300_000, b'"\xff"', b'{"n": NaN' + b"[" * 100_000],
)
def test_poison_is_rejected_and_counted(payload: bytes) -> None:
    mapper = Mapper([device(topic="a", points=[{"name": "n"}])])
    mapped = heard(mapper, "a", payload)
    assert mapped.samples == []
    assert len(mapped.rejected) == 1
    assert mapper.devices["dev"].rejected == 1
    assert heard(mapper, "a", {"n": 1}).samples, "the next one is read"


def test_one_reader_that_fails_does_not_take_the_others_with_it() -> None:
    mapper = Mapper([device(name="j", topic="a"), device(name="v", topic="a", format="value")])
    mapped = heard(mapper, "a", "warm")
    assert [sample.device for sample in mapped.samples] == []
    assert len(mapped.rejected) == 1
    mapped = heard(mapper, "a", "7")
    assert [sample.device for sample in mapped.samples] == ["j", "v"]


def test_what_is_no_number_is_no_number() -> None:
    mapper = Mapper([device(topic="a", points=[{"name": n} for n in "abcdef"])])
    payload = b'{"a": NaN, "b": -Infinity, "c": 123456789012345678901234567890, "d": {"x": 1}, "e": "' + b"y" * 2000
    sample = one(mapper, "a", payload + b'", "f": 18446744073709551615}')
    assert readings(sample) == {
        "a": (None, "sensor_fault"),
        "b": (None, "sensor_fault"),
        "c": (None, "decode"),
        "d": (None, "decode"),
        "e": (None, "decode"),
        "f": 18446744073709551615,
    }


def test_auto_takes_fifty_points_and_remembers_them() -> None:
    mapper = Mapper([device(topic="a")])
    wide = {f"n{i}": i for i in range(80)} | {"text": "no", "list": [1.5, {"x": True}]}
    assert len(one(mapper, "a", wide).points) == MAX_AUTO_POINTS
    later = one(mapper, "a", {"n79": 1, "n3": None, "n4": "text"})
    assert readings(later) == {"n3": (None, "sensor_fault"), "n4": "text"}
    nested = Mapper([device(topic="a")])
    assert readings(one(nested, "a", {"phases": [{"v": 1}, {"v": 2}]})) == {"phases.0.v": 1, "phases.1.v": 2}
    assert heard(nested, "a", {"phases.0.v": 5}).samples == [], "another place does not take the name of a point"


def test_two_topics_never_share_a_device_id() -> None:
    mapper = Mapper([device(name="{device}", topic="a/{device}")])
    assert one(mapper, "a/x y", {"n": 1}).device == "x_y"
    mapped = heard(mapper, "a/x_y", {"n": 2})
    assert mapped.samples == []
    assert "first one keeps it" in mapped.rejected[0]


def test_a_rule_does_not_make_devices_without_end() -> None:
    mapper = Mapper([device(name="{device}", topic="a/{device}")])
    for i in range(MAX_DEVICES):
        assert heard(mapper, f"a/d{i}", {"n": 1}).samples
    assert "more than" in heard(mapper, "a/one-more", {"n": 1}).rejected[0]
    assert heard(mapper, "a/d0", {"n": 1}).samples


def test_a_stranger_topic_matches_nothing() -> None:
    mapper = Mapper([device(topic="a")])
    assert heard(mapper, "b", "1") == Mapped([], [], [], False)
    assert mapper.map(b"\xff", b"1", False, 5, None).rejected == ["topic is not UTF-8"]


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
payloads = st.binary(max_size=60) | documents.map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(list(Format)), st.text(max_size=20), st.text(max_size=10), payloads)
def test_a_document_or_a_decode_error_and_scalars_are_never_made_up(
    form: Format, topic: str, tail: str, payload: bytes
) -> None:
    try:
        found = document(form, topic, tail, payload)
    except DecodeError:
        return
    value, status = scalar(form, found)
    assert (value is None) == (status is not Status.GOOD)
    if isinstance(value, float):
        assert math.isfinite(value)
    if isinstance(value, str):
        value.encode()


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(set(Format) - ANNOUNCED_FORMATS)),
    st.lists(
        st.tuples(
            st.sampled_from(["p/x/SENSOR", "p/y/state", "p/x/online", "p/z/events/rpc"]), payloads, st.booleans()
        ),
        max_size=6,
    ),
)
def test_no_message_ever_raises_and_every_value_is_one_of_the_payload(
    form: Format, messages: list[tuple[str, bytes, bool]]
) -> None:
    mapper = Mapper([device(name="{d}", topic="p/{d}/#", format=form.value)])
    for topic, payload, retained in messages:
        mapped = mapper.map(topic.encode(), payload, retained, 1, None)
        for sample in mapped.samples:
            assert len(sample.points) == len(set(sample.points)) == len(sample.values)
            for i, value in enumerate(sample.values):
                bad = sample.status is not None and sample.status[i].quality == "bad"
                assert (value is None) == bad
                if isinstance(value, int | float) and not isinstance(value, bool) and form is Format.JSON:
                    assert repr(value) in payload.decode() or float(value) in numbers(json.loads(payload))


def numbers(found: Any) -> set[float]:
    if isinstance(found, dict):
        return set().union(*(numbers(each) for each in found.values())) if found else set()
    if isinstance(found, list):
        return set().union(*(numbers(each) for each in found)) if found else set()
    return (
        {float(found)}
        if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e300
        else set()
    )


LAMP = {"topic": "zigbee2mqtt/lamp"}
VALVE = {"topic": "zigbee2mqtt/trv"}
BOILER = {"topic": "tele/b/STATE", "command_topic": "cmnd/b/{point}"}
PLAIN = {"topic": "p/b", "command_topic": "p/b/set"}
PUMP = {"topic": "k/+/+/state", "command_topic": "k/switch/pump/command"}
PLUG = {"topic": "shellies/p/#", "command_topic": "shellies/p/relay/0/command"}


@pytest.mark.parametrize(
    ("form", "extra", "point", "value", "expected"),
    [
        ("zigbee2mqtt", LAMP, {"name": "state"}, True, 'zigbee2mqtt/lamp/set {"state": "ON"}'),
        ("zigbee2mqtt", VALVE, {"name": "sp", "scale": 0.1}, 21.5, 'zigbee2mqtt/trv/set {"sp": 215}'),
        ("zigbee2mqtt", VALVE, {"name": "sp", "path": "set_point"}, 7, 'zigbee2mqtt/trv/set {"set_point": 7}'),
        ("tasmota", BOILER, {"name": "relay", "path": "POWER"}, False, "cmnd/b/POWER OFF"),
        ("json", PLAIN, {"name": "mode", "payload": '{"m": {json}}'}, 'a"b', 'p/b/set {"m": "a\\"b"}'),
        ("json", PLAIN, {"name": "mode", "enum": {"0": "off", "2": "heat"}}, "heat", "p/b/set 2"),
        ("json", PLAIN, {"name": "on"}, True, "p/b/set true"),
        ("value", PLAIN, {"name": "n", "payload": "set={value}"}, 3, "p/b/set set=3"),
        ("esphome", PUMP, {"name": "pump"}, True, "k/switch/pump/command ON"),
        ("shelly-gen1", PLUG, {"name": "relay"}, True, "shellies/p/relay/0/command on"),
    ],
)
def test_writes(form: str, extra: dict[str, Any], point: dict[str, Any], value: Any, expected: str) -> None:
    mapper = Mapper([device(format=form, points=[{**point, "write": {}}], **extra)])
    message = publication(mapper.devices["dev"], point["name"], value)
    assert f"{message.topic} {message.payload.decode()}" == expected


def test_only_writable_points_are_written() -> None:
    mapper = Mapper([device(topic="a", command_topic="b", points=[{"name": "n"}])])
    with pytest.raises(ValueError, match="not a writable point"):
        publication(mapper.devices["dev"], "n", 1)
