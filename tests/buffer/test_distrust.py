"""A copy of this gateway lives: the stream is given away, whatever dies meanwhile, and nothing of it is lost."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer import buffer as module
from gateway.buffer import store as store_module
from gateway.buffer.buffer import Buffer
from gateway.buffer.database import CorruptError
from gateway.buffer.recovery import sort_out
from gateway.buffer.ring import create, recover
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, RecordKind
from gateway.protocol import batch
from gateway.testing.loop import run
from tests.buffer.test_ring import Witness
from tests.buffer.world import Machine, Sink, deliver, origin, row

COPY = 99
"""Up to here the copy has written; it is more than this gateway ever sent."""


def live(buffer: Buffer) -> str:
    return next(offer.stream for offer in buffer.offers() if offer.lane is Lane.LIVE and not offer.sealed)


async def half_acked(machine: Machine, sink: Sink) -> tuple[Buffer, str]:
    """Two rows are at the sink, one is on disk, one in the ring alone; and the copy has written to the same stream."""
    buffer = await machine.start()
    for number in range(4):
        await buffer.append([row(number)])
        if number == 1:
            await deliver(buffer, sink)
        await asyncio.sleep(0.6 if number < 3 else 0)
    buffer.close(Lane.LIVE)
    stream = live(buffer)
    sink.marks[stream] = COPY
    return buffer, stream


async def everything(buffer: Buffer, sink: Sink) -> list[int]:
    for _ in range(3):
        await deliver(buffer, sink)
        await asyncio.sleep(10)
    return sorted(sink.numbers)


def test_a_process_killed_before_a_distrusted_stream_was_given_away_loses_nothing_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer, stream = await half_acked(machine, sink)
        distrust = asyncio.create_task(buffer.distrust(stream))
        await asyncio.sleep(0)
        buffer = await machine.kill()
        assert stream not in {offer.stream for offer in buffer.offers()}
        assert await everything(buffer, sink) == [0, 1, 2, 3]
        assert buffer.waiting()[0] == 0
        buffer = await machine.kill()
        assert await everything(buffer, sink) == [0, 1, 2, 3]
        assert buffer.stats()["ring_bytes"] == 0, "nothing needs to remember it"
        await asyncio.gather(distrust, return_exceptions=True)
        await machine.stop()

    run(main())


def test_it_loses_nothing_of_it_when_the_store_can_be_opened_only_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer, stream = await half_acked(machine, sink)
        distrust = asyncio.create_task(buffer.distrust(stream))
        await asyncio.sleep(0)
        whole = store_module.Store.open

        def fail(_: object) -> None:
            raise StoreError("not now")

        monkeypatch.setattr(store_module.Store, "open", fail)
        buffer = await machine.kill()
        assert await everything(buffer, sink) == [0, 1, 3], "what was in the ring is given away without the disk"
        monkeypatch.setattr(store_module.Store, "open", whole)
        await asyncio.sleep(70)
        assert await everything(buffer, sink) == [0, 1, 2, 3]
        await asyncio.gather(distrust, return_exceptions=True)
        await machine.stop()

    run(main())


def test_damage_that_nothing_but_giving_away_meets_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is to be written, so no commit finds it."""
    move, rescue = store_module.Store.move, store_module.Store.rescue
    damaged = True

    def meeting(*arguments: Any) -> Any:
        if damaged:
            raise CorruptError("database disk image is malformed")
        return move(*arguments)

    def mending(*arguments: Any, **named: Any) -> Any:
        nonlocal damaged
        damaged = False
        return rescue(*arguments, **named)

    monkeypatch.setattr(store_module.Store, "move", meeting)
    monkeypatch.setattr(store_module.Store, "rescue", mending)

    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer, stream = await half_acked(machine, sink)
        await asyncio.sleep(5)
        with pytest.raises(StoreError):
            await buffer.distrust(stream)
        assert await everything(buffer, sink) == [0, 1, 2, 3]
        await machine.stop()

    run(main())


def test_an_ack_of_a_distrusted_stream_frees_nothing(tmp_path: Path) -> None:
    """It may be of the copy's records under the same numbers."""

    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer, stream = await half_acked(machine, sink)
        distrust = asyncio.create_task(buffer.distrust(stream))
        await asyncio.sleep(0)
        buffer.ack("sink", stream, 4)
        await distrust
        assert await everything(buffer, sink) == [0, 1, 2, 3]
        await machine.stop()

    run(main())


