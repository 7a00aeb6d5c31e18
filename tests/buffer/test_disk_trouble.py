"""A disk that fails: what is in memory stays there, nothing is built on what may not be written, status says so, and
when the disk is well again everything is on it."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer import database
from gateway.buffer.buffer import Buffer
from gateway.buffer.committer import RESCUE_AFTER
from gateway.buffer.config import BufferSettings
from gateway.buffer.schema import Stored
from gateway.buffer.store import Store, Work
from gateway.errors import StoreError
from gateway.model import Lane, Record, RecordKind
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, row


class Faulty(sqlite3.Connection):
    """SQLite itself, but for statements that begin with one of these words."""

    broken: dict[str, int]

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:  # type: ignore[override]
        for words, code in getattr(self, "broken", {}).items():
            if sql.startswith(words):
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = code
                raise error
        return super().execute(sql, *arguments)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(database.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Faulty, **k))


def disk(buffer: Buffer) -> Faulty:
    db = buffer._committer.store._db
    assert isinstance(db, Faulty)
    return db


def live(buffer: Buffer) -> str:
    return next(offer.stream for offer in buffer.offers() if offer.lane is Lane.LIVE and not offer.sealed)


def salt(machine: Machine) -> bytes:
    """It changes when a log begins anew."""
    return (machine.data / "buffer.db-wal").read_bytes()[16:24]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR])
@pytest.mark.usefixtures("faulty")
def test_after_a_failed_sync_the_log_begins_anew_and_memory_still_holds_the_commit(tmp_path: Path, code: int) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        before = salt(machine)
        disk(buffer).broken = {"COMMIT": code}
        await buffer.append([row(2)])
        await asyncio.sleep(1)
        stats = buffer.stats()
        assert (stats["mode"], stats["records"], stats["commits"]) == ("degraded", 2, 1)
        disk(buffer).broken = {"PRAGMA wal_checkpoint": code}
        await asyncio.sleep(10)
        assert buffer.stats()["commits"] == 1, "the log in doubt could not be replaced, and is not appended to"
        disk(buffer).broken = {}
        await asyncio.sleep(70)
        assert buffer.stats()["mode"] == "healthy"
        assert salt(machine) != before
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1, 2]
        await machine.stop()

    run(main())


@pytest.mark.usefixtures("faulty")
def test_a_full_disk_is_no_doubt_and_the_log_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        before = salt(machine)
        disk(buffer).broken = {"COMMIT": sqlite3.SQLITE_FULL}
        await buffer.append([row(2)])
        await asyncio.sleep(1)
        disk(buffer).broken = {}
        await asyncio.sleep(70)
        assert buffer.stats()["mode"] == "healthy"
        assert salt(machine) == before
        await machine.stop()

    run(main())


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_FSYNC])
@pytest.mark.usefixtures("faulty")
def test_what_is_committed_is_seen_although_the_log_cannot_be_shortened(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        disk(buffer).broken = {"PRAGMA wal_checkpoint": code}
        dice = random.Random(1)
        for number in range(30):
            await buffer.append([row(number, text=dice.randbytes(80_000).hex())])
            await asyncio.sleep(1)
        buffer.close(Lane.LIVE)
        assert buffer.stats()["mode"] == "degraded"
        assert "its log grows" in buffer.stats()["why"] or code == sqlite3.SQLITE_IOERR_FSYNC
        assert buffer.waiting()[0] == 30, "also those that came while the log could not be shortened"
        disk(buffer).broken = {}
        await asyncio.sleep(130)
        await buffer.append([row(30)])
        await asyncio.sleep(1)
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(31))
        assert sink.gaps == []
        await machine.stop()

    run(main())
    assert sum("cannot be tidied" in record.message for record in caplog.records) == 1


def test_somebody_who_reads_the_store_for_long_does_not_hold_up_commits(tmp_path: Path) -> None:
    """Only the shortening of the log waits, until that reader has gone."""
    store = Store(BufferSettings(), tmp_path)
    store.open()
    dice = random.Random(1)
    stream, seq = "1" * 32, 0
    log = tmp_path / "buffer.db-wal"

    def commit() -> float:
        nonlocal seq
        seq += 1
        record = Record(stream, Lane.LIVE, seq, RecordKind.BATCH, dice.randbytes(200_000), 1)
        begun = time.monotonic()
        store.commit(Work(records=[Stored(record, seq, None)], boot="b", keep=frozenset({stream})))
        return time.monotonic() - begun

    commit()
    reader = sqlite3.connect(tmp_path / "buffer.db")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM record").fetchall()
    took = [commit() for _ in range(20)]
    assert log.stat().st_size > 3_000_000, "longer than it is ever left"
    assert sum(took) < 20.0, f"some waited: {took}"
    reader.close()
    commit()
    assert log.stat().st_size < 1_000_000
    store.close()


@pytest.mark.usefixtures("faulty")
def test_a_file_that_cannot_be_read_any_more_is_copied_into_a_new_one(tmp_path: Path) -> None:
    """A bad block: it would stop the lane for ever."""

    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        disk(buffer).broken = {"SELECT id, last, kind": sqlite3.SQLITE_IOERR_READ}
        for _ in range(RESCUE_AFTER):
            with pytest.raises(StoreError):
                await buffer.fetch(live(buffer), 1, 1 << 20)
            await asyncio.sleep(5)
        assert (machine.data / "buffer.db.damaged-1").exists()
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        assert sink.gaps == [], "all of it could be read after all"
        assert buffer.stats()["gaps_of_unknown_size"] == {}
        await asyncio.sleep(5)
        assert buffer.stats()["mode"] == "healthy"
        await machine.stop()

    run(main())


# ── a real file system ───────────────────────────────────────────────────────────────────────────────────────────────


def root(test: Any) -> Any:
    return pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")(test))


class Small:
    """A tmpfs of so many bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.path)], check=True, timeout=20)

    def resize(self, megabytes: int) -> None:
        self._mount("-o", f"remount,size={megabytes}m")

    def protect(self, *, read_only: bool) -> None:
        self._mount("-o", f"remount,{'ro' if read_only else 'rw'}")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=20)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    system = Small(tmp_path / "small")
    yield system
    system.close()


