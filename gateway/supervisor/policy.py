"""Pure: when a unit that ended is built again.

A lost link is the world's fault: it is tried again for ever, after 1 s, 2 s, 4 s … 60 s at most, each time a random
part of that (full jitter), so that many units of one broken hub do not come back in step. An unexpected exception is
our bug: the same waits, but five within ten minutes and the unit rests for ten minutes. A unit that ran for a minute
has proved itself, and its next wait is a short one again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
STABLE_S = 60.0
"""A unit that runs this long has recovered."""
FAULTS = 5
FAULT_WINDOW_S = 600.0
REST_S = 600.0

_MOST_DOUBLINGS = 6  # 1 s · 2⁶ = 64 s, beyond the longest wait


class Wait(NamedTuple):
    seconds: float
    rest: bool = False
    """Too many faults: left alone for a while."""


class RestartPolicy:
    """One for each unit. `jitter` returns a random number from 0 to 1."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._started_at = 0.0
        self._failures = 0
        self._faults: deque[float] = deque(maxlen=FAULTS)

    @property
    def failures(self) -> int:
        """Ends in a row without a minute of work between them."""
        return self._failures

    def started(self, now: float) -> None:
        self._started_at = now

    def link_lost(self, now: float) -> Wait:
        """The unit ended with LinkError."""
        return Wait(self._next_wait(now))

    def fault(self, now: float) -> Wait:
        """The unit ended in a way that it must not."""
        wait_s = self._next_wait(now)
        self._faults.append(now)
        if len(self._faults) == FAULTS and now - self._faults[0] <= FAULT_WINDOW_S:
            self._faults.clear()
            return Wait(REST_S, rest=True)
        return Wait(wait_s)

    def _next_wait(self, now: float) -> float:
        if now - self._started_at >= STABLE_S:
            self._failures = 0
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * (1 << min(self._failures, _MOST_DOUBLINGS)))
        self._failures += 1
        return longest * self._jitter()
