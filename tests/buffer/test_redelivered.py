"""Messages that come again: when the buffer knows them all, and when it must admit that it may have lost some."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer import inheritance
from gateway.buffer import store as store_module
from gateway.errors import StoreError
from gateway.model import Lane
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, origin, row

SESSION = b"session1"


async def proved(machine: Machine) -> Any:
    """A process whose source has proved what it can send again."""
    buffer = await machine.start()
    assert not buffer.ledger.whole(SESSION), "nobody knows what was before the first start"
    buffer.ledger.keep_only(SESSION, ())
    assert buffer.ledger.whole(SESSION)
    return buffer


def test_a_killed_process_hands_over_all_that_it_knew(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        await proved(machine)
        for _ in range(3):
            buffer = await machine.kill()
            assert buffer.ledger.whole(SESSION)
            assert not buffer.ledger.whole(b"session2")
        await machine.stop()

    run(main())


def test_after_a_power_cut_nothing_is_sure_until_the_source_has_proved_it(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        await proved(machine)
        buffer = await machine.cut()
        assert not buffer.ledger.whole(SESSION)
        buffer = await machine.kill()
        assert not buffer.ledger.whole(SESSION), "the doubt outlives the process"
        buffer.ledger.keep_only(SESSION, [origin(3)])
        buffer = await machine.kill()
        assert buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())


def test_without_a_ring_each_start_is_in_doubt(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        machine.ring = False
        await proved(machine)
        buffer = await machine.kill()
        assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())


def test_a_damaged_store_and_a_damaged_ring_put_it_in_doubt(tmp_path: Path) -> None:
    async def main(name: str, at: int) -> None:
        machine = Machine(tmp_path / name)
        buffer = await proved(machine)
        await buffer.append([row(1, origin=origin(1))])
        await buffer.drain()
        await machine.stop()
        path = (machine.data if name == "buffer.db" else machine.run) / name
        data = bytearray(path.read_bytes())
        data[at : at + 8] = b"\xff" * 8
        path.write_bytes(data)
        buffer = await machine.start()
        assert not buffer.ledger.whole(SESSION)
        buffer = await machine.kill()
        assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main("buffer.db", 40))
    run(main("flight.ring", 64 + 16))


@pytest.mark.parametrize("room", [True, False])
def test_rows_that_had_to_go_for_want_of_room_leave_what_they_knew_to_the_ring_or_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await proved(machine)
        sink = Sink()
        for number in range(1, 8):
            await buffer.append([row(number, origin=origin(number), text=str(number) * 100)], lambda: None)
            await asyncio.sleep(1)
        await deliver(buffer, sink)
        await asyncio.sleep(30)
        assert buffer.stats()["disk_bytes"] > 0, "acked rows stay for their origins"
        if not room:
            monkeypatch.setattr(buffer._shelf.flights, "keep", lambda _: None)
        dice = random.Random(1)
        for number in range(100, 200):
            await buffer.append([row(number, text=dice.randbytes(10_000).hex())])
            await asyncio.sleep(0.6)
        assert buffer.ledger.whole(SESSION), "this process remembers all of them"
        buffer = await machine.kill()
        assert buffer.ledger.whole(SESSION) is room
        assert all(buffer.ledger.seen(origin(number)) for number in range(1, 8)) is room
        buffer = await machine.cut()
        assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())


def test_a_message_that_is_given_up_with_its_row_is_not_taken_again_after_a_kill(tmp_path: Path) -> None:
    """The sink may have stored it although its ack never came: then it would be there twice."""

    async def main() -> None:
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await proved(machine)
        for number in range(1, 8):
            await buffer.append([row(number, origin=origin(number))], lambda: None)
            await asyncio.sleep(1)
        dice = random.Random(1)
        for number in range(100, 200):
            await buffer.append([row(number, text=dice.randbytes(10_000).hex())])
            await asyncio.sleep(0.6)
        assert buffer.stats()["lost"], "the oldest rows had to go"
        buffer = await machine.kill()
        assert all(buffer.ledger.seen(origin(number)) for number in range(1, 8))
        await machine.stop()

    run(main())


@pytest.mark.parametrize("end", ["order", "kill", "cut"])
def test_what_is_proved_stays_forgotten_although_its_row_waits_for_the_sink(tmp_path: Path, end: str) -> None:
    """Its number may be in use again, even for an equal message, and that one is not to be taken for it."""

    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await proved(machine)
        for number in range(1, 7):
            await buffer.append([row(number, origin=origin(number))], lambda: None)
            await asyncio.sleep(1)  # each in a record of its own, on disk
        buffer.ledger.forget([origin(2), origin(1), origin(3), origin(5)])
        await buffer.append([row(7)])  # what is proved goes to disk with the next commit
        await asyncio.sleep(1)
        if end == "order":
            await buffer.drain()
            await machine.stop()
            buffer = await machine.start()
        else:
            buffer = await (machine.kill() if end == "kill" else machine.cut())
        assert [n for n in range(1, 7) if buffer.ledger.seen(origin(n))] == [4, 5, 6], "4 holds 5 up: better twice"
        assert all(buffer.ledger.settled(origin(n)) for n in (4, 5, 6))
        buffer.ledger.forget([origin(n) for n in (4, 5, 6)])
        await buffer.drain()
        await buffer.append([row(8)])
        await buffer.drain()
        buffer = await machine.kill()
        assert not any(buffer.ledger.seen(origin(n)) for n in range(1, 7))
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(1, 9))
        await machine.stop()

    run(main())


def test_what_is_proved_is_known_after_a_rescue_too(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await proved(machine)
        await buffer.append([row(1, origin=origin(1))], lambda: None)
        await asyncio.sleep(1)
        buffer.ledger.forget([origin(1)])
        await buffer.append([row(2, origin=origin(2))], lambda: None)
        await asyncio.sleep(1)
        inheritance.adopt(buffer._shelf, buffer._committer.store.rescue(corrupt=False))
        assert not buffer.ledger.seen(origin(1))
        assert buffer.ledger.settled(origin(2))
        buffer = await machine.kill()
        assert not buffer.ledger.seen(origin(1))
        assert buffer.ledger.settled(origin(2))
        await machine.stop()

    run(main())


async def killed_before_the_ring_let_go(machine: Machine) -> Any:
    """Record 1 is on disk and in the ring, record 2 on disk alone; a message is in each."""
    buffer = await proved(machine)
    ring = buffer._ring
    for number in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            if number == 1:
                patch.setattr(ring, "free", lambda _: None)
            await buffer.append([row(number, origin=origin(number))], lambda: None)
            await buffer._committer.commit()
    return await machine.kill()


@pytest.mark.parametrize("end", ["kill", "cut"])
def test_what_the_ring_and_a_row_both_hold_is_not_taken_for_forgotten(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await killed_before_the_ring_let_go(machine)
        await asyncio.sleep(1)  # on disk again, and nowhere else
        buffer = await (machine.kill() if end == "kill" else machine.cut())
        assert all(buffer.ledger.settled(origin(number)) for number in (1, 2)), "each would be taken for a new one"
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1, 2]
        await machine.stop()

    run(main())


def test_what_was_proved_above_it_stays_so(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await killed_before_the_ring_let_go(machine)
        machine.failing = True
        await asyncio.sleep(0.5)
        assert buffer.stats()["mode"] == "degraded", "what the ring held is still fresh"
        buffer.ledger.forget([origin(2)])
        inheritance.adopt(buffer._shelf, buffer._committer.store.rescue(corrupt=False))
        assert [buffer.ledger.seen(origin(number)) for number in (1, 2)] == [True, False]
        machine.failing = False
        await asyncio.sleep(60)
        buffer = await machine.kill()
        assert buffer.ledger.seen(origin(1))
        await machine.stop()

    run(main())


@pytest.mark.parametrize("late", [False, True])
def test_a_record_of_a_ring_that_was_left_out_does_not_take_from_its_row_what_that_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Killed between commit and ring, it is in both; the process without a ring had it from the row."""

    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await proved(machine)
        await buffer.append([row(1, origin=origin(1))], lambda: None)
        monkeypatch.setattr(buffer._shelf.flights, "land", lambda _: None)  # killed before
        await asyncio.sleep(1)
        machine.ring = False
        buffer = await machine.kill()
        assert buffer.ledger.seen(origin(1))
        machine.ring = True
        whole = store_module.connect

        def fail(_: object) -> None:
            raise StoreError("not now")

        if late:
            monkeypatch.setattr(store_module, "connect", fail)
        buffer = await machine.kill()
        monkeypatch.setattr(store_module, "connect", whole)
        await asyncio.sleep(70)
        assert buffer.ledger.settled(origin(1))
        await buffer.append([row(2)])
        await asyncio.sleep(1)
        buffer = await machine.kill()
        assert buffer.ledger.settled(origin(1)), "from the row, which was written again"
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [1, 2]
        await machine.stop()

    run(main())