@root
@pytest.mark.parametrize("floor", [0, 300_000])
def test_a_small_file_system_fills_up_and_is_enlarged(tmp_path: Path, small: Small, floor: int) -> None:
    async def main() -> None:
        machine = Machine(tmp_path / "home", free_space_floor=floor, memory_limit=20_000_000)
        machine.data = small.path
        buffer = await machine.start()
        dice = random.Random(1)
        for number in range(300):
            await buffer.append([row(number, text=dice.randbytes(4000).hex())])
            await asyncio.sleep(0.6)
        stats = buffer.stats()
        assert stats["mode"] == "degraded"
        assert stats["lost"] == {}
        assert stats["commits"] > 20, "as long as there was room"
        small.resize(20)
        await asyncio.sleep(130)
        assert buffer.stats()["mode"] == "healthy"
        await machine.stop()
        (machine.run / "flight.ring").unlink()
        buffer = await machine.start()
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(300))
        assert sink.gaps == []
        await machine.stop()

    run(main())


@root
def test_a_file_system_that_becomes_read_only_is_a_state(tmp_path: Path, small: Small) -> None:
    async def main() -> None:
        machine = Machine(tmp_path / "home", free_space_floor=0)
        machine.data = small.path
        small.resize(20)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        store = buffer._committer.store
        store.close()  # what is open for writing keeps it from becoming read-only
        small.protect(read_only=True)
        buffer._committer._store_open = False
        await buffer.append([row(2)])
        await asyncio.sleep(5)
        assert buffer.stats()["mode"] == "degraded"
        assert "ead-only" in buffer.stats()["why"]
        small.protect(read_only=False)
        await asyncio.sleep(130)
        assert buffer.stats()["mode"] == "healthy"
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1, 2]
        await machine.stop()

    run(main())
