"""Pure: from messages to samples.

A `Mapper` knows the configured devices and what it has heard of them. One message gives one sample for each device it
belongs to; it holds the points that the payload holds, no others: a partial frame is no reason to repeat or to forget
the rest. Nothing is made up: what cannot be read is bad, with a reason, or rejected as a whole.

Retained messages are true, once: `uncertain:retained`, unless the payload carries the time at which it was true. After
a last will the device's points are `bad:device_offline` until it speaks again; the broker's stored copies of an absent
device are not news.

Conventions whose devices announce themselves are in rooms of their own: `edges.py` (Sparkplug B), `announced.py` (Home
Assistant). The mapper outlives connections: what was announced, found and said stays known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gateway.codec.path import ABSENT, Path, leaves
from gateway.connectors.mqtt import ttn
from gateway.connectors.mqtt.announced import Announced
from gateway.connectors.mqtt.config import Format, MqttDevice, TimeFormat, subscribed
from gateway.connectors.mqtt.devices import MAX_AUTO_POINTS, Change, Fleet, Heard, Mapped, Rule, rule_of
from gateway.connectors.mqtt.edges import PREFIX, Edges
from gateway.connectors.mqtt.formats import alive, availability, document, is_reading, scalar, time_ms, unit
from gateway.connectors.mqtt.topics import Template, Topics, covers, placeholders, reduced
from gateway.connectors.mqtt.writing import Publication, publication
from gateway.errors import DecodeError
from gateway.model import DeviceState, Json, Origin, Sample, Status, Value

_MAX_ROUTES = 4_096
"""Topics whose devices are remembered; forgotten all at once when there are more."""
_MAX_CACHED_TOPIC = 512


class _Target(NamedTuple):
    """What a template leads to."""

    rule: Rule
    will: bool
    own: bool = True
    """A will that speaks for this device alone: `online` is then a sign of its life."""


class _Route(NamedTuple):
    """What one topic means for one rule."""

    rule: Rule
    heard: Heard | None
    """None: the payload says which device, or the topic speaks for several."""
    captures: dict[str, str]
    will: bool
    topic: str
    tail: str
    own: bool


class Mapper:
    """All devices of one bus."""

    def __init__(self, devices: Sequence[MqttDevice]) -> None:
        self._fleet = Fleet()
        self._topics: Topics[_Target] = Topics()
        self._routes: dict[bytes, tuple[tuple[_Route, ...], str]] = {}
        self._edges = Edges(self._fleet)
        self._announced = Announced(self._fleet)
        filters: list[str] = []
        for device in devices:
            rule = rule_of(device)
            filters.append(subscribed(device))
            if not rule.many:
                self._fleet.of(rule, {})
            if device.format is Format.SPARKPLUG:
                self._edges.add(rule)
            elif device.format is Format.HOMEASSISTANT:
                self._announced.add(rule)
            else:
                self._topics.add(Template.of(device.topic), _Target(rule, False))
                wills = device.wills
                named = availability(device.format, device.topic) if wills is None else wills
                for number, will in enumerate(named):
                    template = Template.of(will)
                    self._topics.add(template, _Target(rule, True, own=number == 0))
                    filters.append(template.filter)
        self._configured = reduced(filters)
        self._wide = tuple(each for each in self._configured if "+" in each or "#" in each)

    @property
    def devices(self) -> dict[str, Heard]:
        return self._fleet.heard

    @property
    def filters(self) -> tuple[str, ...]:
        """What is to be subscribed: what the configuration names, and what devices have announced."""
        return (*self._configured, *self.uncovered(self._announced.topics))

    def uncovered(self, topics: Iterable[str]) -> list[str]:
        """Those that no configured filter takes already: a broker delivers once for each subscription that fits."""
        exact = set(self._configured)
        return [each for each in topics if each not in exact and not any(covers(wide, each) for wide in self._wide)]

    def map(self, topic: bytes, payload: bytes, retained: bool, at_ns: int, origin: Origin | None) -> Mapped:
        """One message. Never raises: what makes no sense is in `rejected`."""
        routes, trouble = self._routes.get(topic) or self._resolve(topic)
        mapped = Mapped([], [], [trouble] if trouble else [], bool(routes) or bool(trouble))
        for route in routes:
            heard = route.heard
            if heard is not None:
                heard.messages += 1
            try:
                if route.will:
                    self._will(route, payload, at_ns, origin, mapped)
                elif heard is None:
                    self._spread(route, payload, retained, at_ns, origin, mapped)
                elif not (retained and heard.down):
                    _reading(heard, route, payload, retained, at_ns, origin, mapped)
            except DecodeError as error:
                _reject(heard, route.rule, error, mapped)
            else:
                if heard is not None:
                    heard.last_ns = at_ns
        if self._edges and topic.startswith(PREFIX):
            self._edges.map(topic, payload, retained, at_ns, origin, mapped)
        if self._announced:
            self._announced.map(topic, payload, retained, at_ns, origin, mapped)
        return mapped

    def tick(self, at_ns: int) -> list[Sample]:
        """What is bad and goes on being so, and what nobody has spoken of for too long."""
        samples = [each for heard in self.devices.values() if heard.down or heard.cut for each in heard.bad(at_ns)]
        return samples + self._announced.tick(at_ns)

    def cut_off(self, at_ns: int) -> Mapped:
        """The broker has been out of reach for too long: every point is bad until it is heard again."""
        mapped = Mapped([], [], [], True)
        for heard in self.devices.values():
            if not heard.cut and not heard.down:
                mapped.changes.append(Change(heard.id, DeviceState.OFFLINE, "the broker is out of reach"))
            heard.cut, heard.online = True, False
            mapped.samples += heard.bad(at_ns)
        return mapped

    def reachable(self) -> list[Change]:
        """The broker is back; what was cut off waits for its first word."""
        return [
            Change(heard.id, DeviceState.WAITING, "the broker is back; nothing heard yet")
            for heard in self.devices.values()
            if heard.cut and not heard.down
        ]

    def publication(self, heard: Heard, point: str, value: Value, utc_ms: int) -> Publication:
        """The message that writes one point. Raises ValueError with the reason when there is none."""
        form = heard.rule.device.format
        if form is Format.SPARKPLUG:
            return self._edges.publication(heard, point, value, utc_ms)
        if form is Format.HOMEASSISTANT:
            return self._announced.publication(heard, point, value)
        return publication(heard, point, value)

    # ── which devices a topic belongs to ─────────────────────────────────────────────────────────────────────────────

    def _resolve(self, raw: bytes) -> tuple[tuple[_Route, ...], str]:
        try:
            topic = raw.decode()
        except UnicodeDecodeError:
            return (), "topic is not UTF-8"
        routes: list[_Route] = []
        trouble = ""
        seen: set[tuple[int, bool]] = set()
        for match in self._topics.match(topic):
            rule, will, own = match.value
            heard = None
            if not (self._for_several(rule, match.captures) if will else rule.spread):
                try:
                    heard = self._fleet.of(rule, match.captures)
                except DecodeError as error:
                    trouble = str(error)
                    continue
            key = (id(heard or rule), will)
            if key not in seen:
                seen.add(key)
                routes.append(_Route(rule, heard, match.captures, will, topic, match.tail, own and heard is not None))
        # an availability topic that a wide filter also takes for readings is availability
        wills = {id(route.rule) for route in routes if route.will}
        resolved = tuple(route for route in routes if route.will or id(route.rule) not in wills), trouble
        if len(raw) <= _MAX_CACHED_TOPIC:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[raw] = resolved
        return resolved

    @staticmethod
    def _for_several(rule: Rule, captures: dict[str, str]) -> bool:
        """A topic of availability that does not say which of the rule's devices: that of a bridge."""
        return rule.many and any(word not in captures for word in placeholders(rule.device.name))

    # ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _will(self, route: _Route, payload: bytes, at_ns: int, origin: Origin | None, into: Mapped) -> None:
        if not payload:
            return  # the retained will was deleted
        living = alive(payload)
        some = [route.heard] if route.heard is not None else self._fleet.agreeing(route.rule, route.captures)
        for heard in some:
            if not living:
                heard.gone(route.topic, "its last will says so", at_ns, origin, into)
            elif route.own or route.topic in heard.down:
                heard.rises(route.topic, into)

    def _spread(
        self, route: _Route, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped
    ) -> None:
        """One payload about many devices, each by itself: one that makes no sense does not take the others with it."""
        if retained and not payload:
            return
        rule = route.rule
        whole = document(rule.device.format, route.topic, route.tail, payload)
        for name, entry in _entries(rule, whole):
            heard = None
            try:
                if name is None:
                    raise DecodeError("an entry without an id")
                heard = self._fleet.of(rule, {**route.captures, "id": name})
                heard.messages += 1
                if not (retained and heard.down):
                    _document(heard, entry, whole, retained, at_ns, origin, into)
            except DecodeError as error:
                _reject(heard, rule, error, into)
            else:
                heard.last_ns = at_ns


