"""The command journal's file: one small SQLite database, synchronous, entered by one thread.

When `save` returns, the entries are on disk (fsync). A file that cannot be read is set aside under another name and a
new one begins: the gateway starts all the same, and the commands in the old file are unknown.

Nothing is appended to a log whose sync has failed, or that another process left behind, before it is written anew: what
lies behind a hole in it is lost with the power, and a command that was carried out would be carried out again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.commands.journal import Entry
from gateway.disk import renew_log
from gateway.errors import StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

DISK_TIMEOUT_S = 15.0
"""A card that has not written a page after this is dead."""

BUSY_S = 0.5
"""Nobody else writes this file; a person who looks into it may hold it for a moment."""

_SCHEMA = 1
_SET_ASIDE = ".corrupt"


class Store:
    """Every method runs in the store's own thread; they are carried out in the order of their calls."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commands")
        self._db: sqlite3.Connection | None = None
        self._doubtful = False
        """The log may hold what is not on disk."""

    async def load(self) -> list[Entry]:
        """Opens the file and returns all entries, oldest first. Raises StoreError."""
        return await self._in_thread(self._load)

    async def save(self, entries: Sequence[Entry]) -> None:
        """Raises StoreError. Cancelling does not undo it."""
        await self._in_thread(lambda: self._save(entries))

    async def forget(self, ids: Sequence[str]) -> None:
        """Raises StoreError."""
        await self._in_thread(lambda: self._forget(ids))

    async def close(self) -> None:
        """Waits for what was begun."""
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(DISK_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError as error:
            raise StoreError(f"{self._path}: no answer from the disk for {DISK_TIMEOUT_S:g} s") from error
        except (sqlite3.Error, UnicodeError, OSError) as error:  # a message about a damaged file may not be UTF-8
            raise StoreError(f"{self._path}: {error}") from error

    # ── in the thread ────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> list[Entry]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._open()
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeError) as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, full, not allowed: the file itself may be good
            self._close()
            log.error("%s cannot be read and is set aside: %s", self._path, error)
            for suffix in ("", "-wal", "-shm"):
                damaged = Path(f"{self._path}{suffix}")
                if damaged.exists():
                    damaged.replace(f"{self._path}{_SET_ASIDE}{suffix}")
            return self._open()

    def _open(self) -> list[Entry]:
        try:
            renew_log(self._path)
        except OSError:
            self._doubtful = True  # no room for a copy: what is there can be read, and the first write tries again
        db = self._connect()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA):
            raise sqlite3.DatabaseError(f"schema {version} is not known")
        db.execute(
            "CREATE TABLE IF NOT EXISTS command (n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, entry TEXT NOT NULL)"
        )
        db.execute(f"PRAGMA user_version = {_SCHEMA}")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = db.execute("SELECT CAST(entry AS BLOB) FROM command ORDER BY n").fetchall()
        return [msgspec.json.decode(text, type=Entry) for (text,) in rows]

    def _connect(self) -> sqlite3.Connection:
        # one thread uses it, though not always the one that the interpreter would guess
        self._db = db = sqlite3.connect(self._path, BUSY_S, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _usable(self) -> sqlite3.Connection:
        if self._doubtful:
            self._close()
            renew_log(self._path)
            self._connect()
            self._doubtful = False
        if self._db is None:
            raise sqlite3.OperationalError("the file is not open")
        return self._db

    def _save(self, entries: Sequence[Entry]) -> None:
        # the number stays when an entry is replaced: oldest first means first received
        statement = (
            "INSERT INTO command (id, entry) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET entry = excluded.entry"
        )
        self._write(statement, [(entry.id, msgspec.json.encode(entry).decode()) for entry in entries])

    def _forget(self, ids: Sequence[str]) -> None:
        self._write("DELETE FROM command WHERE id = ?", [(id,) for id in ids])

    def _write(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        db = self._usable()
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(statement, rows)
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._doubtful |= error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
            raise
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
