"""Pure: the tables of the store, as numbered migrations, and how a record becomes a row.

One row is one record. Its id is `stream.key << 40 | seq`, so a stream lies together and in order, and the one tree
needs no index. Each row carries a checksum over identity and content: SQLite has none, and a flipped bit must never
become a second body for an identity.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gateway.buffer.entries import decode_origins, encode_origins
from gateway.errors import DecodeError
from gateway.model import GapReason, Lane, Record, RecordKind

SEQ_BITS: Final = 40
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
ROW_OVERHEAD: Final = 64
"""Bytes of a row beside body and origins, roughly: columns, cell, share of the page."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE stream (
             key INTEGER PRIMARY KEY,
             id BLOB NOT NULL UNIQUE,
             lane INTEGER NOT NULL,
             boot BLOB NOT NULL
           )""",
        """CREATE TABLE record (
             id INTEGER PRIMARY KEY,
             last INTEGER NOT NULL,
             kind INTEGER NOT NULL,
             readings INTEGER NOT NULL,
             at_ms INTEGER NOT NULL,
             utc_ms INTEGER,
             size INTEGER NOT NULL,
             crc INTEGER NOT NULL,
             packed INTEGER NOT NULL,
             origins BLOB,
             body BLOB NOT NULL
           )""",
        # rows in the flight ring that are in records here, when the ring had no room to say so itself
        """CREATE TABLE covered (
             lane INTEGER PRIMARY KEY,
             ring BLOB NOT NULL,
             number INTEGER NOT NULL
           )""",
    ),
    # who has acked something of the stream, and how far; NULL: nobody that was written down
    ("ALTER TABLE stream ADD COLUMN sinks BLOB",),
    # up to which number no message can come again, though its row still names it; NULL: nothing is proved
    ("ALTER TABLE stream ADD COLUMN proved BLOB",),
)
"""Forward only: `PRAGMA user_version` counts how many have been applied."""

COLUMNS: Final = "id, last, kind, readings, at_ms, utc_ms, size, crc, packed, origins, body"
SIZE: Final = 6
"""Place of `size` in a row."""
INSERT: Final = f"INSERT OR REPLACE INTO record ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)"

_IDENTITY = struct.Struct("<16sqqqqqqq")
_SINKS = struct.Struct("<I")
_PROVED = struct.Struct("<QI")
_MIN_PACKED = 256
LANES: Final = (Lane.ALARM, Lane.LIVE)


class Stored(NamedTuple):
    """A record and when it was made."""

    record: Record
    at_ms: int
    """CLOCK_BOOTTIME of the stream's boot."""
    utc_ms: int | None
    """None: the clock was not trusted, and this record never becomes too old."""


class Disk(NamedTuple):
    """What the disk holds of one stream."""

    lane: Lane
    boot: str
    first: int
    last: int
    rows: int
    bytes: int
    first_at_ms: int


class Loss(NamedTuple):
    """Readings that were given up, already reported by a gap."""

    reason: GapReason
    readings: int | None
    stream: str = ""
    first: int = 0
    last: int = 0
    """Rows that stood there on disk; empty: they were in memory, or nobody knows."""


def row_id(key: int, seq: int) -> int:
    return key << SEQ_BITS | seq


def to_row(key: int, stored: Stored) -> tuple[Any, ...]:
    """The columns of a record; its body deflated when that helps."""
    record = stored.record
    body, packed = record.body, 0
    if len(body) >= _MIN_PACKED:
        deflated = zlib.compress(body, 6)
        if len(deflated) < len(body) * 9 // 10:
            body, packed = deflated, 1
    origins = encode_origins(record.origins) if record.origins else None
    size = ROW_OVERHEAD + len(body) + len(origins or b"")
    numbers = (record.seq, record.upto, record.kind.value, record.readings, stored.at_ms, stored.utc_ms or 0, packed)
    crc = zlib.crc32(_IDENTITY.pack(bytes.fromhex(record.stream), *numbers))
    crc = zlib.crc32(origins or b"", zlib.crc32(body, crc))
    return (
        row_id(key, record.seq),
        record.upto,
        record.kind.value,
        record.readings,
        stored.at_ms,
        stored.utc_ms,
        size,
        crc,
        packed,
        origins,
        body,
    )


def from_row(stream: str, lane: Lane, row: tuple[Any, ...]) -> Stored:
    """Raises DecodeError: this row is not what was written."""
    try:
        number, last, kind, readings, at_ms, utc_ms, _, crc, packed, origins, body = row
        seq = number & SEQ_MASK
        numbers = (seq, last, kind, readings, at_ms, utc_ms or 0, packed)
        found = zlib.crc32(_IDENTITY.pack(bytes.fromhex(stream), *numbers))
        if zlib.crc32(origins or b"", zlib.crc32(body, found)) != crc:
            raise DecodeError(f"record {seq} of stream {stream}: wrong checksum")
        if packed:
            body = zlib.decompress(body)
        known = decode_origins(origins) if origins else ()
        covers = last if RecordKind(kind) is RecordKind.GAP else 0
        return Stored(Record(stream, lane, seq, RecordKind(kind), body, readings, covers, known), at_ms, utc_ms)
    except (struct.error, TypeError, ValueError, zlib.error) as error:
        raise DecodeError(f"a record of stream {stream} cannot be read: {error}") from error


def to_stream(stream: str, lane: Lane, boot: str) -> tuple[bytes, int, bytes]:
    return bytes.fromhex(stream), LANES.index(lane), boot.encode()


def from_stream(columns: Sequence[Any]) -> tuple[str, Lane, str]:
    """Id, lane and boot. Raises DecodeError."""
    stream, lane, boot = columns
    if not isinstance(stream, bytes) or len(stream) != 16 or lane not in (0, 1) or not isinstance(boot, bytes):
        raise DecodeError("a stream cannot be read")
    return stream.hex(), LANES[lane], boot.decode(errors="replace")


def to_sinks(marks: Mapping[str, int]) -> bytes:
    """With a checksum of its own: a flipped bit must not name another sink."""
    text = msgspec.json.encode(marks)
    return _SINKS.pack(zlib.crc32(text)) + text


def from_sinks(column: object) -> dict[str, int]:
    """Sink → mark; none when the column is empty or damaged: then nobody is believed to have acked anything."""
    if not isinstance(column, bytes) or column[: _SINKS.size] != _SINKS.pack(zlib.crc32(column[_SINKS.size :])):
        return {}
    return msgspec.json.decode(column[_SINKS.size :], type=dict[str, int])


def to_proved(number: int) -> bytes:
    """With a checksum: a message that is wrongly taken for one that cannot come again would be there twice."""
    return _PROVED.pack(number, zlib.crc32(number.to_bytes(8, "little")))


def from_proved(column: object) -> int:
    """0 when the column is empty or damaged: then every message may come again."""
    if not isinstance(column, bytes) or len(column) != _PROVED.size:
        return 0
    number = int.from_bytes(column[:8], "little")
    return number if column == to_proved(number) else 0
