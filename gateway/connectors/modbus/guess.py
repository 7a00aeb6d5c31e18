"""Pure: the likeliest reading of a block of registers whose meaning nobody knows.

A block is cut into numbers of some type, all in one byte order, in every way there is. Each way has a probability: that
of its numbers (`plausibility.py`), and that neighbours are of one type more often than not. Summed over all ways
(forward and backward over the block, as for a hidden Markov model) this gives for each register, type and order the
share of the ways that see it so; what has more than half is *marked*, but for zeros, which say nothing. No number
decides by itself: 230.1 at one place may be an accident, in the order in which its neighbours make sense too it is not.

Looking several times tells more: the low half of a float or a counter moves, and moves little as a whole.

A register that does not exist ends a block: no number reaches across it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from gateway.codec.words import Family, Order, Word
from gateway.connectors.modbus.plausibility import QUANTITIES, SCALES, Layout, Quantity, chance, known
from gateway.model import Value

_ORDERS = {Order.BIG: 0.6, Order.WORD: 0.3, Order.LITTLE: 0.05, Order.BYTE: 0.05}
"""How often devices are met that keep their registers so."""
_LAYOUTS = {
    Layout.NOTHING: 0.1,
    Layout.TEXT: 0.02,
    Layout.UINT16: 0.3,
    Layout.INT16: 0.1,
    Layout.UINT32: 0.12,
    Layout.INT32: 0.08,
    Layout.FLOAT32: 0.2,
    Layout.UINT64: 0.03,
    Layout.INT64: 0.02,
    Layout.FLOAT64: 0.03,
}
"""How often a run of numbers is of this type."""
_SAME = 0.85
"""The next number is of the type of this one for certain so often; else it may be of any."""
MARKED = 0.5
SURE = 0.95
_TEXT_MIN = 2
"""Registers of a text; fewer are an accident."""
_GROWS = 5
"""So many looks at a counter that only grows are no accident: of those that only move, one in 60 does."""
_NEVER = -1e9


class Mark(NamedTuple):
    """One number (or text) and where it lies."""

    address: int
    layout: Layout
    order: Order
    share: float
    """How sure: more than a half, at most one."""
    values: tuple[Value | None, ...]
    """What it was, each time that was looked."""
    registers: int

    @property
    def sure(self) -> bool:
        return self.share >= SURE

    def word(self) -> Word:
        if self.layout is Layout.TEXT:
            return Word(Family.STRING, 2 * self.registers, self.order)
        return self.layout.word(self.order)


class Guess(NamedTuple):
    """What a block may mean."""

    orders: tuple[tuple[Order, float], ...]
    """The likeliest first, with its share."""
    marks: tuple[Mark, ...]
    """By address; they do not overlap."""

    @property
    def order(self) -> Order:
        return self.orders[0][0]

    @property
    def order_matters(self) -> bool:
        """Some mark would be another number in another order."""
        return any(mark.layout.registers > 1 or mark.order is Order.BYTE for mark in self.marks)


def guess(looks: Sequence[Mapping[int, int]]) -> Guess:
    """`looks`: the registers by address, as they were each time that was looked. Never raises; no looks, no marks."""
    common = reduce(lambda left, right: left & right, (set(look) for look in looks)) if looks else set()
    runs = [[[look[address] for address in run] for look in looks] for run in _runs(sorted(common))]
    starts = [run[0] for run in _runs(sorted(common))]
    chains = {order: [_Chain(run, order) for run in runs] for order in Order}
    weights = {order: math.log2(_ORDERS[order]) + sum(chain.total for chain in chains[order]) for order in Order}
    top = max(weights.values())
    shares = {order: 2.0 ** (weight - top) for order, weight in weights.items()}
    whole = sum(shares.values())
    shares = {order: share / whole for order, share in shares.items()}
    best = max(shares, key=shares.__getitem__)
    marks = [
        mark
        for number, start in enumerate(starts)
        for mark in _marks(
            start, runs[number], best, {order: (shares[order], chains[order][number]) for order in Order}
        )
    ]
    ranked = tuple(sorted(shares.items(), key=lambda each: -each[1]))
    return Guess(ranked, tuple(marks))


def explain(mark: Mark) -> str:
    """Why a person would believe it, in a few words; empty where it is only likely."""
    said: list[str] = []
    numbers = [value for value in mark.values if isinstance(value, int | float) and not isinstance(value, bool)]
    if mark.layout is Layout.TEXT:
        return "text"
    found = scaled(mark)
    if found is not None:
        scale, quantity = found
        said.append(
            (f"× {scale:g} = {float(f'{numbers[-1] * scale:.6g}'):g}: " if scale != 1 else "") + f"{quantity.name}?"
        )
    if len(set(numbers)) > 1:
        rises = all(later >= earlier for earlier, later in pairwise(numbers))
        said.append("only grows" if rises and len(numbers) >= _GROWS else "moves")
    return ", ".join(said)


def scaled(mark: Mark) -> tuple[float, Quantity] | None:
    """What everybody knows the size of, and the scale that makes this number one; only where three digits agree."""
    value = mark.values[-1] if mark.values else None
    if not isinstance(value, int | float) or value <= 0:
        return None
    if mark.layout.floating:
        quantity = known(float(value))
        return (1.0, quantity) if quantity and quantity.unit else None
    if value < 1000:
        return None
    return next(
        (
            (scale, each)
            for scale, _ in SCALES
            for each in QUANTITIES
            if each.unit and each.low <= value * scale <= each.high
        ),
        None,
    )


def _runs(addresses: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for address in addresses:
        if runs and runs[-1][-1] + 1 == address:
            runs[-1].append(address)
        else:
            runs.append([address])
    return runs


def _sum(terms: Iterable[float]) -> float:
    """log2 of the sum of what these are the log2 of."""
    known_terms = list(terms)
    top = max(known_terms, default=_NEVER)
    return top if top <= _NEVER else top + math.log2(sum(2.0 ** max(term - top, -200.0) for term in known_terms))


_PRIOR = {layout: math.log2((1 - _SAME) * share) for layout, share in _LAYOUTS.items()}
_STAY = math.log2(_SAME)


class _Chain:
    """All ways to cut one run of registers in one order. Logarithms to base 2 throughout."""

    def __init__(self, run: Sequence[Sequence[int]], order: Order) -> None:
        self._size = size = len(run[0])
        data = [b"".join(register.to_bytes(2, "big") for register in look) for look in run]
        self._codes = {
            layout: [_codes(data, at, layout, order) for at in range(size - layout.registers + 1)] for layout in Layout
        }
        self._forward()
        self._backward()
        self.total = self._before[size]

    def _alone(self, layout: Layout, at: int) -> float:
        return chance(layout, self._codes[layout][at])

    def _after(self, layout: Layout, at: int) -> float:
        return chance(layout, self._codes[layout][at], self._codes[layout][at - layout.registers][0])

    def _forward(self) -> None:
        """`ends[at][layout]`: every way up to `at` whose last number is of this layout."""
        size = self._size
        self._ends: list[dict[Layout, float]] = [dict.fromkeys(Layout, _NEVER) for _ in range(size + 1)]
        self._before = [0.0] * (size + 1)
        self._new = [dict.fromkeys(Layout, _NEVER) for _ in range(size)]
        self._same = [dict.fromkeys(Layout, _NEVER) for _ in range(size)]
        for at in range(size):
            if at:
                self._before[at] = _sum(self._ends[at].values())
            for layout in Layout:
                if at + layout.registers > size:
                    continue
                self._new[at][layout] = new = _PRIOR[layout] + self._alone(layout, at)
                ways = [self._before[at] + new]
                if at >= layout.registers:
                    self._same[at][layout] = same = _STAY + self._after(layout, at)
                    ways.append(self._ends[at][layout] + same)
                self._ends[at + layout.registers][layout] = _sum(ways)
        self._before[size] = _sum(self._ends[size].values())

    def _backward(self) -> None:
        """`_rest[at][layout]`: every way on from `at` when the number before it is of this layout."""
        size = self._size
        self._rest: list[dict[Layout, float]] = [dict.fromkeys(Layout, 0.0) for _ in range(size + 1)]
        for at in range(size - 1, -1, -1):
            fits = [layout for layout in Layout if at + layout.registers <= size]
            fresh = _sum(self._new[at][each] + self._rest[at + each.registers][each] for each in fits)
            for layout in Layout:
                same = self._same[at][layout]
                if same > _NEVER:
                    onward = same + self._rest[at + layout.registers][layout]
                    self._rest[at][layout] = _sum((fresh, onward))
                else:
                    self._rest[at][layout] = fresh

    def share(self, layout: Layout, at: int) -> float:
        """Of all ways those that have a number of this layout here."""
        if at + layout.registers > self._size:
            return 0.0
        ways = [self._before[at] + self._new[at][layout]]
        if self._same[at][layout] > _NEVER:
            ways.append(self._ends[at][layout] + self._same[at][layout])
        return math.exp2(min(0.0, _sum(ways) + self._rest[at + layout.registers][layout] - self.total))


def _codes(data: Sequence[bytes], at: int, layout: Layout, order: Order) -> tuple[int, ...]:
    size = 2 * layout.registers
    if layout is Layout.TEXT and order is Order.LITTLE:
        order = Order.BIG  # `little` is about numbers
    places = order.places(size)
    pieces = (look[2 * at : 2 * at + size] for look in data)
    return tuple(int.from_bytes(bytes(piece[place] for place in places), "big") for piece in pieces)


def _marks(
    start: int, run: Sequence[Sequence[int]], best: Order, ways: Mapping[Order, tuple[float, _Chain]]
) -> list[Mark]:
    """What more than half of all ways agree on. Signed and unsigned agree where the bytes do."""
    marks: list[Mark] = []
    size = len(run[0])
    at = 0
    while at < size:
        found = max((_agreed(layout, at, best, ways) for layout in Layout), key=lambda each: each[0])
        share, layout = found
        if share <= MARKED or layout is Layout.NOTHING:
            at += 1
            continue
        marks.append(Mark(start + at, layout, best, min(share, 1.0), (), layout.registers))
        at += layout.registers
    valued = [_valued(mark, start, run) for mark in _joined(marks)]
    return [mark for mark in valued if any(mark.values)]  # zeros fit every type and stand wherever nothing is


_PARTNER = {
    Layout.UINT16: Layout.INT16,
    Layout.UINT32: Layout.INT32,
    Layout.UINT64: Layout.INT64,
}
_PARTNER |= {signed: unsigned for unsigned, signed in _PARTNER.items()}


def _agreed(layout: Layout, at: int, best: Order, ways: Mapping[Order, tuple[float, _Chain]]) -> tuple[float, Layout]:
    """The share of all ways that have these bytes here, and the likelier sign."""
    same_bytes = [order for order in Order if _alike(layout, order, best)]
    shares = {}
    for each in (layout, _PARTNER.get(layout)):
        if each is not None:
            shares[each] = sum(ways[order][0] * ways[order][1].share(each, at) for order in same_bytes)
    return sum(shares.values()), max(shares, key=shares.__getitem__)


def _alike(layout: Layout, one: Order, other: Order) -> bool:
    size = 2 * layout.registers
    if layout is Layout.TEXT:
        return (one is Order.BYTE) == (other is Order.BYTE)
    return one.places(size) == other.places(size)


def _joined(marks: Iterable[Mark]) -> list[Mark]:
    """Neighbouring registers of text as one."""
    joined: list[Mark] = []
    for mark in marks:
        last = joined[-1] if joined else None
        if (
            last is not None
            and mark.layout is last.layout is Layout.TEXT
            and last.address + last.registers == mark.address
        ):
            joined[-1] = last._replace(registers=last.registers + 1, share=min(last.share, mark.share))
        else:
            joined.append(mark)
    return [mark for mark in joined if mark.layout is not Layout.TEXT or mark.registers >= _TEXT_MIN]


def _valued(mark: Mark, start: int, run: Sequence[Sequence[int]]) -> Mark:
    word, first = mark.word(), mark.address - start
    values = tuple(
        word.decode(b"".join(register.to_bytes(2, "big") for register in look[first : first + mark.registers]))
        for look in run
    )
    return mark._replace(values=values)
