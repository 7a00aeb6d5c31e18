"""The journal's file when the disk fails: nothing that was promised hangs on a log with a hole in it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway.commands import store as store_module
from gateway.commands.journal import Entry, Step
from gateway.commands.store import Store
from gateway.errors import StoreError


class FailingSync:
    """A connection whose next commit comes to nothing, because its sync fails."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, statement: str) -> sqlite3.Cursor:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._db.execute(statement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def salts(path: Path) -> bytes:
    """What tells one life of a log from the next."""
    return log_of(path).read_bytes()[16:24]


def test_after_a_failed_sync_the_log_begins_anew(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "commands.db"
        store = Store(path)
        await store.load()
        await store.save([Entry("a", Step.DONE)])
        before = salts(path)
        store._db = FailingSync(store._db)  # type: ignore[arg-type, assignment]
        with pytest.raises(StoreError, match="disk I/O error"):
            await store.save([Entry("b", Step.STARTED)])
        await store.save([Entry("c", Step.STARTED)])
        assert salts(path) != before
        await store.save([Entry("c", Step.DONE)])
        await store.close()
        again = Store(path)
        assert [(entry.id, entry.step) for entry in await again.load()] == [("a", Step.DONE), ("c", Step.DONE)]
        await again.close()

    asyncio.run(main())


def test_a_log_that_was_left_behind_is_written_anew_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is none the journal can be read all the same, and nothing is written before there is."""

    async def main() -> None:
        store = Store(tmp_path / "commands.db")
        await store.load()
        await store.save([Entry("a", Step.DONE)])
        left = tmp_path / "left"
        left.mkdir()
        for path in (tmp_path / "commands.db", log_of(tmp_path / "commands.db")):
            shutil.copy(path, left)
        await store.close()
        before = salts(left / "commands.db")

        def full(_: Path) -> None:
            raise OSError(28, "No space left on device")

        renew = store_module.renew_log
        monkeypatch.setattr(store_module, "renew_log", full)
        store = Store(left / "commands.db")
        assert [entry.id for entry in await store.load()] == ["a"]
        with pytest.raises(StoreError, match="No space"):
            await store.save([Entry("b", Step.DONE)])
        monkeypatch.setattr(store_module, "renew_log", renew)
        await store.save([Entry("c", Step.DONE)])
        assert salts(left / "commands.db") != before
        await store.close()

    asyncio.run(main())
