"""Pure: what is given up when the disk is full.

Oldest first, readings before alarms: of the live lane the oldest streams give way first; alarms only when no reading
is left, or when they alone take more than their reserve of the whole. What is in flight is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.model import Lane

ALARM_SHARE: Final = 4
"""Alarms may take 1/4 of the store before they compete with readings."""
STEP_SHARE: Final = 64
"""Give up at least 1/64 of the store at once, so that a full store does not evict with every commit."""
FLOOR_SHARE: Final = 8
"""However full the file system is by others, 1/8 of `max_size` stays ours."""


class Usage(NamedTuple):
    """One stream on disk; a sequence of them is in order of age, oldest first."""

    stream: str
    lane: Lane
    bytes: int


class Cut(NamedTuple):
    """Give up about this many bytes of a stream, oldest first."""

    stream: str
    bytes: int


def allowed_bytes(max_size: int, used: int, free: int, floor: int) -> int:
    """How large the store may be: `max_size`, less when the file system runs low."""
    return min(max_size, max(max_size // FLOOR_SHARE, used + free - floor))


def excess_bytes(used: int, incoming: int, allowed: int) -> int:
    """How much must be given up before `incoming` fits; 0 when it does."""
    over = used + incoming - allowed
    return max(over, allowed // STEP_SHARE) if over > 0 else 0


def plan(usage: Sequence[Usage], excess: int, allowed: int) -> list[Cut]:
    """Whose records make room for `excess` bytes."""
    alarms = [each for each in usage if each.lane is Lane.ALARM]
    readings = [each for each in usage if each.lane is Lane.LIVE]
    surplus = min(excess, max(0, sum(each.bytes for each in alarms) - allowed // ALARM_SHARE))
    cuts = _take(alarms, surplus)
    rest = excess - sum(cut.bytes for cut in cuts)
    cuts += _take(readings, rest)
    missing = excess - sum(cut.bytes for cut in cuts)
    if missing > 0:
        cuts = _take(alarms, surplus + missing) + [cut for cut in cuts if cut.stream in {r.stream for r in readings}]
    return cuts


def _take(usage: Sequence[Usage], wanted: int) -> list[Cut]:
    cuts = []
    for each in usage:
        if wanted <= 0:
            break
        take = min(wanted, each.bytes)
        if take > 0:
            cuts.append(Cut(each.stream, take))
            wanted -= take
    return cuts
