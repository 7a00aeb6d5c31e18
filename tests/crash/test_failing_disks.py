"""Disks that are full, fail, turn read-only or hang, under the real daemons: nothing that was promised is lost.

The disk of one daemon is broken from outside (`disk.c`) while a sensor publishes with QoS 1 through a real broker. In
the end every number is at the sink exactly once, and no gap was needed.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
import time
from pathlib import Path

import pytest

from gateway.demo.child import until
from gateway.testing import broker
from tests.crash.site import PATIENCE_S, said, site

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: the disk is broken by a small C library"),
    pytest.mark.skipif(broker.program() is None, reason="needs mosquitto"),
    pytest.mark.timeout(240),
]

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

            await until(commits, PATIENCE_S, "offline, it writes to the disk")
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
                    lambda: said(world.ingest, "nothing is stored and nothing acked") == 1, PATIENCE_S, "it says so"
                )
            published = here.sensor.produced
            await until(lambda: here.sensor.produced > published + 100, PATIENCE_S, "the sensor goes on")
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
