"""Pure: how long a unit thinks before it answers, from its answers so far.

Counts in classes a fifth apart, so that a thousand units take little memory and a percentile is at most so much too
high. Old answers fade: every few thousand the counts are halved.
"""

from __future__ import annotations

import math
from array import array
from itertools import accumulate

_FIRST_S = 0.0001
_STEP = math.log(1.2)
_CLASSES = 74  # 0.1 ms × 1.2^73 = 60 s
_FADE = 10_000
ENOUGH = 100
"""Answers that a percentile needs."""


class Latency:
    """Of one unit."""

    def __init__(self) -> None:
        self._counts = array("H", bytes(2 * _CLASSES))
        self.count = 0

    def add(self, seconds: float) -> None:
        place = math.ceil(math.log(seconds / _FIRST_S) / _STEP) if seconds > _FIRST_S else 0
        self._counts[min(place, _CLASSES - 1)] += 1
        self.count += 1
        if self.count >= _FADE:
            self._counts = array("H", [count // 2 for count in self._counts])
            self.count = sum(self._counts)

    def within(self, share: float) -> float | None:
        """Seconds in which this share of the answers came; None while there are few."""
        if self.count < ENOUGH:
            return None
        place = next(n for n, total in enumerate(accumulate(self._counts)) if total >= share * self.count)
        return _FIRST_S * math.exp(_STEP * place)
