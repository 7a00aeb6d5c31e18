"""What the tests of the driver share: an uplink that runs, and waiting for conditions with a bound."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from gateway.clock import SystemClock
from gateway.uplink.config import Endpoint, Standby, UplinkSettings
from gateway.uplink.ports import Commands, Outbox
from gateway.uplink.uplink import About, Uplink
from tests.uplink.memory import MemoryCommands


async def until(condition: Callable[[], object], within_s: float = 15.0) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it never came true"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def running(
    outbox: Outbox,
    *endpoints: Endpoint,
    commands: Commands | None = None,
    standby: Standby = Standby.AUTO,
    random: Callable[[], float] = lambda: 0.0,
    state_dir: Path | None = None,
    trusted: bool = False,
) -> AsyncIterator[Uplink]:
    """`random` gives 0: every jittered wait is over at once."""
    settings = UplinkSettings(endpoint=endpoints, standby=standby)
    clock = SystemClock(Path("/")) if trusted else SystemClock()  # what is there marks a clock that was synchronised
    uplink = Uplink(settings, outbox, commands or MemoryCommands(), clock, About("test 1"), random, state_dir)
    task = asyncio.create_task(uplink.run())
    try:
        yield uplink
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def state_of(uplink: Uplink, name: str) -> str:
    return str(next(each["state"] for each in uplink.status()["endpoints"] if each["name"] == name))


def trouble_of(uplink: Uplink, name: str) -> str:
    return str(next(each["last_error"] for each in uplink.status()["endpoints"] if each["name"] == name))
