"""Pure: what talks on a broker. Messages in, devices and their points out, and the configuration that reads them.

Conventions are recognised by their topics; what belongs to none is a device per topic, JSON or a bare value. Points
are those that `points = "auto"` would take.

What Home Assistant's discovery announces is one rule for all of it, and only where the topics that it names belong to
no convention that is read by itself: who finds a device in two ways needs one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from gateway.codec.document import decode_json
from gateway.codec.path import text_of
from gateway.connectors.mqtt.config import KEYED_FORMATS, Format, MqttDevice
from gateway.connectors.mqtt.formats import unit
from gateway.connectors.mqtt.homeassistant import component_at
from gateway.connectors.mqtt.mapping import Mapper
from gateway.errors import DecodeError
from gateway.model import Value

MAX_FOUND = 500
_ESPHOME = frozenset(
    ("sensor", "binary_sensor", "switch", "light", "number", "text_sensor", "climate", "cover", "fan", "lock", "select")
)
_KEPT_PAYLOAD = 4_096
_MEANS_MORE = frozenset("{}+#\0")
"""Characters that say something else in a configured topic than in a published one."""
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_.:-]+")


class FoundPoint(NamedTuple):
    """One value of a device."""

    name: str
    path: str
    """Empty: the whole payload."""
    unit: str
    last: Value | None
    heard: int
    """How often."""


class Found(NamedTuple):
    """One device."""

    name: str
    format: Format
    topic: str
    messages: int
    rate_hz: float
    points: tuple[FoundPoint, ...]


class _Device:
    def __init__(self, name: str, form: Format, topic: str) -> None:
        config = MqttDevice(name=name, bus="", topic=topic, format=form)
        self.payload = b""
        """The last one, where an announcement may come later."""
        self.name = name
        self.format = form
        self.topic = topic
        self.mapper = Mapper([config])
        self.messages = 0
        self.last: dict[str, tuple[Value | None, str, int]] = {}

    def hear(self, topic: bytes, payload: bytes) -> tuple[str, ...]:
        """One message; returns topics that it has announced."""
        mapped = self.mapper.map(topic, payload, False, 0, None)
        self.messages += mapped.matched
        for sample in mapped.samples:
            units = sample.units or ("",) * len(sample.points)
            for name, value, said in zip(sample.points, sample.values, units, strict=True):
                key = f"{sample.device} {name}" if "{" in self.name else name
                count = self.last[key][2] if key in self.last else 0
                if key in self.last or len(self.last) < MAX_FOUND:
                    self.last[key] = value, said, count + 1
        return mapped.subscribe


class Survey:
    """Listens to everything for a while."""

    def __init__(self) -> None:
        self._devices: dict[tuple[Format, str], _Device] = {}
        self._names: set[str] = set()
        self._bridges: set[str] = {"zigbee2mqtt"}
        self._announced: set[str] = set()
        """Topics that Home Assistant's discovery names."""
        self._homes: list[_Device] = []
        self._nodes: dict[str, list[_Device]] = {}
        """Sparkplug: group and node → its devices, for a node's messages are numbered together."""
        self.messages = 0
        self.left_off = 0
        """Messages of devices beyond the first five hundred."""

    def hear(self, topic: bytes, payload: bytes) -> None:
        """One message. Never raises."""
        self.messages += 1
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            return
        if not text or _MEANS_MORE & set(text):
            return
        base, bridge, _ = text.partition("/bridge/")
        if bridge and "/" not in base:
            self._bridges.add(base)
        key = recognised(text, payload, self._bridges)
        if key is None:
            return
        form = key[0]
        if form in (Format.JSON, Format.VALUE) and text in self._announced:
            for home in self._homes:
                home.hear(topic, payload)
            return
        device = self._device(key)
        if device is None:
            self.left_off += 1
        elif form is Format.HOMEASSISTANT:
            self._announce(device, topic, payload)
        elif form is Format.SPARKPLUG:
            for each in self._nodes[_node(text)]:
                each.hear(topic, payload)
        else:
            device.hear(topic, payload)
            device.payload = payload[:_KEPT_PAYLOAD] if form in (Format.JSON, Format.VALUE) else b""

    def _device(self, key: tuple[Format, str]) -> _Device | None:
        device = self._devices.get(key)
        if device is None and len(self._devices) < MAX_FOUND:
            device = self._devices[key] = _Device(self._name(*key), *key)
            if key[0] is Format.HOMEASSISTANT:
                self._homes.append(device)
            elif key[0] is Format.SPARKPLUG:
                self._nodes.setdefault(_node(key[1]), []).append(device)
        return device

    def _announce(self, home: _Device, topic: bytes, payload: bytes) -> None:
        """What was heard before its announcement is heard again as what it is."""
        for each in home.hear(topic, payload):
            self._announced.add(each)
            for form in (Format.JSON, Format.VALUE):
                known = self._devices.pop((form, each), None)
                if known is not None:
                    self._names.discard(known.name)
                    home.hear(each.encode(), known.payload)

    def found(self, seconds: float) -> list[Found]:
        """Devices by name, those without a point left out."""
        some = [each for each in self._devices.values() if each.last or each.format is Format.SPARKPLUG]
        return sorted(_found(device, seconds) for device in some)

    def _name(self, form: Format, topic: str) -> str:
        """An id that the configuration accepts and no other device has."""
        if form is Format.HOMEASSISTANT:
            return "{id}" if not self._homes else f"{{id}}-{len(self._homes) + 1}"
        levels = [level for level in topic.split("/") if level not in ("+", "#", "tele", "stat", "shellies")]
        if form is Format.TTN:
            levels = levels[3:4]
        elif form is Format.SPARKPLUG:
            levels = levels[2:]
        elif form in (Format.TASMOTA, Format.SHELLY, Format.SHELLY_GEN1, Format.ESPHOME):
            levels = levels[:1]
        elif form is Format.ZIGBEE2MQTT:
            levels = levels[1:]
        stem = _NOT_IN_NAME.sub("_", ".".join(levels)).strip("_.:-") or "device"
        name, number = stem, 2
        while name in self._names:
            name, number = f"{stem}-{number}", number + 1
        self._names.add(name)
        return name


