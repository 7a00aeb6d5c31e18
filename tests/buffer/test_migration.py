"""Stores of other versions: an old one is brought up to date with all that is in it, one of the future is kept."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gateway.buffer.schema import MIGRATIONS
from gateway.model import GapReason
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, origin, row

VERSION_1 = Path(__file__).parent / "version_1.sql"


def made(machine: Machine, more: str = "") -> Path:
    """The store of version 1, as a file."""
    path = machine.data / "buffer.db"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1.read_text() + more)
    db.execute("PRAGMA journal_mode=WAL")
    db.close()
    return path


def version(path: Path) -> int:
    db = sqlite3.connect(path)
    (number,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(number)


def test_every_record_of_an_old_store_is_delivered_and_its_messages_are_known(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        path = made(machine)
        assert version(path) == 1
        buffer = await machine.start()
        assert version(path) == len(MIGRATIONS) > 1
        assert buffer.ledger.settled(origin(5))
        sink = Sink()
        sink.marks = {offer.stream: offer.first - 1 for offer in buffer.offers() if offer.first > 1}
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [3, 4, 5, 6, 100]
        assert [(gap.reason, gap.readings) for gap in sink.gaps] == [(GapReason.OVERSIZE, 2)]
        assert buffer.stats()["lost"] == {}
        await buffer.append([row(200)])
        await buffer.drain()
        buffer = await machine.cut()
        await deliver(buffer, sink)
        assert 200 in sink.numbers
        await machine.stop()

    run(main())


def test_a_store_of_the_future_is_set_aside_whole_and_what_can_be_understood_is_delivered(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        path = made(machine, "ALTER TABLE record ADD COLUMN mood TEXT; PRAGMA user_version=99;")
        before = path.read_bytes()
        buffer = await machine.start()
        assert version(path) == len(MIGRATIONS)
        aside = machine.data / "buffer.db.damaged-1"
        assert aside.read_bytes() == before
        sink = Sink()
        sink.marks = {offer.stream: offer.first - 1 for offer in buffer.offers() if offer.first > 1}
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [3, 4, 5, 6, 100]
        assert GapReason.CORRUPT in {gap.reason for gap in sink.gaps}, "nobody knows what else was in it"
        await machine.stop()

    run(main())


def test_a_damaged_store_of_version_1_is_salvaged(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        path = made(machine)
        data = bytearray(path.read_bytes())
        data[1024 + 8 : 1024 + 12] = b"\xff" * 4  # the first page after the header
        path.write_bytes(data)
        buffer = await machine.start()
        assert buffer.stats()["mode"] == "healthy"
        assert version(path) == len(MIGRATIONS)
        await machine.stop()

    run(main())
