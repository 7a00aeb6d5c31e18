"""The whole program against a real broker: SIGKILLs of the gateway, restarts of the broker, and every message counted.

One sensor publishes 1, 2, 3 … with QoS 1 through a mosquitto that keeps its sessions on disk. In the middle of the
stream the gateway is killed and started again, and the broker is ended and started again. At the sink every number
must be there once, and none in doubt.

The publisher is not what is tried here: before the broker goes, it waits until the broker has all that it published,
for a publisher that repeats itself makes two messages of one.

`--long`: 100,000 messages, 50 kills, 20 restarts. `MQTT_SEED` repeats a run; every run prints its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from gateway.demo import world as worlds
from gateway.demo.child import until
from gateway.demo.plant import Plant
from gateway.demo.world import World
from gateway.testing.broker import Mosquitto, program

pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")

_PATIENCE_S = 120.0
_AHEAD = 3_000
"""Messages that may be published and not yet at the sink: enough that every blow falls into the stream."""
_UNACKED = 100
"""Of the publisher."""
_TOML = """
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
port = {port}

[[device]]
name = "sensor"
bus = "broker"
topic = "plant/n"
points = [ {{ name = "n" }} ]
"""


class Sensor:
    """Publishes numbers; knows how many the broker has."""

    def __init__(self, port: int) -> None:
        self.published = self.kept = 0
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="sensor", clean_session=False)
        self._client.reconnect_delay_set(0.1, 0.5)
        self._client.on_publish = self._on_publish
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def step(self) -> None:
        self.published += 1
        self._client.publish("plant/n", json.dumps({"n": self.published}), qos=1)

    def _on_publish(self, *_: object) -> None:
        self.kept += 1

    def connected(self) -> bool:
        return self._client.is_connected()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Campaign:
    """The sensor speaks, blows fall where chance wants them, and the sink is asked how far it is."""

    def __init__(self, world: World, broker: Mosquitto, sensor: Sensor, messages: int) -> None:
        self._world, self._broker, self._sensor, self._messages = world, broker, sensor, messages
        self._may_speak = asyncio.Event()
        self._may_speak.set()
        self.stored = 0

    async def speak(self) -> None:
        sensor = self._sensor
        while sensor.published < self._messages:
            await self._may_speak.wait()
            full = sensor.published - sensor.kept >= _UNACKED or sensor.published - self.stored >= _AHEAD
            if full:
                await asyncio.sleep(0.005)
                continue
            sensor.step()
            if sensor.published % 20 == 0:
                await asyncio.sleep(0)

    async def look(self) -> None:
        """Until all has come. The newest number is enough: the order is the broker's."""
        while self.stored < self._messages:
            rows = await self._world.latest()
            self.stored = max([row[2] for row in rows if row[1] == "n" and row[2] is not None], default=0)
            await asyncio.sleep(0.05)

    async def strike(self, blows: list[str], rng: random.Random) -> None:
        for number, blow in enumerate(blows, start=1):
            due = self._messages * number // (len(blows) + 1)
            await until(lambda due=due: self.stored >= due, _PATIENCE_S, f"{due} at the sink")  # type: ignore[misc]
            await asyncio.sleep(rng.uniform(0, 0.1))
            assert self._world.gateway.running, self._world.gateway.last_words()
            if blow == "kill":
                os.kill(self._world.gateway.pid, 9)
                assert await self._world.gateway.wait() == -9
                await self._world.gateway.start()
            else:
                await self._restart()

    async def _restart(self) -> None:
        self._may_speak.clear()
        sensor = self._sensor
        await until(lambda: sensor.kept == sensor.published, _PATIENCE_S, "the broker has all that was published")
        await asyncio.to_thread(self._broker.restart)
        await until(sensor.connected, _PATIENCE_S, "the sensor is connected again")
        self._may_speak.set()


@pytest.fixture
def home() -> Iterator[Path]:
    """Sockets lie in it, and they have room for 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="gw-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def persistent(folder: Path) -> Iterator[Mosquitto]:
    with Mosquitto(
        folder, persistence=True, persistence_location=f"{folder}/", max_queued_messages=0, autosave_interval=60
    ) as broker:
        yield broker


def at_the_sink(database: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute("SELECT value, status FROM readings WHERE point = 'n' AND value IS NOT NULL").fetchall()


@pytest.mark.timeout(3_000)
@pytest.mark.parametrize(
    ("messages", "kills", "restarts"),
    [(4_000, 3, 2), pytest.param(100_000, 50, 20, marks=pytest.mark.long)],
)
def test_no_kill_and_no_broker_restart_loses_or_doubles_a_message(
    home: Path, messages: int, kills: int, restarts: int
) -> None:
    seed = os.environ.get("MQTT_SEED") or secrets.token_hex(4)
    print(f"MQTT_SEED={seed}")
    rng = random.Random(seed)
    blows = ["kill"] * kills + ["restart"] * restarts
    rng.shuffle(blows)

    async def story() -> None:
        with persistent(home) as broker:
            plant = Plant()
            plant.toml += _TOML.format(port=broker.port)
            async with worlds.running(home, plant) as world:
                sensor = Sensor(broker.port)
                campaign = Campaign(world, broker, sensor, messages)
                began = time.monotonic()
                try:
                    async with asyncio.TaskGroup() as group:
                        for work in (campaign.speak(), campaign.look(), campaign.strike(blows, rng)):
                            group.create_task(work)
                finally:
                    sensor.close()
                await world.settle(_PATIENCE_S)
                found = at_the_sink(world.database)
                times = Counter(value for value, _ in found)
                lost = set(range(1, messages + 1)) - set(times)
                twice = [value for value, count in times.items() if count > 1]
                took = time.monotonic() - began
                print(f"{messages} messages, {kills} kills, {restarts} restarts of the broker in {took:.0f} s")
                assert (sorted(lost)[:10], sorted(twice)[:10]) == ([], []), (len(lost), len(twice))
                assert {status for _, status in found} == {"good"}, "no kill takes knowledge, so nothing is in doubt"

    asyncio.run(story())
