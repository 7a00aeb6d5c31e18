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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.buffer import retention
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.database import CorruptError, connect, mapped, migrate, salvage, transaction
from gateway.buffer.records import NO_LIMITS, Expiry, Limits, Records
from gateway.buffer.schema import MIGRATIONS, SIZE, Disk, Loss, Stored
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, Origin

_FILE: Final = "buffer.db"
_FRESH: Final = "buffer.db.fresh"
_SUFFIXES: Final = ("-wal", "-shm", "")
_CHECKPOINT_BYTES: Final = 2 << 20
_DAMAGED_KEPT: Final = 2
_VACUUM_PAGES: Final = 1024


class FullError(StoreError):
    """`when_full = "refuse"`, and it is full."""


class Work(msgspec.Struct, frozen=True):
    """One transaction, as the event loop sees the world when it asks for it."""

    records: Sequence[Stored] = ()
    boot: str = ""
    keep: frozenset[str] = frozenset()
    """Streams that may still grow: their row stays, though nothing is in them."""
    limits: Limits = NO_LIMITS
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

    def __init__(self, settings: BufferSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._path = folder / _FILE
        self._db: sqlite3.Connection | None = None
        self._records: Records | None = None
        self._lock: int | None = None
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
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
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
        db, self._db, self._records = self._db, None, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:
                pass  # it is given up anyway

    def _take_lock(self) -> None:
        if self._lock is None:
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            self._lock = descriptor

    def _opened(self) -> tuple[sqlite3.Connection, Records]:
        if self._db is None or self._records is None:
            raise StoreError("the store is not open")
        return self._db, self._records

    def _load(self, *, damaged: bool) -> Opened:
        self._disconnect()
        with mapped():
            fresh = self._path.with_name(_FRESH)
            if not self._path.exists() and fresh.exists():
                fresh.rename(self._path)  # the rescue was complete, but for this
            db = self._db = connect(self._path)
            migrate(db)
            records = self._records = Records(db)
            self.used_bytes = records.used_bytes()
            return Opened(dict(records.disks), records.origins, records.take_losses(), records.covered(), damaged)

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
            db, records = self._opened()
            before = dict(records.disks)
            records.take_losses()
            with records.all_or_nothing():
                records.trim(work.limits)
                if work.expiry is not None:
                    for name in [name for name, disk in records.disks.items() if disk.rows]:
                        records.give_up(work.limits, name, GapReason.EXPIRED, expiry=work.expiry)
                self._insert(records, work)
                records.cover(work.ring, work.covered)
                records.drop_empty(work.keep)
            self.commits += 1
            self._tidy(db, records)
        return Done(_changed(before, records.disks), records.take_losses())

    def _insert(self, records: Records, work: Work) -> None:
        rows = records.rows(work.records, work.boot)
        incoming = sum(row[SIZE] for row in rows)
        if incoming:
            self._make_room(records, work.limits, incoming)
            records.insert(work.records, rows)
            self.committed_bytes += incoming

    def move(self, stream: str, mark: int, target: str, boot: str) -> Done:
        """Gives what is un-acked of a stream to a new one, and ends that.

        Raises:
            StoreError: nothing has happened.
        """
        with mapped():
            _, records = self._opened()
            before = dict(records.disks)
            records.move(stream, mark, target, boot)
            self.commits += 1
        return Done(_changed(before, records.disks))

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self, records: Records, limits: Limits, incoming: int) -> None:
        used = records.used_bytes()
        allowed = self._allowed(used)
        if used + incoming > allowed:
            # rows that stay for their origins only are the cheapest to lose
            records.trim(limits._replace(pins={}))
            used = records.used_bytes()
        excess = retention.excess_bytes(used, incoming, allowed)
        if excess == 0:
            return
        if self._settings.when_full is WhenFull.REFUSE:
            raise FullError(f"{self._path} holds {used} bytes; {allowed} are allowed")
        usage = [retention.Usage(name, disk.lane, disk.bytes) for name, disk in records.disks.items()]
        for cut in retention.plan(usage, excess, allowed):
            records.give_up(limits, cut.stream, GapReason.EVICTED, max_bytes=cut.bytes)

    def _allowed(self, used: int) -> int:
        system = os.statvfs(self._folder)
        free = system.f_bavail * system.f_frsize
        return retention.allowed_bytes(self._settings.max_size, used, free, self._settings.free_space_floor)

    def _tidy(self, db: sqlite3.Connection, records: Records) -> None:
        """After a commit: keeps the WAL short, and gives pages back when the file system runs low."""
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if free > _VACUUM_PAGES and self._allowed(records.used_bytes()) < self._settings.max_size:
            db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        self.used_bytes = records.used_bytes()
        try:
            wal_bytes = os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return
        if wal_bytes >= _CHECKPOINT_BYTES:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.checkpoints += 1

    @property
    def fsyncs(self) -> int:
        """Each commit syncs the WAL once; a checkpoint syncs the WAL and the file."""
        return self.commits + 2 * self.checkpoints

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def probe(self) -> None:
        """Writes something. Raises StoreError when that does not work."""
        db, _ = self._opened()
        with mapped(), transaction(db):
            db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    def read(self, stream: str, seq: int, max_bytes: int) -> tuple[list[Stored], Sequence[Loss]]:
        """Records from `seq` on (the first may begin before it, if it is a gap that covers it), about `max_bytes`.

        A row that cannot be read has become a gap when this returns, and is in the losses.

        Raises:
            StoreError: the disk cannot be read.
            CorruptError: call `rescue`.
        """
        with mapped():
            _, records = self._opened()
            if stream not in records.disks:
                return [], ()
            return records.read(stream, seq, max_bytes), records.take_losses()


def _changed(before: Mapping[str, Disk], after: Mapping[str, Disk]) -> dict[str, Disk | None]:
    return {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
