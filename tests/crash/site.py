"""A sensor with QoS 1, a real broker, a gateway, a cloud side; the disk of one of these can be broken from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from gateway.demo.child import Child, until
from gateway.demo.plant import Counter, Plant
from gateway.demo.publisher import publisher
from gateway.demo.world import World
from gateway.errors import GatewayError
from gateway.model import Json
from gateway.testing import broker

PATIENCE_S: Final = 90.0
"""More than the longest pause of the uplink before it tries an endpoint again."""
_PACE_S: Final = 0.02


class Site(NamedTuple):
    """A sensor, the daemons, and a hand on their disks."""

    world: World
    faults: Path
    sensor: Sensor

    def disk(self, words: str) -> None:
        """Takes effect with the next call."""
        self.faults.write_text(words)

    async def buffer(self) -> dict[str, Json]:
        status = await self.world.status()
        return status["buffer"] if status is not None else {}

    async def mode(self, mode: str) -> None:
        async def is_it() -> bool:
            return (await self.buffer()).get("mode") == mode

        await until(is_it, PATIENCE_S, f"the buffer is {mode}")

    async def arrived(self) -> None:
        """What is published from now on arrives."""
        number = self.sensor.produced + 2
        await until(lambda: self.stored(number), PATIENCE_S, f"number {number} is at the sink")

    async def stored(self, number: int) -> bool:
        latest = await self.world.latest()
        return any(value >= number for device, point, value, _, _ in latest if point == "sequence")

    async def settle(self) -> None:
        """Every number exactly once, no gap."""
        self.world.plant.hush()
        try:
            proof = await self.world.settle(PATIENCE_S)
        except GatewayError as error:
            logs = f"{self.world.gateway.last_words()}\n{self.world.ingest.last_words()}"
            raise AssertionError(f"{error}\n{await self.world.status()}\n{logs}") from error
        assert proof.holds, f"{proof.sentence()}\n{self.world.gateway.last_words()}\n{self.world.ingest.last_words()}"
        assert proof.declared == 0
        assert proof.tallies[0].stored == self.sensor.produced > 50


class Sensor:
    """Publishes 1, 2, 3 … while it is not hushed."""

    def __init__(self) -> None:
        self.produced = 0

    async def run(self, port: int, plant: Plant) -> None:
        with publisher(port) as client:
            while True:
                await plant._talking.wait()
                self.produced += 1
                client.publish("site/office", b'{"sequence": %d}' % self.produced)
                await asyncio.sleep(_PACE_S)


TOML = """
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
port = {port}

[[device]]
name = "office"
bus = "broker"
topic = "site/office"
points = [ {{ name = "sequence" }} ]
"""


@asynccontextmanager
async def site(folder: Path, shim: Path | None, below: str, buffer: str = "") -> AsyncIterator[Site]:
    """`below`: whose disk can be broken, `state` (the gateway's) or `cloud` (that of ingest); `buffer`: its table."""
    async with AsyncExitStack() as stack:
        mosquitto = stack.enter_context(broker.Mosquitto(folder, max_inflight_messages=20, max_queued_messages=0))
        faults, sensor, plant = folder / "faults", Sensor(), Plant()
        broken: Mapping[str, str] = {}
        if shim is not None:
            broken = {"LD_PRELOAD": str(shim), "DISK_BELOW": str(folder / below), "DISK_FAULTS": str(faults)}
        plant.toml = f"\n[buffer]\n{buffer}\n" + TOML.format(port=mosquitto.port)
        plant.counters.append(Counter("office", "sequence", 1, lambda: sensor.produced))
        world = World(folder, plant)
        if below == "state":
            world.gateway = Child(("run", "--config", str(folder / "gateway.toml")), folder / "gateway.log", broken)
        else:
            world.ingest = Child(
                ("ingest", "--listen", f"127.0.0.1:{world.port}", "--data", str(folder / "cloud")),
                folder / "ingest.log",
                broken,
            )

        async def end() -> None:
            for child in (world.gateway, world.ingest):
                if child.running:
                    await child.end()

        stack.push_async_callback(end)
        await world.start(stack)
        task = asyncio.create_task(sensor.run(mosquitto.port, plant))
        stack.callback(task.cancel)
        yield Site(world, faults, sensor)


def said(child: Child, words: str) -> int:
    return child.log.read_text(errors="replace").count(words)