def recognised(topic: str, payload: bytes, bridges: set[str]) -> tuple[Format, str] | None:
    """The convention and the topic by which a device is configured; None for what is no reading."""
    levels = topic.split("/")
    if levels[0].startswith("$"):
        return None
    if levels[-1] == "config" and payload[:1] in (b"", b"{") and 0 < component_at(levels) < len(levels) - 2:
        return Format.HOMEASSISTANT, "/".join([*levels[: component_at(levels)], "#"])
    if levels[0] == "spBv1.0":
        reports = len(levels) in (4, 5) and levels[2][:1] in ("N", "D") and not levels[2].endswith("CMD")
        return (Format.SPARKPLUG, "/".join([*levels[:2], "+", *levels[3:]])) if reports else None
    if levels[0] == "v3" and len(levels) > 4 and levels[2] == "devices":
        return (Format.TTN, topic) if levels[4:] == ["up"] else None
    if levels[0] in bridges and len(levels) > 1:
        own = levels[1] == "bridge" or levels[-1] in ("set", "get", "availability")
        return None if own else (Format.ZIGBEE2MQTT, topic)
    if len(levels) == 3 and levels[0] == "tele" and levels[2] in ("SENSOR", "STATE", "LWT"):
        return Format.TASMOTA, f"tele/{levels[1]}/+"
    if len(levels) == 3 and levels[1] == "tele" and levels[2] in ("SENSOR", "STATE", "LWT"):
        return Format.TASMOTA, f"{levels[0]}/tele/+"
    if len(levels) == 3 and levels[0] in ("stat", "cmnd") and levels[2].isupper():
        return None  # tasmota says the same in its telemetry
    if len(levels) > 2 and levels[0] == "shellies":
        return Format.SHELLY_GEN1, f"shellies/{levels[1]}/#"
    if levels[-2:] == ["events", "rpc"]:
        return Format.SHELLY, topic
    if len(levels) == 3 and levels[1] == "status" and ":" in levels[2]:
        return Format.SHELLY, f"{levels[0]}/status/+"
    if len(levels) > 3 and levels[-1] == "state" and levels[-3] in _ESPHOME:
        return Format.ESPHOME, "/".join([*levels[:-3], "+", "+", "state"])
    try:
        document = decode_json(payload)
    except DecodeError:
        document = None
    return Format.JSON if isinstance(document, dict | list) else Format.VALUE, topic


def _node(topic: str) -> str:
    levels = topic.split("/")
    return f"{levels[1]}/{levels[3]}"


def _found(device: _Device, seconds: float) -> Found:
    rate = device.messages / seconds if seconds > 0 else 0.0
    points = []
    if device.format is Format.HOMEASSISTANT:
        points = [FoundPoint(key, "", said, value, count) for key, (value, said, count) in device.last.items()]
        return Found(device.name, device.format, device.topic, device.messages, rate, tuple(points))
    (heard,) = device.mapper.devices.values()
    for steps, place in heard.auto.items():
        value, said, count = device.last[place.text]
        if place.text not in device.last:
            continue
        path = str(steps[0]) if device.format in KEYED_FORMATS and steps else text_of(steps)
        points.append(FoundPoint(place.text, path, said or unit(device.format, steps, {}), value, count))
    return Found(device.name, device.format, device.topic, device.messages, rate, tuple(points))


def configuration(found: list[Found], bus: str) -> str:
    """TOML to paste below a `[[bus]]` of this name."""
    blocks = []
    for device in found:
        lines = [
            f"[[device]]  # {device.messages} messages, {device.rate_hz:.3g} per second",
            f"name = {_quoted(device.name)}",
            f"bus = {_quoted(bus)}",
            f"format = {_quoted(device.format.value)}",
            f"topic = {_quoted(device.topic)}",
        ]
        if device.format is Format.HOMEASSISTANT or not device.points:
            lines.append('points = "auto"')
            lines += [f"# {_quoted(each.name)[1:-1]} = {_quoted(each.last)[:60]}" for each in device.points]
            blocks.append("\n".join(lines))
            continue
        lines.append("points = [")
        for point in device.points:
            keys = [f"name = {_quoted(point.name)}"]
            if point.path not in ("", point.name):
                keys.append(f"path = {_quoted(point.path)}")
            if point.unit:
                keys.append(f"unit = {_quoted(point.unit)}")
            # no line break in it, so the comment stays a comment
            lines.append(f"  {{ {', '.join(keys)} }},  # {_quoted(point.last)[:60]}")
        blocks.append("\n".join([*lines, "]"]))
    return "\n\n".join(blocks) + ("\n" if blocks else "")


def _quoted(value: Value | None) -> str:
    """A TOML value: JSON's escapes are TOML's, and TOML wants DEL escaped too."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
