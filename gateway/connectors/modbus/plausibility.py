"""Pure: how probable it is that a device keeps this number, in this type, in its registers.

What a person does who looks at a hex dump: a float near 230 is a voltage, one of 1e-41 is nonsense; 2301 is a number,
64,776 rather not; 21.5 has few digits and is no accident. Here it has numbers, so that it can be added up over a block
(`guess.py`). A number is taken to come from a mixture of sources:

- any magnitude, the middle ones of its type more often than the extreme ones; zero; what says "no value"
- few decimal digits, as people set and devices round: a random float32 has seven to nine
- a quantity that everybody knows: mains voltage, mains frequency, power factor
- near the number before it: the phases of a meter, the same register a moment later

A `code` is the number's bytes, most significant first, as an unsigned integer. Probabilities are of one code among all
that its bytes could hold; pure chance is 1 in 65,536 for each register.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from gateway.codec.words import Family, Order, Word


class Layout(Enum):
    """What may lie in a register and those behind it; by the word in the configuration, where there is one."""

    NOTHING = "nothing"
    """One register that makes no sense by itself."""
    TEXT = "text"
    """One register of a text."""
    UINT16 = "uint16"
    INT16 = "int16"
    UINT32 = "uint32"
    INT32 = "int32"
    FLOAT32 = "float32"
    UINT64 = "uint64"
    INT64 = "int64"
    FLOAT64 = "float64"

    def __init__(self, word: str) -> None:
        bits = int(word[-2:]) if word[-2:].isdigit() else 16
        self.registers = bits // 16
        self.floating = word.startswith("float")
        self.signed = word.startswith("int")
        self.whole = self.signed or word.startswith("uint")

    def word(self, order: Order = Order.BIG) -> Word:
        """How the number is decoded; not for texts and nothing."""
        family = Family.FLOAT if self.floating else Family.INT if self.signed else Family.UINT
        return Word(family, 2 * self.registers, order)


class Quantity(NamedTuple):
    """What everybody knows the size of."""

    name: str
    unit: str
    low: float
    high: float
    share: float
    """Of all numbers that are one of these."""


QUANTITIES = (
    Quantity("mains voltage", "V", 210, 250, 0.4),
    Quantity("mains voltage between phases", "V", 370, 430, 0.2),
    Quantity("mains voltage", "V", 108, 130, 0.1),
    Quantity("mains frequency", "Hz", 49.7, 50.3, 0.2),
    Quantity("mains frequency", "Hz", 59.7, 60.3, 0.05),
    Quantity("power factor", "", 0.7, 1.0, 0.05),
)
SCALES = ((1.0, 0.2), (0.1, 0.45), (0.01, 0.25), (0.001, 0.1))
"""What a whole number is multiplied with, and how often."""

_ANY, _TIDY, _KNOWN = 0.6, 0.3, 0.1
"""Shares of the sources of a number."""
_NEAR = 0.25
"""Of numbers that follow one of their own type."""
_ZERO, _NO_VALUE, _NEGATIVE = 0.1, 0.02, 0.15
_IDLE, _IDLE_NOTHING = 0.4, 0.95
"""Numbers that never move: settings, states, what is unused."""
_STILL = 0.5
"""Of the others: so often they have not moved when looked at again."""
_MOVES_NEAR = 0.9
"""When they have, then mostly by little."""
_NOTHING_ZERO, _NOTHING_ENDS = 0.6, 0.05
_DIGITS = (0.0, 0.15, 0.2, 0.25, 0.25, 0.15)
"""Of tidy floats: so many have n significant digits. Those of whole numbers end at two."""
_TIDY_EXPONENTS = 7
_EXPONENT_MEAN, _EXPONENT_SPREAD = 5.0, 6.5
"""Of measured values, in powers of two: half lie between 1 and 1000."""
_MAGNITUDES: dict[int, Sequence[tuple[int, float]]] = {
    16: ((7, 0.25), (13, 0.6), (15, 0.12), (16, 0.03)),
    32: ((8, 0.12), (16, 0.4), (24, 0.33), (28, 0.1), (32, 0.05)),
    64: ((16, 0.08), (32, 0.52), (40, 0.25), (48, 0.1), (64, 0.05)),
}
"""Bits of a type → (up to so many bits, this share of its numbers)."""
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_SIGNS = frozenset(b" -_./:+#()&,")


def chance(layout: Layout, codes: Sequence[int], before: int | None = None) -> float:
    """log2 of the probability of what was read here, one code for each time; `before`: the number of the same layout
    that ends where this one begins."""
    first = _first(layout, codes[0])
    if before is not None and (layout.whole or layout.floating):
        first = (1 - _NEAR) * first + _NEAR * _near(layout, codes[0], before)
    bits = math.log2(max(first, _floor(layout)))
    return bits + _movement(layout, codes) if len(codes) > 1 else bits


def _movement(layout: Layout, codes: Sequence[int]) -> float:
    """log2 of the probability that what was there first became what was there later."""
    idle = _IDLE_NOTHING if layout is Layout.NOTHING else _IDLE
    if len(set(codes)) == 1:
        return math.log2(idle + (1 - idle) * math.ldexp(1, 1 - len(codes)))
    bits = math.log2(1 - idle)
    for earlier, later in pairwise(codes):
        moved = _MOVES_NEAR * _near(layout, later, earlier) + (1 - _MOVES_NEAR) * _first(layout, later)
        bits += math.log2(_STILL if later == earlier else (1 - _STILL) * max(moved, _floor(layout)))
    return bits


def _floor(layout: Layout) -> float:
    """Nothing is quite impossible."""
    return math.ldexp(1, -16 * layout.registers - 12)


def sense(layout: Layout, code: int) -> bool:
    """Whether a person would let this number pass: no NaN, nothing microscopic or astronomic."""
    if not layout.floating:
        return True
    value = layout.word().decode(code.to_bytes(2 * layout.registers, "big"))
    return value is not None and (value == 0 or 1e-4 <= abs(float(value)) < 1e10)


def known(value: float) -> Quantity | None:
    """The quantity that this looks like."""
    return next((each for each in QUANTITIES if each.low <= value <= each.high), None)


@lru_cache(1 << 16)
def _first(layout: Layout, code: int) -> float:
    if layout is Layout.NOTHING:
        if code == 0:
            return _NOTHING_ZERO
        ends = code in (0xFFFF, 0x8000, 0x7FFF)
        return _NOTHING_ENDS / 3 if ends else (1 - _NOTHING_ZERO - _NOTHING_ENDS) / 65_533
    if layout is Layout.TEXT:
        return math.prod(map(_letter, code.to_bytes(2, "big")))
    if code == 0:
        return _ZERO
    return _float(layout, code) if layout.floating else _whole(layout, code)


def _letter(byte: int) -> float:
    if byte in _LETTERS:
        return 0.85 / len(_LETTERS)
    return 0.12 / len(_SIGNS) if byte in _SIGNS else 0.02 if byte == 0 else 0.01 / 190


def _whole(layout: Layout, code: int) -> float:
    bits = 16 * layout.registers
    if code in (1 << bits - 1, (1 << bits) - 1, (1 << bits - 1) - 1):
        return _NO_VALUE / 3
    negative = layout.signed and bool(code >> bits - 1)
    size = (1 << bits) - code if negative else code
    sign = (_NEGATIVE if negative else 1 - _NEGATIVE) if layout.signed else 1.0
    any_ = math.ldexp(_magnitude(bits, size.bit_length()), 1 - size.bit_length())
    digits = len(str(size).rstrip("0"))
    # two digits: set by people. Each of the 9 or 90 first ones, with as many zeros as the type has room for
    tidy = (0.4, 0.6)[digits - 1] / (9 * 10.0 ** (digits - 1)) / (0.3 * bits) if digits < 3 else 0.0
    quantity = sum(
        share * each.share / ((each.high - each.low) / scale + 1)
        for scale, share in SCALES
        for each in QUANTITIES
        if each.low <= size * scale <= each.high
    )
    return sign * (_ANY * any_ + _TIDY * tidy) + (0.0 if negative else _KNOWN * quantity)


def _magnitude(bits: int, length: int) -> float:
    low = 0
    for high, share in _MAGNITUDES[bits]:
        if length <= high:
            return share / (high - low)
        low = high
    raise AssertionError("a number has no more bits than its type")


def _float(layout: Layout, code: int) -> float:
    size = 2 * layout.registers
    value = layout.word().decode(code.to_bytes(size, "big"))
    mantissa = 23 if size == 4 else 52
    if value is None:
        return _NO_VALUE / 8 if code & ((1 << mantissa - 2) - 1) in (0, (1 << mantissa - 2) - 1) else 0.0
    number = abs(float(value))
    if number == 0:
        return _ZERO / 20  # minus zero
    exponent = math.frexp(number)[1] - 1
    bell = math.exp(-(((exponent - _EXPONENT_MEAN) / _EXPONENT_SPREAD) ** 2) / 2) / (_EXPONENT_SPREAD * 2.5066)
    any_ = math.ldexp(bell, -mantissa)
    if size == 8 and not code & (1 << 29) - 1:
        any_ = 0.3 * bell / 2**23 + 0.7 * any_  # a float32 that was widened
    digits = len(f"{number!r}".split("e")[0].replace(".", "").strip("0"))
    tidy = 0.0
    if digits < len(_DIGITS) and -3 <= math.log10(number) < 7:
        tidy = _DIGITS[digits] / (9 * 10.0 ** (digits - 1)) / _TIDY_EXPONENTS
    quantity = sum(
        math.ldexp(each.share, exponent - mantissa) / (each.high - each.low)
        for each in QUANTITIES
        if each.low <= number <= each.high
    )
    sign = _NEGATIVE if float(value) < 0 else 1 - _NEGATIVE
    return sign * (_ANY * any_ + _TIDY * tidy + _KNOWN * quantity)


def _near(layout: Layout, code: int, other: int) -> float:
    """The probability of one code among those around another one: as many of each number of bits of difference."""
    if layout in (Layout.NOTHING, Layout.TEXT):
        return 0.0
    bits = 16 * layout.registers
    here, there = _ordered(layout, code, bits), _ordered(layout, other, bits)
    length = (23 if bits == 32 else 52) if layout.floating else min(abs(here), abs(there)).bit_length()
    most = length - 3
    difference = abs(here - there).bit_length()
    return 0.0 if difference > most else math.ldexp(1 / (most + 1), -difference)


def _ordered(layout: Layout, code: int, bits: int) -> int:
    """Codes as numbers that rise with the value."""
    if not code >> bits - 1 or not (layout.signed or layout.floating):
        return code
    return -(code & (1 << bits - 1) - 1) if layout.floating else code - (1 << bits)
