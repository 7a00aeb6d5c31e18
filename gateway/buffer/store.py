"""The store on disk: one SQLite file, WAL, synchronous=FULL. Synchronous; one thread at a time.

Whatever happens in one call happens in one transaction: new records, the eviction that makes room for them with the
gap that reports it, and the trimming of what was acked. The tables are in `schema.py`.

Every foreign exception leaves as `StoreError`; as `CorruptError` when the file itself is damaged, and then `rescue`
sets it aside, saves what can be read into a new one and reports the rest. At most two damaged files are kept
(`files.py`). That something is missing is written in the file itself until the gap that says so is committed or acked.

A sync that failed is not tried again: the kernel may have dropped the pages and call them written. Nothing is appended
to a log in such doubt. What it holds is first written into the file, anew and synced, and the log begins from nothing;
so is a log that another process left behind, once it has itself been written anew. The records of the failed commit
are still in memory, and come with the next one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from gateway.buffer import retention, wal
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.database import (
    PAGE_BYTES,
    CorruptError,
    DiskError,
    connect,
    mapped,
    migrate,
    salvage,
    set_unreported,
    transaction,
    unreported,
)
from gateway.buffer.files import Files
from gateway.buffer.records import NO_LIMITS, Expiry, Limits, Records
from gateway.buffer.schema import MIGRATIONS, SIZE, Disk, Loss, Stored
from gateway.disk import renew_log
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, Origin

_CHECKPOINT_BYTES: Final = 2 << 20
_RING_NAME: Final = 16
"""Digits."""
_VACUUM_BYTES: Final = 1 << 20
"""Given back at once; a commit shall not take long."""


class FullError(StoreError):
    """Readings (or even alarms) find no room: `when_full = "refuse"`, or the file system is down to its floor."""


class Work(msgspec.Struct, frozen=True):
    """One transaction, as the event loop sees the world when it asks for it."""

    records: Sequence[Stored] = ()
    boot: str = ""
    keep: frozenset[str] = frozenset()
    """Streams that may still grow: their row stays, though nothing is in them."""
    limits: Limits = NO_LIMITS
    expiry: Mapping[Lane, Expiry] = msgspec.field(default_factory=dict)
    sinks: Mapping[str, Mapping[str, int]] = msgspec.field(default_factory=dict)
    """Streams, and who has acked how much of them, where that is to be written down."""
    proved: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Streams, and up to which number no message of theirs can come again, where that is to be written down."""
    ring: bytes = b""
    covered: Mapping[Lane, int] = msgspec.field(default_factory=dict)
    """Rows of a lane up to this entry of that ring are in `records`, and the ring does not know it."""
    reported: bool = False
    """The gap for what a rescue could not save is among `records`, or was acked."""


class Done(NamedTuple):
    """What a call changed."""

    disks: Mapping[str, Disk | None]
    """Streams that were touched; None: nothing of it is left."""
    losses: Sequence[Loss] = ()
    unpinned: bool = False
    """Rows that were kept for their origins had to go."""
    moved: Mapping[int, int] = MappingProxyType({})
    """Old and new numbers of rows that are kept for their origins."""


class Opened(NamedTuple):
    """What was found on disk."""

    disks: Mapping[str, Disk]
    """Oldest first."""
    origins: Sequence[tuple[str, int, tuple[Origin, ...]]]
    """(stream, seq, origins) of rows that carry some."""
    losses: Sequence[Loss]
    covered: Mapping[tuple[bytes, Lane], int]
    """(Ring, lane) → entry number up to which its rows are in the store."""
    sinks: Mapping[str, Mapping[str, int]]
    """Stream → sink → mark, as written down."""
    proved: Mapping[str, int]
    """Stream → up to which number no message can come again."""
    damaged: bool
    """A file was set aside; what is missing is not all known, and no gap says so yet."""


