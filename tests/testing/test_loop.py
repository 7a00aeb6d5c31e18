"""The virtual-time loop itself."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gateway.testing.loop import VirtualClock, run


def test_an_hour_of_sleeping_takes_a_moment_and_order_is_that_of_the_timers() -> None:
    async def main() -> list[tuple[str, float]]:
        clock, seen = VirtualClock(), []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, clock.monotonic()))

        async with asyncio.TaskGroup() as group:
            group.create_task(wait("late", 3600))
            group.create_task(wait("early", 1.5))
        return seen

    began = time.monotonic()
    seen = run(main())
    assert [name for name, _ in seen] == ["early", "late"]
    assert seen[1][1] - seen[0][1] == pytest.approx(3598.5)
    assert time.monotonic() - began < 5


def test_time_stands_still_while_a_worker_thread_works() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        gate = threading.Event()
        threading.Timer(0.05, gate.set).start()
        before = loop.time()
        async with asyncio.timeout(0.001):  # virtual: must not fire although the thread takes 50 real ms
            assert await loop.run_in_executor(None, gate.wait, 10)
        return loop.time() - before

    assert run(main()) < 0.001


def test_a_timeout_fires_in_virtual_time() -> None:
    async def main() -> None:
        async with asyncio.timeout(600):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run(main())


def test_a_deadlock_is_raised_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run(main())
