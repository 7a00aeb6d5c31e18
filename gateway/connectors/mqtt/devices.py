"""Pure: one device of a broker as far as it was heard, and what a message means for it.

A device is offline while one of the topics that speak for it says so, until it speaks itself; *cut off* while the
broker has been out of reach for too long. Its points are then `bad:device_offline`, and that is told again from time
to time. A rule (`name = "{device}"`) makes many devices of one configured one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from gateway.codec.path import Path, Step
from gateway.connectors.mqtt.config import KEYED_FORMATS, Format, MqttDevice
from gateway.connectors.mqtt.topics import Template, render
from gateway.connectors.mqtt.ttn import Frame
from gateway.errors import DecodeError
from gateway.model import DeviceState, Origin, Sample, Status, Value

MAX_AUTO_POINTS = 50
MAX_DEVICES = 2_000
"""Devices that one bus may make: a stranger's topics must not fill the memory."""
MAX_NAME = 128
"""Characters of an id that comes from a topic or payload; what is longer is no name."""
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9_.:-]+")


class Change(NamedTuple):
    """A device came or went."""

    device: str
    state: DeviceState
    why: str


class Mapped(msgspec.Struct):
    """What one message means."""

    samples: list[Sample]
    changes: list[Change]
    rejected: list[str]
    """One sentence for each device that could not read it."""
    matched: bool
    """False: no device is configured for this topic."""
    subscribe: tuple[str, ...] = ()
    """Topics that a device has announced."""
    rebirths: tuple[tuple[str, str], ...] = ()
    """Sparkplug: groups and nodes that are to be asked for a birth."""
    refused: tuple[str, ...] = ()
    """Parts of an announcement that cannot be read as they are meant."""


class Rule(NamedTuple):
    """One configured device, compiled."""

    device: MqttDevice
    points: tuple[tuple[str, Path], ...] | None
    """None: auto."""
    time: Path | None
    many: bool
    """Its name holds placeholders."""
    spread: bool
    """A payload is about several devices, or names its own."""
    each: Path | None
    """Where they are; of no step: the payload itself; None: the payload is one."""
    id: Path | None
    """What names them; None: their key."""


class Heard(msgspec.Struct, eq=False):
    """One device."""

    id: str
    rule: Rule
    captures: dict[str, str]
    down: set[str] = set()
    """Topics that say that it is offline."""
    cut: bool = False
    """The broker is out of reach for too long, and its points are bad."""
    online: bool = False
    last_ns: int = 0
    messages: int = 0
    rejected: int = 0
    frame: tuple[Frame, int] | None = None
    """The last uplink and when it came."""
    auto: dict[tuple[Step, ...], Path] = {}
    """Points that were found, under `points = "auto"`; the text of the path is the point's name."""

    @property
    def offline(self) -> bool:
        return bool(self.down)

    def point_names(self) -> tuple[str, ...]:
        if self.rule.points is None:
            return tuple([path.text for path in self.auto.values()])
        return tuple([name for name, _ in self.rule.points])

    def find(self, steps: tuple[Step, ...]) -> Path | None:
        """The point that was found there; made when it is new and makes a name that no other has."""
        path = self.auto.get(steps)
        if path is None and len(self.auto) < MAX_AUTO_POINTS:
            name = point_name(steps)
            if name and name not in self.point_names():
                path = self.auto[steps] = Path(name, steps)
        return path

    def name_of(self, key: str, value: Value | None) -> str | None:
        """The point of a value that has one key and no place: what is configured, or what it makes."""
        if self.rule.points is not None:
            return next((name for name, path in self.rule.points if path.text == key), None)
        known = self.auto.get((key,))
        if known is None and (value is None or isinstance(value, str)):
            return None
        path = known or self.find((key,))
        return path.text if path else None

    def sample(
        self,
        names: tuple[str, ...],
        values: tuple[Value | None, ...],
        status: tuple[Status, ...],
        units: tuple[str, ...] | None,
        at_ns: int,
        source_ms: int | None,
        origin: Origin | None,
    ) -> Sample:
        good = status.count(Status.GOOD) == len(status)
        said = units if units is not None and any(units) else None
        rule = self.rule.device.name if self.rule.many else ""
        return Sample(self.id, names, values, at_ns, None if good else status, rule, said, source_ms, origin)

    def bad(self, at_ns: int, origin: Origin | None = None) -> list[Sample]:
        """All its points, offline."""
        names = self.point_names()
        if not names:
            return []
        width = len(names)
        return [self.sample(names, (None,) * width, (Status.DEVICE_OFFLINE,) * width, None, at_ns, None, origin)]

    # ── comings and goings ───────────────────────────────────────────────────────────────────────────────────────────

    def back(self, into: Mapped, why: str) -> None:
        """It has spoken, or something that speaks for it says so."""
        self.cut = False
        if self.down or not self.online:
            self.down.clear()
            self.online = True
            into.changes.append(Change(self.id, DeviceState.ONLINE, why))

    def gone(self, who: str, why: str, at_ns: int, origin: Origin | None, into: Mapped) -> None:
        """Something that speaks for it says that it is offline. Told once."""
        told = bool(self.down)
        self.down.add(who)
        if not told:
            self.online = False
            into.changes.append(Change(self.id, DeviceState.OFFLINE, why))
            into.samples += self.bad(at_ns, origin)

    def rises(self, who: str, into: Mapped) -> None:
        """What said that it was offline has taken it back; others may still say so."""
        self.down.discard(who)
        if not self.down:
            self.back(into, "said so itself")


