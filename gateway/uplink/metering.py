"""Pure: what an endpoint may spend in a day, and how fast a backlog may flow.

A day is a UTC day while the clock is trusted, else 24 hours of running. A clock that is set right in between begins no
new day, and one that goes back does not give back what was spent. A tenth of the budget is a reserve for alarms and
results of commands; what happens once readings have used the rest is configured.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.uplink.config import WhenSpent
from gateway.uplink.connections import Spending

DAY_S: Final = 86_400
RESERVE: Final = 10
"""One part in so many."""
BURST_S: Final = 0.1


class Day(msgspec.Struct, frozen=True):
    """What must survive a restart."""

    used_bytes: int = 0
    date: int | None = None
    """Days since 1970; None: the clock was not trusted."""
    age_s: float = 0.0


class Budget:
    """The data of one endpoint."""

    def __init__(self, limit_bytes: int, when_spent: WhenSpent, day: Day, now: float) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = day.used_bytes
        self._when_spent = when_spent
        self._date = day.date
        self._began = now - day.age_s

    def count(self, size: int) -> None:
        self.used_bytes += size

    def look(self, now: float, utc_ms: int | None) -> Spending:
        """What is allowed now; `utc_ms`: None while nobody vouches for it."""
        self._turn_the_page(now, None if utc_ms is None else utc_ms // (DAY_S * 1000))
        if self._when_spent is WhenSpent.GO_ON or self.used_bytes < self.limit_bytes - self.limit_bytes // RESERVE:
            return Spending.WITHIN
        if self._when_spent is WhenSpent.HOLD and self.used_bytes >= self.limit_bytes:
            return Spending.OVER
        return Spending.RESERVE

    def _turn_the_page(self, now: float, date: int | None) -> None:
        if date is None:
            if now >= self._began + DAY_S:
                self.used_bytes, self._date, self._began = 0, None, now
        elif self._date is None or date < self._date:
            self._date = date
        elif date > self._date:
            self.used_bytes, self._date, self._began = 0, date, now

    def day(self, now: float) -> Day:
        return Day(self.used_bytes, self._date, now - self._began)


class Throttle:
    """So many readings of a backlog a second, in the mean; one fetch may overdraw it."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._left = 0.0
        self._at = now

    def wait_s(self, now: float) -> float:
        """0: more may be sent."""
        most = max(1.0, self._rate * BURST_S)
        self._left = min(most, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1.0 - self._left) / self._rate)

    def spend(self, readings: int) -> None:
        self._left -= readings
