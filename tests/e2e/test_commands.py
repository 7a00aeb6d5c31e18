"""From the cloud side to the machine and back: what may be written, what may not, and that the answer is the truth."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.demo import plant as plants
from gateway.demo import world as worlds
from gateway.demo.child import Child, until
from gateway.demo.plant import Plant
from gateway.demo.world import World
from gateway.testing import broker

pytestmark = pytest.mark.skipif(
    broker.program() is None or shutil.which("dbus-daemon") is None, reason="needs mosquitto and dbus-daemon"
)

LED = "0000ff01-0000-1000-8000-00805f9b34fb"
PROBE = "F0:F1:F2:F3:F4:F5"
MORE = f"""
[[device]]
name = "lamp"
bus = "broker"
topic = "lamp/state"
command_topic = "lamp/set"
points = [ {{ name = "level", payload = '{{"level": {{value}}}}', write = {{ min = 0, max = 100, step = 5 }} }} ]

[[device]]
name = "probe"
bus = "hci0"
address = "{PROBE}"
connect = {{ mode = "poll", interval = "1m" }}
points = [ {{ name = "led", characteristic = "{LED}", type = "uint8", write = {{ values = [0, 1], verify = true }} }} ]
"""


class Answer(NamedTuple):
    code: int
    text: str


async def send(world: World, *words: str) -> Answer:
    """`gateway ingest send demo …`, as a person types it."""
    log = world.folder / "send.log"
    log.unlink(missing_ok=True)
    command = Child(("ingest", "--data", str(world.folder / "cloud"), "send", "demo", *words), log)
    await command.start()
    return Answer(await command.wait(), log.read_text())


async def online(world: World) -> bool:
    status = await world.status()
    return status is not None and status["uplink"]["active"] is not None


async def heard(port: int, topic: str) -> list[bytes]:
    """What arrives at the broker under a topic from now on, in a list that grows."""
    messages: list[bytes] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    subscribed = asyncio.Event()
    loop = asyncio.get_running_loop()
    client.on_message = lambda _client, _data, message: messages.append(message.payload)
    client.on_subscribe = lambda *_: loop.call_soon_threadsafe(subscribed.set)
    client.connect("127.0.0.1", port)
    client.subscribe(topic, 1)
    client.loop_start()
    async with asyncio.timeout(10):
        await subscribed.wait()
    return messages


async def probe_in_the_air(plant: Plant) -> None:
    assert plant.bluez is not None
    plant.bluez.give_gatt(PROBE, {LED: (b"\x00", ["read", "write"])})
    while True:
        await plant.bluez.advertise(PROBE, name="probe")
        await asyncio.sleep(0.2)


def test_commands_reach_modbus_mqtt_and_ble_and_nothing_else_does(folder: Path) -> None:
    async def story() -> None:
        async with plants.running(folder) as plant:
            plant.toml += MORE
            plant.work("probe", probe_in_the_air(plant))
            async with worlds.running(folder, plant) as world:
                await until(lambda: online(world), 30, "the gateway is online")
                assert plant.mqtt_port is not None
                lamp = await heard(plant.mqtt_port, "lamp/set")

                modbus = await send(world, "meter", "setpoint", "23.5")
                assert modbus.code == 0, modbus
                assert "ok" in modbus.text
                assert "23.5" in modbus.text, "the value was read back, in the unit in which it was asked"

                published = await send(world, "lamp", "level", "40")
                assert published.code == 0, published
                assert [json.loads(message) for message in lamp] == [{"level": 40}]

                written = await send(world, "probe", "led", "1", "--ttl", "20s")
                assert written.code == 0, written

                for device, point, value, why in (
                    ("meter", "setpoint", "36", "36"),
                    ("meter", "temperature", "20", "not writable"),
                    ("meter", "setpiont", "20", "setpoint"),
                    ("metre", "setpoint", "20", "meter"),
                    ("lamp", "level", "41", "multiple of 5"),
                    ("probe", "led", "2", "2"),
                ):
                    refused = await send(world, device, point, value)
                    assert refused.code == 1, refused
                    assert "rejected" in refused.text
                    assert why in refused.text
                assert len(lamp) == 1, "what was refused never left the gateway"

                again = [await send(world, "lamp", "level", "60", "--id", "same-id") for _ in range(3)]
                assert [answer.code for answer in again] == [0, 0, 0]
                assert len(lamp) == 2, "an id acts once, however often it is sent"

                await world.gateway.end()
                offline = await send(world, "meter", "setpoint", "20", "--ttl", "2s")
                assert offline.code == 1, offline
                assert "unavailable" in offline.text

    asyncio.run(story())
