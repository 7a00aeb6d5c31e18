"""Pure: the message that writes one point, for each convention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.connectors.mqtt.config import Format, MqttPoint, command
from gateway.connectors.mqtt.devices import Heard
from gateway.connectors.mqtt.homeassistant import Entity
from gateway.connectors.mqtt.topics import Template, render
from gateway.connectors.mqtt.vocabulary import Form
from gateway.model import Value


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


def writable(heard: Heard, name: str) -> MqttPoint:
    """Raises ValueError: no such point, or one that is not written."""
    for point in heard.rule.device.points:
        if not isinstance(point, str) and point.name == name and point.write is not None:
            return point
    raise ValueError(f"{heard.id}.{name} is not a writable point")


def publication(heard: Heard, point_name: str, value: Value) -> Publication:
    """Raises ValueError with the reason when there is none."""
    device = heard.rule.device
    point = writable(heard, point_name)
    path = point.path or point.name
    topic = point.command_topic or device.command_topic or command(device.format, device.topic, path)
    payload = point.payload or device.payload
    if topic is None and device.format is Format.ZIGBEE2MQTT:
        topic = f"{device.topic}/set"
        payload = payload or f"{{{_json(path)}: {{json}}}}"
    elif topic is None and device.format is Format.TTN:
        topic = re.sub(r"/up$", "/down/push", device.topic)
        port = f'"f_port": {device.f_port}, ' if device.f_port else ""
        payload = payload or f'{{"downlinks": [{{{port}"decoded_payload": {{{_json(path)}: {{json}}}}}}]}}'
    if topic is None:
        raise ValueError(f"{heard.id}.{point_name} has no command_topic")
    raw = point.raw_of(value)
    words = _SWITCH_WORDS.get(device.format)
    if isinstance(raw, bool) and words is not None:
        plain, quoted = words[raw], _json(words[raw])
    else:
        quoted = _json(raw)
        plain = raw if isinstance(raw, str) else quoted
    text = payload or ("{value}" if device.format is not Format.JSON else "{json}")
    body = re.sub(r"\{(value|json)\}", lambda match: plain if match[1] == "value" else quoted, text)
    topic = render(topic, {**heard.captures, "point": path})
    return Publication(_checked(topic), body.encode(), device.retain)


def told(heard: Heard, point_name: str, entity: Entity | None, value: Value) -> Publication:
    """What an announced entity is told. Raises ValueError."""
    point = writable(heard, point_name)
    if entity is None:
        raise ValueError(f"{heard.id}.{point_name} has not been announced")
    to = entity.command
    if to is None:
        raise ValueError(f"{heard.id}.{point_name} takes no commands")
    if not to.plain:
        raise ValueError(f"{heard.id}.{point_name} wants a template that is not read")
    raw = point.raw_of(value)
    if entity.form is Form.SWITCH:
        if not isinstance(raw, bool):
            raise ValueError(f"{raw!r} is neither true nor false")
        text = to.on if raw else to.off
    else:
        text = raw if isinstance(raw, str) else _json(raw)
    return Publication(_checked(to.topic), text.encode(), to.retain)


def _checked(topic: str) -> str:
    Template.of(topic)
    if "+" in topic or "#" in topic or "{" in topic:
        raise ValueError(f"{topic!r} is no topic to publish to")
    return topic


def _json(value: Value) -> str:
    return msgspec.json.encode(value).decode()
