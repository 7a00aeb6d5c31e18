"""Pure: how large each lane may become, and what is given up when that is reached.

    max_size   =  readings ………………………………………… | alarm_reserve
    free space =  readings … | floor: half of it alarms, half what others write (results of commands)

Readings grow up to the bar, alarms take what readings leave, and at least the reserve. So readings never push out an
alarm that is within its reserve, and a flood of alarms never pushes out the readings. In each lane the oldest give way.
When others fill the file system, what is held shrinks to an eighth of `max_size`, and no further; it grows only into
its own empty pages then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.model import Lane

STEP_SHARE: Final = 64
"""Give up at least 1/64 of the store at once, so that a full store does not evict with every commit."""
FLOOR_SHARE: Final = 8
"""What is held up to 1/8 of `max_size` is not given up for others who fill the file system."""
RESERVE_SHARE: Final = 4
"""The reserve is 1/4 of `max_size` at most."""


class Usage(NamedTuple):
    """One stream on disk; a sequence of them is in order of age, oldest first."""

    stream: str
    lane: Lane
    bytes: int


class Cut(NamedTuple):
    """Give up about this many bytes of a stream, oldest first."""

    stream: str
    bytes: int


class Bytes(NamedTuple):
    """So many of each lane."""

    readings: int
    alarms: int


class Bounds(NamedTuple):
    """How much the store may hold."""

    readings: int
    whole: int


class Space(NamedTuple):
    """The file, and the file system around it."""

    used: int
    """Bytes of pages with something in them."""
    spare: int
    """Bytes of empty pages in the file: to use them takes no space."""
    free: int
    """Bytes that the file system has left."""


def bounds(space: Space, max_size: int, alarm_reserve: int, floor: int) -> Bounds:
    held = max_size // FLOOR_SHARE
    grown = space.used + space.spare + space.free
    reserve = min(alarm_reserve, max_size // RESERVE_SHARE)
    return Bounds(
        min(max_size - reserve, max(held, grown - floor)),
        min(max_size, max(held, grown - floor // 2)),
    )


def fits(space: Space, incoming: Bytes, floor: int) -> bool:
    """Whether the file system has room for this, once room was made in the file."""
    above = floor if incoming.readings else floor // 2
    return incoming.readings + incoming.alarms <= space.spare + max(0, space.free - above)


def refused(usage: Sequence[Usage], used: int, incoming: Bytes, limit: Bounds) -> bool:
    """Whether this is too much when nothing may be given up."""
    readings = used - _alarms(usage)
    if incoming.readings and readings + incoming.readings > limit.readings:
        return True
    return used + incoming.readings + incoming.alarms > limit.whole


def plan(usage: Sequence[Usage], used: int, incoming: Bytes, limit: Bounds) -> list[Cut]:
    """Whose records make room."""
    alarms = _alarms(usage)
    readings = used - alarms
    cut = _step(readings + incoming.readings - limit.readings, limit)
    left = min(max(0, readings - cut) + incoming.readings, limit.readings)
    return [
        *_take(usage, Lane.LIVE, cut),
        *_take(usage, Lane.ALARM, _step(alarms + incoming.alarms + left - limit.whole, limit)),
    ]


def _alarms(usage: Sequence[Usage]) -> int:
    return sum(each.bytes for each in usage if each.lane is Lane.ALARM)


def _step(over: int, limit: Bounds) -> int:
    return max(over, limit.whole // STEP_SHARE) if over > 0 else 0


def _take(usage: Sequence[Usage], lane: Lane, wanted: int) -> list[Cut]:
    cuts = []
    for each in usage:
        take = min(wanted, each.bytes)
        if each.lane is lane and take > 0:
            cuts.append(Cut(each.stream, take))
            wanted -= take
    return cuts