class Store:
    """Holds the one connection. `open` first; after a StoreError of `open` it may be tried again.

    `ring` names the flight ring of this process; empty: it has none.
    """

    def __init__(self, settings: BufferSettings, folder: Path, ring: bytes = b"") -> None:
        self._settings = settings
        self._folder = folder
        self._ring = ring
        self.ring_is_behind = False
        """A process without this ring had the store since the ring was in use: known once the folder is taken."""
        self._files = Files(folder)
        self._db: sqlite3.Connection | None = None
        self._records: Records | None = None
        self._lock: int | None = None
        self._told: dict[str, Disk] = {}
        """What the caller knows of `Records.disks`."""
        self._doubtful = False
        """The log may hold what is not on disk."""
        self._unreported = False
        self.commits = 0
        self.checkpoints = 0
        self.committed_bytes = 0
        """Of rows, before SQLite adds its pages."""
        self.used_bytes = 0
        self.trouble = ""
        """What failed after a commit: that is safe, but the log grows."""

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
            return self._load()
        except CorruptError:
            return self.rescue(corrupt=True)

    def rescue(self, *, corrupt: bool) -> Opened:
        """Copies what can be read into a new file, then sets the old one aside; see `salvage` for `corrupt`.

        Raises:
            StoreError: the new file cannot be written; `open` tries again.
        """
        self._disconnect()
        with mapped(), self._new_file() as db, transaction(db):
            whole = salvage(self._files.db, db, corrupt=corrupt)
            set_unreported(db, due=not whole)
        return self._load()

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
            self._note_ring(descriptor)

    def _note_ring(self, lock: int) -> None:
        """The ring's name, in the file of the lock. Not synced: a ring does not outlive the power either."""
        name = (self._ring.hex() or "none").ljust(_RING_NAME).encode()
        try:
            before = os.pread(lock, len(name), 0)
            self.ring_is_behind = before not in (b"", name)
            if before != name:
                os.pwrite(lock, name, 0)  # in place: a full disk takes it but for the very first time
        except OSError:
            pass  # at worst later processes ask once more than they must what a source may send again

    def _opened(self) -> tuple[sqlite3.Connection, Records]:
        if self._db is None or self._records is None:
            raise StoreError("the store is not open")
        return self._db, self._records

    @contextmanager
    def _new_file(self) -> Iterator[sqlite3.Connection]:
        """Takes its place when the store is loaded; nothing has changed when something is raised."""
        self._files.begin()
        with closing(connect(self._files.part)) as db:
            migrate(db)
            yield db
            _checkpoint(db)
        self._files.finish()

    def _load(self) -> Opened:
        self._disconnect()
        with mapped():
            self._files.put_in_place()
            if not self._files.is_there():
                with self._new_file():
                    pass
                self._files.put_in_place()
            self._copy_log()
            db = self._db = connect(self._files.db)
            self._check_log(db)
            self._doubtful = self._files.log_bytes() > 0
            self._renew_if_possible(db)
            migrate(db)
            records = self._records = Records(db)
            self.used_bytes, _ = records.pages()
            self._told = dict(records.disks)
            self._unreported = unreported(db)
            losses = records.take_losses()
            known = (records.covered(), records.sinks, records.proved)
            return Opened(self._told, records.origins, losses, *known, self._unreported)

    def _copy_log(self) -> None:
        try:
            renew_log(self._files.db)
        except OSError:
            pass  # the first commit says so; until then what is here can be read

    def _check_log(self, db: sqlite3.Connection) -> None:
        """A log that is cut short is what a power cut leaves; one with a hole is not."""
        db.execute("PRAGMA user_version").fetchone()  # now SQLite has read it, and nothing was written
        log = self._files.log.read_bytes()
        if log and wal.is_damaged(log, PAGE_BYTES, wal.good_frames(self._files.index.read_bytes())):
            raise CorruptError(f"commits are missing from {self._files.log}")

    # ── the one transaction ──────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Records]]:
        try:
            with mapped():
                db, records = self._opened()
                self._renew(db)
                yield db, records
        except DiskError:
            self._doubtful = True
            raise

    def _renew(self, db: sqlite3.Connection) -> None:
        if self._doubtful:
            _checkpoint(db)
            self.checkpoints += 1
            self._doubtful = False

    def _renew_if_possible(self, db: sqlite3.Connection) -> None:
        try:
            with mapped():
                self._renew(db)
        except CorruptError:
            raise
        except StoreError:
            pass  # the first commit says so; until then what is here can be read

    def commit(self, work: Work) -> Done:
        """Makes `work` durable: trims, expires, evicts, inserts. All of it or nothing.

        Raises:
            FullError: try it with the alarms alone.
            StoreError: nothing of it has happened.
            CorruptError: call `rescue`.
        """
        with self._writing() as (db, records):
            records.take_losses()
            with records.all_or_nothing():
                records.trim(work.limits)
                for name, disk in list(records.disks.items()):
                    if disk.rows and disk.lane in work.expiry:
                        records.give_up(work.limits, name, GapReason.EXPIRED, expiry=work.expiry[disk.lane])
                unpinned = self._insert(records, work)
                records.note_sinks(work.sinks)
                records.note_proved(work.proved)
                records.cover(work.ring, work.covered)
                records.drop_empty(work.keep)
                if self._unreported and work.reported:
                    set_unreported(db, due=False)
            self._unreported &= not work.reported
            self.commits += 1
            done = Done(self._changed(records), records.take_losses(), unpinned)
        try:
            with self._writing():
                self._tidy(db, records)
            self.trouble = ""
        except StoreError as error:
            self.trouble = str(error)
        return done

    def _insert(self, records: Records, work: Work) -> bool:
        rows = records.rows(work.records, work.boot)
        if not rows:
            return False
        sizes = dict.fromkeys(Lane, 0)
        for stored, row in zip(work.records, rows, strict=True):
            sizes[stored.record.lane] += row[SIZE]
        incoming = retention.Bytes(sizes[Lane.LIVE], sizes[Lane.ALARM])
        unpinned = self._make_room(records, work.limits, incoming)
        records.insert(work.records, rows)
        self.committed_bytes += sum(incoming)
        return unpinned

    def move(self, stream: str, mark: int, target: str, boot: str, pins: frozenset[int]) -> Done:
        """Gives what is un-acked of a stream to a new one, and ends that. Of acked rows the pinned ones stay.

        Raises:
            StoreError: nothing has happened.
        """
        with self._writing() as (_, records):
            records.take_losses()
            moved = records.move(stream, mark, target, boot, pins)
            self.commits += 1
        return Done(self._changed(records), records.take_losses(), moved=moved)

    def _changed(self, records: Records) -> dict[str, Disk | None]:
        before, self._told = self._told, dict(records.disks)
        names = before.keys() | self._told.keys()
        return {name: self._told.get(name) for name in names if before.get(name) != self._told.get(name)}

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self, records: Records, limits: Limits, incoming: retention.Bytes) -> bool:
        """Gives up what must be. True: also rows that were kept for their origins."""
        settings, unpinned = self._settings, False
        space = self._space(records)
        limit = self._bounds(space)
        usage = _usage(records)
        if retention.refused(usage, space.used, incoming, limit):
            # rows that stay for their origins only are the cheapest to lose
            unpinned = records.trim(limits._replace(pins={}))
            space, usage = self._space(records), _usage(records)
            if settings.when_full is WhenFull.REFUSE and retention.refused(usage, space.used, incoming, limit):
                raise FullError(f"{self._files.db} holds {space.used} bytes, and has no room for more")
            for cut in retention.plan(usage, space.used, incoming, limit):
                records.give_up(limits, cut.stream, GapReason.EVICTED, max_bytes=cut.bytes)
            space = self._space(records)
        if not retention.fits(space, incoming, settings.free_space_floor):
            raise FullError(f"the file system of {self._folder} has {space.free} bytes left, which is its floor")
        return unpinned

    def _space(self, records: Records) -> retention.Space:
        system = os.statvfs(self._folder)
        return retention.Space(*records.pages(), system.f_bavail * system.f_frsize)

    def _bounds(self, space: retention.Space) -> retention.Bounds:
        settings = self._settings
        return retention.bounds(space, settings.max_size, settings.alarm_reserve, settings.free_space_floor)

    def _tidy(self, db: sqlite3.Connection, records: Records) -> None:
        """After a commit: keeps the WAL short, and gives pages back when the file system runs low."""
        space = self._space(records)
        if space.spare > _VACUUM_BYTES and space.free < self._settings.free_space_floor + space.spare:
            # as a script: each step frees one page, and a statement without columns is stepped once
            db.executescript(f"PRAGMA incremental_vacuum({_VACUUM_BYTES // PAGE_BYTES})")
        self.used_bytes = space.used
        if self._files.log_bytes() >= _CHECKPOINT_BYTES:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.checkpoints += 1

    @property
    def fsyncs(self) -> int:
        """Each commit syncs the WAL once; a checkpoint syncs the WAL and the file."""
        return self.commits + 2 * self.checkpoints

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def probe(self) -> None:
        """Writes something. Raises StoreError when that does not work."""
        with self._writing() as (db, _), transaction(db):
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


def _usage(records: Records) -> list[retention.Usage]:
    return [retention.Usage(name, disk.lane, disk.bytes) for name, disk in records.disks.items()]


def _checkpoint(db: sqlite3.Connection) -> None:
    """Everything into the file, and a log of no bytes."""
    busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreError("the log cannot begin anew while somebody reads the store")
