"""A damaged store: the buffer starts every time, saves what can be read, says that something is missing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from gateway.buffer.database import CorruptError
from gateway.model import GapReason, RecordKind
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, row

RECORDS = 60


async def filled(home: Path) -> Machine:
    """A store with many records of two streams, closed."""
    machine = Machine(home)
    buffer = await machine.start()
    for number in range(RECORDS):
        await buffer.append([row(number, text="v" * 1500 if number % 3 else "")])
        buffer.close(row(0).shape.lane)
        if number == RECORDS // 2:
            buffer.seal(row(0).shape.lane)
    await buffer.drain()
    await machine.stop()
    return machine


def truncate(data: bytearray, dice: random.Random) -> bytearray:
    return data[: dice.randrange(len(data))]


def flip(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return data


def zero_pages(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 3)):
        page = dice.randrange(len(data) // 1024)
        data[page * 1024 : (page + 1) * 1024] = bytes(1024)
    return data


def scribble(data: bytearray, dice: random.Random) -> bytearray:
    at = dice.randrange(len(data))
    noise = dice.randbytes(dice.randint(1, 3000))
    data[at : at + len(noise)] = noise[: len(data) - at]
    return data


@pytest.mark.parametrize("damage", [truncate, flip, zero_pages, scribble])
@pytest.mark.parametrize("seed", range(9))
def test_it_starts_and_says_what_is_lost(tmp_path: Path, damage: object, seed: int) -> None:
    async def main() -> tuple[Sink, dict[str, object], bool]:
        machine = await filled(tmp_path)
        file = machine.data / "buffer.db"
        before = file.read_bytes()
        after = damage(bytearray(before), random.Random(seed))  # type: ignore[operator]
        file.write_bytes(after)
        buffer = await machine.start()
        sink = Sink()
        for _ in range(3):  # a damage that is met while reading is repaired, then read again
            with contextlib.suppress(CorruptError):
                await deliver(buffer, sink, max_bytes=5000)
        await deliver(buffer, sink)
        # it works on
        await buffer.append([row(1000)])
        await buffer.drain()
        await deliver(buffer, sink)
        stats = buffer.stats()
        await machine.stop()
        return sink, stats, bytes(after) == before

    sink, stats, same = run(main())
    arrived = sink.numbers
    assert len(arrived) == len(set(arrived))
    assert 1000 in arrived
    assert stats["mode"] == "healthy"
    if set(arrived) != {*range(RECORDS), 1000}:
        assert not same
        assert stats["gaps_of_unknown_size"] or stats["lost"]


def test_one_bad_page_costs_little_and_is_reported_where_it_was(tmp_path: Path) -> None:
    async def main() -> Sink:
        machine = await filled(tmp_path)
        file = machine.data / "buffer.db"
        data = bytearray(file.read_bytes())
        page = len(data) // 1024 // 2 * 1024
        data[page : page + 1024] = bytes(1024)
        file.write_bytes(data)
        buffer = await machine.start()
        sink = Sink()
        for _ in range(2):
            with contextlib.suppress(CorruptError):
                await deliver(buffer, sink)
        await machine.stop()
        return sink

    sink = run(main())
    assert len(sink.numbers) >= RECORDS - 10
    assert {gap.reason for gap in sink.gaps} <= {GapReason.CORRUPT, GapReason.UNSENT}
    assert sink.kinds.count(RecordKind.END) >= 1


def test_damaged_files_are_set_aside_two_at_most(tmp_path: Path) -> None:
    async def main() -> list[str]:
        machine = await filled(tmp_path)
        for i in range(4):
            (machine.data / "buffer.db").write_bytes(b"no database, %d times" % i * 500)
            await machine.start()
            await machine.stop()
        return sorted(path.name for path in machine.data.iterdir())

    assert run(main()) == ["buffer.db", "buffer.db.damaged-1", "buffer.db.damaged-2", "lock"]


def test_a_rescue_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    async def main() -> Sink:
        machine = await filled(tmp_path)
        (machine.data / "buffer.db").rename(machine.data / "buffer.db.fresh")
        buffer = await machine.start()
        sink = Sink()
        await deliver(buffer, sink)
        await machine.stop()
        return sink

    assert sorted(run(main()).numbers) == list(range(RECORDS))


def test_a_store_that_cannot_be_opened_is_no_reason_not_to_start(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        machine.data.rmdir()
        machine.data.write_text("a file where the directory should be")
        buffer = await machine.start()
        await buffer.append([row(1)])
        assert buffer.stats()["mode"] == "degraded"
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        await buffer.append([row(2)])
        machine.data.unlink()
        await asyncio.sleep(70)
        assert buffer.stats()["mode"] == "healthy"
        buffer = await machine.cut()
        await deliver(buffer, sink)
        assert sink.numbers == [1, 2]
        await machine.stop()

    run(main())
