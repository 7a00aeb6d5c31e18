"""Pure: what an MQTT bus and its devices can say in the configuration."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path as File
from typing import Annotated, Literal

from gateway.codec.path import Path
from gateway.connectors.base import Connect, Kind
from gateway.connectors.mqtt.topics import Template, overlap, placeholders, reduced
from gateway.points import Bus, Device, Point, name_mistakes
from gateway.settings import Duration, Key, Mistake, Table

PORT, TLS_PORT = 1883, 8883  # IANA: mqtt, secure-mqtt


class Format(StrEnum):
    """How payloads are read, and where a convention puts availability."""

    JSON = "json"
    VALUE = "value"
    ZIGBEE2MQTT = "zigbee2mqtt"
    TASMOTA = "tasmota"
    SHELLY = "shelly"
    SHELLY_GEN1 = "shelly-gen1"
    ESPHOME = "esphome"
    TTN = "ttn"
    SPARKPLUG = "sparkplug"
    HOMEASSISTANT = "homeassistant"


TEXT_FORMATS = frozenset((Format.VALUE, Format.SHELLY_GEN1, Format.ESPHOME))
"""One value as text in each message."""
KEYED_FORMATS = TEXT_FORMATS | {Format.SPARKPLUG, Format.HOMEASSISTANT}
"""A point's path is one name."""
ANNOUNCED_FORMATS = frozenset((Format.SPARKPLUG, Format.HOMEASSISTANT))
"""Devices say themselves where their values and their last wills are."""


class TimeFormat(StrEnum):
    """How a payload writes its time."""

    UNIX = "unix"
    UNIX_MS = "unix_ms"
    ISO8601 = "iso8601"


class Tls(Table, frozen=True, kw_only=True):
    """Encrypts the connection; an empty table trusts the system's authorities."""

    cafile: Annotated[File | None, Key("authority that signed the broker's certificate", alias=("ca_file",))] = None
    certfile: Annotated[File | None, Key("our certificate", alias=("cert_file",))] = None
    keyfile: Annotated[File | None, Key("key of our certificate", alias=("key_file",))] = None

    def mistakes(self) -> Iterable[Mistake]:
        if self.keyfile is not None and self.certfile is None:
            yield Mistake(("keyfile",), "`keyfile` needs `certfile`")


class MqttBus(Bus, frozen=True, kw_only=True):
    """A broker. One persistent session; nothing is acknowledged before it is stored."""

    host: Annotated[str, Key("name or address of the broker", example='"127.0.0.1"')]
    tcp_port: Annotated[
        int | None, Key("default 1883, with tls 8883", example="1883", min=1, max=65_535, alias=("port",))
    ] = None
    client_id: Annotated[
        str, Key("names our session at the broker; keep it. Empty: gateway-NAME-XXXXXXXX, of this machine")
    ] = ""
    qos: Annotated[Literal[0, 1, 2], Key("0: may be lost on the way; 1: acknowledged when stored; 2: read as 1")] = 1
    keepalive: Annotated[Duration, Key("ping the broker after this much silence", min=1, max=65_535)] = 30.0
    version: Annotated[Literal["auto", "5", "3.1.1"], Key("auto: 5, and 3.1.1 where the broker refuses it")] = "auto"
    username: Annotated[str | None, Key("user name at the broker")] = None
    password_file: Annotated[File | None, Key("file that holds the password, nothing else")] = None
    tls: Annotated[Tls | None, Key("encrypts the connection")] = None
    session_expiry: Annotated[
        Duration, Key("the broker keeps messages for us this long (MQTT 5)", min=0, max=4_294_967_295)
    ] = 86_400.0
    receive_maximum: Annotated[
        int, Key("the broker sends this many messages ahead of our acknowledgements (MQTT 5)", min=1, max=65_535)
    ] = 500
    connect_timeout: Annotated[Duration, Key("give up connecting after", min=0.1)] = 10.0
    offline_after: Annotated[
        Duration, Key("broker out of reach for this long: its points are bad:device_offline", min=1)
    ] = 60.0
    write_timeout: Annotated[Duration, Key("a write is `unknown` when the broker is silent for", min=0.1)] = 5.0

    def mistakes(self) -> Iterable[Mistake]:
        if self.password_file is not None and self.username is None:
            yield Mistake(("password_file",), "`password_file` needs `username`")

    @property
    def broker_port(self) -> int:
        """The TCP port that is meant."""
        return self.tcp_port or (TLS_PORT if self.tls else PORT)


class MqttPoint(Point, frozen=True, kw_only=True):
    """One value of a payload."""

    path: Annotated[
        str | None,
        Key("where it sits: AM2301.Temperature, phases[1].v, or what wildcards took; default: name", example='"a.b"'),
    ] = None
    command_topic: Annotated[str | None, Key("writes go here", alias=("write_topic",))] = None
    payload: Annotated[str | None, Key("what a write publishes; {value} plain, {json} as JSON")] = None

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        if self.path:
            try:
                Path.of(self.path)
            except ValueError as error:
                yield Mistake(("path",), str(error))


