"""Pure: which reads find out what a range of addresses holds when some of it is refused.

A device refuses a read that touches an address which it does not have, and does not say which one. So a bite that was
refused is halved, down to one address, which then does not exist; a bite that was answered is doubled. What is there is
read in large bites, what is not costs one request for each address.

Two kinds of device are met on the way. One takes only short reads: a range that was refused and can be read in pieces
says how short. One gives a number of several registers whole or not at all: it refuses single registers even where one
was just read among others, and then twos and fours are tried in their place.
"""

from __future__ import annotations

from typing import NamedTuple


class Bite(NamedTuple):
    """One read."""

    address: int
    quantity: int


class Sweep:
    """Ask for `bite()`, say how it ended by `answered` or `refused`, until there is none."""

    def __init__(self, address: int, count: int, most: int) -> None:
        self.values: dict[int, int] = {}
        """Registers, or bits, by address."""
        self.missing: list[int] = []
        self._begin, self._at, self._end = address, address, address + count
        self._most = most
        self._size = most
        self._refused: Bite | None = None
        """The longest one since the last that was answered as it was."""
        self._alone: bool | None = None
        """Single registers are given: not known yet."""
        self._widening = False

    @property
    def share(self) -> float:
        """How far it is, 0 to 1."""
        return (self._at - self._begin) / (self._end - self._begin)

    def bite(self) -> Bite | None:
        """The next read; None: all is known."""
        if self._at >= self._end:
            return None
        if self._asks_alone:
            return Bite(next(iter(self.values)), 1)
        return Bite(self._at, min(self._size, self._end - self._at))

    @property
    def _asks_alone(self) -> bool:
        """Before an address is given up: does this device give any register alone?"""
        return self._size == 1 and self._alone is None and bool(self.values)

    def answered(self, values: list[int]) -> None:
        """What the bite holds."""
        if self._asks_alone:
            self._alone = True
            return
        if len(values) == 1:
            self._alone = True
        self.values.update(enumerate(values, self._at))
        self._at += len(values)
        refused = self._refused
        if refused is not None and self._at >= refused.address + refused.quantity:
            if all(refused.address + each in self.values for each in range(refused.quantity)):
                self._most = max(1, refused.quantity // 2)  # all of it is there: it was too much at once
            self._refused = None
        self._size, self._widening = min(self._most, 2 * len(values)), False

    def refused(self) -> None:
        """The device does not give this bite."""
        if self._asks_alone:
            self._alone = False
            return
        left = self._end - self._at
        size = min(self._size, left)
        if self._refused is None:
            self._refused = Bite(self._at, size)
        if size > 1 and not self._widening:
            self._size = size // 2
        elif not self._alone and size < min(4, left):
            self._size, self._widening = 2 * size, True
        else:
            self.missing.append(self._at)
            self._at += 1
            self._size, self._widening, self._refused = 1, False, None
