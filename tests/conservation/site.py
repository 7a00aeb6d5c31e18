"""The cloud side: the real server with its sessions and its group commit, on a store that is a model of the rule (one
transaction compares and stores), or the real one.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from gateway.errors import StoreError
from gateway.ingest import server as ingest
from gateway.ingest.config import Settings
from gateway.ingest.sinks.group import StoredResult, Verdict
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.model import RecordKind
from gateway.protocol import batch
from gateway.protocol.entry import Entry
from gateway.protocol.marks import Mark
from gateway.protocol.messages import GapBody, Hello, Window
from tests.conservation.disk import Thread
from tests.conservation.path import Connection

FOREVER_MS = 2**61
"""A stamp that no sink takes: the batch is poison."""
_FAR = str(FOREVER_MS)[:12].encode()


class Stored(NamedTuple):
    first: int
    last: int
    kind: RecordKind | None
    """None: another copy of the gateway wrote it."""
    raw: bytes
    body: batch.Body | GapBody | object | None
    poison: str


class Storage:
    """What a sink has on its disk."""

    def __init__(self, dice: random.Random, folder: Path | None) -> None:
        self.id = f"{dice.getrandbits(128):032x}"
        self.folder = folder
        """Of the real store; None: the model alone."""
        self.streams: dict[str, list[Stored]] = {}
        self.failing = False
        self.lost: set[tuple[str, int]] = set()
        """(Stream, number) that a restored backup took."""
        self._backup: dict[str, list[Stored]] = {}

    def mark(self, stream: str) -> int:
        records = self.streams.get(stream)
        return records[-1].last if records else 0

    def back_up(self, db: sqlite3.Connection | None) -> None:
        """`db`: the server's, where it runs on a file."""
        self._backup = {name: list(records) for name, records in self.streams.items()}
        if db is not None and self.folder is not None:
            (self.folder / "backup").mkdir(exist_ok=True)
            with closing(sqlite3.connect(self.folder / "backup" / "ingest.db")) as backup:
                db.backup(backup)

    def restore(self) -> bool:
        """Nobody has it open. False: the backup is as it was."""
        before = {name: self.mark(name) for name in self.streams}
        self.streams = {name: list(records) for name, records in self._backup.items()}
        gone = {(name, seq) for name, mark in before.items() for seq in range(self.mark(name) + 1, mark + 1)}
        self.lost |= gone
        if self.folder is not None:
            for file in self.folder.glob("ingest.db*"):
                file.unlink()
            shutil.copy(self.folder / "backup" / "ingest.db", self.folder)
        return bool(gone)


