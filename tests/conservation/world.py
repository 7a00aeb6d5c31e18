"""A gateway and its cloud side, all of it real but the sockets, the disk and the passing of time.

Real are the buffer, its flight ring (in memory that outlives the process), the uplink with its state machine and
sessions, and the server with its sessions and its group commit (`site.py`). The store on disk is a model (`disk.py`) or
the real one. What is asked of the world is a fault or a reading; what it notes is what was promised, and what a fault
may have taken by then (`Promises`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from gateway.buffer import buffer as buffer_module
from gateway.buffer import ring as rings
from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.buffer.entries import Flown
from gateway.buffer.gaps import gap_body
from gateway.buffer.recovery import Recovered, sort_out
from gateway.buffer.schema import from_row
from gateway.errors import DecodeError, StoreError
from gateway.model import GapReason, Lane, Origin, Record, RecordKind, Row, Shape, Trust
from gateway.protocol.messages import MAX_BATCH_BYTES
from gateway.testing.loop import VirtualClock
from gateway.uplink import session
from gateway.uplink.config import Endpoint, Standby, UplinkSettings
from gateway.uplink.link import Refused
from gateway.uplink.reactions import Kind, Reaction
from gateway.uplink.uplink import About, Uplink
from tests.conservation.disk import ModelStore, Mood, Platter, Thread
from tests.conservation.path import Connection, Near, Weather
from tests.conservation.site import FOREVER_MS, Site, Storage, Stored
from tests.conservation.taps import Made, Taps, numbers
from tests.uplink.memory import MemoryCommands

LIVE = Shape("meter", ("u", "n"), ("V", "/"))
ALARM = Shape("door", ("open", "n"), ("/", "/"), Lane.ALARM)
SESSION = b"broker01"
PACKETS = 16
"""What the broker has in flight at most."""


class Plan(NamedTuple):
    """What stays the same for one schedule."""

    sites: int
    """0: one server; 1: two servers, one store; 2: two servers, two stores."""
    endpoints: tuple[str, ...]
    standby: Standby
    ring_size: int | None
    buffer: dict[str, Any]
    real_store: bool = False
    real_sink: bool = False
    synced: bool = True


class Promise(NamedTuple):
    """One row that the buffer took over."""

    at_s: float
    busy_s: float
    """What the disk had done by then."""
    lane: Lane
    unsafe: bool = False
    """The disk failed, and status said so: until the next commit, memory is all there is."""


class Message(NamedTuple):
    """What a broker keeps until it has our acknowledgement and the proof of it."""

    origin: Origin
    rows: tuple[int, ...]


class World:
    """See the module."""

    def __init__(self, taps: Taps, dice: random.Random, plan: Plan, home: Path | None) -> None:
        self.witness = taps.witness
        self.seen = taps.witness.seen
        self.dice = dice
        self.plan = plan
        self.clock = VirtualClock(trust=Trust.SYNCED if plan.synced else Trust.UNSYNCED)
        self.settings = BufferSettings(**plan.buffer, ring_size=plan.ring_size or 0)
        self.weather = Weather(self.seen)
        self._home = home
        self._lives = 0
        self._ring_memory: bytearray | None = None
        self.platter = Platter()
        self.disk_s = 0.001
        sink_home = home if plan.real_sink else None
        stores = [
            Storage(dice, sink_home / f"sink{n}" if sink_home else None) for n in range(2 if plan.sites == 2 else 1)
        ]
        self.stores = stores
        names, clock = plan.endpoints, _UtcClock(self.clock)
        if plan.sites == 0:
            one = Site(dice, stores[0], clock)
            self.sites = dict.fromkeys(names, one)
        else:
            self.sites = {n: Site(dice, stores[i % len(stores)], clock) for i, n in enumerate(names)}
        self.mood = dict.fromkeys(names, "open")
        self.latency_s = dict.fromkeys(names, 0.01)
        self.connections: dict[str, list[Connection]] = {name: [] for name in names}
        self._feed: asyncio.Queue[tuple[list[Row], Message | None, bool]] = asyncio.Queue()
        self._busy = False

        self.last_sink = ""
        """To which everything goes in the end."""
        self.last_offered: dict[str, int] = {}
        """What its session began with."""
        self.number = 0
        self.promised: dict[int, Promise] = {}
        self.settled: set[int] = set()
        self.redelivered: set[int] = set()
        self.oversize: set[int] = set()
        self.long: dict[int, str] = {}
        """Payloads that are not like the others."""
        self.poison: set[int] = set()
        self.messages: dict[int, Message] = {}
        self.may_be_lost: set[int] = set()
        """What the faults so far may have taken, by the rules."""
        self.may_be_twice: set[int] = set()
        self.gaps_may_be_lost: set[tuple[str, int]] = set()
        """Of those that no batch stands behind (oversize): what the faults so far may have taken, by the rules."""
        self.damaged: set[tuple[str, int]] = set()
        """Records of which a bit flipped on disk."""
        self.disk_failed = self.rotten = self.foul = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            put = stack.enter_context
            put(mock.patch.object(session, "open_link", self.open_link))
            put(mock.patch.object(buffer_module, "open_ring", lambda _, size: self._open_ring(size)))
            if not self.plan.real_store:
                make = lambda settings, folder, ring: ModelStore(settings, folder, self.platter, ring)  # noqa: E731
                put(mock.patch.object(buffer_module, "Store", make))
            dice = random.Random(self.dice.random())  # ids are of the seed too
            put(mock.patch.object(secrets, "token_hex", lambda n=16: f"{dice.getrandbits(8 * n):0{2 * n}x}"))
            put(mock.patch.object(secrets, "token_bytes", lambda n=16: dice.getrandbits(8 * n).to_bytes(n, "big")))
            yield

    # ── the way ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_link(self, endpoint: Endpoint, *_: object, **__: object) -> Near:
        name, site = endpoint.label, self.sites[endpoint.label]
        await asyncio.sleep(self.latency_s[name])
        if self.mood[name] == "stalled":
            await asyncio.sleep(endpoint.connect_timeout)
            raise Refused(Reaction(Kind.RETRY, "no connection"))
        if self.mood[name] == "refused" or not site.up:
            raise Refused(Reaction(Kind.RETRY, "cannot connect"))
        connection = Connection(self.dice, self.weather)
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

    def lose_acks(self, name: str) -> None:
        for connection in self.connections[name]:
            connection.lose_acks()

    def slow(self, name: str, latency_s: float) -> None:
        self.latency_s[name] = latency_s
        for connection in self.connections[name]:
            connection.slow(latency_s)

    # ── one process of the gateway ───────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        for site in self.sites.values():
            site.start()
            site.back_up()  # there is always one: what begins from nothing is another sink
        await self._begin()

    @property
    def _folder(self) -> Path:
        return (self._home or Path("/nowhere")) / f"gateway{self._lives}"

    async def _begin(self) -> None:
        self.thread = Thread(self.dice, self.disk_s)
        runtime = None if self.plan.ring_size is None else Path("/run")
        self.buffer = await Buffer.open(self.settings, self._folder, self.clock, runtime, self.thread)
        self.started_s = self.clock.monotonic()
        self._watch_the_store()
        ends = tuple(Endpoint(url="ws://127.0.0.1:1/", name=name) for name in self.plan.endpoints)
        settings = UplinkSettings(endpoint=ends, standby=self.plan.standby)
        self.uplink = Uplink(settings, self.buffer, MemoryCommands(), self.clock, About("test"), self.dice.random)
        self._tasks = [
            asyncio.create_task(self.buffer.run(), name="buffer"),
            asyncio.create_task(self.uplink.run(), name="uplink"),
            asyncio.create_task(self._feeder(), name="feeder"),
        ]
        self.broker_returns()

    def _open_ring(self, size: int) -> tuple[rings.Ring, Sequence[rings.Found]]:
        if self._ring_memory is not None:
            result = rings.recover(self._ring_memory)
            if result is not None and (result[1] or result[0].damaged):
                return result
        self._ring_memory = bytearray(size)
        return rings.create(self._ring_memory), ()

    def _watch_the_store(self) -> None:
        """Whoever is moved on disk has another identity from then on. The real store fails when it is told to, at the
        last moment before the commit."""
        store = self.buffer._committer.store
        whole_move, whole_insert, whole_probe = store.move, store._insert, store.probe

        def move(stream: str, mark: int, target: str, *rest: Any) -> Any:
            before = [each.record for each in store.read(stream, mark + 1, 1 << 30)[0]]
            moving = [old for old in before if old.kind is not RecordKind.END]
            for number, old in enumerate(moving, start=1):  # first: what fails may be found done after a power cut
                new = msgspec.structs.replace(old, stream=target, seq=number, last=0)
                self.witness.note(target, number, Made(new.kind, new.body, new.readings, new.upto))
                self.witness.renumber(old, new)
            done = whole_move(stream, mark, target, *rest)
            self.seen["moved on disk"] += 1
            return done

        def failing(whole: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                whole(*args)
                if self.platter.mood is not Mood.WORKS:
                    raise StoreError("No space left on device")

            return call

        store.move = move  # type: ignore[method-assign]
        if self.plan.real_store:
            store._insert, store.probe = failing(whole_insert), failing(whole_probe)  # type: ignore[method-assign]

    async def crash(self, *, power: bool) -> None:
        """The process dies at once. What it had sent is on its way all the same."""
        self.seen["power cut" if power else "kill"] += 1
        for connections in self.connections.values():
            for connection in connections:
                connection.desert(self.dice.choice([0.0, 1.0, 20.0]))
            connections.clear()
        memory = bytearray(self._ring_memory) if self._ring_memory is not None and not power else None
        self.thread.die()
        if not self.plan.real_store and self.platter.crash(self.dice):
            self.seen["torn commit was there"] += 1
        known = [message for message in self.messages.values() if self.buffer.ledger.seen(message.origin)]
        trouble = self.trouble
        self._note_what_may_be_lost(memory, power)
        torn = self._without_a_number_in_the_ring() & self._on_disk(set()) if trouble else set()
        await self._end()
        self._ring_memory = memory
        await self._begin()
        if not self.buffer._committer.opened:
            self.may_be_twice |= torn  # under a new number from the ring, and under the old one when the disk is back
        # without room in the ring and with a disk that fails or is full there is nowhere to remember what was acked
        no_room = self.disk_failed or self.settings.max_size < 1 << 20
        nowhere = no_room and (self.plan.ring_size is None or self.seen["ring full"])
        for message in known:
            unknown = not self.buffer.ledger.seen(message.origin)
            if unknown and (power or trouble or nowhere or self.rotten) and not self.buffer.ledger.whole(SESSION):
                self.may_be_twice.update(message.rows)  # the connector marks what comes again
                self.seen["redelivery of what the power cut took"] += power

    @property
    def trouble(self) -> bool:
        """The disk does not take what it should, and status says so."""
        return self.platter.mood is not Mood.WORKS or self.platter.broken or bool(self.buffer._committer.problem)

    async def drain(self) -> None:
        """SIGTERM, and a new start."""
        self.seen["drain"] += 1
        self._tasks[2].cancel()
        await asyncio.gather(self._tasks[2], return_exceptions=True)
        await self.buffer.drain()
        await self.crash(power=False)

    async def _end(self) -> None:
        for batch in self.buffer._open._lanes.values():
            if batch.timer is not None:
                batch.timer.cancel()
        self.buffer._give_away = _nothing  # type: ignore[method-assign]
        for task in (*self._tasks, *self.buffer._moves):
            task.cancel()
        await asyncio.gather(*self.buffer._moves, return_exceptions=True)
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
        self._feed, self._busy = asyncio.Queue(), False
        old = self._folder
        self._lives += 1
        if self.plan.real_store:
            self._folder.mkdir(parents=True)
            for name in ("buffer.db", "buffer.db-wal"):
                if (old / name).exists():
                    shutil.copy(old / name, self._folder / name)
            self.buffer._committer.store.close()

    async def stop(self) -> None:
        self.thread.die()
        await self._end()
        self.seen["row repaired"] += self.platter.repaired
        for site in self.sites.values():
            await site.crash()

    # ── what a fault may take ────────────────────────────────────────────────────────────────────────────────────

    def _note_what_may_be_lost(self, ring: bytearray | None, power: bool) -> None:
        """Only what the buffer itself holds for neither stored nor acked, and is neither on disk nor in the ring; and
        of that only what is young enough, or what a failing disk did not take."""
        volatile = self._volatile()
        given_up = self.witness.distrusted.keys() - self._told(ring)
        risky = volatile.keys() - self._on_disk(given_up) if volatile else set()
        if risky and ring is not None:
            risky -= self._in_ring(ring)
        if risky and power and self.promised.keys() & risky:
            self.seen["power cut took something"] += 1
        now, trouble = self.clock.monotonic(), self.trouble
        for number in risky:
            promise = self.promised.get(number)
            excused = trouble or (volatile[number] and power) or number in self.redelivered
            if promise is not None and not (excused or promise.unsafe):
                self._check_age(number, promise, now, power)
            self.may_be_lost.add(number)
        if trouble:
            self.may_be_twice |= self._sent_and_unsafe() | self._sent_in_part(ring)
        self._note_gaps(ring, power)
        self.may_be_lost |= self._taken_for_a_copy(ring, power)

    def _check_age(self, number: int, promise: Promise, now: float, power: bool) -> None:
        violations = self.witness.violations
        if not power:
            violations.append(f"{number} was promised and dies with the process")
        elif number in self.settled:
            violations.append(f"{number} was settled and dies with the power")
        else:
            earlier = promise.at_s < self.started_s
            waits_s = 0.0 if earlier or promise.lane is Lane.ALARM else self.settings.commit_after
            busy_s = self.thread.busy_s(now) - (0.0 if earlier else promise.busy_s)
            age_s = now - max(promise.at_s, self.started_s)
            if age_s > waits_s + busy_s + 0.01:
                violations.append(f"{number} dies with the power {age_s:.3f} s after it was promised")

    def _volatile(self) -> dict[int, bool]:
        """Row → is it the loss of it that was told, in a gap that is not on disk?"""
        found = {int(str(row.values[1])): False for batch in self.buffer._open._lanes.values() for row in batch.rows}
        for stream in self.buffer._shelf.streams.values():
            for held in stream.fresh.values():
                old = held.record.kind is RecordKind.GAP
                found |= {n: old for n in self._named_by(held.record) if not (old and n in found)}
        return found

    def _note_gaps(self, ring: bytearray | None, power: bool) -> None:
        """As for rows."""
        held_by_ring = {(each.record.stream, each.record.seq) for each in self._flown(ring)}
        now = self.clock.monotonic()
        for stream in self.buffer._shelf.streams.values():
            on_disk = self.platter.streams.get(stream.name)
            for seq, held in stream.fresh.items():
                gap = gap_body(held.record.body) if held.record.kind is RecordKind.GAP else None
                if gap is None or gap.reason is not GapReason.OVERSIZE or (stream.name, seq) in held_by_ring:
                    continue
                if on_disk is not None and seq in on_disk.rows:
                    continue
                waits_s = 0.0 if held.record.lane is Lane.ALARM else self.settings.commit_after
                late = now - max(held.born_s, self.started_s) > waits_s + self.thread.busy_s(now) + 0.01
                if self.trouble or (power and not late):
                    self.gaps_may_be_lost.add((stream.name, seq))

    def _named_by(self, record: Record) -> list[int]:
        """The rows that go where this record goes: for a gap, those whose loss it reports."""
        if record.kind is RecordKind.BATCH:
            return numbers(record.body)
        return [
            n for _, _, made in self.witness.named(record.stream, record.seq, record.upto) for n in numbers(made.body)
        ]

    def _on_disk(self, given_up: Set[str]) -> set[int]:
        """But for what a sync that failed left of streams that nobody sends any more."""
        found: set[int] = set()
        for name, each in self.platter.streams.items():
            for row in each.rows.values() if name not in given_up else ():
                try:
                    found.update(self._named_by(from_row(name, each.lane, row).record))
                except DecodeError:
                    continue
        return found

    def _in_ring(self, memory: bytearray) -> set[int]:
        """What the next process will find there."""
        found = {n for each in self._flown(memory) for n in self._named_by(each.record)}
        recovered = self._recovered(memory)
        loose = recovered.loose if recovered is not None else ()
        return found | {int(str(row.values[1])) for each in loose for row in each.rows}

    def _recovered(self, memory: bytearray | None) -> Recovered | None:
        result = rings.recover(bytearray(memory)) if memory is not None else None
        return sort_out(result[1], {}) if result is not None else None

    def _flown(self, memory: bytearray | None) -> list[Flown]:
        recovered = self._recovered(memory)
        return [each for _, flown in recovered.records for each in flown] if recovered is not None else []

    def _told(self, memory: bytearray | None) -> set[str]:
        """Streams of which the next process will know that they are distrusted."""
        recovered = self._recovered(memory)
        return {name for _, name, _ in recovered.distrusted} if recovered is not None else set()

    def _taken_for_a_copy(self, memory: bytearray | None, power: bool) -> set[int]:
        """A copy of this process, alive beside it, has used its identities: where the ring cannot tell the next, and
        there was no time to give others to what is un-acked, that takes the mark for an ack."""
        witness, now, found = self.witness, self.clock.monotonic(), set()
        for name in self.buffer._shelf.distrusted.keys() - self._told(memory):
            stream, mark = self.buffer._shelf.streams.get(name), self.buffer._shelf.distrusted[name]
            if not (stream.waiting if stream is not None else not self.buffer._committer.opened):
                continue  # given away, as far as the disk can be read
            self.seen["a copy's stream could not be given away in time"] += 1
            late = now - max(witness.distrusted[name], self.started_s) > self.thread.busy_s(now) + 0.01
            known = power or self.plan.ring_size is None or name in witness.no_room
            if not known or (late and not self.disk_failed and not self.platter.broken):
                witness.violations.append(f"{name} was not given away in time")
            numbered = witness.made.get(name, {})
            found |= {n for seq in numbered if seq > mark for n in self._rows_of(name, seq)}
        return found

    def _sent_and_unsafe(self) -> set[int]:
        """The disk fails and the ring is full: these may be sent all the same, and a crash takes their identity."""
        return {
            number
            for stream in self.buffer._shelf.streams.values()
            for held in stream.fresh.values()
            if held.flight is None and held.record.kind is RecordKind.BATCH and held.record.seq <= stream.sent
            for number in numbers(held.record.body)
        }

    def _without_a_number_in_the_ring(self) -> set[int]:
        """Rows of records for which the ring has no room; it has the rows."""
        return {
            number
            for stream in self.buffer._shelf.streams.values()
            for held in stream.fresh.values()
            if held.grounded and held.record.kind is RecordKind.BATCH
            for number in numbers(held.record.body)
        }

    def _sent_in_part(self, ring: bytearray | None) -> set[int]:
        """Of a batch that was split, what is acked, while all of its rows stay in the ring for the rest: the disk
        fails, and the ring has no room for the records."""
        fresh = [held for stream in self.buffer._shelf.streams.values() for held in stream.fresh.values()]
        behind = {entry.number for held in fresh for entry in held.grounded}
        recovered = self._recovered(ring) if behind else None
        loose = recovered.loose if recovered is not None else ()
        rows = {int(str(row.values[1])) for each in loose if each.entry.number in behind for row in each.rows}
        return rows - {n for held in fresh if held.record.kind is RecordKind.BATCH for n in numbers(held.record.body)}

    # ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────

    def put(
        self, count: int, *, alarm: bool = False, settles: bool = False, text: str = "", poison: bool = False
    ) -> None:
        rows = []
        for _ in range(count):
            self.number += 1
            at_ms = FOREVER_MS if poison else self.number
            if text:
                self.long[self.number] = text
            rows.append(Row(ALARM if alarm else LIVE, at_ms, (self.payload(self.number), self.number)))
        if len(text) > MAX_BATCH_BYTES:
            self.oversize.update(range(self.number - count + 1, self.number + 1))
        if poison:
            self.poison.update(range(self.number - count + 1, self.number + 1))
        self._feed.put_nowait((rows, None, settles))

    def payload(self, number: int) -> str:
        return self.long.get(number) or f"p{number}" * (1 + number % 7)

    def publish(self, count: int) -> None:
        """One message of a broker: it is kept there until it is settled, and the proof of that has come."""
        free = [packet_id for packet_id in range(1, PACKETS + 1) if packet_id not in self.messages]
        if free:
            first, self.number = self.number + 1, self.number + count
            origin = Origin(SESSION, free[0], first.to_bytes(16, "big"))
            message = self.messages[free[0]] = Message(origin, tuple(range(first, self.number + 1)))
            self._hand_over(message)

    def _hand_over(self, message: Message) -> None:
        rows = [Row(LIVE, number, (self.payload(number), number), origin=message.origin) for number in message.rows]
        self._feed.put_nowait((rows, message, True))

    def broker_returns(self) -> None:
        """A new connection: what the broker still holds comes again, marked as such."""
        for message in self.messages.values():
            if not self.buffer.ledger.seen(message.origin):
                if not any(each is message for _, each, _ in self._feed._queue):  # type: ignore[attr-defined]
                    self.redelivered.update(message.rows)
                    self._hand_over(message)
                continue
            self.seen["redelivery recognised"] += 1
            if self.buffer.ledger.settled(message.origin):
                self.seen["redelivery settled"] += 1
                self._settled(message.rows)

    def _settled(self, rows: Sequence[int]) -> None:
        self.settled.update(rows)
        for number in rows:
            self.promised.setdefault(number, Promise(self.clock.monotonic(), 0.0, Lane.LIVE))

    def forget_settled(self) -> None:
        """A PINGRESP came: the broker cannot send these again."""
        ledger = self.buffer.ledger
        gone = [packet_id for packet_id, message in self.messages.items() if self.settled.issuperset(message.rows)]
        proved = [self.messages.pop(packet_id).origin for packet_id in gone]
        if ledger.whole(SESSION):
            ledger.forget(proved)
        else:
            ledger.keep_only(SESSION, [message.origin for message in self.messages.values()])

    async def _feeder(self) -> None:
        while True:
            rows, message, settles = await self._feed.get()
            if message is not None and self.buffer.ledger.seen(message.origin):
                continue
            self._busy = True
            those = [int(str(row.values[1])) for row in rows]

            def settled(those: Sequence[int] = those) -> None:
                self._settled(those)

            await self.buffer.append(rows, settled if settles else None)
            self._busy = False
            if message is None:
                now = self.clock.monotonic()
                promise = Promise(now, self.thread.busy_s(now), rows[0].shape.lane, self.trouble)
                self.promised.update((number, promise) for number in those)

    @property
    def handed_over(self) -> bool:
        """Nothing waits before the buffer."""
        return self._feed.empty() and not self._busy and not self.messages

    # ── other faults ─────────────────────────────────────────────────────────────────────────────────────────────

    def disk(self, mood: Mood) -> None:
        self.platter.mood = mood
        self.disk_failed |= mood is not Mood.WORKS

    def disk_slow(self, latency_s: float) -> None:
        self.disk_s = self.thread.latency_s = latency_s

    def rot(self) -> None:
        if not self.plan.real_store:
            hit = self.platter.rot(self.dice)
            if hit is not None:
                self.rotten = True
                self.damaged.add(hit)

    def damage(self) -> None:
        if not self.plan.real_store:
            self.platter.broken = self.rotten = True

    async def restore(self, site: Site) -> None:
        """The server comes back with an older state of its store."""
        await self._crash_all_of(site.storage)
        if site.storage.restore():
            self.seen["backup took something"] += 1

    async def _crash_all_of(self, storage: Storage) -> None:
        for each in {id(s): s for s in self.sites.values() if s.storage is storage}.values():
            await each.crash()

    async def clone(self, dies: str | None) -> None:
        """Another copy of this process wrote to the sink, under identities that this one has not used yet; and this one
        may die as soon as it knows."""
        if len(self.stores) > 1 or self.stores[0].folder is not None:
            return
        if len(self.buffer.holds()) > 30:
            return  # by its welcome a sink tells of it; a stream that ends now may wait behind all that are offered
        [storage] = self.stores
        await self._crash_all_of(storage)
        stream = self.buffer._shelf.current[Lane.LIVE].name
        sent = self.uplink._manifest._sent.get(stream)
        if not sent:
            return
        mark = storage.mark(stream)
        unacked = range(self.witness.acked.get(stream, 0) + 1, mark + 1)
        self.may_be_twice.update(n for seq in unacked for n in self._rows_of(stream, seq))
        records = storage.streams.setdefault(stream, [])
        records.append(Stored(mark + 1, max(mark, sent) + 2, None, b"", None, ""))
        self.witness.found_out.clear()
        for name, site in self.sites.items():
            self.path(name, "open")
            site.start()
            storage.failing = False
        try:
            async with asyncio.timeout(400):
                await self.witness.found_out.wait()
        except TimeoutError:
            return  # nothing of the stream is held any more, so nobody offers it
        if dies is not None:
            await asyncio.sleep(self.dice.uniform(0, 3 * self.disk_s))
            await self.crash(power=dies == "power")

    def _rows_of(self, stream: str, seq: int) -> list[int]:
        made = self.witness.made.get(stream, {}).get(seq)
        return numbers(made.body) if made is not None and made.kind is RecordKind.BATCH else []

    def step_clock(self, by_ms: int) -> None:
        self.seen["clock step"] += 1
        self.clock.utc_offset_ms += by_ms
        self.buffer.clock(self.clock.state(), record=True)

    def synchronise(self) -> None:
        if self.clock.trust is not Trust.SYNCED:
            self.seen["clock synchronised"] += 1
            self.clock.trust = Trust.SYNCED
            self.clock.utc_offset_ms += 1_000
            self.buffer.clock(self.clock.state(), record=True)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def make_peace(self) -> None:
        """Everything works from now on."""
        self.disk(Mood.WORKS)
        self.disk_slow(0.001)
        self.weather.set(0, 0, 0)
        for store in self.stores:
            store.failing = False
        for site in self.sites.values():
            site.slow(0.002)
            site.start()
            site.flow(32)
        for name in self.plan.endpoints:
            self.path(name, "open")
            self.slow(name, 0.01)
            if self.foul:  # a window that was dropped is never said again, and TCP never drops one
                self.sites[name].cut()

    async def settle(self, within_s: float) -> None:
        """Returns when all is delivered; not later than that."""
        deadline, calm, wait_s = self.clock.monotonic() + within_s, 0, 0.05
        while calm < 2:
            self._nobody_fell()
            if self.clock.monotonic() > deadline:
                waits = (self._feed.qsize(), self._busy, self.messages)
                raise AssertionError(f"no rest: {waits}, {self.buffer.stats()}, {self.uplink.status()}")
            await asyncio.sleep(wait_s)
            wait_s = min(2.0, wait_s * 2)
            for message in self.messages.values():
                if self.buffer.ledger.settled(message.origin):
                    self._settled(message.rows)
            self.forget_settled()
            calm = calm + 1 if self.handed_over and self._all_acked() else 0
        for site in self.sites.values():
            site.compare()
        assert self.uplink._active is not None
        session = self.uplink._active.session
        self.last_sink, self.last_offered = session.sink, self.witness.offered[session]

    def _nobody_fell(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
        for site in self.sites.values():
            site.alive()

    def _all_acked(self) -> bool:
        active = self.uplink._active
        if active is None or self.buffer.waiting()[0] or self.buffer._committer.problem or not active.session.active:
            return False
        return not active.session.in_flight[0] and active.session.want() is None


async def _nothing(_: str) -> None:
    """The dead try nothing again."""


class _UtcClock:
    def __init__(self, clock: Any) -> None:
        self.monotonic = clock.monotonic
        self.utc_ms = lambda: int(clock.monotonic() * 1000) + 1_750_000_000_000
