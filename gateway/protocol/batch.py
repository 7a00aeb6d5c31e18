"""Pure: the body of a batch, both ways.

Readings are grouped by shape, one column for each point; times are differences, so that neighbouring batches look
alike to the compressor:

    {"clock": {"boot": "…", "offset_ms": …, "error_ms": …, "trust": "synced"}, "base_ms": 81234567,
     "groups": [{"device": "meter-1", "points": ["u", "i"], "units": ["V", "A"],
                 "t": [0, 1000], "v": [[230.1, 230.2], [1.5, null]], "q": [null, ["good", "bad:comm_timeout"]],
                 "source_ms": [null, 1763829000000]}]}

`t[0]` counts from `base_ms` (CLOCK_BOOTTIME of that boot), every further one from the row before. UTC of a row is
its boot time + `offset_ms`, or its `source_ms` where there is one. `q` is left out when all is good, a column of it
is null when that column is; `source_ms` is left out when no row has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.errors import DecodeError
from gateway.model import ClockState, Reading, Row, Shape, Status, Value


class Group(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows of one shape, as columns."""

    device: str
    points: tuple[str, ...]
    units: tuple[str, ...]
    """One for each point; empty where there is none."""
    t: list[int]
    """Milliseconds of each row: the first from `base_ms`, every further one from the row before."""
    v: list[list[Value | None]]
    """One column for each point, one entry for each row; null: no value."""
    q: list[list[Status] | None] | None = None
    """One column for each point; absent, or null for a column: all good."""
    source_ms: list[int | None] | None = None
    """UTC as the device itself says it, one for each row; null, or absent: it says nothing."""


class Body(msgspec.Struct, frozen=True):
    """Readings of one boot, with what was known of its clock."""

    clock: ClockState
    base_ms: int
    """CLOCK_BOOTTIME."""
    groups: list[Group]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Body)


def encode(rows: Sequence[Row], clock: ClockState) -> bytes:
    """The body of one batch. `rows` is not empty; the order within each shape is kept."""
    base_ms = rows[0].at_ms
    by_shape: dict[int, list[Row]] = {}
    for row in rows:
        by_shape.setdefault(id(row.shape), []).append(row)
    return _encoder.encode(Body(clock, base_ms, [_group(same, base_ms) for same in by_shape.values()]))


def _group(rows: list[Row], base_ms: int) -> Group:
    shape = rows[0].shape
    times, last = [], base_ms
    for row in rows:
        times.append(row.at_ms - last)
        last = row.at_ms
    quality: list[list[Status] | None] | None = None
    if any(row.status is not None for row in rows):
        good = (Status.GOOD,) * len(shape.points)
        columns = zip(*(row.status or good for row in rows), strict=True)
        quality = [list(column) if any(s is not Status.GOOD for s in column) else None for column in columns]
    stamped = any(row.source_ms is not None for row in rows)
    return Group(
        shape.device,
        shape.points,
        shape.units,
        times,
        [list(column) for column in zip(*(row.values for row in rows), strict=True)],
        quality,
        [row.source_ms for row in rows] if stamped else None,
    )


def decode(body: bytes | msgspec.Raw) -> Body:
    """The body of one batch, checked: columns of equal length, one column and one unit for each point.

    Raises:
        DecodeError: it is not a body; what is wrong is in the message.
    """
    try:
        decoded = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DecodeError(f"not a batch body: {error}") from error
    for group in decoded.groups:
        width, height = len(group.points), len(group.t)
        columns: list[Sequence[object] | None] = [*group.v, *(group.q or ()), group.source_ms]
        if len(group.units) != width or len(group.v) != width or (group.q is not None and len(group.q) != width):
            raise DecodeError(f"{group.device}: {width} points need as many units and columns")
        if any(column is not None and len(column) != height for column in columns):
            raise DecodeError(f"{group.device}: every column must have {height} entries, one for each time")
    return decoded


def rows(body: Body) -> Iterable[Row]:
    """The rows of a decoded body, group after group."""
    for group in body.groups:
        shape = Shape(group.device, group.points, group.units)
        at_ms = body.base_ms
        for i, step in enumerate(group.t):
            at_ms += step
            status = None
            if group.q is not None:
                status = tuple(Status.GOOD if column is None else column[i] for column in group.q)
            source_ms = group.source_ms[i] if group.source_ms is not None else None
            yield Row(shape, at_ms, tuple(column[i] for column in group.v), status, source_ms)


def readings(body: Body) -> Iterable[Reading]:
    """Every value by itself, with its UTC as far as the batch knows it."""
    for row in rows(body):
        utc_ms = row.source_ms if row.source_ms is not None else row.at_ms + body.clock.offset_ms
        for i, point in enumerate(row.shape.points):
            status = row.status[i] if row.status is not None else Status.GOOD
            yield Reading(row.shape.device, point, row.values[i], row.shape.units[i], status, utc_ms, body.clock.trust)