class ModelSink:
    """Fits what the server calls of `SqliteSink`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.sink_id = storage.id
        self.behind = False

    def close(self) -> None:
        """Nothing is held."""

    def latest(self) -> list[Any]:
        return []

    gaps = latest

    def query(self, _: str, __: Sequence[Any] = ()) -> list[Any]:
        return []

    def probe(self, _: int) -> None:
        if self._storage.failing:
            raise StoreError("the disk is full")

    def marks(self, _: str, streams: Iterable[str]) -> dict[str, Mark]:
        found = {}
        for name in streams:
            records = self._storage.streams.get(name)
            found[name] = Mark(records[-1].last, None, records[-1].kind is RecordKind.END) if records else Mark()
        return found

    def hello(self, gateway: str, hello: Hello, _: int) -> tuple[dict[str, Mark], tuple[str, ...]]:
        self.probe(0)
        return self.marks(gateway, [offer.stream for offer in hello.streams]), ()

    def commit(self, entries: Sequence[Entry], _: Sequence[StoredResult], __: int) -> list[Verdict]:
        self.probe(0)
        storage, verdicts = self._storage, []
        for entry in entries:
            records = storage.streams.setdefault(entry.stream, [])
            mark = records[-1].last if records else 0
            stored = entry.seq <= mark + 1 and entry.last > mark
            if stored:
                body, poison = entry.body, entry.poison
                if isinstance(body, batch.Body) and _FAR in entry.raw:
                    body, poison = None, "a time that is out of bounds"
                if mark + 1 > entry.seq and isinstance(body, GapBody):
                    body = GapBody(body.reason)
                records.append(Stored(mark + 1, entry.last, entry.kind, entry.raw, body, poison))
            verdicts.append(Verdict(records[-1].last if records else 0, stored))
        return verdicts


class RealSink(SqliteSink):
    """The real store; what it commits is noted too, so that both kinds are judged by the same eyes."""

    def __init__(self, storage: Storage) -> None:
        assert storage.folder is not None
        super().__init__(storage.folder)
        self._model = ModelSink(storage)
        self._storage = storage
        storage.id = self.sink_id

    def commit(self, entries: Sequence[Entry], results: Sequence[StoredResult], now_ms: int) -> list[Verdict]:
        self._model.probe(0)
        verdicts = super().commit(entries, results, now_ms)
        assert [verdict[:2] for verdict in verdicts] == [v[:2] for v in self._model.commit(entries, results, now_ms)]
        return verdicts

    def compare(self) -> None:
        """The file holds what the model holds, reading for reading."""
        readings = self.query(
            "SELECT s.name, b.seq, r.value FROM stream s JOIN batch b ON b.stream = s.id"
            " JOIN reading r ON r.id >= b.first AND r.id < b.first + b.readings JOIN series x ON x.id = r.series"
            " WHERE x.point = 'n' ORDER BY s.name, b.seq, r.id"
        )
        streams = sorted(self._storage.streams.items())
        expected = [
            (name, each.first, row.values[1])
            for name, records in streams
            for each in records
            if isinstance(each.body, batch.Body)
            for row in batch.rows(each.body)
        ]
        assert [tuple(row) for row in readings] == expected, "the file holds other readings than were stored"
        gaps = self.query(
            "SELECT s.name, g.seq, g.last, g.reason, g.readings FROM gap g JOIN stream s ON s.id = g.stream"
            " ORDER BY s.name, g.seq"
        )
        assert [tuple(row) for row in gaps] == [
            (name, each.first, each.last, each.body.reason.value, each.body.readings)
            for name, records in streams
            for each in records
            if isinstance(each.body, GapBody)
        ], "the file holds other gaps than were stored"


class Site:
    """One server; `crash` is kill -9, or the power cut of the machine: what was not committed is gone either way."""

    def __init__(self, dice: random.Random, storage: Storage, clock: Any) -> None:
        self._dice = dice
        self.storage = storage
        self._clock = clock
        self.connections: list[Connection] = []
        self.up = False
        self.slow_s = 0.002

    def start(self) -> None:
        if self.up:
            return
        make: Any = RealSink if self.storage.folder is not None else ModelSink
        original = ingest.SqliteSink
        ingest.SqliteSink = lambda _: make(self.storage)  # type: ignore[assignment,misc]
        try:
            self.server = ingest.IngestServer(Settings(self.storage.folder or Path("/nowhere")), self._clock)
        finally:
            ingest.SqliteSink = original  # type: ignore[misc]
        if self.storage.folder is None:
            self.server._deliver = _no_commands  # type: ignore[method-assign]
        self._thread = Thread(self._dice, self.slow_s)
        self.server.committer._thread = self._thread  # type: ignore[assignment]
        self._tasks = {asyncio.create_task(self.server.committer.run(), name="ingest commit")}
        self.up = True

    def back_up(self) -> None:
        if self.up:
            real = isinstance(self.server.sink, RealSink)
            self.storage.back_up(self.server.sink.open() if real else None)

    def slow(self, latency_s: float) -> None:
        self.slow_s = latency_s
        if self.up:
            self._thread.latency_s = latency_s

    def accept(self, connection: Connection) -> None:
        self.connections.append(connection)
        task = asyncio.create_task(self.server._connected(connection.far), name="session")  # type: ignore[arg-type]
        self._tasks.add(task)

    async def crash(self) -> None:
        if self.up:
            self.up = False
            self._thread.die()
            self.cut()
            self.alive()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.server.sink.close()

    def cut(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.cut()

    def flow(self, batches: int) -> None:
        """`batches` may be 0: a pause, until the next group is stored or somebody says otherwise."""
        if self.up:
            self.server._flow(Window(batches, 1 << 20))

    def move(self, deadline_s: float, spread_s: float) -> None:
        if self.up:
            for connection in self.server.fleet:
                connection.move(int(deadline_s * 1000), int(spread_s * 1000), "elsewhere, please")

    def alive(self) -> None:
        """Nothing has failed unseen."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            if not task.cancelled():
                task.result()

    def compare(self) -> None:
        if self.up and isinstance(self.server.sink, RealSink):
            self.server.sink.compare()


async def _no_commands(_: str, __: str = "") -> None:
    """The model holds none."""
