"""The tables of one open store, and what is known of each stream in them without asking.

Within a transaction `disks` follows every change; when it is rolled back, `disks` goes back with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from gateway.buffer.database import CorruptError, transaction
from gateway.buffer.gaps import Run, gap_body, gap_record
from gateway.buffer.schema import (
    COLUMNS,
    INSERT,
    LANES,
    ROW_OVERHEAD,
    SEQ_BITS,
    SEQ_MASK,
    Disk,
    Loss,
    Stored,
    from_proved,
    from_row,
    from_sinks,
    from_stream,
    row_id,
    to_proved,
    to_row,
    to_sinks,
    to_stream,
)
from gateway.errors import DecodeError
from gateway.model import GapReason, Lane, Origin, Record, RecordKind
from gateway.protocol.messages import MAX_BATCH_BYTES, GapBody

_SUM: Final = "CAST(coalesce(sum(size), 0) AS INTEGER)"  # the cast: after a flipped bit a column is of any type


class Expiry(NamedTuple):
    """What is too old: rows of this boot by boot time, rows of other boots by UTC."""

    boot: str
    before_at_ms: int
    before_utc_ms: int


class Limits(NamedTuple):
    """What of each stream may be deleted, and how."""

    marks: Mapping[str, int]
    """Acked up to here, by any sink: may be deleted, but for the pinned."""
    pins: Mapping[str, frozenset[int]]
    held: Mapping[str, int]
    """In flight up to here: must not be given up."""
    sent: Mapping[str, int]
    """Handed out up to here: gaps among these keep their body. Of a stream that is not here, all may have been."""


NO_LIMITS: Final = Limits({}, {}, {}, {})


class Records:
    """Raises what SQLite raises; the caller maps it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._keys: dict[str, int] = {}
        self.disks: dict[str, Disk] = {}
        """Oldest first."""
        self.origins: list[tuple[str, int, tuple[Origin, ...]]] = []
        """Stream, number and origins of the rows that had some when the store was opened, and may come again."""
        self.losses: list[Loss] = []
        self.sinks: dict[str, dict[str, int]] = {}
        """Who had acked how much of each stream when the store was opened."""
        self.proved: dict[str, int] = {}
        """Up to which number of each stream no message could come again then."""
        for table, column in (("stream", b"key"), ("record", b"id")):
            _, name, kind, _, _, primary = db.execute(f"PRAGMA table_info({table})").fetchone() or (None,) * 6
            if (name, kind, primary) != (column, b"INTEGER", 1):  # a flipped bit, and numbers are anything
                raise CorruptError(f"table {table} is not as it was made")
        asked = "SELECT key, id, lane, boot, sinks, proved FROM stream ORDER BY key"
        for key, *columns, sinks, proved in db.execute(asked):
            name, lane, boot = from_stream(columns)
            self._keys[name] = key
            self.sinks[name] = from_sinks(sinks)
            self.proved[name] = from_proved(proved)
            self.disks[name] = Disk(lane, boot, 0, 0, 0, 0, 0)
        self._next_key = max(self._keys.values(), default=0) + 1
        self._survey()

    def _survey(self) -> None:
        """Counts each stream, repairs its last row (the next number hangs on it), collects origins."""
        sums = {
            key: (rows, size)
            for key, rows, size in self._db.execute(f"SELECT id >> {SEQ_BITS}, count(*), {_SUM} FROM record GROUP BY 1")
        }
        names = {key: name for name, key in self._keys.items()}
        for key, name in names.items():
            rows, size = sums.get(key, (0, 0))
            self.disks[name] = self.disks[name]._replace(rows=rows, bytes=size)
        for (number,) in self._db.execute("SELECT id FROM record WHERE origins IS NOT NULL").fetchall():
            found = names.get(number >> SEQ_BITS)
            if found is not None and number & SEQ_MASK > self.proved[found]:
                for stored in self.read(found, number & SEQ_MASK, 1):
                    if stored.record.origins:
                        self.origins.append((found, stored.record.seq, stored.record.origins))
        for name in names.values():
            self._refresh(name)
            if self.disks[name].rows:
                self.read(name, self.disks[name].last, 1)
        if set(sums) - set(names):
            raise CorruptError("records without a stream")

    def pages(self) -> tuple[int, int]:
        """Bytes of pages in use, and of empty ones."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return (pages - free) * size, free * size

    def take_losses(self) -> tuple[Loss, ...]:
        """What was given up since the last call."""
        losses, self.losses = tuple(self.losses), []
        return losses

    # ── change ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """A transaction; what is known of the streams goes back with it."""
        disks, keys, done = dict(self.disks), dict(self._keys), False
        try:
            with transaction(self._db):
                yield
            done = True
        finally:
            if not done:
                self.disks, self._keys = disks, keys

    def insert(self, records: Sequence[Stored], rows: Sequence[tuple[Any, ...]]) -> None:
        """Adds records, as `rows` made them."""
        for (record, _, _), row in zip(records, rows, strict=True):
            if record.seq <= self.disks[record.stream].last:
                if self._given_up(record):
                    continue
                # a row that is there already is a commit repeated; a gap may stand for several
                self._delete(record.stream, record.seq, record.upto)
            self._put(record.stream, row)
        for name in {record.stream for record, _, _ in records}:
            self._refresh(name)

    def _given_up(self, record: Record) -> bool:
        """Whether a gap covers it: a crash left it in the ring too, and its row was given up meanwhile."""
        covering = self._db.execute(
            "SELECT id, kind, CAST(last AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            (row_id(self._keys[record.stream], 0), row_id(self._keys[record.stream], record.seq)),
        ).fetchone()
        if covering is None or covering[1] != RecordKind.GAP.value:
            return False
        return bool(covering[2] >= record.upto)

    def note_sinks(self, sinks: Mapping[str, Mapping[str, int]]) -> None:
        """Who has acked how much of these streams, as far as they are here."""
        for name, marks in sinks.items():
            if name in self._keys:
                self._db.execute("UPDATE stream SET sinks = ? WHERE key = ?", (to_sinks(marks), self._keys[name]))

    def note_proved(self, proved: Mapping[str, int]) -> None:
        """Up to here no message of these streams can come again."""
        for name, number in proved.items():
            if name in self._keys:
                self._db.execute("UPDATE stream SET proved = ? WHERE key = ?", (to_proved(number), self._keys[name]))

    def rows(self, records: Sequence[Stored], boot: str) -> list[tuple[Any, ...]]:
        """Records as rows; streams that are new get a key."""
        for record, _, _ in records:
            if record.stream not in self._keys:
                self._add(record.stream, record.lane, boot)
        return [to_row(self._keys[stored.record.stream], stored) for stored in records]

    def _add(self, name: str, lane: Lane, boot: str) -> None:
        key, self._next_key = self._next_key, self._next_key + 1
        self._db.execute(
            "INSERT INTO stream (key, id, lane, boot) VALUES (?,?,?,?)", (key, *to_stream(name, lane, boot))
        )
        self._keys[name] = key
        self.disks[name] = Disk(lane, boot, 0, 0, 0, 0, 0)

    def drop_empty(self, keep: frozenset[str]) -> None:
        """Forgets streams of which nothing is left, but for those that may still grow."""
        for name in [name for name, disk in self.disks.items() if disk.rows == 0 and name not in keep]:
            self._db.execute("DELETE FROM stream WHERE key = ?", (self._keys.pop(name),))
            del self.disks[name]

    def trim(self, limits: Limits) -> bool:
        """Deletes what was acked. True: there was something."""
        before = sum(disk.rows for disk in self.disks.values())
        for name, mark in limits.marks.items():
            disk = self.disks.get(name)
            if disk is None or not disk.rows or disk.first > mark:
                continue
            pinned = sorted(seq for seq in limits.pins.get(name, ()) if seq <= mark)
            start = disk.first
            for seq in [*pinned, mark + 1]:
                if start < seq:
                    self._delete(name, start, seq - 1, whole=mark)
                start = seq + 1
            self._refresh(name)
        return sum(disk.rows for disk in self.disks.values()) < before

    def _delete(self, name: str, first: int, last: int, whole: int | None = None) -> None:
        """Deletes rows first..last; with `whole` only those that end at or before it."""
        key = self._keys[name]
        where = "id BETWEEN ? AND ? AND last <= ?"
        arguments = (row_id(key, first), row_id(key, last), SEQ_MASK if whole is None else whole)
        rows, size = self._db.execute(f"SELECT count(*), {_SUM} FROM record WHERE {where}", arguments).fetchone()
        if rows:
            self._db.execute(f"DELETE FROM record WHERE {where}", arguments)
            disk = self.disks[name]
            self.disks[name] = disk._replace(rows=disk.rows - rows, bytes=disk.bytes - size)

    def _put(self, name: str, row: tuple[Any, ...]) -> None:
        self._db.execute(INSERT, row)
        disk = self.disks[name]
        self.disks[name] = disk._replace(rows=disk.rows + 1, bytes=disk.bytes + row[6])

    def _refresh(self, name: str) -> None:
        """First and last of a stream, from the tree."""
        key = self._keys[name]
        span = (row_id(key, 0), row_id(key, SEQ_MASK))
        first = self._db.execute(
            "SELECT id, CAST(at_ms AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1", span
        ).fetchone()
        last = self._db.execute(
            "SELECT id, CAST(last AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", span
        ).fetchone()
        if first is None or last is None:
            self.disks[name] = self.disks[name]._replace(first=0, last=0, rows=0, bytes=0, first_at_ms=0)
        else:
            seq = last[0] & SEQ_MASK
            self.disks[name] = self.disks[name]._replace(
                first=first[0] & SEQ_MASK, last=max(seq, last[1]), first_at_ms=first[1]
            )

    def move(self, stream: str, mark: int, target: str, boot: str, pins: frozenset[int]) -> dict[int, int]:
        """Gives what is un-acked of a stream to a new one, and ends that. Acked rows stay that are pinned.

        Returns the new numbers of pinned ones; the others leave their origins, which are forgotten."""
        lane, moved = self.disks[stream].lane, {}
        with self.all_or_nothing():
            self._add(target, lane, boot)
            seq, at = 0, mark + 1
            while chunk := self.read(stream, at, MAX_BATCH_BYTES):
                for stored in chunk:
                    if stored.record.kind is not RecordKind.END:
                        seq += 1
                        old = stored.record
                        origins = old.origins if old.seq in pins else ()
                        if old.seq in pins:
                            moved[old.seq] = seq
                        new = msgspec.structs.replace(old, stream=target, seq=seq, last=0, origins=origins)
                        self._put(target, to_row(self._keys[target], stored._replace(record=new)))
                at = chunk[-1].record.upto + 1
            end = Record(target, lane, seq + 1, RecordKind.END, b"")
            self._put(target, to_row(self._keys[target], Stored(end, 0, None)))
            self.trim(NO_LIMITS._replace(marks={stream: SEQ_MASK}, pins={stream: pins - moved.keys()}))
            self._refresh(target)
            self.drop_empty(frozenset(self._keys.keys() - {stream}))
        return moved

    def covered(self) -> dict[tuple[bytes, Lane], int]:
        """(Ring, lane) → entry number up to which its rows are here, where the ring had no room to say so."""
        found = self._db.execute(
            "SELECT lane, CAST(ring AS BLOB), CAST(number AS INTEGER) FROM covered WHERE lane IN (0, 1)"
        )
        return {(bytes(ring), LANES[lane]): int(number) for lane, ring, number in found}

    def cover(self, ring: bytes, covered: Mapping[Lane, int]) -> None:
        for lane, number in covered.items():
            self._db.execute(
                "INSERT OR REPLACE INTO covered (lane, ring, number) VALUES (?,?,?)",
                (LANES.index(lane), ring, number),
            )

    # ── give up ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def give_up(
        self,
        limits: Limits,
        name: str,
        reason: GapReason,
        *,
        max_bytes: int | None = None,
        expiry: Expiry | None = None,
    ) -> None:
        """Deletes the oldest batches of a stream, as far as told, and puts a gap for each run of them."""
        key, disk = self._keys[name], self.disks[name]
        start = max(disk.first, limits.held.get(name, 0) + 1, limits.marks.get(name, 0) + 1)
        if start > SEQ_MASK:
            return  # it is being read
        rows = self._db.execute(
            "SELECT id, CAST(last AS INTEGER), kind, CAST(coalesce(readings, 0) AS INTEGER),"
            " CAST(coalesce(at_ms, 0) AS INTEGER), CAST(utc_ms AS INTEGER), CAST(coalesce(size, 0) AS INTEGER),"
            " CASE WHEN kind = 2 THEN CAST(coalesce(body, '') AS BLOB) END"
            " FROM record WHERE id BETWEEN ? AND ? ORDER BY id",
            (row_id(key, start), row_id(key, SEQ_MASK)),
        )
        run = Run(reason)
        runs = []
        freed = 0
        for number, last, kind, readings, at_ms, utc_ms, size, body in rows:
            seq = number & SEQ_MASK
            if max_bytes is not None and freed >= max_bytes:
                break
            if kind == RecordKind.BATCH.value:
                if expiry is not None and not _expired(expiry, disk.boot, at_ms, utc_ms):
                    break
                if not run.follows(seq):
                    runs.append(run)
                    run = Run(reason)
                run.add(seq, readings, at_ms, utc_ms)
                freed += size
            elif kind == RecordKind.GAP.value and seq > limits.sent.get(name, SEQ_MASK):
                old = gap_body(body)
                if old is not None and old.reason is reason and old.readings is not None and run.follows(seq):
                    run.absorb(seq, last, old, at_ms)
        for each in [*runs, run]:
            if each.batches:
                self._replace(name, each)
        self._refresh(name)

    def _replace(self, name: str, run: Run) -> None:
        self._delete(name, run.first, run.last)
        stored = run.gap(name, self.disks[name].lane)
        self._put(name, to_row(self._keys[name], stored))
        self.losses.append(Loss(run.reason, run.lost, name, run.first, run.last))

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, name: str, seq: int, max_bytes: int) -> list[Stored]:
        """Records from `seq` on, the one that covers it first; what cannot be read has become a gap."""
        key, lane = self._keys[name], self.disks[name].lane
        before = self._db.execute(
            "SELECT id, CAST(last AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            (row_id(key, 0), row_id(key, seq)),
        ).fetchone()
        start = before[0] if before is not None and before[1] >= seq else row_id(key, seq)
        cursor = self._db.execute(
            f"SELECT {COLUMNS} FROM record WHERE id BETWEEN ? AND ? ORDER BY id", (start, row_id(key, SEQ_MASK))
        )
        result: list[Stored] = []
        size = 0
        damaged: list[int] = []
        previous = start - 1
        for row in cursor:
            if row[0] <= previous:
                raise CorruptError(f"records of stream {name} are out of order")
            previous = row[0]
            try:
                stored = from_row(name, lane, row)
            except DecodeError:
                stored = gap_record(
                    name, lane, row[0] & SEQ_MASK, row[0] & SEQ_MASK, GapBody(GapReason.CORRUPT), 0, None
                )
                damaged.append(len(result))
            result.append(stored)
            size += len(stored.record.body) + ROW_OVERHEAD
            if size >= max_bytes:
                break
        if damaged and not self._db.in_transaction:
            self._repair(name, [result[i] for i in damaged])
        self.losses += [Loss(GapReason.CORRUPT, None)] * len(damaged)
        return result

    def _repair(self, name: str, gaps: Sequence[Stored]) -> None:
        with transaction(self._db):
            for gap in gaps:
                self._delete(name, gap.record.seq, gap.record.seq)
                self._put(name, to_row(self._keys[name], gap))
        self._refresh(name)


def _expired(expiry: Expiry, boot: str, at_ms: int, utc_ms: int | None) -> bool:
    if boot == expiry.boot:
        return at_ms < expiry.before_at_ms
    return utc_ms is not None and utc_ms < expiry.before_utc_ms
