"""Pure: may this value be written? Nothing may, unless the point's `write` table says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import msgspec

from gateway.errors import CommandError
from gateway.model import Outcome, Value, Write
from gateway.points import Point, WriteLimits
from gateway.settings import nearest, toml

Targets = Mapping[str, Mapping[str, Point]]
"""Device → point → its declaration."""


def permitted(write: Write, targets: Targets) -> Write:
    """The write as it shall be carried out (with `verify` where the point demands it).

    Raises:
        CommandError: rejected, and why.
    """
    points = targets.get(write.device)
    if points is None:
        raise _rejected(f'no device "{write.device}"{nearest(write.device, targets)}')
    point = points.get(write.point)
    if point is None:
        raise _rejected(f'device "{write.device}" has no point "{write.point}"{nearest(write.point, points)}')
    if point.write is None:
        raise _rejected(
            f'point "{write.point}" of "{write.device}" is not writable: it has no `write` in the configuration'
        )
    why = _refused(write.value, point.write)
    if why:
        raise _rejected(why)
    return msgspec.structs.replace(write, verify=write.verify or point.write.verify)


def _rejected(reason: str) -> CommandError:
    return CommandError(Outcome.REJECTED, reason)


def _refused(value: Value, limits: WriteLimits) -> str:
    """Why not; empty: it may be."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a number that can be written"
    if limits.values and not any(_same(value, allowed) for allowed in limits.values):
        return f"{toml(value)} is not one of {', '.join(toml(each) for each in limits.values)}"
    if limits.min is None and limits.max is None and limits.step is None:
        return ""
    if isinstance(value, bool | str):
        return f"{toml(value)} is not a number"
    if limits.min is not None and value < limits.min:
        return f"{value} is below the smallest value allowed, {limits.min:g}"
    if limits.max is not None and value > limits.max:
        return f"{value} is above the largest value allowed, {limits.max:g}"
    if limits.step:
        # as written, not as floats: 5.3 is 5 + 3 steps of 0.1
        base = limits.min or 0.0
        if (Fraction(repr(value)) - Fraction(repr(base))) % Fraction(repr(limits.step)):
            return f"{value} is not {base:g} + a multiple of {limits.step:g}"
    return ""


def _same(value: Value, allowed: Value) -> bool:
    """Equal and of one sort: 1 is 1.0 and is not true."""
    sorts = [bool if isinstance(each, bool) else str if isinstance(each, str) else float for each in (value, allowed)]
    return sorts[0] is sorts[1] and value == allowed
