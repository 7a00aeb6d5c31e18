"""Pure: does a counter count?

A meter's total only rises. What falls, or rises faster than it can, is either a misread (a value of another register, a
torn one) or the start of something new: the counter rolled over, was reset, or the meter was replaced. One value does
not tell which, so it is marked and never altered, and the next one decides: if it goes on from the marked value, that
was real and counting starts from there; if it fits what was before, the marked one was the misread. Either way exactly
the doubtful values are marked, and a counter that was reset is not marked for ever.

The rate is judged over an hour or more: a counter that shows whole kWh stands still for minutes and then takes a step
that is no rate at all.
"""

from __future__ import annotations

from typing import Final

from gateway.model import Value

_HOUR_NS: Final = 3600 * 1_000_000_000


class Counter:
    """One point. `max_rate` is in units of the value for an hour; None: as fast as it likes."""

    __slots__ = ("_at_ns", "_doubted", "_max_rate", "_sure")

    def __init__(self, max_rate: float | None) -> None:
        self._max_rate = max_rate
        self._sure: int | float | None = None
        self._at_ns = 0
        self._doubted: tuple[int | float, int] | None = None

    def jumps(self, value: Value, at_ns: int) -> bool:
        """Is this value to be doubted? What is no number is none of its business."""
        if isinstance(value, bool | str):
            return False
        before = self._sure
        if before is not None and not self._follows(value, at_ns, before, self._at_ns):
            doubted, self._doubted = self._doubted, (value, at_ns)
            if doubted is None or not self._follows(value, at_ns, *doubted):
                return True
        self._doubted = None
        self._sure, self._at_ns = value, at_ns
        return False

    def _follows(self, value: int | float, at_ns: int, before: int | float, before_ns: int) -> bool:
        if value < before:
            return False
        hours = max(at_ns - before_ns, _HOUR_NS) / _HOUR_NS
        return self._max_rate is None or value - before <= self._max_rate * hours
