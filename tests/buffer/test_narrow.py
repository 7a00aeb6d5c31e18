"""Narrow moments: what can only go wrong between two steps, or when two things fail at once."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.buffer import store as store_module
from gateway.buffer.database import CorruptError
from gateway.buffer.entries import NO_ROWS, RECORDS, Flown, encode_records
from gateway.buffer.recovery import sort_out
from gateway.buffer.ring import create, recover
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, Record, RecordKind
from gateway.protocol.messages import GapBody
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, origin, row


def live(buffer: Any) -> str:
    return next(offer.stream for offer in buffer.offers() if offer.lane is Lane.LIVE and not offer.sealed)


def test_a_batch_that_was_closed_early_is_on_disk_as_soon_as_any_other(tmp_path: Path) -> None:
    async def main() -> list[int]:
        machine = Machine(tmp_path, commit_after=0.5)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(0.45)
        buffer.seal(Lane.LIVE)
        await asyncio.sleep(0.06)
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        await machine.stop()
        return sink.numbers

    assert run(main()) == [1]


def test_a_rescue_that_found_no_room_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await buffer.drain()

        def no_room(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def torn(*_: Any) -> Any:
            raise CorruptError("database disk image is malformed")

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "salvage", no_room)
            patch.setattr(buffer._committer.store, "commit", torn)
            await buffer.append([row(2)])
            await asyncio.sleep(5)
            assert buffer.stats()["mode"] == "degraded"
        await asyncio.sleep(130)
        assert buffer.stats()["mode"] == "healthy", "there is room again"
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [1, 2]
        await machine.stop()

    run(main())


def test_of_two_gaps_that_overlap_in_the_ring_the_newer_one_stands() -> None:
    """A gap that grows is put before the one that it replaces is freed; a kill in between leaves both."""
    ring = create(bytearray(4096))
    for last in (7, 9):
        body = msgspec.json.encode(GapBody(GapReason.OVERFLOW, last))
        gap = Record("a" * 32, Lane.LIVE, 5, RecordKind.GAP, body, 0, last)
        assert ring.put(RECORDS, encode_records([Flown(gap, 0)], NO_ROWS)) is not None
    again = recover(ring._memory)
    assert again is not None
    recovered = sort_out(again[1], {})
    assert [flown.record.upto for _, each in recovered.records for flown in each] == [9]
    assert len(recovered.useless) == 1


def test_a_ring_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """Of another version, or written over by somebody."""

    async def main(start: int) -> None:
        machine = Machine(tmp_path / str(start), ring_size=1 << 20)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await machine.stop()
        path = machine.run / "flight.ring"
        data = bytearray(path.read_bytes())
        data[start] ^= 0xFF
        path.write_bytes(data)
        buffer = await machine.start()
        sink = Sink()
        await deliver(buffer, sink)
        assert [gap.reason for gap in sink.gaps] == [GapReason.CORRUPT]
        assert buffer.stats()["gaps_of_unknown_size"] == {"corrupt": 1}
        await buffer.append([row(2)])
        buffer = await machine.kill()
        await deliver(buffer, sink)
        assert sink.numbers == [2]
        await machine.stop()

    run(main(8))  # the version
    run(main(64 + 40))  # the first entry


def test_what_is_being_read_is_not_given_up(tmp_path: Path) -> None:
    """Else its number would name the batch for one session and a gap for another."""

    async def main() -> None:
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await machine.start()
        for number in range(8):
            await buffer.append([row(number, text="x" * 100_000)])
            await asyncio.sleep(1)
        call, stream = buffer._committer._call, live(buffer)
        gate = asyncio.Event()

        async def slow(function: Any, *args: Any, **kwargs: Any) -> Any:
            result = await call(function, *args, **kwargs)
            if function == buffer._committer.store.read:
                await gate.wait()
            return result

        buffer._committer._call = slow  # type: ignore[method-assign]
        fetch = asyncio.create_task(buffer.fetch(stream, 1, 1))
        await asyncio.sleep(0)
        for number in range(8, 16):
            await buffer.append([row(number, text="x" * 100_000)])
            await asyncio.sleep(1)
        gate.set()
        (first,) = await fetch
        assert first.kind is RecordKind.BATCH
        buffer.hold(stream, first.seq)
        await buffer.append([row(16, text="x" * 100_000)])
        await asyncio.sleep(1)
        sink = Sink()
        assert sink.take(first)
        await deliver(buffer, sink)
        assert sink.numbers[0] == 0
        assert {*range(12, 17)} < set(sink.numbers)
        assert sum(gap.readings or 0 for gap in sink.gaps) == 2 * (17 - len(sink.numbers))
        await machine.stop()

    run(main())


def test_a_message_that_is_acked_while_the_ring_is_full_is_still_known_after_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, ring_size=1 << 20)
        buffer = await machine.start()
        buffer.online(True)
        ring, sink = buffer._ring, Sink()
        assert ring is not None
        await buffer.append([row(1, origin=origin(1))], lambda: None)
        buffer.close(Lane.LIVE)
        while ring.put(9, b"\0" * 8) is not None:
            pass
        await deliver(buffer, sink)
        assert buffer.ledger.settled(origin(1))
        buffer = await machine.kill()
        assert buffer.ledger.seen(origin(1)), "its source has no proof yet and may send it again"
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        await machine.stop()

    run(main())


def test_a_sink_that_lost_part_of_an_ended_stream_gets_it_again(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        sink = Sink()
        for number in range(4):
            await buffer.append([row(number)])
            buffer.close(Lane.LIVE)
        ended = live(buffer)
        buffer.seal(Lane.LIVE)
        await deliver(buffer, sink)
        assert buffer.waiting()[0] == 0
        assert sink.restore(ended, 1) == {1, 2, 3}
        await deliver(buffer, sink)
        assert sink.numbers == [0, 1, 2, 3]
        await machine.stop()

    run(main())


def test_what_a_crash_left_is_on_disk_at_once(tmp_path: Path) -> None:
    async def main() -> list[int]:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        buffer.close(Lane.LIVE)
        await buffer.append([row(2)])
        await machine.kill()
        await asyncio.sleep(0.01)
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        await machine.stop()
        return sorted(sink.numbers)

    assert run(main()) == [1, 2]


def test_who_asks_the_disk_every_second_does_not_keep_it_from_being_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(0.6)
        store, stream = buffer._committer.store, live(buffer)

        def fail(*_: object) -> None:
            raise StoreError("the store is not open")

        with monkeypatch.context() as broken:
            broken.setattr(store, "commit", fail)
            await buffer.append([row(2)])
            await asyncio.sleep(200)  # the pauses between the tries have grown to a minute
        monkeypatch.setattr(store, "read", fail)
        for _ in range(70):
            with pytest.raises(StoreError):
                await buffer.fetch(stream, 1, 1000)
            await asyncio.sleep(1)
        assert buffer.stats()["commits"] == 2
        await machine.stop()

    run(main())
