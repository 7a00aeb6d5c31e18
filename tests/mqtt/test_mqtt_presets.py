"""What the devices of a house publish, through a real broker: the topics and payloads of their documentation."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.model import Status, Value
from tests.mqtt.conftest import Rig, eventually

Readings = dict[str, tuple[Value | None, str]]

# zigbee2mqtt.io, "MQTT topics and messages": a climate sensor
ZIGBEE = {"battery": 97, "humidity": 56.41, "linkquality": 120, "pressure": 1007.9, "temperature": 21.36}
# tasmota.github.io, "Telemetry": SENSOR of a plug with a temperature probe
TASMOTA = {
    "Time": "2026-11-22T10:15:00",
    "DS18B20": {"Id": "01131B123456", "Temperature": 20.6},
    "ENERGY": {"Total": 13.157, "Power": 182, "Voltage": 229, "Current": 0.834},
    "TempUnit": "C",
}


def shelly(params: dict[str, Any]) -> dict[str, Any]:
    """shelly-api-docs.shelly.cloud, gen 2, "Notifications": only what changed is in a frame."""
    return {"src": "shellyplus1pm-aa", "dst": "shellyplus1pm-aa/events", "method": "NotifyStatus", "params": params}


def told(rig: Rig) -> list[Readings]:
    """Every sample so far: point → value and the unit that its source says."""
    return [
        {
            point: (value, sample.units[i] if sample.units else "")
            for i, (point, value) in enumerate(zip(sample.points, sample.values, strict=True))
        }
        for sample in rig.store.samples
    ]


async def heard(rig: Rig, device: dict[str, Any], *messages: tuple[str, Any]) -> list[Readings]:
    """Publishes one message after the other; the samples that came of them."""
    async with rig.running(rig.connector(device)) as task:
        for number, (topic, payload) in enumerate(messages, start=1):
            await rig.publish(topic, payload if isinstance(payload, str) else json.dumps(payload))
            await eventually(lambda n=number: task.done() or len(rig.store.samples) >= n, f"{topic} is told")
    return told(rig)


def test_zigbee2mqtt(rig: Rig) -> None:
    async def scenario() -> None:
        device = {"name": "hall", "topic": "zigbee2mqtt/hall", "format": "zigbee2mqtt"}
        (readings,) = await heard(rig, device, ("zigbee2mqtt/hall", ZIGBEE))
        assert readings["temperature"] == (21.36, "Cel")
        assert readings["humidity"] == (56.41, "%RH")
        assert readings["linkquality"][0] == 120

    asyncio.run(scenario())


def test_tasmota(rig: Rig) -> None:
    async def scenario() -> None:
        points = [
            {"name": "temperature", "path": "DS18B20.Temperature"},
            {"name": "power", "path": "ENERGY.Power"},
            {"name": "energy", "path": "ENERGY.Total"},
        ]
        device = {"name": "plug", "topic": "tele/plug/SENSOR", "format": "tasmota", "points": points}
        (readings,) = await heard(rig, device, ("tele/plug/SENSOR", TASMOTA))
        assert readings == {"temperature": (20.6, "Cel"), "power": (182, "W"), "energy": (13.157, "kWh")}

    asyncio.run(scenario())


def test_shelly_gen_1_publishes_bare_numbers_and_watt_minutes(rig: Rig) -> None:
    async def scenario() -> None:
        device = {"name": "{id}", "topic": "shellies/{id}/#", "format": "shelly-gen1"}
        power, energy, relay = await heard(
            rig,
            device,
            ("shellies/shelly1pm-68/relay/0/power", "52.34"),
            ("shellies/shelly1pm-68/relay/0/energy", "6000"),
            ("shellies/shelly1pm-68/relay/0", "on"),
        )
        assert list(power.values()) == [(52.34, "W")]
        assert list(energy.values()) == [(100, "Wh")], "6,000 Watt-minutes"
        assert [value for value, _ in relay.values()] == [True]
        assert {sample.device for sample in rig.store.samples} == {"shelly1pm-68"}

    asyncio.run(scenario())


def test_shelly_gen_2_frames_are_partial_and_say_nothing_of_the_rest(rig: Rig) -> None:
    async def scenario() -> None:
        points = [
            {"name": "power", "path": "switch:0.apower"},
            {"name": "on", "path": "switch:0.output"},
            {"name": "energy", "path": "switch:0.aenergy.total"},
        ]
        topic = "shellyplus1pm-aa/events/rpc"
        device = {"name": "heater", "topic": topic, "format": "shelly", "points": points}
        frames = await heard(
            rig,
            device,
            (topic, shelly({"ts": 1763800000.1, "switch:0": {"id": 0, "apower": 8.9, "output": True}})),
            (topic, shelly({"ts": 1763800001.1, "switch:0": {"id": 0, "aenergy": {"total": 11.679}}})),
            (topic, shelly({"ts": 1763800002.1, "switch:0": {"id": 0, "output": False, "source": "HTTP"}})),
        )
        assert frames == [{"power": (8.9, "W"), "on": (True, "")}, {"energy": (11.679, "Wh")}, {"on": (False, "")}]

    asyncio.run(scenario())


@pytest.mark.parametrize(("text", "value", "status"), [("21.4", 21.4, None), ("nan", None, (Status.SENSOR_FAULT,))])
def test_esphome_publishes_plain_text(rig: Rig, text: str, value: Value, status: Any) -> None:
    async def scenario() -> None:
        points = [{"name": "temperature", "path": "sensor/temperature", "unit": "Cel"}]
        device = {"name": "kitchen", "topic": "kitchen/+/+/state", "format": "esphome", "points": points}
        (readings,) = await heard(rig, device, ("kitchen/sensor/temperature/state", text))
        assert readings["temperature"][0] == value
        assert rig.store.samples[0].status == status

    asyncio.run(scenario())
