"""Pure: what an MQTT bus and its devices can say in the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path as File
from typing import TYPE_CHECKING, Annotated, Literal

from gateway.codec.path import Path
from gateway.connectors.base import Connect, Kind
from gateway.connectors.mqtt.topics import Template, placeholders, reduced
from gateway.points import Bus, Device, Point, name_mistakes
from gateway.settings import Duration, Key, Mistake, Table

if TYPE_CHECKING:
    from gateway.connectors.mqtt.connector import MqttConnector

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
    timestamp: Annotated[Timestamp | None, Key("the device's own time, where its clock can be trusted")] = None
    availability: Annotated[
        str | None, Key('topic of the last will; default: where the format has it; "" for none')
    ] = None
    command_topic: Annotated[str | None, Key("writes go here; {point} is the point's path")] = None
    payload: Annotated[str | None, Key("what a write publishes; {value} plain, {json} as JSON")] = None
    qos: Annotated[Literal[0, 1] | None, Key("of writes; default: of the bus")] = None
    retain: Annotated[bool, Key("the broker keeps what is written for later subscribers")] = False

    def mistakes(self) -> Iterator[Mistake]:
        try:
            known = [name for _, name in Template.of(self.topic).names]
        except ValueError as error:
            yield Mistake(("topic",), str(error))
            return
        named = placeholders(self.name)
        for name in named:
            if name not in known:
                yield Mistake(("name",), f"{{{name}}} is not a level of `topic`")
        if re.search(r"[{}]", re.sub(r"\{[a-z][a-z0-9_]*\}", "", self.name)):
            yield Mistake(("name",), "braces only around a placeholder such as {device}")
        if self.availability:
            try:
                wills = Template.of(self.availability)
            except ValueError as error:
                yield Mistake(("availability",), str(error))
            else:
                if wills.wild is not None:
                    yield Mistake(("availability",), "no + or # here")
                if not set(named) <= {name for _, name in wills.names}:
                    yield Mistake(("availability",), "needs the placeholders of `name`")
        yield from self._writes(named)

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
            if not (point.command_topic or self.command_topic or self.format is Format.ZIGBEE2MQTT):
                yield Mistake(("points", i, "write"), "needs a `command_topic`")
            if point.write.verify:
                yield Mistake(("points", i, "write", "verify"), "MQTT has no read: a write ends with the broker's ack")


def _load() -> Connect[MqttBus, MqttDevice]:
    from gateway.connectors.mqtt.connector import MqttConnector

    connect: type[MqttConnector] = MqttConnector
    return connect


def _check(bus: MqttBus, devices: Sequence[MqttDevice]) -> list[str]:
    found = []
    if bus.qos == 2:
        found.append("qos = 2 is subscribed as 1: a message that comes twice is recognised and emitted once")
    if bus.qos == 0:
        found.append("qos = 0: what is published while the gateway is away is lost")
    if bus.username is not None and bus.tls is None and bus.host not in ("127.0.0.1", "::1", "localhost"):
        found.append("the password goes over the network in clear: no tls")
    return found


def _plan(bus: MqttBus, devices: Sequence[MqttDevice]) -> list[str]:
    filters = reduced(Template.of(device.topic).filter for device in devices)
    return [f"subscribe {each} with QoS {min(bus.qos, 1)}" for each in filters]


MQTT: Kind[MqttBus, MqttDevice] = Kind(
    name="mqtt", bus=MqttBus, device=MqttDevice, load=_load, check=_check, plan=_plan
)
