"""SQLite as the store uses it: how a file is opened, migrated and salvaged, and what its errors mean.

The only importer of `sqlite3` in this stage beside `store.py`. A flipped bit can give any column any type; text comes
as bytes, so that reading never fails on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
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
from gateway.model import GapReason, Lane
from gateway.protocol.messages import GapBody

_PAGE_BYTES: Final = 1024
"""Small: a commit of one small batch writes a few of these."""
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,  # our statements are right, so the schema is not
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_CONSTRAINT,
    }
)


class CorruptError(StoreError):
    """The file is damaged: `Store.rescue` is the way on."""


@contextmanager
def mapped() -> Iterator[None]:
    """The seam: what SQLite and the file system raise leaves as StoreError or CorruptError."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        kind = CorruptError if code & 0xFF in _DAMAGE else StoreError
        raise kind(f"{error} (SQLite code {code})") from error
    except OSError as error:
        raise StoreError(str(error)) from error
    except DecodeError as error:
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
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    db.text_factory = bytes
    try:
        db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=OFF")
        db.execute("PRAGMA wal_autocheckpoint=0")
    except sqlite3.Error:
        db.close()
        raise
    return db


def migrate(db: sqlite3.Connection) -> None:
    """Brings the tables to the version of this program. Raises CorruptError for a version that it does not know."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= len(MIGRATIONS):
        raise CorruptError(f"version {version} of the tables is not known")
    for number in range(version, len(MIGRATIONS)):
        with transaction(db):
            for statement in MIGRATIONS[number]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={number + 1}")


def salvage(damaged: Path, fresh: sqlite3.Connection) -> None:
    """Copies every record that can still be read and proves itself by its checksum; holes between become gaps."""
    try:
        with closing(sqlite3.connect(damaged, isolation_level=None)) as old:
            old.text_factory = bytes
            for key, name, lane, boot in list(_streams(old)):
                _salvage_stream(old, fresh, key, name, lane, boot)
    except sqlite3.Error:
        pass  # not even its first page can be read: nothing more to be had


def _streams(old: sqlite3.Connection) -> Iterator[tuple[int, str, Lane, str]]:
    known: set[int] = set()
    for order in ("ASC", "DESC"):  # from both ends, up to where it is damaged
        try:
            for key, *columns in old.execute(f"SELECT key, id, lane, boot FROM stream ORDER BY key {order}"):
                if key in known:
                    continue
                try:
                    name, lane, boot = from_stream(columns)
                except DecodeError:
                    continue
                known.add(key)
                yield key, name, lane, boot
        except sqlite3.Error:
            continue


def _salvage_stream(
    old: sqlite3.Connection, fresh: sqlite3.Connection, key: int, name: str, lane: Lane, boot: str
) -> None:
    last = 0
    for row in _rows(old, key):
        try:
            stored = from_row(name, lane, row)
        except DecodeError:
            continue
        seq = stored.record.seq
        if seq <= last:
            continue
        if last == 0:
            fresh.execute(
                "INSERT OR IGNORE INTO stream (key, id, lane, boot) VALUES (?,?,?,?)",
                (key, *to_stream(name, lane, boot)),
            )
        elif seq > last + 1:
            hole: Stored = gap_record(name, lane, last + 1, seq - 1, GapBody(GapReason.CORRUPT), stored.at_ms, None)
            fresh.execute(INSERT, to_row(key, hole))
        fresh.execute(INSERT, to_row(key, stored))
        last = stored.record.upto


def _rows(old: sqlite3.Connection, key: int) -> Iterator[tuple[Any, ...]]:
    """Rows of a stream in order; behind a damaged place the search goes on in steps that double."""
    at, end, step = row_id(key, 0), row_id(key, SEQ_MASK), 1
    while at <= end:
        try:
            for row in old.execute(f"SELECT {COLUMNS} FROM record WHERE id BETWEEN ? AND ? ORDER BY id", (at, end)):
                if row[0] >= at:
                    yield row
                    at, step = row[0] + 1, 1
            return
        except sqlite3.Error:
            at, step = at + step, step * 2
