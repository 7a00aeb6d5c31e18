"""Disks that are full, fail, turn read-only or hang, under the real daemons: nothing that was promised is lost.

The disk of one daemon is broken from outside (`disk.c`) while a sensor publishes with QoS 1 through a real broker. In
the end every number is at the sink exactly once, and no gap was needed.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.demo.child import Child, until
from gateway.demo.plant import Counter, Plant
from gateway.demo.publisher import publisher
from gateway.demo.world import World
from gateway.model import Json
from gateway.testing import broker
from tests.crash.states import build

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: the disk is broken by a small C library"),
    pytest.mark.skipif(broker.program() is None, reason="needs mosquitto"),
    pytest.mark.timeout(240),
]

_PATIENCE_S = 90.0
_PACE_S = 0.02

FULL = f"write={errno.ENOSPC}"
DEAD = f"sync={errno.EIO}"
READ_ONLY = " ".join(f"{call}={errno.EROFS}" for call in ("open", "write", "unlink", "rename"))
BROKEN = " ".join(f"{call}={errno.EIO}" for call in ("open", "write", "sync", "unlink", "rename"))
SLOW = "sync=ms1000"
_LATER = pytest.mark.long
FAULTS = [
    pytest.param(FULL, id="full"),
    pytest.param(DEAD, id="syncs-fail"),
    pytest.param(READ_ONLY, id="read-only", marks=_LATER),
    pytest.param(BROKEN, id="broken", marks=_LATER),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="gw-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


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

        await until(is_it, _PATIENCE_S, f"the buffer is {mode}")

    async def arrived(self) -> None:
        """What is published from now on arrives."""
        number = self.sensor.produced + 2
        await until(lambda: self.stored(number), _PATIENCE_S, f"number {number} is at the sink")

    async def stored(self, number: int) -> bool:
        latest = await self.world.latest()
        return any(value >= number for device, point, value, _, _ in latest if point == "sequence")

    async def settle(self) -> None:
        """Every number exactly once, no gap."""
        self.world.plant.hush()
        proof = await self.world.settle(_PATIENCE_S)
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
async def site(folder: Path, shim: Path, below: str) -> AsyncIterator[Site]:
    """`below`: whose disk can be broken, `state` (the gateway's) or `cloud` (that of ingest)."""
    async with AsyncExitStack() as stack:
        mosquitto = stack.enter_context(broker.Mosquitto(folder, max_inflight_messages=20, max_queued_messages=0))
        faults, sensor, plant = folder / "faults", Sensor(), Plant()
        broken = {"LD_PRELOAD": str(shim), "DISK_BELOW": str(folder / below), "DISK_FAULTS": str(faults)}
        plant.toml = TOML.format(port=mosquitto.port)
        plant.counters.append(Counter("office", "sequence", 1, lambda: sensor.produced))
        world = World(folder, plant)
        if below == "state":
            plant.environment |= broken
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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gateway_whose_disk_fails_forwards_from_memory_and_says_so(folder: Path, shim: Path, fault: str) -> None:
    async def story() -> None:
        async with site(folder, shim, "state") as here:
            world = here.world
            await here.arrived()
            for relay in world.relays.values():
                await relay.refuse()
            before = (await here.buffer())["commits"]

            async def commits() -> bool:
                return bool((await here.buffer())["commits"] > before + 3)

            await until(commits, _PATIENCE_S, "offline, it writes to the disk")
            here.disk(fault)
            await here.mode("degraded")
            assert (await here.buffer())["why"]
            for relay in world.relays.values():
                await relay.forward()
            await here.arrived()  # from memory, and what is on disk from there
            for relay in world.relays.values():
                await relay.refuse()
            await asyncio.sleep(1.0)  # it may try the disk as often as it wants to
            assert said(world.gateway, "the store fails") == 1
            await world.gateway.end(signal.SIGKILL)
            await world.gateway.start()  # on the same broken disk
            await here.mode("degraded")
            for relay in world.relays.values():
                await relay.forward()
            await here.arrived()
            here.disk("")
            await here.mode("healthy")
            assert said(world.gateway, "the store works again") == 1
            await here.settle()

    asyncio.run(story())


def test_a_gateway_whose_disk_hangs_goes_on_at_once(folder: Path, shim: Path) -> None:
    async def story() -> None:
        async with site(folder, shim, "state") as here:
            await here.arrived()
            here.disk(SLOW)
            for relay in here.world.relays.values():
                await relay.refuse()
            for _ in range(5):
                begun = time.monotonic()
                assert await here.buffer()
                assert time.monotonic() - begun < 0.9, "the event loop waited for the disk"
                await asyncio.sleep(0.3)
            for relay in here.world.relays.values():
                await relay.forward()
            await here.arrived()
            here.disk("")
            await here.mode("healthy")
            await here.settle()

    asyncio.run(story())


@pytest.mark.parametrize("fault", [*FAULTS, pytest.param(SLOW, id="slow", marks=_LATER)])
def test_ingest_acks_nothing_that_its_disk_did_not_take(folder: Path, shim: Path, fault: str) -> None:
    async def story() -> None:
        async with site(folder, shim, "cloud") as here:
            world = here.world
            await here.arrived()
            here.disk(fault)
            if fault != SLOW:
                await until(
                    lambda: said(world.ingest, "nothing is stored and nothing acked") == 1, _PATIENCE_S, "it says so"
                )
            published = here.sensor.produced
            await until(lambda: here.sensor.produced > published + 100, _PATIENCE_S, "the sensor goes on")
            if fault != SLOW:
                assert not await here.stored(here.sensor.produced - 10)
                assert said(world.ingest, "nothing is stored and nothing acked") == 1, world.ingest.last_words()
            await world.ingest.end(signal.SIGKILL)  # what it acked, and did not store, would now be lost
            here.disk("")
            await world.ingest.start()
            await here.arrived()
            here.disk(fault)
            await asyncio.sleep(1.0)
            here.disk("")
            await here.arrived()  # without a restart, too
            await here.settle()

    asyncio.run(story())
