"""Pure: one batch body as rows of the table `reading`, exact to the last bit.

SQLite has 64-bit signed integers and no booleans, so a column `form` says what a value was: see `Form`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntFlag
from typing import Any

from gateway.errors import DecodeError
from gateway.model import Status, Value
from gateway.protocol.batch import Body, Group

Rows = list[tuple[int, int, int, Value | None, int, int]]
"""id, series, ts_ms, value, form, status"""

_INT64 = 2**63
_UINT64 = 2**64
_MAX_TIME_MS = 2**61
"""Leaves room for a later correction within 64 bits."""


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
    series: Callable[[str, str, str], int],
    codes: Mapping[Status, int],
) -> Rows:
    """The rows, with ids from `first` on. `series` gives the id of (device, point, unit).

    Raises:
        DecodeError: a value does not fit into 64 bits, a time is out of bounds.
    """
    made: Rows = []
    good = codes[Status.GOOD]
    number = first
    for group in body.groups:
        stamps, forms = _stamps(group, body.base_ms + offset_ms)
        for i, column in enumerate(group.v):
            name = series(group.device, group.points[i], group.units[i])
            statuses = group.q[i] if group.q is not None else None
            # a plain loop: with few rows in a group it beats zipping columns by a factor of four
            for k, value in enumerate(column):
                form = forms[k] if forms is not None else 0
                kind = type(value)
                if kind is int or kind is bool:
                    value, form = _integer(value, form)  # type: ignore[arg-type]
                made.append((number, name, stamps[k], value, form, codes[statuses[k]] if statuses else good))
                number += 1
    return made


def _integer(value: int, form: int) -> tuple[int, int]:
    if isinstance(value, bool):
        return int(value), form | Form.BOOL.value
    if -_INT64 <= value < _INT64:
        return value, form
    if value < 0 or value >= _UINT64:
        raise DecodeError(f"the integer {value} does not fit into 64 bits")
    return value - _UINT64, form | Form.UNSIGNED.value


def _stamps(group: Group, at_ms: int) -> tuple[list[int], list[int] | None]:
    """UTC of each row, and the forms of rows that the device itself stamped."""
    stamps = []
    for step in group.t:
        at_ms += step
        stamps.append(at_ms)
    forms = None
    if group.source_ms is not None:
        forms = [Form.AS_IS.value if own is None else Form.STAMPED.value for own in group.source_ms]
        stamps = [at if own is None else own for at, own in zip(stamps, group.source_ms, strict=True)]
    if stamps and (max(stamps) > _MAX_TIME_MS or min(stamps) < -_MAX_TIME_MS):
        raise DecodeError(f"{group.device}: a time that is out of bounds")
    return stamps, forms


def value_of(stored: Any, form: int) -> Value | None:
    """The value as it came."""
    if form & Form.BOOL:
        return bool(stored)
    if form & Form.UNSIGNED:
        return int(stored) + _UINT64
    return stored  # type: ignore[no-any-return]
