"""Pure: what the entries of the flight ring say.

ROWS     rows of one lane that were accepted and are in no record yet
RECORDS  one record, or several that came from one batch which had to be split: they appear in the ring together.
         `covers` is the range of entry numbers whose ROWS (of this lane) are in them, so that a crash between
         writing this entry and freeing those doubles nothing
ORIGINS  messages that are settled, and that their source may still send again
ACKER    a sink that has acked something of a stream
SESSION  a source's session of which this ring knows every message that was taken over
DISTRUST a stream that is never used again, and up to where it had been acked by then
MOVED    what is un-acked of such a stream under new numbers; `covers` is the one entry that had it under the old ones
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gateway.errors import DecodeError
from gateway.model import Lane, Origin, Record, RecordKind, Row, Shape

ROWS: Final = 1
RECORDS: Final = 2
ORIGINS: Final = 3
ACKER: Final = 4
SESSION: Final = 5
DISTRUST: Final = 6
MOVED: Final = 7

_LANES = (Lane.ALARM, Lane.LIVE)
_COVERS = struct.Struct("<QQI")
_RECORD = struct.Struct("<16sBBHIIQQQ")  # stream, lane, kind, zero, readings, origins, seq, last, at_ms
_LENGTH = struct.Struct("<I")
_ORIGIN = struct.Struct("<8sH16s")
_DISTRUST = struct.Struct("<16sQ")
_STREAM_BYTES = 16


class Flown(NamedTuple):
    """A record and when it was made (boot time)."""

    record: Record
    at_ms: int


class Covers(NamedTuple):
    """Entry numbers, both inclusive; 1..0 covers none."""

    first: int
    last: int


NO_ROWS: Final = Covers(1, 0)

_rows_encoder = msgspec.msgpack.Encoder()
_rows_decoder = msgspec.msgpack.Decoder(list[Row])


def encode_rows(lane: Lane, rows: Sequence[Row]) -> bytes:
    return (b"\0" if lane is Lane.ALARM else b"\1") + _rows_encoder.encode(rows)


def decode_rows(payload: bytes) -> tuple[Lane, list[Row]]:
    """Raises DecodeError."""
    try:
        rows = _rows_decoder.decode(memoryview(payload)[1:])
        lane = _LANES[payload[0]]
    except (msgspec.MsgspecError, IndexError) as error:
        raise DecodeError(f"not an entry of rows: {error}") from error
    shapes: dict[tuple[object, ...], Shape] = {}
    return lane, [msgspec.structs.replace(row, shape=_same(shapes, row.shape)) for row in rows]


def _same(shapes: dict[tuple[object, ...], Shape], shape: Shape) -> Shape:
    """Rows that came with one shape get one again: shapes are told apart by identity."""
    return shapes.setdefault((shape.device, shape.points, shape.units, shape.lane), shape)


def encode_records(flown: Sequence[Flown], covers: Covers) -> bytes:
    parts = [_COVERS.pack(*covers, len(flown))]
    for record, at_ms in flown:
        parts.append(
            _RECORD.pack(
                bytes.fromhex(record.stream),
                _LANES.index(record.lane),
                record.kind.value,
                0,
                record.readings,
                len(record.origins),
                record.seq,
                record.last,
                at_ms,
            )
        )
        parts.append(encode_origins(record.origins))
        parts.append(_LENGTH.pack(len(record.body)))
        parts.append(record.body)
    return b"".join(parts)


def decode_records(payload: bytes) -> tuple[list[Flown], Covers]:
    """Raises DecodeError."""
    try:
        first, last, count = _COVERS.unpack_from(payload)
        at, flown = _COVERS.size, []
        for _ in range(count):
            stream, lane, kind, _, readings, origins, seq, upto, at_ms = _RECORD.unpack_from(payload, at)
            at += _RECORD.size
            known = decode_origins(payload[at : at + origins * _ORIGIN.size])
            at += origins * _ORIGIN.size
            (length,) = _LENGTH.unpack_from(payload, at)
            at += _LENGTH.size
            body = payload[at : at + length]
            at += length
            record = Record(stream.hex(), _LANES[lane], seq, RecordKind(kind), body, readings, upto, known)
            flown.append(Flown(record, at_ms))
    except (struct.error, ValueError, IndexError) as error:
        raise DecodeError(f"not an entry of records: {error}") from error
    return flown, Covers(first, last)


def encode_origins(origins: Sequence[Origin]) -> bytes:
    return b"".join([_ORIGIN.pack(*origin) for origin in origins])


def decode_origins(payload: bytes) -> tuple[Origin, ...]:
    """Raises DecodeError."""
    try:
        return tuple([Origin(*fields) for fields in _ORIGIN.iter_unpack(payload)])
    except struct.error as error:
        raise DecodeError(f"not a list of origins: {error}") from error


def encode_acker(stream: str, sink: str) -> bytes:
    return bytes.fromhex(stream) + sink.encode()


def decode_acker(payload: bytes) -> tuple[str, str]:
    """Stream and sink. Raises DecodeError."""
    if len(payload) <= _STREAM_BYTES:
        raise DecodeError("not an entry of a sink")
    return payload[:_STREAM_BYTES].hex(), payload[_STREAM_BYTES:].decode(errors="replace")


def encode_distrust(stream: str, mark: int) -> bytes:
    return _DISTRUST.pack(bytes.fromhex(stream), mark)


def decode_distrust(payload: bytes) -> tuple[str, int]:
    """Stream and mark. Raises DecodeError."""
    try:
        stream, mark = _DISTRUST.unpack(payload)
    except struct.error as error:
        raise DecodeError(f"not an entry of a stream: {error}") from error
    return stream.hex(), mark
