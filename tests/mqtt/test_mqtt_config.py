"""What can be said of brokers and devices, and what a mistake looks like."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import device, parsed  # type: ignore[import-not-found]

import gateway.connectors.mqtt
from gateway.connectors.mqtt.config import MQTT, MqttBus, MqttDevice
from gateway.connectors.mqtt.connector import Successors
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.registry import Registry
from gateway.settings import read

FOLDER = Path(gateway.connectors.mqtt.__file__).parent


def documents() -> list[tuple[str, str]]:
    blocks = re.findall(r"```toml\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)
    assert blocks
    return [("sample.toml", (FOLDER / "sample.toml").read_text()), *(("README.md", block) for block in blocks)]


@pytest.mark.parametrize(("name", "text"), documents())
def test_every_example_is_a_configuration(name: str, text: str) -> None:
    document = tomllib.loads(text)
    devices = [parsed(MqttDevice, each) for each in document["device"]]
    for each in document.get("bus", ()):
        assert MQTT.check is not None
        MQTT.check(parsed(MqttBus, each), devices)
    assert Mapper(devices).filters


def test_the_commented_keys_of_the_sample_are_keys() -> None:
    text = (FOLDER / "sample.toml").read_text()
    bus = text.partition("\n[[device]]")[0]
    document = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", bus, flags=re.M))
    assert parsed(MqttBus, document["bus"][0]).client_id == "hall-2"


def test_the_kind_is_registered_and_loads() -> None:
    assert Registry().kind("mqtt") is MQTT
    assert isinstance(MQTT.load(), Successors)


def test_ports_and_aliases() -> None:
    base = {"name": "b", "kind": "mqtt", "host": "h"}
    assert parsed(MqttBus, base).broker_port == 1883
    assert parsed(MqttBus, {**base, "tls": {}}).broker_port == 8883
    assert parsed(MqttBus, {**base, "port": 1885}).broker_port == 1885


@pytest.mark.parametrize(
    ("wrong", "place", "why"),
    [
        ({"topic": "a/#/b"}, ("topic",), "last level"),
        ({"topic": "a", "name": "{device}"}, ("name",), "not a level"),
        ({"topic": "a/{device}", "name": "x{device"}, ("name",), "braces"),
        ({"topic": "a", "points": [{"name": "n", "path": "a..b"}]}, ("points", 0, "path"), "not a path"),
        ({"topic": "a", "points": [{"name": "n", "unit": "V", "convert": "Cel"}]}, ("points", 0, "convert"), "Cel"),
        ({"topic": "a", "points": [{"name": "n", "scale": 0}]}, ("points", 0, "scale"), "scale 0"),
        ({"topic": "a", "points": [{"name": "n"}, {"name": "n"}]}, ("points", 1, "name"), "second point"),
        ({"topic": "a", "points": [{"name": "n", "write": {}}]}, ("points", 0, "write"), "command_topic"),
        ({"topic": "a", "command_topic": "b/+"}, ("command_topic",), "without"),
        ({"topic": "a/{d}", "command_topic": "b/{d}"}, ("command_topic",), "not in `name`"),
        ({"topic": "a/{d}", "availability": "a/{d}/online"}, ("availability",), "not in `name`"),
        ({"topic": "a/{d}", "name": "{d}", "availability": ["a/+"]}, ("availability",), "no + or #"),
        ({"topic": "a", "each": "list"}, ("name",), "many devices"),
        ({"topic": "a", "name": "{id}", "id": "a..b"}, ("id",), "not a path"),
        ({"topic": "a/{id}", "name": "{id}", "id": "n"}, ("topic",), "comes from the payload"),
        ({"topic": "a", "name": "{id}", "id": "n", "format": "esphome"}, ("id",), "does not go with"),
        ({"topic": "spBv1.0/g/#", "format": "sparkplug"}, ("topic",), "GROUP"),
        ({"topic": "homeassistant/{x}/config", "format": "homeassistant"}, ("topic",), "no placeholders"),
        ({"topic": "homeassistant/#", "format": "homeassistant", "availability": "a"}, ("availability",), "knows it"),
        ({"topic": "a", "timestamp": {"path": "["}}, ("timestamp", "path"), "not a path"),
        ({"topic": "a", "format": "tasmotta"}, ("format",), "tasmota"),
        (
            {"topic": "a", "command_topic": "b", "points": [{"name": "n", "write": {"verify": True}}]},
            ("points", 0, "write", "verify"),
            "no read",
        ),
    ],
)
def test_a_mistake_names_its_place(wrong: dict[str, Any], place: tuple[str | int, ...], why: str) -> None:
    _, mistakes = read(MqttDevice, {"name": "dev", "bus": "b", **wrong})
    assert any(mistake.path == place and why in mistake.message for mistake in mistakes), mistakes


def test_bus_mistakes() -> None:
    base = {"name": "b", "kind": "mqtt", "host": "h"}
    for wrong in ({"password_file": "/x"}, {"tls": {"keyfile": "/x"}}, {"receive_maximum": 0}, {"version": "4"}):
        assert read(MqttBus, {**base, **wrong})[1]


def test_the_check_warns_of_what_loses_data_or_secrets() -> None:
    assert MQTT.check is not None
    bus = parsed(MqttBus, {"name": "b", "kind": "mqtt", "host": "h", "qos": 0, "username": "u"})
    text = " ".join(MQTT.check(bus, [device(topic="a")]))
    assert "qos = 0" in text
    assert "no tls" in text
    bus = parsed(MqttBus, {"name": "b", "kind": "mqtt", "host": "h", "qos": 2})
    assert "subscribed as 1" in " ".join(MQTT.check(bus, []))
