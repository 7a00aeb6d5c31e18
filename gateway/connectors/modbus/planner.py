"""Pure: from points to the fewest seconds of bus time that read them all.

Points of one table and one interval become contiguous reads. A read may bridge registers that nobody asked for, up to
`max_gap`, where that costs less wire time than another request; of plans that cost the same the one with fewer requests
is taken. A forbidden register is never bridged. A value is never split over two reads: its halves could be from
different moments.

The optimum is exact (of bits: but for bytes that are not full). Whatever reads cover all points, each point can be said
to belong to the first read that holds it whole; so the points of a read are neighbours in the order of their addresses,
once those inside others are left out. Points sorted by address are cut into runs, and the best way to cut the first n
is the best way to cut some prefix plus one run. Each point is looked at a constant number of times, so ten thousand of
them take no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import accumulate, chain, pairwise
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")

_PICO = 1e12


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
    forbidden: tuple[tuple[int, int], ...] = ()
    """From … up to and without …, in order; no item touches them."""

    def bridged(self, start: int, stop: int) -> bool:
        """Whether a read may go on over this hole."""
        return stop - start <= self.max_gap and not any(first < stop and start < end for first, end in self.forbidden)


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

    def __str__(self) -> str:
        last = f"…{self.address + self.quantity - 1}" if self.quantity > 1 else ""
        return f"{self.table.value} {self.address}{last}"


def plan(table: Table, items: Iterable[Item[K]], limits: Limits, cost: Cost) -> list[Read[K]]:
    """The cheapest reads that cover every item whole. An item larger than `max_read` gets a read of its own.

    Bits count as sixteenths of a register: what a byte that is not full costs is left out.
    """
    groups: list[list[Item[K]]] = []
    for item in sorted(items, key=lambda item: (item.address, -item.end)):
        if groups and item.end <= groups[-1][0].end:
            groups[-1].append(item)  # inside another one, and free there
        else:
            groups.append([item])
    request = round(cost.request_s * _PICO)
    register = round(cost.register_s * _PICO / (16 if table.bits else 1))
    cuts = _cuts([(group[0].address, group[0].end) for group in groups], limits, request, register)
    return [_read(table, [*chain.from_iterable(groups[first:stop])]) for first, stop in pairwise(cuts)]


def _cuts(spans: Sequence[tuple[int, int]], limits: Limits, request: int, each: int) -> list[int]:
    """Where the cheapest runs begin, and the end. Addresses and ends of `spans` both rise.

    A run from `first` costs `request + each × (end - address of first)` on top of the best way to read what is before
    it; so for every end the same `first` is cheapest for as long as it is in reach, and a later one that is cheaper
    makes it useless. Whole numbers, so that equal costs are equal and the fewer requests win.
    """
    best = [(0, 0)]  # (cost, requests) of the first n spans
    begins = [0]
    window: deque[tuple[tuple[int, int], int]] = deque()  # the starts in reach, each dearer than the one before
    for number, (address, end) in enumerate(spans):
        if number and not limits.bridged(spans[number - 1][1], address):
            window.clear()
        offer = (best[number][0] - each * address, best[number][1])
        while window and window[-1][0] > offer:
            window.pop()
        window.append((offer, number))
        while len(window) > 1 and end - spans[window[0][1]][0] > limits.max_read:
            window.popleft()
        (before, requests), first = window[0]
        best.append((before + request + each * end, requests + 1))
        begins.append(first)
    cuts = [len(spans)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return cuts[::-1]


def split(read: Read[K]) -> tuple[Read[K], Read[K]]:
    """Two reads in place of one that the device refuses: cut at the largest hole, else in the middle.

    Items that overlap stay in address order; the two reads may then overlap too, which does no harm.
    """
    assert len(read.items) > 1, "a single item cannot be split"
    middle = len(read.items) / 2
    reach = list(accumulate((item.end for item in read.items), max))

    def worth(at: int) -> tuple[int, float]:
        hole = read.items[at].address - reach[at - 1]
        return max(hole, 0), -abs(at - middle)

    at = max(range(1, len(read.items)), key=worth)
    return _read(read.table, read.items[:at]), _read(read.table, read.items[at:])


def _read(table: Table, items: Sequence[Item[K]]) -> Read[K]:
    address = items[0].address
    return Read(table, address, max(item.end for item in items) - address, tuple(items))
