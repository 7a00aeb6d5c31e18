"""A scan recognises what talks on a broker, and prints configuration that reads the same values."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any

from conftest import Rig, eventually, parsed  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mqtt_many import UPLINK  # type: ignore[import-not-found]
from test_mqtt_sparkplug import MESSAGE  # type: ignore[import-not-found]

from gateway.config.load import check
from gateway.connectors.mqtt.config import Format, MqttBus, MqttDevice
from gateway.connectors.mqtt.mapping import Mapper
from gateway.connectors.mqtt.scan import scan
from gateway.connectors.mqtt.survey import Survey, configuration

TALK = [
    ("zigbee2mqtt/living room", '{"temperature": 21.3, "linkquality": 80}'),
    ("zigbee2mqtt/bridge/state", '{"state": "online"}'),
    ("tele/boiler/SENSOR", '{"DS18B20": {"Temperature": 62.4}, "TempUnit": "C"}'),
    ("tele/boiler/STATE", '{"POWER": "ON"}'),
    ("tele/boiler/LWT", "Online"),
    ("shellies/plug-1/relay/0/power", "12.5"),
    ("plus-1/events/rpc", '{"method": "NotifyStatus", "params": {"ts": 1, "switch:0": {"apower": 4.5}}}'),
    ("kitchen/sensor/temp/state", "21.5"),
    ("plant/press/state", '{"oil": {"t": 40, "key.dot": 1.5}, "text": "x"}'),
    ("plant/level", "17"),
    ("homeassistant/sensor/x/config", '{"state_topic": "x", "expire_after": 5}'),
    ("junk/text", "hello"),
]

AIR = {
    "state_topic": "room/air",
    "value_template": "{{ value_json.t }}",
    "unit_of_measurement": "°C",
    "device": {"identifiers": ["air-1"], "name": "Air"},
}


def surveyed(talk: list[tuple[str, str]]) -> Survey:
    survey = Survey()
    for topic, payload in talk:
        survey.hear(topic.encode(), payload.encode())
    return survey


def test_conventions_are_recognised() -> None:
    found = {each.topic: each for each in surveyed(TALK).found(10)}
    assert {topic: each.format for topic, each in found.items()} == {
        "zigbee2mqtt/living room": Format.ZIGBEE2MQTT,
        "tele/boiler/+": Format.TASMOTA,
        "shellies/plug-1/#": Format.SHELLY_GEN1,
        "plus-1/events/rpc": Format.SHELLY,
        "kitchen/+/+/state": Format.ESPHOME,
        "plant/press/state": Format.JSON,
        "plant/level": Format.VALUE,
    }
    assert [tuple(point) for point in found["tele/boiler/+"].points] == [
        ("DS18B20.Temperature", "DS18B20.Temperature", "Cel", 62.4, 1),
        ("POWER", "POWER", "", True, 1),
    ]
    assert found["tele/boiler/+"].rate_hz == 0.3


def test_what_is_printed_reads_the_same_values() -> None:
    text = configuration(surveyed(TALK).found(10), "broker")
    devices = [parsed(MqttDevice, each) for each in tomllib.loads(text)["device"]]
    assert {device.bus for device in devices} == {"broker"}
    mapper = Mapper(devices)
    values: dict[str, Any] = {}
    for topic, payload in TALK:
        for sample in mapper.map(topic.encode(), payload.encode(), False, 0, None).samples:
            values |= {f"{sample.device} {name}": v for name, v in zip(sample.points, sample.values, strict=True)}
    assert values == {
        "living_room temperature": 21.3,
        "living_room linkquality": 80,
        "boiler DS18B20.Temperature": 62.4,
        "boiler POWER": True,
        "plug-1 relay.0.power": 12.5,
        "plus-1 switch:0.apower": 4.5,
        "kitchen sensor.temp": 21.5,
        "plant.press.state oil.t": 40,
        "plant.press.state oil.key.dot": 1.5,
        "plant.level value": 17,
    }


def test_devices_that_announce_themselves_are_recognised(tmp_path: Path) -> None:
    survey = Survey()
    for topic, payload in [
        (b"room/air", b'{"t": 20.5}'),  # heard before it is announced
        (b"zigbee2mqtt/lamp", b'{"state": "ON", "brightness": 7}'),
        (b"v3/app1@ttn/devices/probe/up", json.dumps(UPLINK).encode()),
        (b"v3/app1@ttn/devices/probe/join", b"{}"),
        (b"spBv1.0/Plant/NBIRTH/edge", MESSAGE["NBIRTH"]),
        (b"spBv1.0/Plant/DBIRTH/edge/press", MESSAGE["DBIRTH"]),
        (b"spBv1.0/Plant/DDATA/edge/press", MESSAGE["DDATA"]),
        (b"spBv1.0/Plant/NDATA/late", MESSAGE["NDATA"]),
        (b"spBv1.0/STATE/scada", b"{}"),
        (b"homeassistant/sensor/air/t/config", json.dumps(AIR).encode()),
        (b"homeassistant/sensor/lamp/b/config", json.dumps({"state_topic": "zigbee2mqtt/lamp"}).encode()),
        (b"room/air", b'{"t": 21.5}'),
    ]:
        survey.hear(topic, payload)
    found = {each.topic: each for each in survey.found(10)}
    assert {topic: (each.name, each.format) for topic, each in found.items()} == {
        "homeassistant/#": ("{id}", Format.HOMEASSISTANT),
        "zigbee2mqtt/lamp": ("lamp", Format.ZIGBEE2MQTT),
        "v3/app1@ttn/devices/probe/up": ("probe", Format.TTN),
        "spBv1.0/Plant/+/edge": ("edge", Format.SPARKPLUG),
        "spBv1.0/Plant/+/edge/press": ("edge.press", Format.SPARKPLUG),
        "spBv1.0/Plant/+/late": ("late", Format.SPARKPLUG),
    }
    assert [tuple(point) for point in found["homeassistant/#"].points] == [("air-1 t", "", "°C", 21.5, 2)]
    assert {point.name for point in found["spBv1.0/Plant/+/edge"].points} == {"Supply_Voltage", "Uptime"}
    text = f'[[bus]]\nname = "broker"\nkind = "mqtt"\nhost = "127.0.0.1"\n\n{configuration(survey.found(10), "broker")}'
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    assert not check(path, {}).mistakes, text
    mapper = Mapper([parsed(MqttDevice, each) for each in tomllib.loads(text)["device"]])
    assert "spBv1.0/Plant/+/late/#" in mapper.filters


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20) | st.just('{"a\\n": 1, "b": "x"}')), max_size=6))
def test_no_talk_breaks_the_survey_and_all_that_is_printed_can_be_read(talk: list[tuple[str, str]]) -> None:
    survey = Survey()
    for topic, payload in talk:
        survey.hear(topic.encode("utf-8", "surrogatepass"), payload.encode("utf-8", "surrogatepass"))
    document = tomllib.loads(configuration(survey.found(1.0), "b"))
    for each in document.get("device", ()):
        parsed(MqttDevice, each)


def test_a_scan_leaves_the_gateways_session_alone(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        connector = rig.connector({"topic": "plant/level", "format": "value"})
        async with rig.running(connector) as task:
            bus = parsed(
                MqttBus, {"name": "b", "kind": "mqtt", "host": "127.0.0.1", "port": rig.broker.port, "client_id": "gw"}
            )
            told: list[int] = []
            scanning = asyncio.create_task(scan(bus, 1.5, lambda elapsed, messages: told.append(messages)))
            for i in range(10):
                await rig.publish("plant/level", str(i))
                await asyncio.sleep(0.1)
            result = await scanning
            (found,) = result.devices
            assert (found.topic, found.format) == ("plant/level", Format.VALUE)
            assert found.points[0].heard >= 1
            assert "plant/level" in result.toml
            assert told
            assert not task.done()
            await eventually(lambda: rig.store.values() == list(range(10)), "the gateway got all")

    asyncio.run(scenario())
