"""An event loop whose time jumps to the next timer as soon as nothing is ready: an hour of back-off takes a moment.

Time stands still while a worker thread works (`run_in_executor`). Sockets and pipes are not supported: data that is
under way outside this process would come too late. When nothing is ready, nothing works and no timer is set, nothing
can ever happen again; that is raised, so a deadlock is a failed test and not a hung one.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from gateway.clock import told
from gateway.model import ClockState, Trust

T = TypeVar("T")
BOOT = "0" * 31 + "1"
_START = 1000.0
"""Not 0: a stamp that somebody forgot to set shall be far away."""
_LAST_HOPE_S = 1.0
"""Real seconds in which a thread that is not ours to count (a shutdown, a callback) may still wake the loop."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of sleeping until the next timer it makes that moment now."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START
        self.working = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.working and timeout != 0:
            return super().select()  # the thread will wake us
        ready = super().select(_LAST_HOPE_S if timeout is None else 0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        if not ready:
            self.now += timeout or 0.0
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._jumping.working += 1
        future.add_done_callback(self._worked)
        return future

    def _worked(self, _: asyncio.Future[Any]) -> None:
        self._jumping.working -= 1


class VirtualClock:
    """The `Clock` of code that runs on this loop; UTC is boot time + `utc_offset_ms`."""

    def __init__(self, utc_offset_ms: int = 1_750_000_000_000, trust: Trust = Trust.SYNCED) -> None:
        self.utc_offset_ms = utc_offset_ms
        self.trust = trust
        self._told: tuple[int, int, int] | None = None

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def boot_ns(self) -> int:
        return round(self.monotonic() * 1e9)

    def learn(self, offset_ms: int, error_ms: int) -> None:
        self._told = offset_ms, error_ms, self.boot_ns()

    def state(self) -> ClockState:
        if self.trust is Trust.UNSYNCED and self._told is not None:
            return told(BOOT, *self._told, self.boot_ns())
        return ClockState(BOOT, self.utc_offset_ms, 1 if self.trust is Trust.SYNCED else -1, self.trust)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
