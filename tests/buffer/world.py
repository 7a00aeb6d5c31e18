"""Where the buffer lives: a machine that can be killed or cut off, and a sink that keeps the rules of the protocol."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import msgspec

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.model import Lane, Origin, Record, RecordKind, Row, Shape
from gateway.protocol import batch
from gateway.protocol.client import STORED_ELSEWHERE
from gateway.protocol.messages import GapBody
from gateway.testing.loop import VirtualClock

LIVE = Shape("meter", ("u", "n"), ("V", "/"))
ALARM = Shape("door", ("open", "n"), ("/", "/"), Lane.ALARM)


def row(number: int, shape: Shape = LIVE, origin: Origin | None = None, text: str = "") -> Row:
    """A row that can be told from all others."""
    return Row(shape, number, (text or 230.5, number), origin=origin)


def origin(packet_id: int, content: bytes = b"x") -> Origin:
    return Origin(b"session1", packet_id, content.ljust(16, b"."))


class Inline(Executor):
    """The store's thread, without the thread."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Machine:
    """One machine; `start` starts the process, `kill` is SIGKILL, `cut` takes the power."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self._home = home
        self._life = 0
        self._settings = settings
        self.ring = True
        self.executor: Executor = Inline()
        self.clock = VirtualClock()
        self.failing = False
        self._fresh_dirs()

    def _fresh_dirs(self) -> None:
        self._life += 1
        here = self._home / str(self._life)
        self.data, self.run = here / "data", here / "run"
        self.data.mkdir(parents=True)
        self.run.mkdir()

    async def start(self) -> Buffer:
        settings = BufferSettings(**self._settings)
        self.buffer = await Buffer.open(settings, self.data, self.clock, self.run if self.ring else None, self.executor)
        self._break_on_demand()
        self._task = asyncio.create_task(self.buffer.run())
        return self.buffer

    def _break_on_demand(self) -> None:
        store = self.buffer._committer.store
        whole = store._insert

        def insert(*args: Any) -> bool:
            unpinned = whole(*args)
            if self.failing:  # the last moment before the commit
                raise OSError(errno.ENOSPC, "No space left on device")
            return unpinned

        store._insert = insert  # type: ignore[method-assign]

    async def stop(self) -> None:
        """The process is gone, whatever it was at."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.buffer.release()

    async def kill(self) -> Buffer:
        """SIGKILL, and the next process. The files are as the kill left them: nothing was closed in order."""
        data, run = self.data, self.run
        self._fresh_dirs()
        for name in ("buffer.db", "buffer.db-wal", "lock"):
            if (data / name).exists():
                shutil.copy(data / name, self.data / name)
        if (run / "flight.ring").exists():
            shutil.copy(run / "flight.ring", self.run / "flight.ring")
        await self.stop()
        return await self.start()

    async def cut(self) -> Buffer:
        """Power off and on: tmpfs is empty, what was synced is there."""
        (self.run / "flight.ring").unlink(missing_ok=True)
        return await self.kill()


class Sink:
    """Keeps the rules of the protocol for records, and remembers every identity it was ever shown."""

    def __init__(self, name: str = "sink") -> None:
        self.name = name
        self.marks: dict[str, int] = {}
        self.rows: dict[tuple[str, int], list[int]] = {}
        """Stream and number → rows, by their number."""
        self.gaps: list[GapBody] = []
        self.kinds: list[RecordKind] = []
        self._bodies: dict[tuple[str, int], bytes] = {}

    @property
    def numbers(self) -> list[int]:
        """Of all stored rows."""
        return [number for rows in self.rows.values() for number in rows]

    def restore(self, stream: str, mark: int) -> set[int]:
        """An older backup: what it had beyond this mark is gone. Returns the rows that it loses."""
        gone = [key for key in self.rows if key[0] == stream and key[1] > mark]
        self.marks[stream] = mark
        return {number for key in gone for number in self.rows.pop(key)}

    def take(self, record: Record) -> bool:
        """False: nack."""
        if record.kind is RecordKind.BATCH:
            body = self._bodies.setdefault((record.stream, record.seq), record.body)
            assert body == record.body, "an identity names two bodies"
        mark = self.marks.get(record.stream, 0)
        if record.upto <= mark:
            return True
        if record.seq > mark + 1:
            return False
        self.marks[record.stream] = record.upto
        self.kinds.append(record.kind)
        if record.kind is RecordKind.BATCH:
            rows = batch.rows(batch.decode(record.body))
            self.rows[record.stream, record.seq] = [int(str(each.values[1])) for each in rows]
        elif record.kind is RecordKind.GAP:
            self.gaps.append(msgspec.json.decode(record.body, type=GapBody))
        return True


async def deliver(
    buffer: Buffer, sink: Sink, *, ack: bool = True, max_bytes: int = 1 << 20, streams: Sequence[str] | None = None
) -> int:
    """Hands the sink what it misses of each stream, as the uplink does. Returns how many records went over."""
    sent = 0
    for lane in Lane:
        buffer.close(lane)
    for offer in buffer.offers():
        if streams is not None and offer.stream not in streams:
            continue
        if sink.marks.get(offer.stream, 0) >= offer.next:
            buffer.ack(sink.name, offer.stream, sink.marks[offer.stream])
        while (at := sink.marks.get(offer.stream, 0) + 1) < offer.next:
            records = await buffer.fetch(offer.stream, at, max_bytes)
            hole = (records[0].seq if records else offer.next) - 1
            if hole >= at:
                upto = await buffer.fill(sink.name, offer.stream, offer.lane, at, hole)
                if upto >= at:
                    sink.take(Record(offer.stream, offer.lane, at, RecordKind.GAP, STORED_ELSEWHERE, 0, upto))
                continue
            for record in records:
                if not sink.take(record):
                    break  # a hole within what was fetched: the next look begins there
                sent += 1
            if ack:
                buffer.ack(sink.name, offer.stream, sink.marks[offer.stream])
        if ack and offer.stream in sink.marks:
            buffer.ack(sink.name, offer.stream, sink.marks[offer.stream])
    return sent