class Fleet:
    """All devices of one bus."""

    def __init__(self) -> None:
        self.heard: dict[str, Heard] = {}

    def of(self, rule: Rule, captures: dict[str, str]) -> Heard:
        """The device that these words name, made when it is new. Raises DecodeError: there can be none."""
        name = rule.device.name
        if not rule.many:
            return self.heard.get(name) or self._new(name, rule, {})
        captures = {word: level for word, level in captures.items() if f"{{{word}}}" in name}
        device = _NOT_IN_ID.sub("_", render(name, captures)).lstrip("_.:-" if name.startswith("{") else "")
        if not all(captures.values()) or not device[:1].isalnum() or len(device) > MAX_NAME:
            raise DecodeError(f"{name}: its topic or payload does not make a device id")
        known = self.heard.get(device)
        if known is None:
            return self._new(device, rule, captures)
        if known.rule is rule and known.captures == captures:
            return known
        raise DecodeError(f"{device}: two topics make this device id; the first one keeps it")

    def _new(self, device: str, rule: Rule, captures: dict[str, str]) -> Heard:
        if rule.many and len(self.heard) >= MAX_DEVICES:
            raise DecodeError(f"{rule.device.name}: more than {MAX_DEVICES} devices")
        found = self.heard[device] = Heard(device, rule, captures)
        return found

    def agreeing(self, rule: Rule, captures: dict[str, str]) -> list[Heard]:
        """The devices of a rule that these words do not contradict."""
        return [
            heard
            for heard in self.heard.values()
            if heard.rule is rule and all(heard.captures.get(word, level) == level for word, level in captures.items())
        ]


def rule_of(device: MqttDevice) -> Rule:
    form = device.format
    points = None
    if device.points != "auto":
        # a text without a name in its topic is the document itself
        bare = form is Format.VALUE and Template.of(device.topic).wild is None
        points = tuple((point.name, _path(point.path, point.name, form, bare)) for point in device.points)
    each = None if device.each is None else Path("", ()) if device.each == "*" else Path.of(device.each)
    return Rule(
        device,
        points,
        Path.of(device.timestamp.path) if device.timestamp else None,
        "{" in device.name,
        device.each is not None or device.id is not None,
        each,
        Path.of(device.id) if device.id else None,
    )


def _path(text: str | None, name: str, form: Format, bare: bool) -> Path:
    if bare and not text:
        return Path("", ())
    text = text or name
    # keys of these formats are topics or names: a dot in them separates nothing
    return Path(text, (text,)) if form in KEYED_FORMATS else Path.of(text)


def point_name(steps: tuple[Step, ...]) -> str:
    """`phases[1].v` becomes `phases.1.v`, `relay/0/power` becomes `relay.0.power`; empty when it makes no name."""
    text = ".".join(str(step) for step in steps).replace("/", ".") if steps else "value"
    return _NOT_IN_ID.sub("_", text).lstrip("_.:-") if len(text) <= MAX_NAME else ""
