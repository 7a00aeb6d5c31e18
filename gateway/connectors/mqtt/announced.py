"""Pure: from what Home Assistant's discovery announces to the samples of configured devices.

Values that one message holds for one device are one sample. Availability is a matter of each entity: its point is
`bad:device_offline`, and the device is offline when all entities are that say anything about it. `expire_after` of an
announcement makes a point `bad:stale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gateway.connectors.mqtt.config import Format
from gateway.connectors.mqtt.devices import Change, Fleet, Heard, Mapped, Rule
from gateway.connectors.mqtt.homeassistant import Discovery, Entity, component_at
from gateway.connectors.mqtt.topics import Template, Topics, placeholders
from gateway.connectors.mqtt.writing import Publication, told
from gateway.errors import DecodeError
from gateway.model import DeviceState, Origin, Sample, Status, Value

_MAX_PAYLOAD = 262_144


class _Home(NamedTuple):
    rule: Rule
    discovery: Discovery
    topics: Topics[bool]
    """What of the prefix this rule is about."""


class Announced:
    """All rules of one broker that follow announcements; false when there are none."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._homes: list[_Home] = []

    def __bool__(self) -> bool:
        return bool(self._homes)

    def add(self, rule: Rule) -> None:
        assert rule.device.format is Format.HOMEASSISTANT
        template = Template.of(rule.device.topic)
        topics: Topics[bool] = Topics()
        topics.add(template, True)
        prefix = "/".join(template.levels[: component_at(template.levels)])
        self._homes.append(_Home(rule, Discovery(prefix), topics))

    @property
    def topics(self) -> tuple[str, ...]:
        """What has been announced, to be subscribed."""
        found = dict.fromkeys(topic for home in self._homes for topic in home.discovery.topics)
        return tuple(found)

    def map(
        self, topic: bytes, payload: bytes, retained: bool, at_ns: int, origin: Origin | None, into: Mapped
    ) -> None:
        """One message."""
        for home in self._homes:
            try:
                self._announcement(home, topic, payload, into)
                discovery = home.discovery
                entities, listeners = discovery.readers.get(topic), discovery.listeners.get(topic)
                if not entities and not listeners:
                    continue
                into.matched = True
                if len(payload) > _MAX_PAYLOAD:
                    raise DecodeError(f"{len(payload)} bytes or more")
                text = payload.decode()
            except (DecodeError, UnicodeDecodeError) as error:
                why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                into.rejected.append(f"{topic.decode(errors='replace')}: {why}")
                continue
            if listeners:
                for entity, source in listeners:
                    was = entity.available
                    try:
                        if text:
                            entity.hear(source, text)
                    except DecodeError as error:
                        into.rejected.append(f"{entity.device}: {error}")
                    entity.turned = was is not entity.available
                self._turned(home, [entity for entity, _ in listeners if entity.turned], at_ns, origin, into)
            if entities and not (retained and not text):
                self._read(home, entities, text, retained, at_ns, origin, into)

    def _announcement(self, home: _Home, topic: bytes, payload: bytes, into: Mapped) -> None:
        if not topic.endswith(b"/config"):
            return
        text = topic.decode()
        if home.topics.match(text):
            found = home.discovery.take(text, payload)
            if found is not None:
                into.matched = True
                into.subscribe += found.topics
                into.refused += found.refused

    def _heard(self, home: _Home, entity: Entity) -> Heard:
        """Raises DecodeError."""
        return self._fleet.of(home.rule, {"id": entity.id, "device": entity.device})

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(
        self,
        home: _Home,
        entities: Iterable[Entity],
        text: str,
        retained: bool,
        at_ns: int,
        origin: Origin | None,
        into: Mapped,
    ) -> None:
        points: dict[str, tuple[Heard, dict[str, tuple[Value | None, Status, str]]]] = {}
        for entity in entities:
            if retained and not entity.available:
                continue  # the broker's copy of what is not there is no news
            heard = None
            try:
                heard = self._heard(home, entity)
                said = entity.read(text)
            except DecodeError as error:
                if heard is not None:
                    heard.rejected += 1
                into.rejected.append(f"{entity.device}: {entity.point}: {error}")
                continue
            heard.last_ns = at_ns
            if said is None:
                continue
            entity.heard_ns = at_ns
            if not retained:
                entity.speaks()
            value, status = said
            name = heard.name_of(entity.point, value)
            if retained and status is Status.GOOD:
                status = Status.RETAINED
            if name is not None:
                points.setdefault(heard.id, (heard, {}))[1][name] = value, status, entity.unit
        for heard, found in points.values():
            heard.messages += 1
            heard.cut = False
            if not retained:
                heard.back(into, "a message")
            values, status_, units = zip(*found.values(), strict=True)
            into.samples.append(heard.sample(tuple(found), values, status_, units, at_ns, None, origin))

    # ── availability ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _turned(self, home: _Home, entities: list[Entity], at_ns: int, origin: Origin | None, into: Mapped) -> None:
        """Entities that have gone or come back."""
        if not entities:
            return
        gone: dict[str, tuple[Heard, list[str]]] = {}
        touched: dict[str, Heard] = {}
        for entity in entities:
            try:
                heard = self._heard(home, entity)
            except DecodeError as error:
                into.rejected.append(str(error))
                continue
            touched[heard.id] = heard
            name = heard.name_of(entity.point, None)
            if not entity.available and name is not None:
                gone.setdefault(heard.id, (heard, []))[1].append(name)
        words = placeholders(home.rule.device.name)
        living = {_named(entity, words) for entity in home.discovery.entities if entity.said and entity.available}
        for heard in touched.values():
            if tuple([heard.captures[word] for word in words]) not in living:
                heard.online = False
                into.changes.append(Change(heard.id, DeviceState.OFFLINE, "what it has announced is not available"))
            else:
                heard.back(into, "said so itself")
        for heard, names in gone.values():
            width = len(names)
            bad = (Status.DEVICE_OFFLINE,) * width
            into.samples.append(heard.sample(tuple(names), (None,) * width, bad, None, at_ns, None, origin))

    def tick(self, at_ns: int) -> list[Sample]:
        """What is not available, and what nobody has spoken of for longer than it may be."""
        bad: dict[str, tuple[Heard, dict[str, Status]]] = {}
        for home in self._homes:
            for entity in home.discovery.entities:
                stale = (
                    entity.expire_ns is not None
                    and entity.heard_ns is not None
                    and at_ns - entity.heard_ns > entity.expire_ns
                )
                if entity.available and not stale:
                    continue
                try:
                    heard = self._heard(home, entity)
                except DecodeError:
                    continue  # told when it was heard
                name = heard.name_of(entity.point, None)
                if name is not None and not heard.cut:
                    why = Status.STALE if entity.available else Status.DEVICE_OFFLINE
                    bad.setdefault(heard.id, (heard, {}))[1][name] = why
        return [
            heard.sample(tuple(names), (None,) * len(names), tuple(names.values()), None, at_ns, None, None)
            for heard, names in bad.values()
        ]

    # ── the other way ────────────────────────────────────────────────────────────────────────────────────────────────

    def publication(self, heard: Heard, point_name: str, value: Value) -> Publication:
        """What is told to an entity. Raises ValueError."""
        path = next((path.text for name, path in heard.rule.points or () if name == point_name), None)
        for home in self._homes:
            if home.rule is heard.rule:
                for entity in home.discovery.entities:
                    if entity.point == path and _named(entity, tuple(heard.captures)) == tuple(heard.captures.values()):
                        return told(heard, point_name, entity, value)
        return told(heard, point_name, None, value)


def _named(entity: Entity, words: Sequence[str]) -> tuple[str, ...]:
    return tuple([entity.id if word == "id" else entity.device for word in words])
