"""Pure: one batch body as rows of the tables `reading` and `strip`, exact to the last bit.

SQLite has 64-bit signed integers and no booleans, so a column `form` says what a value was: see `Form`.

A strip is what one index entry finds: rows of one group that follow one another, column after column, so that reading
k of point p has the id `first + p * rows + k`. Two things hold for every strip: its stamps are at most `SPAN_MS`
apart, and they are all the gateway's or all the device's own. So a time range is found by the ends of strips, and a
clock record moves a strip as a whole or not at all. A group in which that does not hold is cut into several; one whose
series have no shape in common becomes a strip for each point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

from gateway.errors import DecodeError
from gateway.model import Status, Value
from gateway.protocol.batch import Body, Group

SPAN_MS: Final = 600_000
"""A query looks at the strips that end so much behind its range; groups of gateways seldom last a second."""

_INT64 = 2**63
_UINT64 = 2**64
_MAX_TIME_MS = 2**61
"""Leaves room for a later correction within 64 bits."""

Row = tuple[int, int, int, Value | None, int, int]
"""id, series, ts_ms, value, form, status"""


class Numbered(NamedTuple):
    """A run of series as the tables have it."""

    shapes: tuple[int, ...]
    """One of all its series; or one for each of them."""
    series: tuple[int, ...]
    """Of each point."""


class Strip(NamedTuple):
    """One row of the table `strip`."""

    first: int
    """Id of its first reading."""
    shape: int
    rows: int
    from_ms: int
    to_ms: int
    stamped: bool
    """By the device itself."""


class Form(IntFlag):
    """How a stored value is to be read."""

    AS_IS = 0
    BOOL = 1
    UNSIGNED = 2
    """2^63 or more: kept as its two's complement."""
    STAMPED = 4
    """By the device itself: the gateway's clock does not move it."""


def rows(
    body: Body,
    offset_ms: int,
    first: int,
    numbered: Callable[[str, tuple[str, ...], tuple[str, ...]], Numbered],
    codes: Mapping[Status, int],
) -> tuple[list[Row], list[Strip]]:
    """The rows, with ids from `first` on. `numbered` knows the series and shapes of (device, points, units).

    Raises:
        DecodeError: a value does not fit into 64 bits, a time is out of bounds.
    """
    made: list[Row] = []
    strips: list[Strip] = []
    for group in body.groups:
        if group.t and group.points:
            shapes, series = numbered(group.device, group.points, group.units)
            stamps = _stamps(group, body.base_ms + offset_ms)
            for begin, end in _runs(stamps, group.source_ms):
                within = stamps[begin:end]
                stamped = group.source_ms is not None and group.source_ms[begin] is not None
                number = first + len(made)
                about = (end - begin, min(within), max(within), stamped)
                strips += [Strip(number + i * (end - begin), shape, *about) for i, shape in enumerate(shapes)]
                made += _strip(group, begin, end, number, series, within, stamped, codes)
    return made, strips


def _strip(
    group: Group,
    begin: int,
    end: int,
    first: int,
    series: tuple[int, ...],
    stamps: list[int],
    stamped: bool,
    codes: Mapping[Status, int],
) -> zip[Row]:
    """Rows begin..end of a group. Nothing here is done value by value unless there are booleans or bad values."""
    height = end - begin
    whole = height == len(group.t)
    columns = group.v if whole else [column[begin:end] for column in group.v]
    values: Sequence[Value | None] = list(chain.from_iterable(columns))
    values, forms = _formed(values, Form.STAMPED.value if stamped else Form.AS_IS.value)
    names = series if height == 1 else chain.from_iterable([repeat(number, height) for number in series])
    statuses = repeat(codes[Status.GOOD]) if group.q is None else _codes(group.q, begin, end, codes)
    return zip(range(first, first + len(values)), names, stamps * len(series), values, forms, statuses)  # noqa: B905


def _codes(q: list[list[Status] | None], begin: int, end: int, codes: Mapping[Status, int]) -> list[int]:
    good = [codes[Status.GOOD]] * (end - begin)
    made: list[int] = []
    for column in q:
        made += good if column is None else [codes[status] for status in column[begin:end]]
    return made


def _formed(values: Sequence[Value | None], form: int) -> tuple[Sequence[Value | None], Any]:
    """The values as SQLite takes them, and the form of each. Raises DecodeError."""
    kinds = set(map(type, values))
    if bool not in kinds:
        if int not in kinds:
            return values, repeat(form)
        integers = values if len(kinds) == 1 else [value for value in values if type(value) is int]
        if min(integers) >= -_INT64 and max(integers) < _INT64:  # type: ignore[type-var, operator]
            return values, repeat(form)
    pairs = [_integer(value, form) if isinstance(value, int) else (value, form) for value in values]
    return [value for value, _ in pairs], [each for _, each in pairs]


def _integer(value: int, form: int) -> tuple[int, int]:
    if isinstance(value, bool):
        return int(value), form | Form.BOOL.value
    if -_INT64 <= value < _INT64:
        return value, form
    if value < 0 or value >= _UINT64:
        raise DecodeError(f"the integer {value} does not fit into 64 bits")
    return value - _UINT64, form | Form.UNSIGNED.value


def _stamps(group: Group, at_ms: int) -> list[int]:
    """UTC of each row."""
    stamps = []
    for step in group.t:
        at_ms += step
        stamps.append(at_ms)
    if group.source_ms is not None:
        stamps = [at if own is None else own for at, own in zip(stamps, group.source_ms, strict=True)]
    if max(stamps) > _MAX_TIME_MS or min(stamps) < -_MAX_TIME_MS:
        raise DecodeError(f"{group.device}: a time that is out of bounds")
    return stamps


def _runs(stamps: list[int], source_ms: list[int | None] | None) -> list[tuple[int, int]]:
    """Where to cut: begin and end of each strip."""
    if source_ms is None and max(stamps) - min(stamps) <= SPAN_MS:
        return [(0, len(stamps))]
    cuts = [0]
    low = high = stamps[0]
    for k, stamp in enumerate(stamps):
        low, high = min(low, stamp), max(high, stamp)
        other = source_ms is not None and (source_ms[k] is None) != (source_ms[cuts[-1]] is None)
        if other or high - low > SPAN_MS:
            cuts.append(k)
            low = high = stamp
    return list(zip(cuts, [*cuts[1:], len(stamps)], strict=True))


def value_of(stored: Any, form: int) -> Value | None:
    """The value as it came."""
    if form & Form.BOOL:
        return bool(stored)
    if form & Form.UNSIGNED:
        return int(stored) + _UINT64
    return stored  # type: ignore[no-any-return]