@pytest.mark.parametrize("script", ["one by one", "split", "from a full ring", "split from a full ring"])
def test_at_every_instruction_of_giving_away_without_a_disk_each_row_is_in_the_ring_once(
    tmp_path: Path, script: str
) -> None:
    memory = Witness(1 << 20)
    ring = create(memory)
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        after = recover(bytearray(memory))
        assert after is not None
        found = sort_out(after[1], {})
        numbers = [int(str(each.values[1])) for loose in found.loose for each in loose.rows]
        for _, flown in found.records:
            for record, _ in flown:
                if record.kind is RecordKind.BATCH:
                    numbers += [int(str(each.values[1])) for each in batch.rows(batch.decode(record.body))]
        assert sorted(numbers) == list(range(6)), "each row once"

    async def main() -> None:
        machine = Machine(tmp_path, commit_after=60.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "open_ring", lambda *_: (ring, ()))
            buffer = await machine.start()
            machine.failing = True
            for number in range(0, 6, 2):
                text = '"' * 90_000 if script.startswith("split") and number == 2 else ""
                with pytest.MonkeyPatch.context() as full:
                    if script.endswith("from a full ring"):
                        full.setattr(buffer._shelf.flights, "launch", lambda *_: False)
                    await buffer.append([row(number, text=text), row(number + 1, text=text)])
                    buffer.close(Lane.LIVE)
        stream = live(buffer)
        memory.watch = check
        with nullcontext() if script in ("one by one", "split") else pytest.raises(StoreError):
            await buffer.distrust(stream)
        memory.watch = None
        assert looks > 10
        machine.failing = False
        await asyncio.sleep(70)
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(6))
        assert stream not in sink.marks
        await machine.stop()

    run(main())


def test_a_record_that_the_ring_cannot_hold_twice_stays_under_its_old_number_until_the_disk_works(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path, ring_size=5_000), Sink()
        buffer = await machine.start()
        machine.failing = True
        await buffer.append([row(1, text="x" * 2_000)])
        buffer.close(Lane.LIVE)
        await buffer.append([row(2, text="x" * 1_500)])
        stream = live(buffer)
        with pytest.raises(StoreError):
            await buffer.distrust(stream)
        sink.marks[stream] = COPY
        buffer = await machine.kill()
        machine.failing = False
        await asyncio.sleep(70)
        assert await everything(buffer, sink) == [1, 2]
        await machine.stop()

    run(main())


@pytest.mark.parametrize("ring", [True, False])
def test_what_was_acked_before_is_known_after_its_stream_was_distrusted_without_room_in_the_ring(
    tmp_path: Path, ring: bool
) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        machine.ring = ring
        buffer = await machine.start()
        for packet_id in (1, 2, 3):
            await buffer.append([row(packet_id, origin=origin(packet_id))], lambda: None)
            await asyncio.sleep(0.6)
            if packet_id == 1:
                await deliver(buffer, sink)
        buffer.ledger.forget([origin(3)])
        buffer._shelf.flights.keep = lambda _: None  # type: ignore[method-assign]
        await buffer.distrust(live(buffer))
        for _ in range(2):
            buffer = await machine.kill()
            assert [buffer.ledger.seen(origin(packet_id)) for packet_id in (1, 2, 3)] == [True, True, False]
        assert await everything(buffer, sink) == [1, 2, 3]
        buffer.ledger.forget([origin(1), origin(2)])
        await asyncio.sleep(60)
        await buffer.drain()
        buffer = await machine.kill()
        assert len(buffer.ledger) == 0, "what the source has proved is forgotten under its new number too"
        await machine.stop()

    run(main())


def test_a_damaged_row_is_reported_under_the_number_that_it_was_given_last(tmp_path: Path) -> None:
    """The loss that an older gap told of is reported still, though not how much it was."""

    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        await buffer.append([row(1), row(2, text="x" * 300_000), row(3)])
        await asyncio.sleep(0.6)
        stream, records = live(buffer), buffer._committer.store._records
        assert records is not None
        records._db.execute("UPDATE record SET crc = crc + 1 WHERE kind = ?", (RecordKind.GAP.value,))
        await buffer.distrust(stream)
        assert await everything(buffer, sink) == [1, 3]
        assert [(gap.reason, gap.readings) for gap in sink.gaps] == [(GapReason.CORRUPT, None)]
        assert buffer.stats()["gaps_of_unknown_size"] == {"corrupt": 1}
        await machine.stop()

    run(main())
