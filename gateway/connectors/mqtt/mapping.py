"""Pure: from messages to samples.

A `Mapper` knows the configured devices and what it has heard of them. One message gives one sample for each device it
belongs to; it holds the points that the payload holds, no others: a partial frame is no reason to repeat or to forget
the rest. Nothing is made up: what cannot be read is bad, with a reason, or rejected as a whole.

Retained messages are true, once: `uncertain:retained`, unless the payload carries the time at which it was true. After
a last will the device's points are `bad:device_offline`, once, until it speaks again; the broker's stored copies of an
absent device are not news.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from gateway.codec.path import ABSENT, Path, Step, leaves
from gateway.connectors.mqtt.config import Format, MqttDevice
from gateway.connectors.mqtt.formats import (
    TEXT_FORMATS,
    alive,
    availability,
    document,
    is_reading,
    scalar,
    time_ms,
    unit,
)
from gateway.connectors.mqtt.topics import Template, Topics, reduced, render
from gateway.errors import DecodeError
from gateway.model import DeviceState, Json, Origin, Sample, Status, Value

MAX_AUTO_POINTS = 50
MAX_DEVICES = 2_000
"""Devices that one rule may make: a stranger's topics must not fill the memory."""
_MAX_ROUTES = 4_096
"""Topics whose devices are remembered; forgotten all at once when there are more."""
_MAX_NAME = 128
"""Characters of an id that comes from a topic or payload; what is longer is no name."""
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_.:-]+")


class Change(NamedTuple):
    """A device came or went."""

    device: str
    state: DeviceState
    why: str


class Mapped(NamedTuple):
    """What one message means."""

    samples: list[Sample]
    changes: list[Change]
    rejected: list[str]
    """One sentence for each device that could not read it."""
    matched: bool
    """False: no device is configured for this topic."""


class _Rule(NamedTuple):
    """One configured device, compiled."""

    device: MqttDevice
    points: tuple[tuple[str, Path], ...] | None
    """None: auto."""
    time: Path | None
    many: bool
    """Its name holds placeholders."""


class Heard(msgspec.Struct):
    """One device as far as it was heard."""

    id: str
    rule: _Rule
    captures: dict[str, str]
    offline: bool = False
    online: bool = False
    last_ns: int = 0
    messages: int = 0
    rejected: int = 0
    auto: dict[tuple[Step, ...], Path] = {}
    """Points that were found, under `points = "auto"`; the text of the path is the point's name."""

    def point_names(self) -> tuple[str, ...]:
        if self.rule.points is None:
            return tuple(path.text for path in self.auto.values())
        return tuple(name for name, _ in self.rule.points)


class _Target(NamedTuple):
    """What a template leads to."""

    rule: _Rule
    will: bool


class _Route(NamedTuple):
    """What one topic means for one device."""

    heard: Heard
    will: bool
    topic: str
    tail: str


