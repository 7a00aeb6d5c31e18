"""Who has what: acks of several sinks, across restarts, and streams that are acked and still kept."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer import store as store_module
from gateway.buffer.schema import from_sinks, to_sinks
from gateway.buffer.streams import SINKS_KNOWN, Stream
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, RecordKind
from gateway.testing.loop import run
from tests.buffer.world import ALARM, LIVE, Machine, Sink, deliver, row


def live(buffer: Any) -> str:
    return next(offer.stream for offer in buffer.offers() if offer.lane is Lane.LIVE and not offer.sealed)


async def three_acked_two_not(machine: Machine, first: Sink, *, committed: bool) -> str:
    """1 to 3 are at the first sink and nowhere else; 4 and 5 wait."""
    buffer = await machine.start()
    buffer.online(True)
    for number in range(1, 6):
        await buffer.append([row(number)])
        buffer.close(Lane.LIVE)
        if number == 3:
            await deliver(buffer, first)
    if committed:
        await asyncio.sleep(1)
    return live(buffer)


@pytest.mark.parametrize("power", [False, True])
def test_what_another_sink_acked_before_the_restart_is_stored_elsewhere(tmp_path: Path, power: bool) -> None:
    async def main() -> None:
        machine, first, second = Machine(tmp_path), Sink("first"), Sink("second")
        await three_acked_two_not(machine, first, committed=power)
        buffer = await (machine.cut() if power else machine.kill())
        await deliver(buffer, second)
        assert second.numbers == [4, 5]
        assert [(gap.reason, gap.readings) for gap in second.gaps] == [(GapReason.STORED_ELSEWHERE, 0)]
        assert buffer.stats()["lost"] == {}
        assert buffer.stats()["gaps_of_unknown_size"] == {}
        await machine.stop()

    run(main())


def test_what_was_acked_after_its_mark_was_written_down_is_stored_elsewhere_too(tmp_path: Path) -> None:
    """The mark on disk is as old as the first commit that wrote it; the holes tell the rest."""

    async def main() -> None:
        machine, first, second = Machine(tmp_path), Sink("first"), Sink("second")
        buffer = await machine.start()
        buffer.online(True)
        for number in range(1, 8):
            await buffer.append([row(number)])
            if number in (2, 7):
                await asyncio.sleep(1)  # acks stay away: a commit
            if number != 7:
                await deliver(buffer, first)
        buffer = await machine.cut()
        await deliver(buffer, second)
        assert second.numbers[-1:] == [7]
        assert {gap.reason for gap in second.gaps} == {GapReason.STORED_ELSEWHERE}
        assert buffer.stats()["gaps_of_unknown_size"] == {}
        await machine.stop()

    run(main())


@pytest.mark.parametrize("power", [False, True])
def test_what_a_restored_sink_itself_had_acked_is_unsent(tmp_path: Path, power: bool) -> None:
    async def main() -> None:
        machine, first = Machine(tmp_path), Sink("first")
        stream = await three_acked_two_not(machine, first, committed=power)
        buffer = await (machine.cut() if power else machine.kill())
        assert first.restore(stream, 1) == {2, 3}
        await deliver(buffer, first)
        assert first.numbers == [1, 4, 5]
        assert [gap.reason for gap in first.gaps] == [GapReason.UNSENT]
        await machine.stop()

    run(main())


@pytest.mark.parametrize("ring", [True, False])
def test_the_gap_for_what_a_restored_sink_lost_stays_until_it_is_acked(tmp_path: Path, ring: bool) -> None:
    """Without a ring it goes to the disk first, and lies below what was acked there."""

    async def main() -> None:
        machine, sink = Machine(tmp_path, keep_acked=0), Sink()
        machine.ring = ring
        stream = await three_acked_two_not(machine, sink, committed=True)
        await deliver(machine.buffer, sink)
        await asyncio.sleep(60)
        assert sink.restore(stream, 1) == {2, 3, 4, 5}
        await machine.buffer.fill("sink", stream, Lane.LIVE, 2, 5)
        await asyncio.sleep(60)
        found = await machine.buffer.fetch(stream, 2, 1 << 20)
        assert [(each.kind, each.seq, each.upto) for each in found] == [(RecordKind.GAP, 2, 5)]
        await deliver(machine.buffer, sink)
        await asyncio.sleep(60)
        assert [gap.reason for gap in sink.gaps] == [GapReason.UNSENT]
        assert machine.buffer.waiting()[0] == 0
        await machine.stop()

    run(main())


def test_a_stream_of_which_nothing_is_held_any_more_can_still_be_filled(tmp_path: Path) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path, keep_acked=0), Sink()
        stream = await three_acked_two_not(machine, sink, committed=True)
        machine.buffer.seal(Lane.LIVE)
        await deliver(machine.buffer, sink)
        await asyncio.sleep(60)
        assert stream not in machine.buffer.holds()
        assert sink.restore(stream, 3) == {4, 5}
        await machine.buffer.fill("sink", stream, Lane.LIVE, 4, 6)
        await machine.kill()  # what is told is told by the next process too
        await deliver(machine.buffer, sink)
        assert [gap.reason for gap in sink.gaps] == [GapReason.UNSENT]
        assert sink.marks[stream] == 6
        await machine.stop()

    run(main())


def test_with_two_sinks_in_one_stream_each_is_told_what_is_true_after_two_restarts(tmp_path: Path) -> None:
    async def main() -> None:
        machine, first, second, third = Machine(tmp_path), Sink("first"), Sink("second"), Sink("third")
        stream = await three_acked_two_not(machine, first, committed=False)
        buffer = await machine.kill()
        buffer.online(True)
        await deliver(buffer, second)  # a gap for 1 to 3, then 4 and 5
        await buffer.append([row(6)])
        await asyncio.sleep(1)
        buffer = await machine.kill()
        assert second.restore(stream, 3) == {4, 5}
        await deliver(buffer, second)
        await deliver(buffer, third)
        assert third.numbers == [6] or GapReason.UNSENT not in {gap.reason for gap in third.gaps}
        assert second.numbers == [6]
        await machine.stop()

    run(main())


def test_what_a_restored_sink_lost_is_not_said_to_be_at_one_that_was_only_told() -> None:
    """An earlier process knew that the first one had acked something, not how much of it: now that it has nothing, it
    has lost it. The second one was told of it by a gap."""
    stream = Stream("1" * 32, Lane.LIVE, "2" * 32)
    stream.marks, stream.inherited = {"first": 0, "second": 3}, frozenset({"first", "second"})
    assert stream.stored_elsewhere("first", 1) == 0
    assert stream.stored_elsewhere("first", 2) == 3
    assert stream.stored_elsewhere("third", 1) >= 3


def test_marks_cost_no_write_of_their_own_and_one_sink_costs_one_write(tmp_path: Path) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        buffer.online(True)
        noted: list[Any] = []
        store = buffer._committer.store
        whole = store.commit

        def commit(work: Any) -> Any:
            noted.append(dict(work.sinks))
            return whole(work)

        store.commit = commit  # type: ignore[method-assign]
        for number in range(100):
            await buffer.append([row(number)])
            await deliver(buffer, sink)
        assert noted == []
        for number in range(5):
            await buffer.append([row(number + 100)])
            await asyncio.sleep(1)
            await deliver(buffer, sink)
        assert len(noted) >= 5
        assert [bool(each) for each in noted] == [True] + [False] * (len(noted) - 1)
        await machine.stop()

    run(main())


def test_a_damaged_note_of_who_acked_what_says_nothing() -> None:
    column = to_sinks({"first": 3})
    assert from_sinks(column) == {"first": 3}
    assert from_sinks(None) == {}
    for at in range(len(column)):
        flipped = bytearray(column)
        flipped[at] ^= 4
        assert from_sinks(bytes(flipped)) == {}


def test_holes_of_a_damaged_store_are_nobodys(tmp_path: Path) -> None:
    """What is missing need not have been acked: it must not be said that another sink has it."""

    async def main() -> None:
        machine, first, second = Machine(tmp_path), Sink("first"), Sink("second")
        await three_acked_two_not(machine, first, committed=True)
        await machine.stop()
        path = machine.data / "buffer.db"
        data = bytearray(path.read_bytes())
        data[100:108] = b"\0" * 8  # the root page: whatever can be read is salvaged
        path.write_bytes(data)
        (machine.run / "flight.ring").unlink()
        buffer = await machine.start()
        await deliver(buffer, second)
        assert GapReason.STORED_ELSEWHERE not in {gap.reason for gap in second.gaps}
        await machine.stop()

    run(main())


def test_nothing_is_declared_lost_while_the_store_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        await buffer.append([row(2)])  # in the ring only
        buffer.close(Lane.LIVE)
        old = live(buffer)

        def shut(_: Path) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(store_module, "connect", shut)
            buffer = await machine.kill()
            with pytest.raises(StoreError):
                await buffer.fill("sink", old, Lane.LIVE, 1, 1)
        await asyncio.sleep(130)
        await deliver(buffer, sink)
        assert sink.numbers == [1, 2]
        assert sink.gaps == []
        await machine.stop()

    run(main())


def test_a_stream_that_is_acked_and_kept_is_offered_behind_all_that_waits(tmp_path: Path) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        buffer.online(True)
        ended = []
        for number in range(40):
            await buffer.append([row(number)])
            ended.append(live(buffer))
            buffer.seal(Lane.LIVE)
        assert [offer.stream for offer in buffer.offers() if offer.sealed] == ended[:32]
        while buffer.waiting()[0]:
            await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(40))
        offered = [offer.stream for offer in buffer.offers() if offer.sealed]
        assert len(offered) == 32
        assert set(offered) <= set(ended)
        lost = {number for stream in ended for number in sink.restore(stream, 0)}
        assert lost == set(range(40))
        await deliver(buffer, sink)
        assert len(sink.numbers) >= 32, "what is kept goes to the sink again"
        await buffer.append([row(100)])
        buffer.seal(Lane.LIVE)
        assert next(offer for offer in buffer.offers() if offer.sealed).stream not in ended
        await machine.stop()

    run(main())


def test_more_sealed_streams_than_are_offered_all_arrive_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        for number in range(100):
            await buffer.append([row(number)])
            buffer.seal(Lane.LIVE)
        await asyncio.sleep(1)
        buffer = await machine.cut()
        while buffer.waiting()[0]:
            assert len([offer for offer in buffer.offers() if offer.sealed]) <= 32
            await deliver(buffer, sink)
        assert sink.numbers == list(range(100)), "the oldest first"
        assert sink.gaps == []
        await machine.stop()

    run(main())


@pytest.mark.parametrize("dies", [False, True])
def test_a_restored_sink_is_refilled_over_several_hellos_where_more_streams_have_ended_than_are_offered(
    tmp_path: Path, dies: bool
) -> None:
    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        for number in range(100):
            await buffer.append([row(number, LIVE if number % 3 else ALARM)])
            buffer.seal(Lane.LIVE if number % 3 else Lane.ALARM)
        while buffer.waiting()[0]:
            await deliver(buffer, sink)
        lost = sum(len(sink.restore(stream, 0)) for stream in list(sink.marks))
        assert (lost, sink.numbers) == (100, [])
        hellos = 0
        while len(sink.numbers) < 100:
            hellos += 1
            offers = buffer.offers()
            assert len([offer for offer in offers if offer.sealed]) == 32
            told = [offer.stream for offer in offers]
            if dies and hellos % 2:  # the connection is lost in the middle: what was half told has its turn again
                told = told[: len(told) // 2]
            await deliver(buffer, sink, streams=told)
            assert hellos < 12, "it does not end"
        assert hellos == (5 if dies else 4)
        assert sorted(sink.numbers) == list(range(100))
        assert sink.gaps == []
        await machine.stop()

    run(main())


def test_a_gap_for_what_memory_gave_up_is_in_the_ring_although_there_was_no_room_for_both(tmp_path: Path) -> None:
    """Or what is missing there would look acked to the next process, by this sink or by another."""

    async def main() -> None:
        machine, sink = Machine(tmp_path, ring_size=2_000), Sink()
        buffer = await machine.start()
        machine.failing = True
        for number in range(3):
            await buffer.append([row(number)])
            buffer.close(Lane.LIVE)
        while buffer._ring.capacity_bytes - buffer._ring.used_bytes > 100:  # type: ignore[union-attr]
            await buffer.append([row(3)])
            await asyncio.sleep(0.01)
        assert buffer._shelf.shed(1)
        buffer = await machine.kill()
        await deliver(buffer, sink)
        assert {1, 2} <= set(sink.numbers)
        assert [(gap.reason, gap.readings) for gap in sink.gaps] == [(GapReason.OVERFLOW, 2)]
        await machine.stop()

    run(main())


def test_all_that_is_held_is_named_whether_it_is_offered_or_not(tmp_path: Path) -> None:
    """Else what was sent of a stream, and to whom, would be forgotten while it waits behind 32 others."""

    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        for number in range(50):
            await buffer.append([row(number)])
            buffer.seal(Lane.LIVE)
        assert len(buffer.offers()) == 34
        assert len(buffer.holds()) == 52
        assert {offer.stream for offer in buffer.offers()} <= set(buffer.holds())
        await machine.stop()

    run(main())


def test_a_server_with_a_new_name_each_time_fills_no_memory_and_makes_nobody_lie(tmp_path: Path) -> None:
    async def main() -> None:
        machine, first = Machine(tmp_path), Sink("first")
        buffer = await machine.start()
        buffer.online(True)
        for number in range(60):
            await buffer.append([row(number)])
            await deliver(buffer, first)
            buffer.ack(f"name-{number}", live(buffer), number + 1)
            assert len(buffer._shelf.streams[live(buffer)].marks) <= SINKS_KNOWN + 1
        assert buffer.stats()["ring_bytes"] < 100 * (SINKS_KNOWN + 2)
        await buffer.append([row(100)])
        buffer.close(Lane.LIVE)
        stream = live(buffer)
        for again in (machine.kill, machine.kill):  # the second finds what the first wrote down
            buffer = await again()
            await asyncio.sleep(1)
        sink = Sink("name-3")  # it acked 4 and lost them
        await deliver(buffer, sink, streams=[stream])
        assert sink.numbers == [100]
        assert [gap.reason for gap in sink.gaps] == [GapReason.UNSENT], "it may have been this one itself"
        await machine.stop()

    run(main())


def test_a_process_that_ends_in_order_leaves_an_empty_ring(tmp_path: Path) -> None:
    """So a change of its size counts from the next start on."""

    async def main() -> None:
        machine, sink = Machine(tmp_path, ring_size=1 << 20), Sink()
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1)])
        await deliver(buffer, sink)
        assert buffer.stats()["ring_bytes"] > 0, "whose the ack was"
        await buffer.drain()
        await deliver(buffer, sink)
        await asyncio.sleep(30)
        await machine.stop()
        machine._settings["ring_size"] = 2 << 20
        buffer = await machine.start()
        assert buffer.stats()["ring_bytes"] == 0
        assert (machine.run / "flight.ring").stat().st_size == 2 << 20
        await machine.stop()

    run(main())
