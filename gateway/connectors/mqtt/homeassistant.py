"""Pure: Home Assistant's MQTT discovery, read the other way round: what devices announce themselves with which points.

    <prefix>/<component>/[<node id>/]<object id>/config   one entity
    <prefix>/device/[<node id>/]<object id>/config        a device with all its `components`

An announcement names topics to listen to, templates that find the value (`templates.py`: places only), units, the
words of a switch, and topics of availability. Keys may be abbreviated, and `~` stands for a base topic. An empty
announcement takes its entities back. What a gateway has no use for (buttons, cameras, triggers, updates) is left out;
what it cannot read as it is meant is refused, with a sentence that names the entity and the reason.

A point's name is the object id (or the component's key): as it is for a sensor, `binary_sensor.<object id>` and so on
for the others, and with the part at the end where an entity has several: `climate.room.current_temperature`.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.codec.document import decode_json
from gateway.codec.path import ABSENT
from gateway.connectors.mqtt.templates import Refused, Template, rendered
from gateway.connectors.mqtt.vocabulary import COMPONENTS, JSON_LIGHT, SHORT, SHORT_DEVICE, Form, Part
from gateway.errors import DecodeError
from gateway.model import Json, Status, Value

MAX_ENTITIES = 4_000
_MAX_TOPIC = 1_024
_NOTHING = frozenset(("", "none", "null", "unknown", "unavailable", "nan"))
"""Words by which Home Assistant's devices say that they have no value."""
_UNUSED = frozenset(("device", "origin", "components", "~"))


class Source(NamedTuple):
    """A topic that says whether an entity is available."""

    topic: str
    template: Template | None
    available: str
    unavailable: str


class Command(NamedTuple):
    """Where an entity takes what it is told."""

    topic: str
    plain: bool
    """False: it wants a template that is not read."""
    on: str
    off: str
    retain: bool


class Entity(msgspec.Struct, eq=False):
    """One value of one device."""

    id: str
    """Of the device: its first identifier."""
    device: str
    """Its name."""
    point: str
    topic: str
    form: Form
    template: Template | None
    on: str = ""
    off: str = ""
    unit: str = ""
    sources: tuple[Source, ...] = ()
    mode: str = "latest"
    expire_ns: int | None = None
    command: Command | None = None
    said: dict[str, bool] = {}
    """Topic of availability → what it said last."""
    last_said: bool = True
    heard_ns: int | None = None
    """When its last value came; None: never."""
    turned: bool = False
    """The last message about its availability has changed it."""

    @property
    def available(self) -> bool:
        """What nobody has spoken of is not held to be gone."""
        if self.mode == "all":
            return all(self.said.values())
        if self.mode == "any":
            return any(self.said.values()) or not self.said
        return self.last_said

    def speaks(self) -> None:
        """A value of its own is more than what others say of it."""
        if not self.available:
            self.said.clear()
            self.last_said = True

    def hear(self, source: Source, payload: str) -> None:
        """Availability. Raises DecodeError: neither of the two words."""
        found = payload if source.template is None else rendered(source.template.of(payload).found)
        if found not in (source.available, source.unavailable):
            raise DecodeError("neither available nor unavailable")
        self.said[source.topic] = self.last_said = found == source.available

    def read(self, payload: str) -> tuple[Value | None, Status] | None:
        """What the payload says; None: nothing of this. Raises DecodeError."""
        made = False
        found: Json = payload
        if self.template is not None:
            found, made = self.template.of(payload)
        if found is ABSENT or isinstance(found, dict | list):
            return None
        value, status = self._value(found)
        return value, Status.SUBSTITUTED if made and status is Status.GOOD else status

    def _value(self, found: Json) -> tuple[Value | None, Status]:
        word = rendered(found)
        if self.form is Form.SWITCH:
            if word in (self.on, self.off):
                return word == self.on, Status.GOOD
            return None, Status.SENSOR_FAULT if word.lower() in _NOTHING else Status.DECODE
        if found is None or (isinstance(found, str) and found.strip().lower() in _NOTHING):
            return None, Status.SENSOR_FAULT
        if isinstance(found, str) and (self.form is Form.NUMBER or self.template is None):
            number = _number(found.strip())
            if number is not None or self.form is Form.NUMBER:
                found = number
        if self.form is Form.NUMBER and (found is None or isinstance(found, bool)):
            return None, Status.DECODE
        if isinstance(found, float) and found - found != 0:
            return None, Status.SENSOR_FAULT
        if isinstance(found, int) and not isinstance(found, bool) and not -(2**63) <= found < 2**64:
            return None, Status.DECODE
        if isinstance(found, str) and (len(found) > _MAX_TOPIC or not found.isprintable()):
            return None, Status.DECODE
        return found, Status.GOOD


