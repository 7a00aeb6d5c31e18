"""A look into a store and a flight ring from outside, while their gateway runs or when it does not; nothing is changed.

The file is opened read-only and read in short pieces, so a gateway at work never waits for us. What it writes meanwhile
may be seen or not. A file that was set aside is read as far as it can be.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.buffer import database
from gateway.buffer.entries import Flown
from gateway.buffer.gaps import gap_body
from gateway.buffer.recovery import Recovered, sort_out
from gateway.buffer.ring import recover
from gateway.buffer.schema import MIGRATIONS, SEQ_BITS, SEQ_MASK, Stored, from_row, from_stream
from gateway.errors import DecodeError, StoreError
from gateway.model import ClockState, GapReason, Lane, Reading, Record, RecordKind, Row, Trust
from gateway.protocol import batch

_TRIES: Final = 5
"""The ring is read while its owner may write: an entry that looks torn is looked at again."""


class StreamFound(NamedTuple):
    key: int
    name: str
    lane: Lane


class Damage(NamedTuple):
    """A record that cannot be read, or does not belong where it is."""

    stream: StreamFound
    what: str
    readings: int
    """As the row itself says; 0: it does not say."""


class RingFound(NamedTuple):
    """What the next process would find in the ring."""

    bytes: int
    recovered: Recovered
    damaged: bool


class Store:
    """One file."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        try:
            (self.version,) = self._ask("PRAGMA user_version")
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from error
        if not 0 < self.version <= len(MIGRATIONS):
            raise StoreError(
                f"{path} is no store of this program, or of a newer one (tables of version {self.version})"
            )

    def _ask(self, statement: str, *arguments: int) -> tuple[int, ...]:
        with database.mapped():
            row: tuple[int, ...] = self._db.execute(statement, arguments).fetchone()
            return row

    def space(self) -> tuple[int, int]:
        """Bytes of the file, and of its empty pages."""
        (pages,), (free,), (size,) = (
            self._ask(f"PRAGMA {each}") for each in ("page_count", "freelist_count", "page_size")
        )
        return pages * size, free * size

    def streams(self) -> list[StreamFound]:
        """Oldest first. Raises StoreError when some cannot be read."""
        found = self.readable_streams()
        (count,) = self._ask("SELECT count(*) FROM stream")
        if count != len(found):
            raise StoreError(f"{count - len(found)} of {count} streams cannot be read")
        (orphans,) = self._ask(f"SELECT count(*) FROM record WHERE id >> {SEQ_BITS} NOT IN (SELECT key FROM stream)")
        if orphans:
            raise StoreError(f"{orphans} records belong to no stream")
        return found

    def readable_streams(self) -> list[StreamFound]:
        """Those that can be read, oldest first."""
        with database.mapped():
            return sorted(
                StreamFound(key, *from_stream(columns[:3])[:2]) for key, columns in database.streams(self._db)
            )

    def records(self, stream: StreamFound, *, understand: bool = False) -> Iterator[Stored | Damage]:
        """Every record of a stream, and every place where there should be one that can be read.

        `understand`: bodies are decoded, too.
        """
        last = 0
        for row in database.rows(self._db, stream.key):
            if row is None:
                yield Damage(stream, f"nothing can be read behind record {last}", 0)
                continue
            seq, said = row[0] & SEQ_MASK, row[3] if isinstance(row[3], int) else 0
            try:
                stored = from_row(stream.name, stream.lane, row)
                if understand:
                    _understand(stored.record)
            except DecodeError as error:
                yield Damage(stream, f"record {seq}: {error}", said)
                continue
            if seq <= last:
                yield Damage(stream, f"record {seq} lies within another one, which ends at {last}", said)
                continue
            last = stored.record.upto
            yield stored

    def clocks(self) -> dict[str, ClockState]:
        """Boot → what was last known of its UTC: it puts right what was stamped before the clock was set."""
        known: dict[str, ClockState] = {}
        for stream in self.readable_streams():
            for row in database.rows(self._db, stream.key, kind=RecordKind.CLOCK.value):
                try:
                    if row is not None:
                        _note_clock(known, from_row(stream.name, stream.lane, row).record)
                except DecodeError:
                    continue  # `records` tells it
        return known


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Raises StoreError: there is no file, it is not ours to read, or it is no store."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    # without a log nobody has it open; then not even a lock is needed, and nothing is left beside it
    how = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    with database.mapped():
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None)
    with closing(db):
        db.text_factory = bytes
        yield Store(path, db)


def ring(path: Path) -> RingFound:
    """Raises StoreError: there is none, or it is not ours to read."""
    for attempt in range(_TRIES):
        try:
            memory = bytearray(path.read_bytes())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        found = recover(memory)
        if found is None:
            raise StoreError(f"{path} is no flight ring")
        opened_ring, entries = found
        if not opened_ring.damaged or attempt == _TRIES - 1:
            break
    recovered = sort_out(entries, {})
    return RingFound(opened_ring.used_bytes, recovered, opened_ring.damaged or recovered.damaged > 0)


def flown(found: RingFound) -> list[Flown]:
    """The records in the ring."""
    return [each for _, several in found.recovered.records for each in several]


def _understand(record: Record) -> None:
    """Raises DecodeError: the bytes are as they were written, and make no sense."""
    if record.kind is RecordKind.BATCH:
        batch.decode(record.body)
    elif record.kind is RecordKind.GAP and gap_body(record.body) is None:
        raise DecodeError("not the body of a gap")
    elif record.kind is RecordKind.CLOCK:
        _note_clock({}, record)


def _note_clock(known: dict[str, ClockState], record: Record) -> None:
    """Raises DecodeError."""
    try:
        state = msgspec.json.decode(record.body, type=ClockState)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"not the body of a clock record: {error}") from error
    if state.boot not in known or _sureness(state) >= _sureness(known[state.boot]):
        known[state.boot] = state


def _sureness(state: ClockState) -> int:
    return -list(Trust).index(state.trust)


def readings(record: Record, clocks: dict[str, ClockState]) -> Iterator[Reading]:
    """Those of a batch, by the best that is known of its clock; none of any other record."""
    if record.kind is RecordKind.BATCH:
        body = batch.decode(record.body)
        better = clocks.get(body.clock.boot)
        if better is not None and _sureness(better) > _sureness(body.clock):
            body = msgspec.structs.replace(body, clock=better)
        yield from batch.readings(body)


def loose_readings(rows: list[Row], clock: ClockState) -> Iterator[Reading]:
    """Those of rows that are in no record yet."""
    if rows:
        yield from batch.readings(batch.decode(batch.encode(rows, clock)))


class Gaps:
    """What was given up, by reason."""

    def __init__(self) -> None:
        self.count: Counter[GapReason] = Counter()
        self.readings: Counter[GapReason] = Counter()
        self.unknown: Counter[GapReason] = Counter()

    def add(self, record: Record) -> None:
        body = gap_body(record.body) if record.kind is RecordKind.GAP else None
        if body is not None:
            self.count[body.reason] += 1
            self.readings[body.reason] += body.readings or 0
            self.unknown[body.reason] += body.readings is None
