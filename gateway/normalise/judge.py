"""Pure: what one raw value of one point is worth.

The order is fixed: a sentinel is compared with the raw value, before anything is done to it; then enum, or scale,
offset, conversion and rounding; limits judge the finished value. A bad value is `None` and nothing else, so that no
made-up zero can ever look like a measurement.

Whatever leaves here can be encoded: floats are finite, integers fit into 64 bits (a larger one becomes the nearest
float), text is valid Unicode.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.codec import units
from gateway.codec.linear import Linear
from gateway.model import Quality, Status, Value
from gateway.points import Point

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1

_BAD = frozenset(status for status in Status if status.quality is Quality.BAD)
Judged = tuple[Value | None, Status]


class Judge:
    """One point of the configuration, compiled; `None`: a point that the configuration does not know."""

    __slots__ = (
        "_digits", "_enum", "_invalid", "_linear", "_max", "_min", "_misfit", "_numeric", "_special", "plain", "unit",
    )  # fmt: skip

    def __init__(self, point: Point | None, source_unit: str = "") -> None:
        point = point or Point(name="auto")
        unit = point.unit or source_unit
        self.unit = units.symbol(point.convert or unit)
        """Of the values that come out."""
        self._invalid = point.raw_sentinels()
        self._enum = point.states()
        self._digits = point.digits
        self._min = -math.inf if point.min is None else point.min
        self._max = math.inf if point.max is None else point.max
        # decided here so that a source that names an impossible unit gives bad:config and not numbers in a wrong unit
        self._misfit = False
        self._linear = Linear()
        try:
            self._linear = Linear.of(point.scale, point.offset, unit, point.convert)
        except ValueError:
            self._misfit = True
        self._special = self._misfit or bool(self._enum)
        limited = point.min is not None or point.max is not None
        self._numeric = self._linear != Linear() or bool(point.convert) or limited or point.digits is not None
        self.plain = not (self._invalid or self._enum or self._numeric or self._misfit)
        """A sound value passes as it is."""

    def __call__(self, raw: Value | None, status: Status) -> Judged:
        """The value and its status; `status` is what the connector says of it."""
        if status is not Status.GOOD and status in _BAD:
            return None, status
        kind = raw.__class__
        if raw is None:
            return None, Status.SENSOR_FAULT
        # the common cases of `sound`, without the call
        if not ((kind is float and raw - raw == 0.0) or (kind is int and INT_MIN <= raw <= INT_MAX)):  # type: ignore[operator]
            value, fault = sound(raw)
            if value is None:
                return None, fault
            raw = value
        if self._invalid and kind is not bool and raw in self._invalid:
            return None, Status.SENSOR_FAULT
        if self._special:
            if self._misfit:
                return None, Status.CONFIG
            return self._state(raw, status)
        if not self._numeric or kind is bool:
            return raw, status
        if isinstance(raw, str):
            return None, Status.DECODE
        return self._number(raw, status)

    def _state(self, value: Value, status: Status) -> Judged:
        text = self._enum.get(value)
        if text is not None:
            return text, status
        return _text(value), Status.OUT_OF_RANGE if status is Status.GOOD else status

    def _number(self, raw: int | float, status: Status) -> Judged:
        try:
            number = self._linear(raw)
            if number.__class__ is int and not INT_MIN <= number <= INT_MAX:
                number = float(number)
        except OverflowError:
            return None, Status.SENSOR_FAULT
        if number.__class__ is float:
            if number - number != 0.0:
                return None, Status.SENSOR_FAULT
            if self._digits is not None:
                number = round(number, self._digits) + 0.0  # + 0.0: there is no minus zero degrees
        if status is Status.GOOD and not self._min <= number <= self._max:
            status = Status.OUT_OF_RANGE
        return number, status


def sound(raw: Value) -> Judged:
    """The value as it can travel, or `None` and what is wrong with it."""
    kind = raw.__class__
    if kind is float:
        return (raw, Status.GOOD) if math.isfinite(raw) else (None, Status.SENSOR_FAULT)  # type: ignore[arg-type]
    if kind is bool:
        return raw, Status.GOOD
    if isinstance(raw, int):
        if INT_MIN <= raw <= INT_MAX:
            return raw, Status.GOOD
        try:
            return float(raw), Status.GOOD
        except OverflowError:
            return None, Status.SENSOR_FAULT
    if isinstance(raw, str):
        try:
            raw.encode()
        except UnicodeEncodeError:
            return None, Status.DECODE
        return raw, Status.GOOD
    return None, Status.DECODE


def _text(value: Value) -> str:
    return str(value).lower() if value.__class__ is bool else str(value)