class Mapper:
    """All devices of one bus."""

    def __init__(self, devices: Sequence[MqttDevice]) -> None:
        self.devices: dict[str, Heard] = {}
        self._topics: Topics[_Target] = Topics()
        self._routes: dict[bytes, tuple[tuple[_Route, ...], str]] = {}
        self._rules: list[_Rule] = []
        filters: list[str] = []
        for device in devices:
            rule = _rule(device)
            self._rules.append(rule)
            template = Template.of(device.topic)
            self._topics.add(template, _Target(rule, False))
            filters.append(template.filter)
            will = availability(device.format, device.topic) if device.availability is None else device.availability
            if will:
                template = Template.of(will)
                self._topics.add(template, _Target(rule, True))
                filters.append(template.filter)
            if not rule.many:
                self.devices[device.name] = Heard(device.name, rule, {})
        self.filters = reduced(filters)
        """What is to be subscribed."""

    def map(self, topic: bytes, payload: bytes, retained: bool, at_ns: int, origin: Origin | None) -> Mapped:
        """One message. Never raises: what makes no sense is in `rejected`."""
        routes, trouble = self._routes.get(topic) or self._resolve(topic)
        mapped = Mapped([], [], [trouble] if trouble else [], bool(routes) or bool(trouble))
        for route in routes:
            heard = route.heard
            heard.messages += 1
            try:
                if route.will:
                    _availability(heard, payload, at_ns, origin, mapped)
                elif not (retained and heard.offline):
                    _reading(route, payload, retained, at_ns, origin, mapped)
            except DecodeError as error:
                heard.rejected += 1
                mapped.rejected.append(f"{heard.id}: {error}")
            else:
                heard.last_ns = at_ns
        return mapped

    def _resolve(self, raw: bytes) -> tuple[tuple[_Route, ...], str]:
        try:
            topic = raw.decode()
        except UnicodeDecodeError:
            return (), "topic is not UTF-8"
        routes, trouble = [], ""
        seen: set[tuple[str, bool]] = set()
        for match in self._topics.match(topic):
            heard = self._heard(match.value.rule, match.captures)
            if isinstance(heard, str):
                trouble = heard
            elif (heard.id, match.value.will) not in seen:
                seen.add((heard.id, match.value.will))
                routes.append(_Route(heard, match.value.will, topic, match.tail))
        # an availability topic that a wide filter also takes for readings is availability
        wills = {route.heard.id for route in routes if route.will}
        resolved = tuple(route for route in routes if route.will or route.heard.id not in wills), trouble
        if len(raw) <= _MAX_NAME * 4:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[raw] = resolved
        return resolved

    def _heard(self, rule: _Rule, captures: dict[str, str]) -> Heard | str:
        """The device that these levels name, made when it is new; or why there can be none."""
        if not rule.many:
            return self.devices[rule.device.name]
        captures = {name: level for name, level in captures.items() if f"{{{name}}}" in rule.device.name}
        device = _NOT_IN_ID.sub("_", render(rule.device.name, captures))
        if not all(captures.values()) or not device[0].isalnum() or len(device) > _MAX_NAME:
            return f"{rule.device.name}: its topic does not make a device id"
        known = self.devices.get(device)
        if known is not None:
            if known.rule is rule and known.captures == captures:
                return known
            return f"{device}: two topics make this device id; the first one keeps it"
        if len(self.devices) >= MAX_DEVICES:
            return f"{rule.device.name}: more than {MAX_DEVICES} devices"
        self.devices[device] = Heard(device, rule, captures)
        return self.devices[device]


def _rule(device: MqttDevice) -> _Rule:
    points = None
    if device.points != "auto":
        template = Template.of(device.topic)
        # a text without a name in its topic is the document itself
        bare = device.format is Format.VALUE and template.wild is None
        points = tuple((point.name, _path(point.path, point.name, device.format, bare)) for point in device.points)
    time = Path.of(device.timestamp.path) if device.timestamp else None
    return _Rule(device, points, time, "{" in device.name)


def _path(text: str | None, name: str, form: Format, bare: bool) -> Path:
    if bare and not text:
        return Path("", ())
    text = text or name
    # keys of text formats are topics: a dot in them separates nothing
    return Path(text, (text,)) if form in TEXT_FORMATS else Path.of(text)


def _availability(heard: Heard, payload: bytes, at_ns: int, origin: Origin | None, into: Mapped) -> None:
    if not payload:
        return  # the retained will was deleted
    if alive(payload):
        _back(heard, into, "said so itself")
        return
    if heard.offline:
        return
    heard.offline, heard.online = True, False
    into.changes.append(Change(heard.id, DeviceState.OFFLINE, "its last will says so"))
    names = heard.point_names()
    if names:
        bad = (Status.DEVICE_OFFLINE,) * len(names)
        into.samples.append(_sample(heard, names, (None,) * len(names), bad, None, at_ns, None, origin))


def _back(heard: Heard, into: Mapped, why: str) -> None:
    if heard.offline or not heard.online:
        heard.offline, heard.online = False, True
        into.changes.append(Change(heard.id, DeviceState.ONLINE, why))


def _reading(route: _Route, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped) -> None:
    if retained and not payload:
        return
    heard = route.heard
    rule = heard.rule
    form = rule.device.format
    found = document(form, route.topic, route.tail, payload)
    if found is ABSENT:
        return
    places = _discover(heard, found) if rule.points is None else rule.points
    names: list[str] = []
    values: list[Value | None] = []
    status: list[Status] = []
    units: list[str] = []
    for name, path in places:
        raw = path.find(found)
        if raw is not ABSENT:
            value, quality = scalar(form, raw)
            names.append(name)
            values.append(value)
            status.append(quality)
            units.append(unit(form, path.steps, found))
    if not retained:
        _back(heard, into, "a message")
    if not names:
        return
    source_ms = _source_ms(rule, found)
    if retained and source_ms is None:
        status = [Status.RETAINED if each is Status.GOOD else each for each in status]
    all_good = status.count(Status.GOOD) == len(status)
    said = tuple(units) if any(units) else None
    into.samples.append(
        _sample(heard, tuple(names), tuple(values), None if all_good else tuple(status), said, at_ns, source_ms, origin)
    )