class Timestamp(Table, frozen=True, kw_only=True):
    """The device's own time. Where a payload carries it, readings carry it, and a retained message is good."""

    path: Annotated[str, Key("where it sits in the payload", example='"ts"')]
    format: Annotated[TimeFormat, Key("seconds, milliseconds, or text with a time zone")] = TimeFormat.UNIX

    def mistakes(self) -> Iterable[Mistake]:
        try:
            Path.of(self.path)
        except ValueError as error:
            yield Mistake(("path",), str(error))


class MqttDevice(Device, frozen=True, kw_only=True):
    """What publishes under one topic, or many of a kind: `name = "{device}"`, `topic = "plant/{device}/state"`."""

    topic: Annotated[str, Key("topic or filter; {name} takes one level", example='"plant/boiler/state"')]
    format: Annotated[Format, Key("how payloads are read")] = Format.JSON
    points: Annotated[
        Literal["auto"] | tuple[MqttPoint, ...], Key("auto: every number and switch of a payload, at most 50")
    ] = "auto"
    each: Annotated[
        str | None,
        Key(
            "many devices in one payload: every entry of this list or object; * for those of the payload itself",
            example='"sensors"',
        ),
    ] = None
    id: Annotated[
        str | None,
        Key(
            "what in the payload (or entry) names its device, {id} in `name`; default: the entry's key",
            example='"serial"',
        ),
    ] = None
    timestamp: Annotated[Timestamp | None, Key("the device's own time, where its clock can be trusted")] = None
    availability: Annotated[
        str | tuple[str, ...] | None,
        Key('topics of last wills, one or several; default: where the format has them; "" for none', example='"a/LWT"'),
    ] = None
    command_topic: Annotated[str | None, Key("writes go here; {point} is the point's path")] = None
    payload: Annotated[str | None, Key("what a write publishes; {value} plain, {json} as JSON")] = None
    qos: Annotated[Literal[0, 1] | None, Key("of writes; default: of the bus")] = None
    retain: Annotated[bool, Key("the broker keeps what is written for later subscribers")] = False
    f_port: Annotated[int | None, Key("port of downlinks (ttn)", example="15", min=1, max=223)] = None

    @property
    def wills(self) -> tuple[str, ...] | None:
        """Topics of availability that the configuration names; None: the format's own."""
        found = self.availability
        return found if found is None or isinstance(found, tuple) else (found,) if found else ()

    def mistakes(self) -> Iterator[Mistake]:
        try:
            known = [name for _, name in Template.of(self.topic).names]
        except ValueError as error:
            yield Mistake(("topic",), str(error))
            return
        yield from self._shape(known)
        known += self._words()
        named = placeholders(self.name)
        for name in named:
            if name not in known:
                yield Mistake(("name",), f"{{{name}}} is not a level of `topic`")
        if re.search(r"[{}]", re.sub(r"\{[a-z][a-z0-9_]*\}", "", self.name)):
            yield Mistake(("name",), "braces only around a placeholder such as {device}")
        for topic in self.wills or ():
            try:
                will = Template.of(topic)
            except ValueError as error:
                yield Mistake(("availability",), str(error))
                continue
            if will.wild is not None:
                yield Mistake(("availability",), "no + or # here")
            for _, name in will.names:
                if name not in named:
                    yield Mistake(("availability",), f"{{{name}}} is not in `name`")
        yield from self._writes(named)

    def _words(self) -> tuple[str, ...]:
        """Placeholders that come from payloads."""
        if self.format is Format.HOMEASSISTANT:
            return ("id", "device")
        return ("id",) if self.each is not None or self.id is not None else ()

    def _shape(self, known: Sequence[str]) -> Iterator[Mistake]:
        """What formats and keys want of each other."""
        spread = [key for key in ("each", "id") if getattr(self, key) is not None]
        for key in spread:
            if self.format in KEYED_FORMATS or self.format is Format.TTN:
                yield Mistake((key,), f'does not go with format = "{self.format}"')
            elif "{id}" not in self.name:
                yield Mistake(("name",), f"`{key}` makes many devices: write {{id}} into `name`")
            try:
                Path.of(getattr(self, key)) if getattr(self, key) != "*" or key == "id" else None
            except ValueError as error:
                yield Mistake((key,), str(error))
        for word in self._words():
            if word in known:
                yield Mistake(("topic",), f"{{{word}}} comes from the payload here: call the level something else")
        levels = self.topic.split("/")
        if self.format is Format.SPARKPLUG and (
            levels[0] != "spBv1.0"
            or len(levels) not in (4, 5)
            or levels[2] != "+"
            or "#" in levels
            or "+" in levels[3:]
        ):
            yield Mistake(("topic",), "spBv1.0/GROUP/+/NODE for a node, spBv1.0/GROUP/+/NODE/DEVICE for a device")
        if self.format is Format.HOMEASSISTANT and known:
            yield Mistake(("topic",), "no placeholders here: {id} and {device} come with the announcement")
        if self.format in ANNOUNCED_FORMATS:
            for key, value in (("availability", self.availability), ("timestamp", self.timestamp)):
                if value is not None:
                    yield Mistake((key,), f'format = "{self.format}" knows it from the device')

    def _writes(self, named: tuple[str, ...]) -> Iterator[Mistake]:
        if self.points == "auto":
            writers: tuple[MqttPoint, ...] = ()
        else:
            writers = self.points
            yield from name_mistakes(writers)
        topics = [(("command_topic",), self.command_topic)]
        topics += [(("points", i, "command_topic"), each.command_topic) for i, each in enumerate(writers)]  # type: ignore[misc]
        for place, topic in topics:
            if topic is not None and (not topic or "+" in topic or "#" in topic):
                yield Mistake(place, "one topic, without + or #")
            for name in placeholders(topic or ""):
                if name not in named and name != "point":
                    yield Mistake(place, f"{{{name}}} is not in `name`")
        for i, point in enumerate(writers):
            if point.write is None:
                continue
            if not (point.command_topic or self.command_topic) and not self._commands(point):
                yield Mistake(("points", i, "write"), "needs a `command_topic`")
            if point.write.verify:
                yield Mistake(("points", i, "write", "verify"), "MQTT has no read: a write ends with the broker's ack")

    def _commands(self, point: MqttPoint) -> bool:
        """Whether the format knows where this point is written."""
        known = self.format in (Format.ZIGBEE2MQTT, Format.TTN, *ANNOUNCED_FORMATS)
        return known or command(self.format, self.topic, point.path or point.name) is not None


