"""Messages that come again: when the buffer knows them all, and when it must admit that it may have lost some."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

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


def test_rows_that_had_to_go_for_want_of_room_take_the_certainty_of_later_processes_with_them(tmp_path: Path) -> None:
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
        dice = random.Random(1)
        for number in range(100, 200):
            await buffer.append([row(number, text=dice.randbytes(10_000).hex())])
            await asyncio.sleep(0.6)
        assert buffer.ledger.whole(SESSION), "this process remembers all of them"
        buffer = await machine.kill()
        assert not buffer.ledger.whole(SESSION)
        await machine.stop()

    run(main())
