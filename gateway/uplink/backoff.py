"""Pure: how long to wait before the next attempt at one endpoint.

Full jitter: a random part of a ceiling that doubles, so that a fleet that lost its server at one moment comes back
spread out. Only a connection that proved itself resets it: a server that accepts and drops stays a failing server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

BASE_S: Final = 0.5
CEILING_S: Final = 60.0
BREAKER_FAILURES: Final = 3
BREAKER_WITHIN_S: Final = 60.0
BREAKER_FIRST_S: Final = 30.0
BREAKER_MAX_S: Final = 600.0


class Backoff:
    """Delays between attempts, and the breaker behind them. `random` gives numbers in [0, 1)."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0
        self._recent: deque[float] = deque(maxlen=BREAKER_FAILURES)
        self._opened = 0
        self.open_until = 0.0
        """The breaker: while another endpoint serves, this one is left alone until then."""

    def failed(self, now: float) -> float:
        """Counts a failure; returns the seconds to wait, breaker aside."""
        ceiling = min(CEILING_S, BASE_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._recent.append(now)
        if len(self._recent) == BREAKER_FAILURES and now - self._recent[0] <= BREAKER_WITHIN_S:
            self.open_until = now + min(BREAKER_MAX_S, BREAKER_FIRST_S * 2.0 ** min(self._opened, 16))
            self._opened += 1
            self._recent.clear()
        return self._random() * ceiling

    def proved(self) -> None:
        """A connection had acks for a minute: all is forgiven."""
        self._failures = self._opened = 0
        self._recent.clear()
        self.open_until = 0.0