def command(form: Format, topic: str, path: str) -> str | None:
    """Where a convention takes commands for a point (a template, as `topic` is); None when there is none to know."""
    levels = topic.split("/")
    found: list[str] = []
    if form is Format.TASMOTA and path.startswith("POWER") and {"tele", "stat"} & set(levels[:-1]):
        found = ["cmnd" if level in ("tele", "stat") else level for level in levels[:-1]] + [path]
    elif form is Format.SHELLY_GEN1 and len(levels) > 1 and re.fullmatch(r"(relay|light|color|white|roller)/\d+", path):
        found = [*levels[:2], path, "command"]
    elif form is Format.SHELLY and path.endswith(".output"):
        # `#` stands for all below, also below a component: then the device is not known
        before = next((i for i, level in enumerate(levels) if level in ("events", "status", "#", "+")), 0)
        found = [*levels[:before], "command", path.removesuffix(".output")] if before else []
    elif form is Format.ESPHOME and path.count("/") == 1 and path.startswith(_ESPHOME_WRITABLE):
        before = next((i for i, level in enumerate(levels) if i and level in ("+", "#", path.partition("/")[0])), 0)
        found = [*levels[:before], path, "command"] if before else []
    return "/".join(found) if found and not {"+", "#"} & set("/".join(found).split("/")) else None


_ESPHOME_WRITABLE = ("switch/", "number/", "select/", "text/", "lock/", "button/")


def _load() -> Connect[MqttBus, MqttDevice]:
    from gateway.connectors.mqtt.connector import Successors

    return Successors()


def _check(bus: MqttBus, devices: Sequence[MqttDevice]) -> list[str]:
    found = []
    if bus.qos == 2:
        found.append("qos = 2 is subscribed as 1: a message that comes twice is recognised and emitted once")
    if bus.qos == 0:
        found.append("qos = 0: what is published while the gateway is away is lost")
    filters = reduced(subscribed(device) for device in devices)
    for one, other in itertools.islice(_overlapping(filters), 5):
        found.append(f"{one} and {other} overlap: a broker may deliver twice what fits both, and that is two readings")
    if bus.username is not None and bus.tls is None and bus.host not in ("127.0.0.1", "::1", "localhost"):
        found.append("the password goes over the network in clear: no tls")
    return found


def _overlapping(filters: Sequence[str]) -> Iterator[tuple[str, str]]:
    wide = [each for each in filters if "+" in each or "#" in each]
    yield from (pair for pair in itertools.combinations(wide, 2) if overlap(*pair))


def subscribed(device: MqttDevice) -> str:
    """The filter of a device: of an edge node everything, for its messages are numbered together."""
    if device.format is Format.SPARKPLUG:
        return "/".join([*Template.of(device.topic).levels[:4], "#"])
    return Template.of(device.topic).filter


def _plan(bus: MqttBus, devices: Sequence[MqttDevice]) -> list[str]:
    filters = reduced(subscribed(device) for device in devices)
    return [f"subscribe {each} with QoS {min(bus.qos, 1)}" for each in filters]


MQTT: Kind[MqttBus, MqttDevice] = Kind(
    name="mqtt", bus=MqttBus, device=MqttDevice, load=_load, check=_check, plan=_plan
)
