"""Pure: value = (raw × multiply + add) ÷ divide, in whole numbers.

A scale of 0.1 in a configuration means one tenth and not the float next to it. Kept as whole numbers, an integer that
is scaled gives the float nearest to the true result (217 × 0.1 is 21.7, not 21.700000000000003), and an integer whose
scale and offset are whole stays an exact integer however large it is.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from gateway.codec import units


class Linear(NamedTuple):
    """`linear(raw)` is the value."""

    multiply: int = 1
    add: int = 0
    divide: int = 1

    @classmethod
    def of(cls, scale: float, offset: float, unit: str = "", convert: str = "") -> Linear:
        """Scale and offset as the configuration means them, then the conversion from `unit` where one is asked for.

        Raises:
            ValueError: `unit` cannot become `convert`; scale or offset is not finite.
        """
        factor, addend = Fraction(repr(scale)), Fraction(repr(offset))
        if convert:
            conversion = units.convert(unit, convert)
            factor, addend = factor * conversion.factor, addend * conversion.factor + conversion.offset
        divide = math.lcm(factor.denominator, addend.denominator)
        return cls(int(factor * divide), int(addend * divide), divide)

    def __call__(self, raw: int | float) -> int | float:
        """Raises OverflowError when the result is beyond what a float can hold."""
        value = raw * self.multiply + self.add
        return value if self.divide == 1 else value / self.divide
