"""Commands that wait for their turn on a bus: few, in order, each with somebody who waits for its outcome."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from gateway.connectors.modbus.config import Spot
from gateway.errors import CommandError
from gateway.model import Outcome, Value, Write

MAX = 64
"""The next one is refused as unavailable. At 50 ms each these take 3 s."""


class Waiting(NamedTuple):
    """A command and who waits for it; one whose caller has gone is `done`."""

    write: Write
    target: Spot
    done: asyncio.Future[Value | None]

    def succeed(self, value: Value | None) -> None:
        if not self.done.done():
            self.done.set_result(value)

    def fail(self, error: CommandError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Commands:
    """See the module."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, write: Write, target: Spot) -> asyncio.Future[Value | None]:
        """
        Raises:
            CommandError: too many wait.
        """
        if len(self._waiting) >= MAX:
            raise CommandError(Outcome.UNAVAILABLE, f"{MAX} commands wait already")
        waiting = Waiting(write, target, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        return waiting.done

    def take(self, now: float, free_at: Callable[[str], float], may_go: Callable[[], bool]) -> Waiting | None:
        """The first one whose device may be asked, if it is the commands' turn."""
        for waiting in list(self._waiting):
            if waiting.done.done():
                self._waiting.remove(waiting)
            elif free_at(waiting.write.device) <= now:
                if not may_go():
                    return None
                self._waiting.remove(waiting)
                return waiting
        return None

    def next_at(self, free_at: Callable[[str], float]) -> float:
        """When `take` may have one; infinity when none waits."""
        return min((free_at(waiting.write.device) for waiting in self._waiting), default=float("inf"))

    def refuse_all(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(CommandError(Outcome.UNAVAILABLE, reason))
