"""A gateway and its cloud side, all of it real but the sockets, the disk's moods and the passing of time.

Real are the buffer with its SQLite file and its flight ring, the uplink with its state machine and sessions, and the
server with its sessions and its group commit. The store behind the server is a model of the rule (one transaction
compares and stores), or the real one.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateway.buffer.buffer import Buffer
from gateway.errors import StoreError
from gateway.ingest import server as ingest
from gateway.ingest.config import Settings
from gateway.ingest.sinks.sqlite import SqliteSink, StoredResult, Verdict
from gateway.model import Origin, RecordKind
from gateway.protocol import batch
from gateway.protocol.messages import GapBody, Hello
from gateway.protocol.server import Entry, Mark
from gateway.uplink import session
from gateway.uplink.config import Endpoint, UplinkSettings
from gateway.uplink.link import Refused
from gateway.uplink.reactions import Kind, Reaction
from gateway.uplink.uplink import About, Uplink
from tests.buffer.world import ALARM, LIVE, Inline, Machine, row
from tests.conservation.path import Connection, Near
from tests.uplink.memory import MemoryCommands

ENDPOINTS = ("a", "b")


class Stored(NamedTuple):
    first: int
    last: int
    kind: RecordKind
    body: batch.Body | GapBody | object | None


class Storage:
    """What a sink has on its disk."""

    def __init__(self, dice: random.Random, folder: Path) -> None:
        self.id = f"{dice.getrandbits(128):032x}"
        self.folder = folder
        self.streams: dict[str, list[Stored]] = {}
        self.failing = False
        self._backup: dict[str, list[Stored]] = {}

    def back_up(self) -> None:
        self._backup = copy.copy({name: list(records) for name, records in self.streams.items()})

    def restore(self) -> None:
        self.streams = {name: list(records) for name, records in self._backup.items()}

    def rows(self) -> list[tuple[str, Any]]:
        """Stream and row, in order of storing within each."""
        return [
            (name, row)
            for name, records in self.streams.items()
            for record in records
            if isinstance(record.body, batch.Body)
            for row in batch.rows(record.body)
        ]

    def gaps(self) -> list[GapBody]:
        return [each.body for records in self.streams.values() for each in records if isinstance(each.body, GapBody)]


class ModelSink:
    """Fits what the server calls of `SqliteSink`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.sink_id = storage.id

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
        verdicts = []
        for entry in entries:
            records = self._storage.streams.setdefault(entry.stream, [])
            mark = records[-1].last if records else 0
            stored = entry.seq <= mark + 1 and entry.last > mark
            if stored:
                assert not entry.poison, entry.poison
                records.append(Stored(mark + 1, entry.last, entry.kind, entry.body))
            verdicts.append(Verdict(records[-1].last if records else 0, stored))
        return verdicts


