"""An event loop of virtual time and nothing else: callbacks, timers, tasks. No selector, no sockets, no threads.

`gateway.testing.loop` is asyncio's own loop whose clock jumps; this one is several times cheaper, because a campaign
of 100,000 schedules is made of callbacks. Order is asyncio's: first come, first served; timers by time, then by age.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_START_S = 1000.0
_MAX_STEPS = 2_000_000
"""Of one schedule; it needs a few thousand, and a loop that never comes to rest shall be a failure, not a hang."""


class _Handle:
    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., Any] | None, args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args

    def cancel(self) -> None:
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.callback is None


class _Timer(_Handle):
    __slots__ = ("at",)

    def __init__(self, at: float, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__(callback, args)
        self.at = at

    def when(self) -> float:
        return self.at


class Loop(asyncio.AbstractEventLoop):
    """See the module. What an executor does is up to the executor: `start(call)` returns a future."""

    def __init__(self) -> None:
        self._now = _START_S
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._age = 0
        self.troubles: list[dict[str, Any]] = []
        """What nobody else heard of."""

    # ── what asyncio asks of a loop ──────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: object = None) -> _Handle:  # type: ignore[override]
        handle = _Handle(callback, args)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: object = None) -> _Timer:  # type: ignore[override]
        timer = _Timer(when, callback, args)
        self._age += 1
        heapq.heappush(self._timers, (when, self._age, timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: object = None) -> _Timer:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: object = None) -> asyncio.Task[Any]:  # type: ignore[override]
        return asyncio.Task(coro, loop=self, name=name)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        result: asyncio.Future[T] = executor.start(self, lambda: func(*args))
        return result

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.troubles.append(context)

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        events._set_running_loop(self)
        try:
            task = self.create_task(main, name="schedule")
            self._until(task)
            return task.result()  # type: ignore[no-any-return]
        finally:
            main.close()  # what never came to rest takes its patches off, or the next schedule would run with them
            events._set_running_loop(None)

    def _until(self, task: asyncio.Task[Any]) -> None:
        ready, timers = self._ready, self._timers
        for _ in range(_MAX_STEPS):
            if task.done():
                return
            if not ready:
                self._advance()
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle.callback is not None:
                    handle.callback(*handle.args)
            while timers and timers[0][0] <= self._now:
                ready.append(heapq.heappop(timers)[2])
        raise RuntimeError("it does not come to rest")

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("deadlock: nothing is ready and no timer is set")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(timers)[2])


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop. Raises what nobody else heard of, too."""
    loop = Loop()
    result = loop.run(main)
    for context in loop.troubles:
        raise RuntimeError(context.get("message")) from context.get("exception")
    return result
