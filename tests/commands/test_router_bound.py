"""How many commands wait is bounded over all devices, also when no single device has too many."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from gateway.commands.router import LANE_LIMIT, WAITING_LIMIT, Router
from gateway.commands.store import Store
from gateway.model import Command, Outcome, Value, Write
from gateway.points import Point, WriteLimits
from gateway.testing.loop import VirtualClock, run


def test_when_too_many_commands_wait_over_all_devices_the_next_is_busy(tmp_path: Path) -> None:
    points = {"speed": Point(name="speed", write=WriteLimits(min=0, max=100))}
    devices = [f"pump-{i}" for i in range(2 * WAITING_LIMIT // LANE_LIMIT)]

    async def stuck(_: Write) -> Value | None:
        await asyncio.Event().wait()
        return None

    async def main() -> Counter[str]:
        path = tmp_path / "commands.db"
        router = Router(Store(path), dict.fromkeys(devices, points), stuck, VirtualClock())
        await router.open()
        task = asyncio.create_task(router.run())
        await asyncio.sleep(0)
        expires_at = asyncio.get_running_loop().time() + 10
        for i in range(WAITING_LIMIT + 20):
            device = devices[i % len(devices)]  # half of what one device may have
            router.receive(Command(f"{i}", device, "write", "speed", 5, expires_at, "cloud"))
        await asyncio.sleep(1)  # in virtual time: all that can happen has happened
        said = Counter(f"{each.outcome}: {each.reason}" for each in router.results())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await router.close()
        return said

    assert run(main()) == {f"{Outcome.REJECTED}: busy: too many commands wait": 20}
