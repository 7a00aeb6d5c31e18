"""A store as a killed process leaves it: many batches in several streams, some in the file, some in the WAL."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from gateway.buffer.buffer import Buffer
from gateway.model import Lane
from gateway.testing.loop import run
from tests.buffer.world import ALARM, LIVE, Machine, Sink, deliver, row

STALE: Final = "an older WAL"


class Filled(NamedTuple):
    """What is in `folder`, as a sink sees it that misses all of it."""

    folder: Path
    bodies: dict[tuple[str, int], bytes]
    """Batches, by stream and number."""
    numbers: frozenset[int]
    """Of all rows."""
    last: frozenset[int]
    """Of those in the last commit: without its end it looks as if a power cut had come before it."""


def fill(home: Path) -> Filled:
    return run(_fill(home))


async def _fill(home: Path) -> Filled:
    machine = Machine(home / "lives")
    dice = random.Random(7)
    number = 0

    async def rows(buffer: Buffer, count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            text = dice.randbytes(dice.choice((4, 40, 900))).hex()
            await buffer.append([row(number, ALARM if number % 9 == 0 else LIVE, text=text)])
            buffer.close(Lane.LIVE)
            if dice.random() < 0.5:
                buffer.hurry()
                await asyncio.sleep(1)

    buffer = await machine.start()
    for _ in range(3):
        await rows(buffer, 20)
        buffer.seal(Lane.LIVE)
    await buffer.drain()
    await machine.stop()
    buffer = await machine.start()
    await rows(buffer, 20)
    await buffer.drain()
    older = (machine.data / "buffer.db-wal").read_bytes()
    await machine.stop()
    buffer = await machine.start()
    await rows(buffer, 20)
    buffer.seal(Lane.LIVE)
    await rows(buffer, 20)
    buffer.hurry()
    await asyncio.sleep(1)
    await rows(buffer, 1)
    buffer.hurry()
    await asyncio.sleep(1)
    folder = home / "filled"
    folder.mkdir()
    for path in machine.data.iterdir():
        shutil.copy(path, folder / path.name)
    (folder / STALE).write_bytes(older)
    await machine.cut()
    sink = Sink()
    await deliver(machine.buffer, sink)
    await machine.stop()
    assert sink.numbers.count(number) == 1
    assert len(sink.numbers) == number
    return Filled(folder, sink._bodies, frozenset(sink.numbers), frozenset({number}))
