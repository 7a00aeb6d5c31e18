"""Pure: from points to the fewest seconds of bus time that read them all.

Points of one table and one interval become contiguous reads. A read may bridge registers that nobody asked for, up to
`max_gap`, where that costs less wire time than another request; of plans that cost the same the one with fewer requests
is taken. A value is never split over two reads: its halves could be from different moments.

The optimum is exact: points sorted by address are cut into runs, and the best way to cut the first n is the best way to
cut some prefix plus one run. A run is no longer than one request can carry, so this is linear for all that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")


class Table(Enum):
    """The four address spaces (Modbus Application Protocol V1.1b3 §4.3); the value is the word in the configuration."""

    COIL = "coil"
    DISCRETE = "discrete"
    INPUT = "input"
    HOLDING = "holding"

    @property
    def bits(self) -> bool:
        return self in (Table.COIL, Table.DISCRETE)


class Limits(NamedTuple):
    """How large a hole may be bridged, and how much one request may read; in registers, or in bits."""

    max_gap: int
    max_read: int


class Cost(NamedTuple):
    """Seconds on the bus: of each request, and of each register (or of eight bits times two) that it reads."""

    request_s: float
    register_s: float

    def of(self, table: Table, quantity: int) -> float:
        return self.request_s + self.register_s * (-(-quantity // 8) / 2 if table.bits else quantity)


class Item(NamedTuple, Generic[K]):
    """What one point needs: `width` registers (or bits) from `address`."""

    key: K
    address: int
    width: int

    @property
    def end(self) -> int:
        return self.address + self.width


class Read(NamedTuple, Generic[K]):
    """One request."""

    table: Table
    address: int
    quantity: int
    items: tuple[Item[K], ...]


def plan(table: Table, items: Iterable[Item[K]], limits: Limits, cost: Cost) -> list[Read[K]]:
    """The cheapest reads that cover every item whole. An item larger than `max_read` gets a read of its own."""
    ordered = sorted(items, key=lambda item: (item.address, item.end))
    # best[n] = (seconds, requests, first item of the last run) for the first n items
    best: list[tuple[float, int, int]] = [(0.0, 0, 0), *[(float("inf"), 0, 0)] * len(ordered)]
    for first, start in enumerate(ordered):
        seconds, requests, _ = best[first]
        end = start.address
        for last in range(first, len(ordered)):
            item = ordered[last]
            if last > first and item.address - end > limits.max_gap:
                break
            end = max(end, item.end)
            if last > first and end - start.address > limits.max_read:
                break
            # rounded, so that equal costs added in another order are equal and the fewer requests win
            whole = round(seconds + cost.of(table, end - start.address), 9)
            best[last + 1] = min(best[last + 1], (whole, requests + 1, first))
    reads = []
    stop = len(ordered)
    while stop:
        first = best[stop][2]
        reads.append(_read(table, ordered[first:stop]))
        stop = first
    return reads[::-1]


def split(read: Read[K]) -> tuple[Read[K], Read[K]]:
    """Two reads in place of one that the device refuses: cut at the largest hole, else in the middle.

    Items that overlap stay in address order; the two reads may then overlap too, which does no harm.
    """
    assert len(read.items) > 1, "a single item cannot be split"
    middle = len(read.items) / 2

    def worth(at: int) -> tuple[int, float]:
        hole = read.items[at].address - max(item.end for item in read.items[:at])
        return max(hole, 0), -abs(at - middle)

    at = max(range(1, len(read.items)), key=worth)
    return _read(read.table, read.items[:at]), _read(read.table, read.items[at:])


def _read(table: Table, items: Sequence[Item[K]]) -> Read[K]:
    address = items[0].address
    return Read(table, address, max(item.end for item in items) - address, tuple(items))