def _reject(heard: Heard | None, rule: Rule, error: DecodeError, into: Mapped) -> None:
    if heard is not None:
        heard.rejected += 1
    text = str(error)
    who = heard.id if heard is not None else rule.device.name
    into.rejected.append(text if text.startswith(f"{who}:") else f"{who}: {text}")


def _entries(rule: Rule, whole: Json) -> Iterator[tuple[str | None, Json]]:
    """What names a device and what is said of it; None: nothing names it."""
    if whole is ABSENT:
        return
    place = whole if rule.each is None else rule.each.find(whole)
    if place is ABSENT:
        return
    if isinstance(place, list):
        listed: list[tuple[str | None, Json]] = [(None, entry) for entry in place]
    elif rule.each is None:
        listed = [(None, place)]
    elif isinstance(place, dict):
        listed = list(place.items())
    else:
        raise DecodeError("`each` leads to neither a list nor an object")
    for key, entry in listed:
        found = key if rule.id is None else rule.id.find(entry)
        plain = isinstance(found, str | int) and not isinstance(found, bool)
        yield (str(found) if plain else None), entry


def _reading(
    heard: Heard, route: _Route, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped
) -> None:
    if retained and not payload:
        return
    form = route.rule.device.format
    if form is Format.TTN:
        _uplink(heard, route.topic, payload, retained, at_ns, origin, into)
        return
    found = document(form, route.topic, route.tail, payload)
    if found is not ABSENT:
        _document(heard, found, found, retained, at_ns, origin, into)


