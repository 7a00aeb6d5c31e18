"""How good the marks are: of `guess` against devices whose map is known. `python -m modbus.grade [DEVICES]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from gateway.connectors.modbus.guess import Guess, Mark, guess

from .shuffled import Shuffled, Truth


class Grade(NamedTuple):
    """Counts over devices."""

    points: int = 0
    marks: int = 0
    right: int = 0
    """Marks at the address of a point, as wide, in its byte order, with the value that it has."""
    strict: int = 0
    """Of these, with its very type: a number that was never negative may be signed or not."""
    sure: int = 0
    sure_right: int = 0
    orders: int = 0
    orders_right: int = 0

    def __add__(self, other: Grade) -> Grade:  # type: ignore[override]
        return Grade(*(one + two for one, two in zip(self, other, strict=True)))

    def __str__(self) -> str:
        return (
            f"{self.points} points, {self.marks} marks: precision {self.right / max(1, self.marks):.1%}, "
            f"recall {self.right / max(1, self.points):.1%}, very type {self.strict / max(1, self.right):.1%} of the "
            f"right; sure {self.sure}, of these right {self.sure_right / max(1, self.sure):.1%}; "
            f"byte order {self.orders_right} of {self.orders} devices"
        )


def grade(truths: Iterable[Truth], found: Guess) -> Grade:
    by_address = {truth.address: truth for truth in truths}
    matters = any(truth.word.size > 2 for truth in by_address.values())
    order = next(iter(by_address.values())).order
    right = [mark for mark in found.marks if is_right(mark, by_address.get(mark.address))]
    return Grade(
        len(by_address),
        len(found.marks),
        len(right),
        sum(mark.layout.value == by_address[mark.address].type for mark in right),
        sum(mark.sure for mark in found.marks),
        sum(mark.sure for mark in right),
        matters,
        matters and found.order is order,
    )


def is_right(mark: Mark, truth: Truth | None) -> bool:
    if truth is None or mark.layout.value == "text":
        return False
    mine, told = mark.word(), truth.word
    return (
        mine.size == told.size
        and mine.integral == told.integral
        and mine.order.places(mine.size) == told.order.places(told.size)
    )


def devices(seeds: Iterable[int], looks: int) -> Grade:
    total = Grade()
    for seed in seeds:
        device = Shuffled(seed)
        total += grade(device.points, guess([device.registers(2.0 * look) for look in range(looks)]))
    return total


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for looks in (1, 5):
        print(f"{number} devices, looked at {looks} times: {devices(range(number), looks)}")
