"""A real file system without a free byte, under the real daemons."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.demo.child import until
from gateway.testing import broker
from tests.crash.site import PATIENCE_S, said, site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system"),
    pytest.mark.skipif(broker.program() is None, reason="needs mosquitto"),
    pytest.mark.timeout(240),
]


@contextmanager
def small(folder: Path) -> Iterator[None]:
    """Room for what they write themselves, and a little more."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """To the last byte."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert not shutil.disk_usage(folder).free


def test_a_gateway_forwards_from_memory_while_there_is_no_room(folder: Path) -> None:
    async def story() -> None:
        async with site(folder, None, "state", "free_space_floor = 0") as here:
            world = here.world
            await here.arrived()
            for relay in world.relays.values():
                await relay.refuse()
            fill(folder / "state")
            await here.mode("degraded")
            for relay in world.relays.values():
                await relay.forward()
            await here.arrived()
            for relay in world.relays.values():
                await relay.refuse()
            await asyncio.sleep(1.0)
            assert said(world.gateway, "the store fails") == 1
            await world.gateway.end(signal.SIGKILL)
            await world.gateway.start()  # where there is no room to open a file either
            await here.mode("degraded")
            for relay in world.relays.values():
                await relay.forward()
            await here.arrived()
            (folder / "state" / "filler").unlink()
            await here.mode("healthy")
            await here.settle()

    with small(folder / "state"):
        asyncio.run(story())


def test_ingest_holds_back_while_there_is_no_room(folder: Path) -> None:
    async def story() -> None:
        async with site(folder, None, "cloud") as here:
            world = here.world
            await here.arrived()
            fill(folder / "cloud")
            await until(
                lambda: said(world.ingest, "nothing is stored and nothing acked") == 1, PATIENCE_S, "it says so"
            )
            published = here.sensor.produced
            await until(lambda: here.sensor.produced > published + 50, PATIENCE_S, "the sensor goes on")
            await world.ingest.end(signal.SIGKILL)
            (folder / "cloud" / "filler").unlink()
            await world.ingest.start()
            await here.arrived()
            fill(folder / "cloud")
            await asyncio.sleep(1.0)
            (folder / "cloud" / "filler").unlink()
            await here.arrived()
            await here.settle()

    with small(folder / "cloud"):
        asyncio.run(story())
