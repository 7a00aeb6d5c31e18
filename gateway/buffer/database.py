"""SQLite as the store uses it: how a file is opened, migrated and salvaged, and what its errors mean.

The only importer of `sqlite3` in this stage beside `store.py`. A flipped bit can give any column any type; text comes
as bytes, so that reading never fails on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from gateway.buffer.gaps import gap_record
from gateway.buffer.schema import (
    COLUMNS,
    INSERT,
    MIGRATIONS,
    SEQ_MASK,
    Stored,
    from_row,
    from_stream,
    row_id,
    to_row,
    to_stream,
)
from gateway.errors import DecodeError, StoreError
from gateway.model import GapReason
from gateway.protocol.messages import GapBody

PAGE_BYTES: Final = 1024
"""Small: a commit of one small batch writes a few of these."""
_CHUNK_ROWS: Final = 64
_BUSY_S: Final = 0.2
"""Nobody else writes here. Who reads for long holds up the shortening of the log, which may wait; commits may not."""


class CorruptError(StoreError):
    """The file is damaged: `Store.rescue` is the way on."""


class DiskError(StoreError):
    """The disk fails. After a failed sync the kernel takes pages for written that are not: see `Store`."""


_KINDS: Final[Mapping[int, type[StoreError]]] = {
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_NOTADB: CorruptError,
    sqlite3.SQLITE_ERROR: CorruptError,  # our statements are right, so the schema is not
    sqlite3.SQLITE_SCHEMA: CorruptError,
    sqlite3.SQLITE_FORMAT: CorruptError,
    sqlite3.SQLITE_MISMATCH: CorruptError,
    sqlite3.SQLITE_CONSTRAINT: CorruptError,
    sqlite3.SQLITE_IOERR: DiskError,
}


FOREIGN: Final = (sqlite3.Error, UnicodeError)
"""What SQLite raises about a damaged file: its message may quote what it found there, and that need not be UTF-8."""


@contextmanager
def mapped() -> Iterator[None]:
    """The seam: what SQLite and the file system raise leaves as StoreError or CorruptError."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        kind = _KINDS.get(code & 0xFF, StoreError)
        raise kind(f"{error} (SQLite code {code})") from error
    except OSError as error:
        raise StoreError(str(error)) from error
    except (DecodeError, UnicodeError) as error:
        raise CorruptError(str(error)) from error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and on disk when it ends."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # something was raised
            db.execute("ROLLBACK")


def connect(path: Path) -> sqlite3.Connection:
    """Opens or makes the file, set up for few and durable writes."""
    is_new = not path.exists()
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    db.text_factory = bytes
    try:
        if is_new:  # to an old file this would be a commit, and nothing else
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=OFF")
        db.execute("PRAGMA wal_autocheckpoint=0")
    except FOREIGN:
        db.close()
        raise
    return db


def migrate(db: sqlite3.Connection) -> None:
    """Brings the tables to the version of this program. Raises CorruptError for a version that it does not know."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= len(MIGRATIONS):
        raise CorruptError(f"version {version} of the tables is not known")
    if 0 < version < len(MIGRATIONS):
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for number in range(version, len(MIGRATIONS)):
        with transaction(db):
            for statement in MIGRATIONS[number]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={number + 1}")


def unreported(db: sqlite3.Connection) -> bool:
    """Records are missing from this file, and no gap in it says so yet."""
    (mark,) = db.execute("PRAGMA application_id").fetchone()
    return bool(mark)


def set_unreported(db: sqlite3.Connection, *, due: bool) -> None:
    """Writes down what `unreported` answers; part of the transaction."""
    db.execute(f"PRAGMA application_id={int(due)}")


def salvage(damaged: Path, fresh: sqlite3.Connection, *, corrupt: bool) -> bool:
    """Copies every record that can still be read and proves itself by its checksum.

    What cannot be read becomes a gap; in a `corrupt` file every hole between records does, for nobody knows what else
    is missing. True: all of it could be read.
    """
    whole = not corrupt
    try:
        with closing(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as old:
            old.text_factory = bytes
            whole &= not unreported(old)
            found = list(streams(old))
            (count,) = old.execute("SELECT count(*) FROM stream").fetchone()
            whole &= bool(count == len(found))
            for key, columns in found:
                whole &= _salvage_stream(old, fresh, key, columns, corrupt)
    except FOREIGN:
        return False  # not even its first page can be read: nothing more to be had
    return whole


def streams(old: sqlite3.Connection) -> Iterator[tuple[int, list[Any]]]:
    """Keys and columns of the streams that can be read: from both ends, up to where the file is damaged."""
    known: set[int] = set()
    for order in ("ASC", "DESC"):
        try:
            for key, *columns in old.execute(f"SELECT * FROM stream ORDER BY key {order}"):
                try:
                    from_stream(columns[:3])
                except DecodeError:
                    continue
                if isinstance(key, int) and key not in known:
                    known.add(key)
                    yield key, columns
        except FOREIGN:
            continue


def _salvage_stream(
    old: sqlite3.Connection, fresh: sqlite3.Connection, key: int, columns: list[Any], corrupt: bool
) -> bool:
    name, lane, boot = from_stream(columns[:3])
    sinks, proved, *_ = [None, None] if corrupt else [*columns[3:], None, None]
    last, whole, torn = 0, True, corrupt
    for row in rows(old, key):
        try:
            stored = from_row(name, lane, row) if row is not None else None
        except DecodeError:
            stored = None
        if stored is None:
            whole, torn = False, True
            continue
        seq = stored.record.seq
        if seq <= last:
            continue
        if last == 0:
            fresh.execute(
                "INSERT OR IGNORE INTO stream (key, id, lane, boot, sinks, proved) VALUES (?,?,?,?,?,?)",
                (key, *to_stream(name, lane, boot), sinks, proved),
            )
        elif seq > last + 1 and torn:
            hole: Stored = gap_record(name, lane, last + 1, seq - 1, GapBody(GapReason.CORRUPT), stored.at_ms, None)
            fresh.execute(INSERT, to_row(key, hole))
        fresh.execute(INSERT, to_row(key, stored))
        last, torn = stored.record.upto, corrupt
    return whole


def rows(old: sqlite3.Connection, key: int, *, kind: int | None = None) -> Iterator[tuple[Any, ...] | None]:
    """Rows of a stream in order, perhaps of one kind only; None where something cannot be read.

    Behind a damaged place the search goes on in steps that double. Between two rows that come out no transaction stays
    open for long: another process may be writing.
    """
    at, end, step = row_id(key, 0), row_id(key, SEQ_MASK), 1
    while at <= end:
        chunk: list[tuple[Any, ...]] = []
        begin = at
        try:
            for row in old.execute(
                f"SELECT {COLUMNS} FROM record WHERE id BETWEEN ? AND ? AND kind = coalesce(?, kind)"
                f" ORDER BY id LIMIT {_CHUNK_ROWS}",
                (at, end, kind),
            ):
                if isinstance(row[0], int) and row[0] >= at:
                    chunk.append(row)
                    at = row[0] + 1
        except FOREIGN:
            yield from chunk
            yield None
            step = 1 if chunk else step
            at, step = at + step, step * 2
        else:
            yield from chunk
            if at == begin:
                return
            step = 1