def _number(text: str) -> int | float | None:
    if re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", text, re.ASCII):
        return float(text)
    return None


class Discovered(NamedTuple):
    """What an announcement changes."""

    topics: tuple[str, ...] = ()
    """To be listened to."""
    refused: tuple[str, ...] = ()


def component_at(levels: Sequence[str]) -> int:
    """Where in a topic of announcements the component stands: all before it is the prefix."""
    return next((i for i, level in enumerate(levels) if level in ("+", "#", "device") or level in COMPONENTS), 0)


class Discovery:
    """All announcements under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.split("/") if prefix else []
        self._announced: dict[str, list[Entity]] = {}
        self.readers: dict[bytes, list[Entity]] = {}
        """State topic → who reads it."""
        self.listeners: dict[bytes, list[tuple[Entity, Source]]] = {}
        """Topic of availability → whom it concerns."""

    @property
    def topics(self) -> Iterator[str]:
        """All that is to be listened to."""
        for entity in self.entities:
            yield entity.topic
            for source in entity.sources:
                yield source.topic

    @property
    def entities(self) -> Iterator[Entity]:
        for each in self._announced.values():
            yield from each

    def take(self, topic: str, payload: bytes) -> Discovered | None:
        """One message; None: no announcement. Raises DecodeError."""
        levels = topic.split("/")
        start = len(self._prefix)
        if levels[:start] != self._prefix or levels[-1] != "config" or len(levels) - start not in (3, 4):
            return None
        component, item = levels[start], levels[-2]
        node = levels[start + 1] if len(levels) - start == 4 else item
        said = self.announced(component, item, node, payload)
        self._withdraw(topic)
        if said is None:
            return Discovered()
        entities, refused = said
        if sum(map(len, self._announced.values())) + len(entities) > MAX_ENTITIES:
            raise DecodeError(f"more than {MAX_ENTITIES} entities")
        self._announced[topic] = entities
        wanted: dict[str, None] = {}
        for each in entities:
            self.readers.setdefault(each.topic.encode(), []).append(each)
            wanted[each.topic] = None
            for source in each.sources:
                self.listeners.setdefault(source.topic.encode(), []).append((each, source))
                wanted[source.topic] = None
        return Discovered(tuple(wanted), tuple(refused))

    @staticmethod
    def announced(component: str, item: str, node: str, payload: bytes) -> tuple[list[Entity], list[str]] | None:
        """Entities of one announcement, and why others are refused; None: it takes itself back."""
        if not payload.strip():
            return None
        document = decode_json(payload)
        if not isinstance(document, dict):
            raise DecodeError("an announcement that is no JSON object")
        whole = _long(document, SHORT)
        device = _device(whole.get("device"), node)
        if component != "device":
            return _entities(component, item, device, whole)
        parts = whole.get("components")
        if not isinstance(parts, dict):
            raise DecodeError("a device without components")
        shared = {key: value for key, value in whole.items() if key not in _UNUSED}
        entities: list[Entity] = []
        refused: list[str] = []
        for key, raw in parts.items():
            part = _long(raw, SHORT) if isinstance(raw, dict) else {}
            if "~" in whole:
                part.setdefault("~", whole["~"])
            if len(part) > 1:  # with its platform alone it is taken back
                some, others = _entities(str(part.get("platform")), str(key), device, {**shared, **part})
                entities += some
                refused += others
        return entities, refused

    def _withdraw(self, topic: str) -> None:
        for entity in self._announced.pop(topic, ()):
            _remove(self.readers, entity.topic.encode(), entity)
            for source in entity.sources:
                _remove(self.listeners, source.topic.encode(), (entity, source))


def _remove(where: dict[bytes, list[Any]], topic: bytes, what: Any) -> None:
    left = [each for each in where.get(topic, ()) if each != what]
    if left:
        where[topic] = left
    else:
        where.pop(topic, None)


def _long(table: dict[str, Json], words: dict[str, str]) -> dict[str, Json]:
    return {words.get(key, key): value for key, value in table.items()}


def _device(raw: Json, node: str) -> tuple[str, str]:
    """Its first identifier, and its name."""
    found = _long(raw, SHORT_DEVICE) if isinstance(raw, dict) else {}
    ids = found.get("identifiers")
    first = ids[0] if isinstance(ids, list) and ids else ids
    if not isinstance(first, str) or not first:
        connections = found.get("connections")
        pair = connections[0] if isinstance(connections, list) and connections else None
        first = pair[1] if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str) else node
    name = found.get("name")
    return first, name if isinstance(name, str) and name else first


def _entities(
    component: str, item: str, device: tuple[str, str], said: dict[str, Json]
) -> tuple[list[Entity], list[str]]:
    entities: list[Entity] = []
    refused: list[str] = []
    base = said.get("~")
    stem = item if component == "sensor" else f"{component}.{item}"
    parts = COMPONENTS.get(component, ())
    if component == "light" and said.get("schema") == "json":
        parts = JSON_LIGHT
        said = {**said, "state": "{{ value_json.state }}", "bright": "{{ value_json.brightness }}"}
    elif component == "light" and said.get("schema") == "template":
        return [], [f"{device[0]}: {stem} is a light with a schema of templates"]
    try:
        sources = tuple(_sources(said, base))
    except Refused as error:
        return [], [f"{device[0]}: the availability template of {stem} has {error}, which is not read"]
    for part in parts:
        topic = _topic(said.get(part.state), base)
        name = f"{stem}.{part.suffix}" if part.suffix else stem
        if topic is None:
            continue
        if "+" in topic or "#" in topic or len(topic) > _MAX_TOPIC or not topic:
            refused.append(f"{device[0]}: {name} has no plain topic")
            continue
        try:
            text = said.get(part.template) or said.get("value_template")
            template = Template(text) if isinstance(text, str) and text.strip() else None
        except Refused as error:
            refused.append(f"{device[0]}: the template of {name} has {error}, which is not read")
            continue
        entities.append(_entity(component, part, device, name, topic, template, sources, said, base))
    return entities, refused


def _entity(
    component: str,
    part: Part,
    device: tuple[str, str],
    name: str,
    topic: str,
    template: Template | None,
    sources: tuple[Source, ...],
    said: dict[str, Json],
    base: Json,
) -> Entity:
    on, off = rendered(said.get("payload_on", "ON")), rendered(said.get("payload_off", "OFF"))
    form, unit = part.form, part.unit
    if unit == "degrees":
        unit = {"C": "Cel", "F": "degF"}.get(str(said.get("temperature_unit", "C")), "")
    elif not unit and not part.suffix and isinstance(said.get("unit_of_measurement"), str):
        unit = said["unit_of_measurement"]
    if component == "sensor" and (unit or said.get("state_class")):
        form = Form.NUMBER
    expire = _positive(said.get("expire_after"))
    mode = said.get("availability_mode", "latest")
    to = _topic(said.get(part.command), base) if part.command else None
    command = None
    if to:
        plain = "command_template" not in said and f"{part.command.removesuffix('topic')}template" not in said
        command = Command(to, plain, on, off, said.get("retain") is True)
    return Entity(
        id=device[0],
        device=device[1],
        point=name,
        topic=topic,
        form=form,
        template=template,
        on=rendered(said.get("state_on", on)),
        off=rendered(said.get("state_off", off)),
        unit=unit,
        sources=sources,
        mode=mode if mode in ("all", "any") else "latest",
        expire_ns=round(expire * 1e9) if expire is not None else None,
        command=command,
    )


def _positive(found: Json) -> float | None:
    plain = isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1e9
    return float(found) if plain else None


def _topic(raw: Json, base: Json) -> str | None:
    if not isinstance(raw, str):
        return None
    if isinstance(base, str):
        if raw.startswith("~"):
            return base + raw[1:]
        if raw.endswith("~"):
            return raw[:-1] + base
    return raw


def _sources(said: dict[str, Json], base: Json) -> Iterator[Source]:
    """Topics of availability. Raises Refused."""
    listed = said.get("availability")
    if isinstance(listed, dict):
        listed = [listed]
    if not isinstance(listed, list):
        listed = [
            {**said, "topic": said.get("availability_topic"), "value_template": said.get("availability_template")}
        ]
    for raw in listed[:10]:
        one = _long(raw, SHORT) if isinstance(raw, dict) else {}
        topic = _topic(one.get("topic"), base)
        if not topic or "+" in topic or "#" in topic:
            continue
        text = one.get("value_template")
        template = Template(text) if isinstance(text, str) and text.strip() else None
        yield Source(
            topic,
            template,
            rendered(one.get("payload_available", "online")),
            rendered(one.get("payload_not_available", "offline")),
        )