def _source_ms(rule: _Rule, found: Json) -> int | None:
    if rule.time is None or rule.device.timestamp is None:
        return None
    raw = rule.time.find(found)
    return None if raw is ABSENT else time_ms(rule.device.timestamp.format, raw)


def _discover(heard: Heard, found: Json) -> list[tuple[str, Path]]:
    """The points of a document: numbers and switches that are new, and everything that was one before."""
    rule = heard.rule
    form = rule.device.format
    places: list[tuple[str, Path]] = []
    time = None if rule.time is None else rule.time.steps
    for steps, raw in leaves(found):
        path = heard.auto.get(steps)
        if path is None:
            if len(heard.auto) >= MAX_AUTO_POINTS or steps == time or not is_reading(form, steps):
                continue
            value, _ = scalar(form, raw)
            name = _point_name(steps)
            if value is None or isinstance(value, str) or not name or name in heard.point_names():
                continue
            path = heard.auto[steps] = Path(name, steps)
        places.append((path.text, path))
    return places


def _point_name(steps: tuple[Step, ...]) -> str:
    """`phases[1].v` becomes `phases.1.v`, `relay/0/power` becomes `relay.0.power`; empty when it makes no name."""
    text = ".".join(str(step) for step in steps).replace("/", ".") if steps else "value"
    return _NOT_IN_ID.sub("_", text).lstrip("_.:-") if len(text) <= _MAX_NAME else ""


def _sample(
    heard: Heard,
    names: tuple[str, ...],
    values: tuple[Value | None, ...],
    status: tuple[Status, ...] | None,
    units: tuple[str, ...] | None,
    at_ns: int,
    source_ms: int | None,
    origin: Origin | None,
) -> Sample:
    rule = heard.rule.device.name if heard.rule.many else ""
    return Sample(heard.id, names, values, at_ns, status, rule, units, source_ms, origin)


# --- the other way


class Publication(NamedTuple):
    """What a write publishes."""

    topic: str
    payload: bytes
    retain: bool


_SWITCH_WORDS: Mapping[Format, tuple[str, str]] = {
    Format.ZIGBEE2MQTT: ("OFF", "ON"),
    Format.TASMOTA: ("OFF", "ON"),
    Format.ESPHOME: ("OFF", "ON"),
    Format.SHELLY: ("off", "on"),
    Format.SHELLY_GEN1: ("off", "on"),
}


def publication(heard: Heard, point_name: str, value: Value) -> Publication:
    """The message that writes one point. Raises ValueError with the reason when there is none."""
    device = heard.rule.device
    point = next((each for each in device.points if not isinstance(each, str) and each.name == point_name), None)
    if point is None or point.write is None:
        raise ValueError(f"{heard.id}.{point_name} is not a writable point")
    path = point.path or point.name
    topic = point.command_topic or device.command_topic
    payload = point.payload or device.payload
    if topic is None and device.format is Format.ZIGBEE2MQTT:
        topic = f"{device.topic}/set"
        payload = payload or f"{{{msgspec.json.encode(path).decode()}: {{json}}}}"
    if topic is None:
        raise ValueError(f"{heard.id}.{point_name} has no command_topic")
    raw = point.raw_of(value)
    words = _SWITCH_WORDS.get(device.format, ("false", "true"))
    if isinstance(raw, bool) and device.format in _SWITCH_WORDS:
        plain, quoted = words[raw], msgspec.json.encode(words[raw]).decode()
    else:
        quoted = msgspec.json.encode(raw).decode()
        plain = raw if isinstance(raw, str) else quoted
    text = payload or ("{value}" if device.format is not Format.JSON else "{json}")
    body = re.sub(r"\{(value|json)\}", lambda match: plain if match[1] == "value" else quoted, text)
    topic = render(topic, {**heard.captures, "point": path})
    Template.of(topic)
    if "+" in topic or "#" in topic or "{" in topic:
        raise ValueError(f"{topic!r} is no topic to publish to")
    return Publication(topic, body.encode(), device.retain)
