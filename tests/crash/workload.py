"""A life of the store, as a program: `python -m tests.crash.workload FOLDER SEED SCALE CHAPTER`.

The real buffer on the real store, in virtual time; only the store's calls are wrapped, to put into the recorder's log
what they were asked and what they promised when they returned. Chapters: the first file, an outage, a sink that acks,
eviction, checkpoints, low space (which vacuums), a damaged file, and one that is damaged while it is in use. SCALE
divides the sizes, those at which the store begins to evict, to checkpoint and to vacuum included. Other chapters are
about syncs that fail: `stumble` goes on in the same process, after `die` the next process does (`go-on`).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import secrets
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from gateway.buffer import buffer as module
from gateway.buffer import store
from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.buffer.database import CorruptError
from gateway.buffer.store import Done, Opened, Store, Work
from gateway.model import Lane
from gateway.testing.loop import VirtualClock, run
from tests.buffer.world import ALARM, LIVE, Inline, Sink, deliver, origin, row
from tests.crash.contents import contents, rows

_recorder = ctypes.CDLL(None)


def say(**said: Any) -> None:
    """Puts it into the log, behind everything that has happened."""
    text = json.dumps(said).encode()
    _recorder.disk_mark(text, ctypes.c_size_t(len(text)))


class Watched(Store):
    """The real store; says what it is asked and what it has promised."""

    _depth = 0

    def _tell(self, act: Callable[[], Any], **asked: Any) -> Any:
        if self._depth:
            return act()
        say(what="begin", **asked)
        self._depth = 1
        failed = True
        try:
            result = act()
            failed = False
            return result
        finally:
            # a call that failed has promised that nothing has happened
            say(what="failed") if failed else say(what="done", holds=contents(self), unreported=self._unreported)
            self._depth = 0

    def open(self) -> Opened:
        return self._tell(super().open, call="open")  # type: ignore[no-any-return]

    def rescue(self, *, corrupt: bool) -> Opened:
        return self._tell(lambda: super(Watched, self).rescue(corrupt=corrupt), call="rescue")  # type: ignore[no-any-return]

    def commit(self, work: Work) -> Done:
        asked = {"records": rows(work.records), "marks": dict(work.limits.marks)}
        return self._tell(lambda: super(Watched, self).commit(work), call="commit", **asked)  # type: ignore[no-any-return]

    def move(self, stream: str, mark: int, target: str, boot: str, pins: frozenset[int]) -> Done:
        move = lambda: super(Watched, self).move(stream, mark, target, boot, pins)  # noqa: E731
        return self._tell(move, call="move", stream=stream, mark=mark, target=target)  # type: ignore[no-any-return]


class Life:
    """Chapters on one folder."""

    def __init__(self, folder: Path, dice: random.Random, scale: int) -> None:
        self._folder = folder
        self._dice = dice
        self._scale = scale
        self._number = self._packet = 0
        self._clock = VirtualClock()
        self._sink = Sink()

    async def begin(self, **settings: Any) -> Buffer:
        buffer = await Buffer.open(BufferSettings(**settings), self._folder, self._clock, None, Inline())
        self._task = asyncio.create_task(buffer.run())
        return buffer

    async def end(self, buffer: Buffer) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await buffer.release()

    async def rows(self, buffer: Buffer, count: int, size: int) -> None:
        """Each in a commit of its own: without a ring nothing else is safe."""
        for _ in range(count):
            self._number += 1
            text = self._dice.randbytes(
                self._dice.randint(1, max(10, size // self._scale)) // 2
            ).hex()  # does not deflate to nothing
            kind = self._dice.random()
            if kind < 0.1:
                await buffer.append([row(self._number, ALARM, text=text)])
            elif kind < 0.2:
                self._packet += 1
                await buffer.append([row(self._number, origin=origin(self._packet), text=text)], lambda: None)
                await asyncio.sleep(1)
            else:
                await buffer.append([row(self._number, LIVE, text=text)])

    async def ack(self, buffer: Buffer) -> None:
        """The sink takes some of it, and the rows go ten seconds later."""
        await deliver(buffer, self._sink, max_bytes=self._dice.randint(1, 100_000))
        await asyncio.sleep(11)

    async def live(self) -> None:
        dice = self._dice
        buffer = await self.begin()
        await self.rows(buffer, 12, 1500)
        await self.ack(buffer)
        await self.rows(buffer, 6, 300)
        buffer.seal(Lane.LIVE)
        await self.rows(buffer, 6, 5000)
        await buffer.drain()
        await self.end(buffer)

        buffer = await self.begin(max_size=1_000_000 // self._scale)
        for _ in range(3):  # evicts, and the WAL grows beyond what it may
            await self.rows(buffer, 12, 110_000)
            await self.rows(buffer, 4, 800)
        await self.ack(buffer)
        await self.rows(buffer, 4, 90_000)
        await self.end(buffer)  # as after a kill: nothing was sealed

        buffer = await self.begin(free_space_floor=1 << 50)  # as if the file system were full: all of it must go
        await self.rows(buffer, 5, 3000)
        await self.end(buffer)

        buffer = await self.begin()
        await self.rows(buffer, 10, 9000)
        await self.end(buffer)
        for _ in range(2):
            self.damage(dice)
            buffer = await self.begin()
            await self.rows(buffer, 4, 2000)
            await self.end(buffer)

        buffer = await self.begin()
        await self.rows(buffer, 3, 2000)
        await self.spoil(buffer)
        await self.rows(buffer, 3, 2000)
        await buffer.drain()
        await self.end(buffer)

    async def stumble(self) -> None:
        """Syncs fail for a while, in the midst of commits and of a checkpoint; then they work."""
        buffer = await self.begin()
        for _ in range(4):
            await self.rows(buffer, self._dice.randint(1, 6), 20_000)
            self.faults("sync=5")
            await self.rows(buffer, 2, 20_000)  # comes back at once: the disk fails
            await asyncio.sleep(self._dice.choice((0.0, 1.5, 5.0)))
            self.faults("")
            await asyncio.sleep(130)
        await self.rows(buffer, 3, 5000)
        await self.end(buffer)

    async def die(self) -> None:
        """The process ends while its last sync has failed."""
        buffer = await self.begin()
        await self.rows(buffer, self._dice.randint(3, 10), 20_000)
        self.faults("sync=5")
        await self.rows(buffer, self._dice.randint(1, 3), 20_000)
        self.faults("")
        os._exit(0)

    async def go_on(self) -> None:
        self._number = 1000
        buffer = await self.begin()
        await self.rows(buffer, 8, 20_000)
        await self.end(buffer)

    def faults(self, words: str) -> None:
        Path(os.environ["DISK_FAULTS"]).write_text(words)

    def damage(self, dice: random.Random) -> None:
        """Pages of records in the closed file become noise; from then on only what rescue makes of it is promised."""
        file = self._folder / "buffer.db"
        with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as db:
            pages = db.execute("SELECT pageno FROM dbstat WHERE name = 'record' AND pagetype = 'leaf'").fetchall()
        here = os.open(self._folder, os.O_RDONLY)
        os.fsync(here)  # else the log may come back, and heal it
        os.close(here)
        say(what="damaging")
        descriptor = os.open(file, os.O_WRONLY)
        for (page,) in dice.sample(pages, min(2, len(pages))):
            os.pwrite(descriptor, dice.randbytes(1024), (page - 1) * 1024)
        os.fsync(descriptor)
        os.close(descriptor)
        say(what="damaged")

    async def spoil(self, buffer: Buffer) -> None:
        """The store finds out at work: the next call of it rescues what is there."""
        mine = buffer._committer.store
        whole = mine.commit

        def commit(_: Work) -> Done:
            mine.commit = whole  # type: ignore[method-assign]
            raise CorruptError("found at work")

        mine.commit = commit  # type: ignore[method-assign]
        await self.rows(buffer, 1, 100)


def main() -> None:
    folder, seed, scale = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for limit in ("_CHECKPOINT_BYTES", "_VACUUM_BYTES"):
        setattr(store, limit, getattr(store, limit) // scale)
    module.Store = Watched  # type: ignore[misc]
    dice = random.Random(f"{seed} {sys.argv[4]}")
    secrets.token_hex = lambda size=None: dice.randbytes(size or 32).hex()  # streams have the same names each time
    life = Life(folder, dice, scale)
    chapters = {"live": life.live, "stumble": life.stumble, "die": life.die, "go-on": life.go_on}
    run(chapters[sys.argv[4]]())


if __name__ == "__main__":
    main()