class RealSink(SqliteSink):
    """The real store; what it commits is noted too, so that both kinds are judged by the same eyes."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.folder)
        self._model = ModelSink(storage)
        self._storage = storage
        storage.id = self.sink_id

    def commit(self, entries: Sequence[Entry], results: Sequence[StoredResult], now_ms: int) -> list[Verdict]:
        self._model.probe(0)
        verdicts = super().commit(entries, results, now_ms)
        assert [verdict[:2] for verdict in verdicts] == [v[:2] for v in self._model.commit(entries, results, now_ms)]
        return verdicts


class Site:
    """One server; `crash` is kill -9."""

    def __init__(self, dice: random.Random, storage: Storage, clock: Any, real: bool) -> None:
        self._dice = dice
        self.storage = storage
        self._clock = clock
        self.real = real
        self.connections: list[Connection] = []
        self.up = False
        self.slow_s = 0.002

    def start(self) -> None:
        if self.up:
            return
        make: Any = RealSink if self.real else ModelSink
        original = ingest.SqliteSink
        ingest.SqliteSink = lambda _: make(self.storage)  # type: ignore[assignment,misc]
        try:
            self._server = ingest.IngestServer(Settings(self.storage.folder), self._clock)
        finally:
            ingest.SqliteSink = original  # type: ignore[misc]
        if not self.real:
            self._server._deliver = _no_commands  # type: ignore[method-assign]
        self._server.committer._thread = Inline()  # type: ignore[assignment]
        turn, call = asyncio.Lock(), self._server.committer.call

        async def slow(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            async with turn:
                await asyncio.sleep(self._dice.uniform(0, self.slow_s))
                result = await call(function, *args, **kwargs)
                await asyncio.sleep(self._dice.uniform(0, self.slow_s))
                return result

        self._server.committer.call = slow  # type: ignore[method-assign]
        self._tasks = {asyncio.create_task(self._server.committer.run(), name="ingest commit")}
        self.up = True

    def accept(self, connection: Connection) -> None:
        self.connections.append(connection)
        task = asyncio.create_task(self._server._connected(connection.far), name="session")  # type: ignore[arg-type]
        self._tasks.add(task)

    async def crash(self) -> None:
        if self.up:
            self.up = False
            self.cut()
            for task in self._tasks:
                if task.done() and not task.cancelled():
                    task.result()  # nothing may have failed unseen
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server.sink.close()

    def cut(self) -> None:
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.cut()

    def alive(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()


class World:
    """See the module. `endpoints[name]` is the way to a site: open, refused, stalled."""

    def __init__(self, home: Path, dice: random.Random, *, sinks: int, real: bool, **settings: Any) -> None:
        self.dice = dice
        self.machine = Machine(home / "gateway", **settings)
        stores = [Storage(dice, home / f"sink{number}") for number in range(2 if sinks == 2 else 1)]
        self.stores = stores
        clock = _UtcClock(self.machine.clock)
        match sinks:
            case 0:  # one server behind both endpoints
                one = Site(dice, stores[0], clock, real)
                self.sites = {"a": one, "b": one}
            case 1:  # two servers, one store
                self.sites = {name: Site(dice, stores[0], clock, False) for name in ENDPOINTS}
            case _:  # two servers, two stores
                self.sites = {n: Site(dice, s, clock, real) for n, s in zip(ENDPOINTS, stores, strict=True)}
        self.mood = dict.fromkeys(ENDPOINTS, "open")
        self.latency_s = dict.fromkeys(ENDPOINTS, 0.01)
        self.connections: dict[str, list[Connection]] = {name: [] for name in ENDPOINTS}
        self.disk_s = 0.001
        self.number = 0
        self.promised: dict[int, float] = {}
        """Row → when the buffer took it over."""
        self.unsure: set[int] = set()
        """Handed over and not answered when the process died: may arrive."""
        self.may_be_lost: set[int] = set()
        self.may_be_twice: set[int] = set()
        self.settled: set[int] = set()
        self.messages: dict[int, int] = {}
        """What a broker holds: packet id → row, until it is settled."""
        self._feed: asyncio.Queue[tuple[list[int], bool, bool, int]] = asyncio.Queue()
        self.spoiled = False
        """Records may have been given up: the disk failed, or was too small."""

    # ── the way ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_link(self, endpoint: Endpoint, _: object) -> Near:
        name, site = endpoint.label, self.sites[endpoint.label]
        await asyncio.sleep(self.latency_s[name])
        if self.mood[name] == "stalled":
            await asyncio.sleep(endpoint.connect_timeout)
            raise Refused(Reaction(Kind.RETRY, "no connection"))
        if self.mood[name] == "refused" or not site.up:
            raise Refused(Reaction(Kind.RETRY, "cannot connect"))
        connection = Connection(self.dice)
        connection.slow(self.latency_s[name])
        self.connections[name] = [each for each in self.connections[name] if each.open] + [connection]
        site.accept(connection)
        return connection.near

    def path(self, name: str, mood: str) -> None:
        self.mood[name] = mood
        for connection in self.connections[name]:
            if mood == "stalled":
                connection.stall()
            elif mood == "refused":
                connection.cut()
            else:
                connection.heal()

    def slow(self, name: str, latency_s: float) -> None:
        self.latency_s[name] = latency_s
        for connection in self.connections[name]:
            connection.slow(latency_s)

    # ── the gateway ──────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        session.open_link = self.open_link  # type: ignore[assignment]
        for site in self.sites.values():
            site.start()
        self._begin(await self.machine.start())

    def _begin(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self._started = self.machine.clock.monotonic()
        turn, call = asyncio.Lock(), buffer._committer._call

        async def slow(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            async with turn:
                await asyncio.sleep(self.dice.uniform(0, self.disk_s))
                result = await call(function, *args, **kwargs)
                await asyncio.sleep(self.dice.uniform(0, self.disk_s))
                return result

        buffer._committer._call = slow  # type: ignore[method-assign]
        ends = tuple(Endpoint(url="ws://127.0.0.1:1/", name=name) for name in ENDPOINTS)
        uplink = Uplink(
            UplinkSettings(endpoint=ends), buffer, MemoryCommands(), self.machine.clock, About("test"), self.dice.random
        )
        self._tasks = [
            asyncio.create_task(uplink.run(), name="uplink"),
            asyncio.create_task(self._feeder(), name="feeder"),
        ]
        for packet_id, number in self.messages.items():  # what the broker still holds comes again
            if not buffer.ledger.seen(_origin(packet_id)):
                self._feed.put_nowait(([number], False, True, packet_id))
            elif buffer.ledger.settled(_origin(packet_id)):
                self.settled.add(number)

    def put(self, count: int, *, alarm: bool, settles: bool) -> None:
        numbers = list(range(self.number + 1, self.number + count + 1))
        self.number += count
        self._feed.put_nowait((numbers, alarm, settles, 0))

    def publish(self) -> None:
        """One message of a broker: it is kept there until it is settled."""
        self.number += 1
        packet_id = self.number % 65_535 + 1
        self.messages[packet_id] = self.number
        self._feed.put_nowait(([self.number], False, True, packet_id))

    async def _feeder(self) -> None:
        while True:
            numbers, alarm, settles, packet_id = await self._feed.get()
            self.unsure.update(numbers)
            origin = _origin(packet_id) if packet_id else None
            rows = [row(number, ALARM if alarm else LIVE, origin, payload(number)) for number in numbers]

            def settled(numbers: Sequence[int] = numbers) -> None:
                self.settled.update(numbers)

            await self.buffer.append(rows, settled if settles else None)
            self.unsure.difference_update(numbers)
            if not packet_id:
                self.promised |= dict.fromkeys(numbers, self.machine.clock.monotonic())

    async def crash(self, *, power: bool) -> None:
        """The process dies at once. What it had sent is on its way all the same."""
        for connections in self.connections.values():
            for connection in connections:
                connection.desert()
            connections.clear()
        if power:
            self._lose()
        await self._end()
        self._begin(await (self.machine.cut() if power else self.machine.kill()))

    async def drain(self) -> None:
        """SIGTERM, and a new start."""
        self._tasks[1].cancel()
        await asyncio.gather(self._tasks[1], return_exceptions=True)
        await self.buffer.drain()
        await self.crash(power=False)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
        while not self._feed.empty():
            numbers, _, _, packet_id = self._feed.get_nowait()
            if not packet_id:
                self.unsure.update(numbers)  # never handed over, and never will be

    def _lose(self) -> None:
        """The power goes: what is younger than `commit_after`, but for what was settled."""
        now = self.machine.clock.monotonic()
        failing = self.machine.failing or bool(self.buffer._committer.problem)
        failing |= now - self._started <= 0.01 + 6 * self.disk_s  # what a crash left is on its way to the disk
        young_s = self.buffer._settings.commit_after + self.buffer._settings.linger + 0.01 + 6 * self.disk_s
        for number, at in self.promised.items():
            if number not in self.settled and (failing or now - at <= young_s):
                self.may_be_lost.add(number)
        self.may_be_twice.update(self.messages.values())

    def forget_settled(self) -> None:
        """A PINGRESP came: the broker cannot send these again."""
        done = [packet_id for packet_id, number in self.messages.items() if number in self.settled]
        for packet_id in done:
            self.promised[self.messages.pop(packet_id)] = 0.0
        self.buffer.ledger.forget([_origin(packet_id) for packet_id in done])

    def disk(self, *, failing: bool) -> None:
        self.machine.failing = failing
        self.spoiled |= failing

    def back_up(self, site: Site) -> None:
        if not site.real:
            site.storage.back_up()

    async def restore(self, site: Site) -> None:
        """The server comes back with an older state of its store."""
        if site.real:
            return
        for each in {id(s): s for s in self.sites.values() if s.storage is site.storage}.values():
            await each.crash()
        before = {int(str(each.values[1])) for _, each in site.storage.rows()}
        site.storage.restore()
        self.may_be_lost |= before - {int(str(each.values[1])) for _, each in site.storage.rows()}

    async def stop(self) -> None:
        await self._end()
        await self.machine.stop()
        for site in self.sites.values():
            await site.crash()

    def step_clock(self, by_ms: int) -> None:
        self.machine.clock.utc_offset_ms += by_ms
        self.buffer.clock(self.machine.clock.state(), record=True)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def settle(self) -> None:
        """Everything works from now on; returns when all is delivered."""
        self.disk(failing=False) if self.machine.failing else None
        for store in self.stores:
            store.failing = False
        for site in self.sites.values():
            site.slow_s = 0.002
            site.start()
        for name in ENDPOINTS:
            self.path(name, "open")
            self.slow(name, 0.01)
        for _ in range(3600):
            await asyncio.sleep(2)
            for packet_id, number in self.messages.items():
                if number not in self.settled and self.buffer.ledger.settled(_origin(packet_id)):
                    self.settled.add(number)
            self.forget_settled()
            if self._feed.empty() and not self.messages and self.buffer.waiting()[0] == 0:
                break
        else:
            raise AssertionError(f"it does not come to rest: {self.buffer.stats()}, {self.messages}")
        for task in self._tasks:
            assert not task.done()
        for site in self.sites.values():
            site.alive()

    def judge(self) -> None:
        delivered: set[int] = set()
        for store in self.stores:
            rows = store.rows()
            numbers = [int(str(each.values[1])) for _, each in rows]
            twice = (
                {number for number in numbers if numbers.count(number) > 1}
                if len(set(numbers)) < len(numbers)
                else set()
            )
            assert twice <= self.may_be_twice, f"twice: {sorted(twice - self.may_be_twice)}"
            delivered.update(numbers)
            for _, each in rows:
                assert each.values[0] == payload(int(str(each.at_ms))), "another payload"
            self._in_order(store)
        assert delivered <= set(range(1, self.number + 1))
        missing = self.promised.keys() - delivered - self.may_be_lost
        gaps = [gap for store in self.stores for gap in store.gaps()]
        reported = sum(gap.readings or 0 for gap in gaps if gap.reason.value not in ("unsent", "stored_elsewhere"))
        assert 2 * len(missing) <= reported, f"missing and not reported: {sorted(missing)}, {gaps}"
        if not self.spoiled:
            assert not missing, f"missing although nothing had to be given up: {sorted(missing)}"
            assert not reported, f"nothing had to be given up: {gaps}"

    def _in_order(self, store: Storage) -> None:
        for name, records in store.streams.items():
            at = 1
            for each in records:
                assert each.first == at, f"a hole in {name} before {each.first}"
                at = each.last + 1


class _UtcClock:
    def __init__(self, clock: Any) -> None:
        self.monotonic = clock.monotonic
        self.utc_ms = lambda: int(clock.monotonic() * 1000) + 1_750_000_000_000


async def _no_commands(_: str, __: str = "") -> None:
    """The model holds none."""


def payload(number: int) -> str:
    return f"p{number}" * (1 + number % 7)


def _origin(packet_id: int) -> Origin:
    return Origin(b"broker01", packet_id, b"f" * 16)