@pytest.mark.parametrize("then", ["nothing", "proof", "ack and proof"])
def test_what_neither_ring_nor_disk_took_may_be_at_the_sink_and_nobody_says_that_it_is_new(
    tmp_path: Path, then: str
) -> None:
    """Without room, with a disk that fails, records are sent all the same; a kill takes what was known of them."""

    async def main() -> None:
        machine, sink = Machine(tmp_path, ring_size=1_000), Sink()
        buffer = await proved(machine)
        machine.failing = True
        buffer._shelf.flights.keep = lambda _: None  # type: ignore[method-assign]
        await buffer.append([row(1, origin=origin(1), text="x" * 2_000)], lambda: None)
        buffer.close(Lane.LIVE)
        await asyncio.sleep(1)
        await deliver(buffer, sink, ack=then == "ack and proof")
        assert sink.numbers == [1]
        if "proof" in then:
            buffer.ledger.keep_only(SESSION, [origin(1)])
        assert buffer.ledger.whole(SESSION), "this process knows"
        buffer = await machine.kill()
        assert not buffer.ledger.seen(origin(1))
        assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())


@pytest.mark.parametrize("found", ["at the start", "when it is read"])
def test_a_damaged_row_puts_what_was_in_it_in_doubt(tmp_path: Path, found: str) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await proved(machine)
        await buffer.append([row(1, origin=origin(1))], lambda: None)
        await asyncio.sleep(1)
        records = buffer._committer.store._records
        assert records is not None
        records._db.execute("UPDATE record SET crc = crc + 1")
        if found == "when it is read":
            await deliver(buffer, Sink())
        for _ in range(2):
            buffer = await machine.kill()
            assert not buffer.ledger.seen(origin(1))
            assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())


def test_a_ring_that_was_left_out_for_one_process_is_not_believed_about_sources(tmp_path: Path) -> None:
    """What was in it is delivered all the same, once."""

    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await proved(machine)
        buffer.online(True)
        await buffer.append([row(1, origin=origin(1))], lambda: None)
        sink = Sink()
        await deliver(buffer, sink)
        await buffer.append([row(2, origin=origin(2)), row(3)], lambda: None)
        buffer.close(Lane.LIVE)  # in the ring, neither acked nor on disk
        await buffer.append([row(4, origin=origin(4)), row(5)], lambda: None)  # in the ring, in no record
        machine.ring = False
        buffer = await machine.kill()
        assert not buffer.ledger.seen(origin(1))
        await machine.kill()
        machine.ring = True
        buffer = await machine.kill()
        assert not buffer.ledger.whole(SESSION)
        assert not any(buffer.ledger.seen(origin(number)) for number in (1, 2, 4))
        buffer.ledger.keep_only(SESSION, ())
        await buffer.append([row(6, origin=origin(1))], lambda: None)
        buffer = await machine.kill()
        assert buffer.ledger.whole(SESSION), "from here on it is the ring of every process again"
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [1, 2, 3, 4, 5]
        await machine.stop()

    run(main())
