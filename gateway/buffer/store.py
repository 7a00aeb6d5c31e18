"""The store on disk: one SQLite file, WAL, synchronous=FULL. Synchronous; one thread at a time.

Whatever happens in one call happens in one transaction: new records, the eviction that makes room for them with the
gap that reports it, and the trimming of what was acked. The tables are in `schema.py`.

Every foreign exception leaves as `StoreError`; as `CorruptError` when the file itself is damaged, and then `rescue`
sets it aside, saves what can be read into a new one and reports the rest. At most two damaged files are kept.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.buffer import retention
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.database import CorruptError, connect, mapped, migrate, salvage, transaction
from gateway.buffer.gaps import Run, gap_body, gap_record
from gateway.buffer.schema import (
    COLUMNS,
    INSERT,
    LANES,
    MIGRATIONS,
    ROW_OVERHEAD,
    SEQ_BITS,
    SEQ_MASK,
    Disk,
    Loss,
    Stored,
    from_row,
    from_stream,
    row_id,
    to_row,
    to_stream,
)
from gateway.errors import DecodeError, StoreError
from gateway.model import GapReason, Lane, Origin, Record, RecordKind
from gateway.protocol.messages import MAX_BATCH_BYTES, GapBody

_FILE: Final = "buffer.db"
_FRESH: Final = "buffer.db.fresh"
_SUFFIXES: Final = ("-wal", "-shm", "")
_CHECKPOINT_BYTES: Final = 2 << 20
_DAMAGED_KEPT: Final = 2
_VACUUM_PAGES: Final = 1024
_SUM: Final = "CAST(coalesce(sum(size), 0) AS INTEGER)"  # the cast: after a flipped bit a column is of any type


class FullError(StoreError):
    """`when_full = "refuse"`, and it is full."""


class Expiry(NamedTuple):
    """What is too old: rows of this boot by boot time, rows of other boots by UTC."""

    boot: str
    before_at_ms: int
    before_utc_ms: int


class Work(msgspec.Struct, frozen=True):
    """One transaction, as the event loop sees the world when it asks for it."""

    records: Sequence[Stored] = ()
    boot: str = ""
    keep: frozenset[str] = frozenset()
    """Streams that may still grow: their row stays, though nothing is in them."""
    marks: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Acked up to here, by any sink: may be deleted, but for the pinned."""
    pins: Mapping[str, frozenset[int]] = msgspec.field(default_factory=dict)
    held: Mapping[str, int] = msgspec.field(default_factory=dict)
    """In flight up to here: must not be evicted."""
    sent: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Handed out up to here: gaps among these keep their body."""
    expiry: Expiry | None = None
    ring: bytes = b""
    covered: Mapping[Lane, int] = msgspec.field(default_factory=dict)
    """Rows of a lane up to this entry of that ring are in `records`, and the ring does not know it."""


class Done(NamedTuple):
    """What a call changed."""

    disks: Mapping[str, Disk | None]
    """Streams that were touched; None: nothing of it is left."""
    losses: Sequence[Loss] = ()


class Opened(NamedTuple):
    """What was found on disk."""

    disks: Mapping[str, Disk]
    """Oldest first."""
    origins: Sequence[tuple[str, int, tuple[Origin, ...]]]
    """(stream, seq, origins) of rows that carry some."""
    losses: Sequence[Loss]
    covered: Mapping[tuple[bytes, Lane], int]
    """(Ring, lane) → entry number up to which its rows are in the store."""
    damaged: bool
    """The file was set aside; what is missing is not all known."""


class Store:
    """Holds the one connection. `open` first; after a StoreError of `open` it may be tried again."""

    def __init__(self, settings: BufferSettings) -> None:
        self._settings = settings
        self._path = settings.path / _FILE
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._keys: dict[str, int] = {}
        self._disks: dict[str, Disk] = {}
        self._next_key = 1
        self._losses: list[Loss] = []
        self.commits = 0
        self.checkpoints = 0
        self.committed_bytes = 0
        """Of rows, before SQLite adds its pages."""
        self.used_bytes = 0

    # ── open, rescue, close ──────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Opened:
        """Opens or makes the file and reads what streams it holds; a damaged one is rescued.

        Raises:
            StoreError: it cannot be opened now, or another process has it.
        """
        with mapped():
            self._settings.path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._take_lock()
        try:
            return self._load(damaged=False)
        except CorruptError:
            return self.rescue()

    def rescue(self) -> Opened:
        """Copies what can be read of the damaged file into a new one, then sets it aside.

        Raises:
            StoreError: the new file cannot be written; nothing has changed, `open` tries again.
        """
        self._disconnect()
        fresh = self._path.with_name(_FRESH)
        with mapped():
            _remove(fresh)
            db = connect(fresh)
            try:
                migrate(db)
                with transaction(db):
                    salvage(self._path, db)
            finally:
                db.close()
            self._set_aside()
            fresh.rename(self._path)
        return self._load(damaged=True)

    def close(self) -> None:
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:
                pass  # it is given up anyway

    def _take_lock(self) -> None:
        if self._lock is None:
            descriptor = os.open(self._settings.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            self._lock = descriptor

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError("the store is not open")
        return self._db

    def _load(self, *, damaged: bool) -> Opened:
        self._disconnect()
        with mapped():
            fresh = self._path.with_name(_FRESH)
            if not self._path.exists() and fresh.exists():
                fresh.rename(self._path)  # the rescue was complete, but for this
            db = self._db = connect(self._path)
            migrate(db)
            self._losses = []
            self._keys, self._disks = {}, {}
            for key, *columns in db.execute("SELECT key, id, lane, boot FROM stream ORDER BY key"):
                name, lane, boot = from_stream(columns)
                self._keys[name] = key
                self._disks[name] = Disk(lane, boot, 0, 0, 0, 0, 0)
            self._next_key = max(self._keys.values(), default=0) + 1
            origins = self._survey(db)
            covered = {
                (bytes(ring), LANES[lane]): int(number)
                for lane, ring, number in db.execute(
                    "SELECT lane, CAST(ring AS BLOB), CAST(number AS INTEGER) FROM covered WHERE lane IN (0, 1)"
                )
            }
            self.used_bytes = self._used(db)
        return Opened(dict(self._disks), origins, tuple(self._losses), covered, damaged)

    def _survey(self, db: sqlite3.Connection) -> list[tuple[str, int, tuple[Origin, ...]]]:
        """Counts each stream, repairs its last row (the next number hangs on it), collects origins."""
        sums = {
            key: (rows, size)
            for key, rows, size in db.execute(f"SELECT id >> {SEQ_BITS}, count(*), {_SUM} FROM record GROUP BY 1")
        }
        origins = []
        names = {key: name for name, key in self._keys.items()}
        for number, _ in db.execute("SELECT id, length(origins) FROM record WHERE origins IS NOT NULL").fetchall():
            name = names.get(number >> SEQ_BITS)
            if name is not None:
                for stored in self._rows(name, number & SEQ_MASK, 1):
                    if stored.record.origins:
                        origins.append((name, stored.record.seq, stored.record.origins))
        for name, key in list(self._keys.items()):
            rows, size = sums.get(key, (0, 0))
            self._disks[name] = self._disks[name]._replace(rows=rows, bytes=size)
            self._refresh(name)
            if rows:
                self._rows(name, self._disks[name].last, 1)
        if set(sums) - set(names):
            raise CorruptError(f"{self._path}: records without a stream")
        return origins

    def _set_aside(self) -> None:
        names = [_FILE, *(f"{_FILE}.damaged-{number}" for number in range(1, _DAMAGED_KEPT + 1))]
        _remove(self._path.with_name(names[-1]))
        for old, new in reversed(list(itertools.pairwise(names))):
            for suffix in _SUFFIXES:
                here = self._path.with_name(old + suffix)
                if here.exists():
                    here.rename(self._path.with_name(new + suffix))

    # ── the one transaction ──────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, work: Work) -> Done:
        """Makes `work` durable: trims, expires, evicts, inserts. All of it or nothing.

        Raises:
            StoreError: nothing of it has happened.
            CorruptError: call `rescue`.
        """
        with mapped():
            db = self._connection()
            before = dict(self._disks)
            self._losses = []
            with self._all_or_nothing(db):
                self._trim(db, work)
                if work.expiry is not None:
                    self._expire(work, work.expiry)
                self._insert(db, work)
                for lane, number in work.covered.items():
                    db.execute(
                        "INSERT OR REPLACE INTO covered (lane, ring, number) VALUES (?,?,?)",
                        (LANES.index(lane), work.ring, number),
                    )
                for name in [n for n, d in self._disks.items() if d.rows == 0 and n not in work.keep]:
                    db.execute("DELETE FROM stream WHERE key = ?", (self._keys.pop(name),))
                    del self._disks[name]
            self.commits += 1
            self._tidy(db)
            self.used_bytes = self._used(db)
        changed = {
            name: self._disks.get(name)
            for name in before.keys() | self._disks.keys()
            if before.get(name) != self._disks.get(name)
        }
        return Done(changed, tuple(self._losses))

    @contextmanager
    def _all_or_nothing(self, db: sqlite3.Connection) -> Iterator[None]:
        """A transaction; what is known of the streams goes back with it."""
        disks, keys, done = dict(self._disks), dict(self._keys), False
        try:
            with transaction(db):
                yield
            done = True
        finally:
            if not done:
                self._disks, self._keys = disks, keys

    def _trim(self, db: sqlite3.Connection, work: Work) -> None:
        for name, mark in work.marks.items():
            disk = self._disks.get(name)
            if disk is None or not disk.rows or disk.first > mark:
                continue
            pinned = sorted(seq for seq in work.pins.get(name, ()) if seq <= mark)
            start = disk.first
            for seq in [*pinned, mark + 1]:
                if start < seq:
                    self._delete(db, name, start, seq - 1, whole=mark)
                start = seq + 1
            self._refresh(name)

    def _delete(self, db: sqlite3.Connection, name: str, first: int, last: int, whole: int | None = None) -> None:
        """Deletes rows first..last; with `whole` only those that end at or before it."""
        key = self._keys[name]
        where = "id BETWEEN ? AND ? AND last <= ?"
        arguments = (row_id(key, first), row_id(key, last), SEQ_MASK if whole is None else whole)
        rows, size = db.execute(f"SELECT count(*), {_SUM} FROM record WHERE {where}", arguments).fetchone()
        if rows:
            db.execute(f"DELETE FROM record WHERE {where}", arguments)
            disk = self._disks[name]
            self._disks[name] = disk._replace(rows=disk.rows - rows, bytes=disk.bytes - size)

    def _insert(self, db: sqlite3.Connection, work: Work) -> None:
        rows: list[tuple[str, tuple[Any, ...], Record]] = []
        for stored in work.records:
            name = stored.record.stream
            if name not in self._keys:
                key, self._next_key = self._next_key, self._next_key + 1
                db.execute(
                    "INSERT INTO stream (key, id, lane, boot) VALUES (?,?,?,?)",
                    (key, *to_stream(name, stored.record.lane, work.boot)),
                )
                self._keys[name] = key
                self._disks[name] = Disk(stored.record.lane, work.boot, 0, 0, 0, 0, 0)
            rows.append((name, to_row(self._keys[name], stored), stored.record))
        incoming = sum(row[6] for _, row, _ in rows)
        if incoming:
            self._make_room(db, work, incoming)
        for name, row, record in rows:
            if record.seq <= self._disks[name].last:
                # a row that is there already is a commit repeated; a gap may stand for several
                self._delete(db, name, record.seq, record.upto)
            self._put(db, name, row)
        for name in {name for name, _, _ in rows}:
            self._refresh(name)
        self.committed_bytes += incoming

    def _refresh(self, name: str) -> None:
        """First and last of a stream, from the tree."""
        db, key = self._connection(), self._keys[name]
        span = (row_id(key, 0), row_id(key, SEQ_MASK))
        first = db.execute(
            "SELECT id, CAST(at_ms AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1", span
        ).fetchone()
        last = db.execute(
            "SELECT id, CAST(last AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", span
        ).fetchone()
        if first is None or last is None:
            self._disks[name] = self._disks[name]._replace(first=0, last=0, rows=0, bytes=0, first_at_ms=0)
        else:
            seq = last[0] & SEQ_MASK
            self._disks[name] = self._disks[name]._replace(
                first=first[0] & SEQ_MASK, last=max(seq, last[1]), first_at_ms=first[1]
            )

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _used(self, db: sqlite3.Connection) -> int:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def _make_room(self, db: sqlite3.Connection, work: Work, incoming: int) -> None:
        used = self._used(db)
        allowed = self._allowed(used)
        if used + incoming > allowed:
            for name, mark in work.marks.items():  # acked rows whose origins are not forgotten: the cheapest to lose
                if name in self._disks:
                    self._delete(db, name, 0, mark, whole=mark)
                    self._refresh(name)
            used = self._used(db)
        excess = retention.excess_bytes(used, incoming, allowed)
        if excess == 0:
            return
        if self._settings.when_full is WhenFull.REFUSE:
            raise FullError(f"{self._path} holds {used} bytes; {allowed} are allowed")
        usage = [retention.Usage(name, disk.lane, disk.bytes) for name, disk in self._disks.items()]
        for cut in retention.plan(usage, excess, allowed):
            self._give_up(work, cut.stream, GapReason.EVICTED, max_bytes=cut.bytes)

    def _allowed(self, used: int) -> int:
        system = os.statvfs(self._settings.path)
        free = system.f_bavail * system.f_frsize
        return retention.allowed_bytes(self._settings.max_size, used, free, self._settings.free_space_floor)

    def _expire(self, work: Work, expiry: Expiry) -> None:
        for name, disk in list(self._disks.items()):
            if disk.rows:
                self._give_up(work, name, GapReason.EXPIRED, expiry=expiry)

    def _give_up(
        self, work: Work, name: str, reason: GapReason, *, max_bytes: int | None = None, expiry: Expiry | None = None
    ) -> None:
        """Deletes the oldest batches of a stream, as far as told, and puts a gap for each run of them."""
        db, key, disk = self._connection(), self._keys[name], self._disks[name]
        start = max(disk.first, work.held.get(name, 0) + 1, work.marks.get(name, 0) + 1)
        rows = db.execute(
            "SELECT id, last, kind, CAST(readings AS INTEGER), CAST(at_ms AS INTEGER), CAST(utc_ms AS INTEGER),"
            " CAST(size AS INTEGER), CASE WHEN kind = 2 THEN body END"
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
            elif kind == RecordKind.GAP.value and seq > work.sent.get(name, SEQ_MASK):
                old = gap_body(body)
                if old is not None and old.reason is reason and old.readings is not None and run.follows(seq):
                    run.absorb(seq, last, old, at_ms)
        for each in [*runs, run]:
            if each.batches:
                self._replace(db, name, each)
        self._refresh(name)

    def _replace(self, db: sqlite3.Connection, name: str, run: Run) -> None:
        self._delete(db, name, run.first, run.last)
        stored = run.gap(name, self._disks[name].lane)
        self._put(db, name, to_row(self._keys[name], stored))
        self._losses.append(Loss(run.reason, run.lost))

    def _put(self, db: sqlite3.Connection, name: str, row: tuple[Any, ...]) -> None:
        db.execute(INSERT, row)
        disk = self._disks[name]
        self._disks[name] = disk._replace(rows=disk.rows + 1, bytes=disk.bytes + row[6])

    def _tidy(self, db: sqlite3.Connection) -> None:
        """After a commit: keeps the WAL short, and gives pages back when the file system runs low."""
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if free > _VACUUM_PAGES and self._allowed(self._used(db)) < self._settings.max_size:
            db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        try:
            wal_bytes = os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return
        if wal_bytes >= _CHECKPOINT_BYTES:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.checkpoints += 1

    def move(self, stream: str, mark: int, target: str, boot: str) -> Mapping[str, Disk | None]:
        """Gives what is un-acked of a stream to a new one, which is ended.

        Raises:
            StoreError: nothing has happened.
        """
        with mapped():
            db, key, lane = self._connection(), self._keys[stream], self._disks[stream].lane
            new_key, self._next_key = self._next_key, self._next_key + 1
            with self._all_or_nothing(db):
                db.execute(
                    "INSERT INTO stream (key, id, lane, boot) VALUES (?,?,?,?)",
                    (new_key, *to_stream(target, lane, boot)),
                )
                self._keys[target] = new_key
                self._disks[target] = Disk(lane, boot, 0, 0, 0, 0, 0)
                seq, at = 0, mark + 1
                while chunk := self._rows(stream, at, MAX_BATCH_BYTES):
                    for stored in chunk:
                        if stored.record.kind is not RecordKind.END:
                            seq += 1
                            moved = msgspec.structs.replace(stored.record, stream=target, seq=seq, last=0)
                            self._put(db, target, to_row(new_key, stored._replace(record=moved)))
                    at = chunk[-1].record.upto + 1
                end = Record(target, lane, seq + 1, RecordKind.END, b"")
                self._put(db, target, to_row(new_key, Stored(end, 0, None)))
                self._delete(db, stream, 0, SEQ_MASK)
                db.execute("DELETE FROM stream WHERE key = ?", (key,))
                del self._keys[stream], self._disks[stream]
                self._refresh(target)
            self.commits += 1
        return {stream: None, target: self._disks[target]}

    @property
    def fsyncs(self) -> int:
        """Each commit syncs the WAL once; a checkpoint syncs the WAL and the file."""
        return self.commits + 2 * self.checkpoints

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def probe(self) -> None:
        """Writes something. Raises StoreError when that does not work."""
        with mapped(), transaction(self._connection()):
            self._connection().execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    def read(self, stream: str, seq: int, max_bytes: int) -> tuple[list[Stored], Sequence[Loss]]:
        """Records from `seq` on (the first may begin before it, if it is a gap that covers it), about `max_bytes`.

        A row that cannot be read has become a gap when this returns, and is in the losses.

        Raises:
            StoreError: the disk cannot be read.
            CorruptError: call `rescue`.
        """
        with mapped():
            if stream not in self._keys:
                return [], ()
            self._losses = []
            return self._rows(stream, seq, max_bytes), tuple(self._losses)

    def _rows(self, name: str, seq: int, max_bytes: int) -> list[Stored]:
        db, key, lane = self._connection(), self._keys[name], self._disks[name].lane
        before = db.execute(
            "SELECT id, CAST(last AS INTEGER) FROM record WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            (row_id(key, 0), row_id(key, seq)),
        ).fetchone()
        start = before[0] if before is not None and before[1] >= seq else row_id(key, seq)
        cursor = db.execute(
            f"SELECT {COLUMNS} FROM record WHERE id BETWEEN ? AND ? ORDER BY id", (start, row_id(key, SEQ_MASK))
        )
        result: list[Stored] = []
        size = 0
        damaged: list[int] = []
        previous = start - 1
        for row in cursor:
            if row[0] <= previous:
                raise CorruptError(f"{self._path}: records of stream {name} are out of order")
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
        if damaged and not db.in_transaction:
            self._repair(name, [result[i] for i in damaged])
        return result

    def _repair(self, name: str, gaps: Sequence[Stored]) -> None:
        with transaction(self._connection()):
            for gap in gaps:
                self._delete(self._connection(), name, gap.record.seq, gap.record.seq)
                self._put(self._connection(), name, to_row(self._keys[name], gap))
                self._losses.append(Loss(GapReason.CORRUPT, None))
        self._refresh(name)


def _expired(expiry: Expiry, boot: str, at_ms: int, utc_ms: int | None) -> bool:
    if boot == expiry.boot:
        return at_ms < expiry.before_at_ms
    return utc_ms is not None and utc_ms < expiry.before_utc_ms


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