def _uplink(
    heard: Heard, topic: str, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped
) -> None:
    said = ttn.uplink(topic, payload)
    if said is None:
        return
    last, heard.frame = heard.frame, (said.frame, at_ns)
    if last is not None and last[0] == said.frame and at_ns - last[1] < ttn.REPEAT_NS:
        return
    received_ms = time_ms(TimeFormat.ISO8601, said.received)
    doubt = Status.SUBSTITUTED if said.simulated else Status.GOOD
    _document(heard, said.found, said.found, retained, at_ns, origin, into, received_ms, doubt)


def _document(
    heard: Heard,
    found: Json,
    whole: Json,
    retained: bool,
    at_ns: int,
    origin: Origin | None,
    into: Mapped,
    received_ms: int | None = None,
    doubt: Status = Status.GOOD,
) -> None:
    """What a document says of a device; `whole` is the payload that it was found in. `received_ms`: its time, where it
    says none itself; `doubt`: what is to be said of good values."""
    rule = heard.rule
    form = rule.device.format
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
        heard.back(into, "a message")
    if not names:
        return
    heard.cut = False
    source_ms = _source_ms(rule, found, whole)
    if source_ms is None:
        source_ms = received_ms
    if retained and source_ms is None:
        doubt = Status.RETAINED
    if doubt is not Status.GOOD:
        status = [doubt if each is Status.GOOD else each for each in status]
    into.samples.append(
        heard.sample(tuple(names), tuple(values), tuple(status), tuple(units), at_ns, source_ms, origin)
    )


def _source_ms(rule: Rule, found: Json, whole: Json) -> int | None:
    if rule.time is None or rule.device.timestamp is None:
        return None
    raw = rule.time.find(found)
    if raw is ABSENT and whole is not found:
        raw = rule.time.find(whole)
    return None if raw is ABSENT else time_ms(rule.device.timestamp.format, raw)


def _discover(heard: Heard, found: Json) -> list[tuple[str, Path]]:
    """The points of a document: numbers and switches that are new, and everything that was one before."""
    rule = heard.rule
    form = rule.device.format
    places: list[tuple[str, Path]] = []
    not_points = [path.steps for path in (rule.time, rule.id) if path is not None]
    for steps, raw in leaves(found):
        path = heard.auto.get(steps)
        if path is None:
            if len(heard.auto) >= MAX_AUTO_POINTS or steps in not_points or not is_reading(form, steps):
                continue
            value, _ = scalar(form, raw)
            if value is None or isinstance(value, str):
                continue
            path = heard.find(steps)
            if path is None:
                continue
        places.append((path.text, path))
    return places
