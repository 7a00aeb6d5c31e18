"""Pure: how rows become the bodies of batches.

A message of a source that redelivers never straddles two batches: its rows go together, into the alarm lane when one
of them belongs there. Bytes are estimated while rows come in and verified once encoded; a batch that came out too
large is split, and a single row that is too large for any batch becomes a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.model import ClockState, GapReason, Lane, Origin, RecordKind, Row
from gateway.protocol import batch
from gateway.protocol.messages import MAX_BATCH_BYTES, MAX_BATCH_READINGS, GapBody

_ROW_BYTES = 24
_VALUE_BYTES = 14
_STATUS_BYTES = 20
_FILL_BYTES = MAX_BATCH_BYTES * 3 // 4
"""Where an open batch closes: the estimate may be off by a third before a batch must be split."""


class Portion(NamedTuple):
    """Rows that go into one batch together."""

    lane: Lane
    rows: Sequence[Row]
    origins: tuple[Origin, ...]
    cost_bytes: int
    readings: int


class Encoded(NamedTuple):
    """What becomes a record."""

    kind: RecordKind
    body: bytes
    readings: int


def cost_bytes(row: Row) -> int:
    """About how much a row adds to a body."""
    values = row.values
    cost = _ROW_BYTES + _VALUE_BYTES * len(values)
    for value in values:
        if isinstance(value, str):
            cost += len(value)
    return cost if row.status is None else cost + _STATUS_BYTES * len(values)


def portions(rows: Sequence[Row]) -> Sequence[Portion]:
    """Rows of one call, by lane, in pieces that fit a batch (but for a message that is too large by itself)."""
    if not rows:
        return ()
    if len(rows) == 1:
        row = rows[0]
        origins = () if row.origin is None else (row.origin,)
        return (Portion(row.shape.lane, rows, origins, cost_bytes(row), len(row.values)),)
    finished: list[Portion] = []
    growing: dict[Lane, Portion] = {}
    for unit in _units(rows):
        last = growing.get(unit.lane)
        if last is not None and fits(last.cost_bytes, last.readings, unit):
            unit = Portion(
                unit.lane,
                [*last.rows, *unit.rows] if not isinstance(last.rows, list) else _extended(last.rows, unit.rows),
                last.origins + unit.origins,
                last.cost_bytes + unit.cost_bytes,
                last.readings + unit.readings,
            )
        elif last is not None:
            finished.append(last)
        growing[unit.lane] = unit
    return [*finished, *growing.values()]


def fits(cost: int, readings: int, portion: Portion) -> bool:
    """Whether a batch that holds this much can take the portion too."""
    return cost + portion.cost_bytes <= _FILL_BYTES and readings + portion.readings <= MAX_BATCH_READINGS


def _extended(rows: list[Row], more: Sequence[Row]) -> list[Row]:
    rows.extend(more)
    return rows


def _units(rows: Sequence[Row]) -> list[Portion]:
    """What must stay together: the rows of one message; any other row by itself."""
    messages: dict[Origin, list[Row]] = {}
    units: list[list[Row]] = []
    for row in rows:
        if row.origin is None:
            units.append([row])
        elif row.origin in messages:
            messages[row.origin].append(row)
        else:
            messages[row.origin] = unit = [row]
            units.append(unit)
    return [_unit(unit) for unit in units]


def _unit(rows: list[Row]) -> Portion:
    origin = rows[0].origin
    lane = Lane.ALARM if any(row.shape.lane is Lane.ALARM for row in rows) else Lane.LIVE
    readings = sum(len(row.values) for row in rows)
    return Portion(lane, rows, () if origin is None else (origin,), sum(map(cost_bytes, rows)), readings)


def encode(rows: Sequence[Row], clock: ClockState) -> list[Encoded]:
    """One batch, or as many as the limits demand."""
    body = batch.encode(rows, clock)
    readings = sum(len(row.values) for row in rows)
    if len(body) <= MAX_BATCH_BYTES and readings <= MAX_BATCH_READINGS:
        return [Encoded(RecordKind.BATCH, body, readings)]
    if len(rows) == 1:
        utc_ms = utc(rows[0].at_ms, clock)
        gap = GapBody(GapReason.OVERSIZE, readings, rows[0].shape.device, utc_ms, utc_ms)
        return [Encoded(RecordKind.GAP, msgspec.json.encode(gap), 0)]
    middle = len(rows) // 2
    return encode(rows[:middle], clock) + encode(rows[middle:], clock)


def utc(at_ms: int, clock: ClockState) -> int | None:
    """UTC of a boot time; None unless our own clock vouches for it."""
    return at_ms + clock.offset_ms if clock.trust.own else None
