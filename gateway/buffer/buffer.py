"""The buffer: takes rows, hands out numbered records, and loses nothing on the way without saying so.

    append ──▶ open batch ──close──▶ fresh record ──ack──────▶ kept for a while
               (ROWS in the ring)    (RECORDS in the ring) ──commit_after──▶ row on disk ──ack──▶ trimmed

What holds at every instant:
- A row whose `append` returned is in the ring, in the store, acked, or reported by a gap; while there is no ring,
  `append` returns only after the commit.
- A record is handed out only when a crash of this process cannot take its identity: it is in the ring or on disk
  (or there is neither, which status says).
- An identity (stream, seq) never gets a second body. This process adds only to streams that it opened itself.
- Disk trouble is a state, not an error: records stay in memory up to `memory_limit`, the disk is tried again.

Everything but the store runs on the event loop; the store has one thread, and one transaction is under way at a time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from gateway.buffer import batching
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.database import CorruptError
from gateway.buffer.entries import (
    NO_ROWS,
    ORIGINS,
    RECORDS,
    ROWS,
    Covers,
    Flown,
    encode_origins,
    encode_records,
    encode_rows,
)
from gateway.buffer.gaps import Run, gap_body
from gateway.buffer.ledger import Home, OriginLedger
from gateway.buffer.recovery import Recovered, sort_out
from gateway.buffer.ring import Entry, Ring, open_ring
from gateway.buffer.schema import Loss, Stored
from gateway.buffer.store import Done, Expiry, Opened, Store, Work
from gateway.buffer.streams import Flight, Held, Kept, Settling, Stream, evictable
from gateway.clock import Clock
from gateway.errors import StoreError
from gateway.model import ClockState, GapReason, Json, Lane, Record, RecordKind, Row, Trust
from gateway.protocol.messages import GapBody, StreamOffer

log = logging.getLogger(__name__)

OFFLINE_GROUP_BYTES: Final = 64 * 1024
HURRY_S: Final = 0.05
"""Offline, a source that waits for its acknowledgement waits this long: brokers drop what they cannot deliver."""
TRIM_S: Final = 10.0
EXPIRE_S: Final = 60.0
RETRY_S: Final = (1.0, 60.0)
SEALED_OFFERED: Final = 32
SHED_SHARE: Final = 16
"""Memory is full and the disk does not take it: give up 1/16 at once."""

P = ParamSpec("P")
R = TypeVar("R")


class OpenBatch:
    """Rows of one lane that are in no record yet."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.entries: list[Entry] = []
        self.origins: list[Any] = []
        self.settlings: list[Settling] = []
        self.cost_bytes = 0
        self.readings = 0
        self.since_s = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Buffer:
    """Fits `uplink.ports.Outbox`; `ledger` fits `connectors.base.Ledger`.

    `open` → `run` in a task until cancelled → `drain` → `release`. All methods on the event loop.
    """

    def __init__(self, settings: BufferSettings, clock: Clock, executor: Executor) -> None:
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._store = Store(settings)
        self._store_open = False
        self._ring: Ring | None = None
        self._ring_problem = ""
        self._store_problem = ""
        self._retry_s = RETRY_S[0]
        self._retry_at: float | None = None
        self._clock_state = clock.state()
        self._age_offset_ms: int | None = None
        self._opened_s = clock.monotonic()
        self._streams: dict[str, Stream] = {}  # oldest first
        self._ours: set[str] = set()
        """Streams that this process opened."""
        self._current = {lane: self._new_stream(lane) for lane in Lane}
        self._covered: dict[Lane, int] = {}
        self._open: dict[Lane, OpenBatch] = {lane: OpenBatch() for lane in Lane}
        self._kept = Kept(settings.keep_acked)
        self.ledger = OriginLedger(self._homeless)
        self._online = False
        self._memory_bytes = 0
        self._urgent = False
        self._trim_at: float | None = None
        self._expire_at = clock.monotonic() + EXPIRE_S
        self._started = self._finished = 0  # commits
        self._close_all = False
        self._kick = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self._wake: Callable[[], None] = _nobody
        self._lost: Counter[GapReason] = Counter()
        self._lost_unknown: Counter[GapReason] = Counter()
        self._lost_said: set[GapReason] = set()
        self._accepted_rows = 0

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def open(
        cls, settings: BufferSettings, clock: Clock, runtime: Path | None, executor: Executor | None = None
    ) -> Buffer:
        """Recovers what earlier processes left. Never fails because of it.

        Args:
            runtime: directory of the flight ring, on tmpfs; None: there is none.
            executor: where the store works; one thread at most.
        """
        buffer = cls(settings, clock, executor or ThreadPoolExecutor(1, "buffer-store"))
        found: Sequence[Any] = ()
        if runtime is None:
            buffer._ring_problem = "no runtime directory"
        else:
            try:
                buffer._ring, found = open_ring(runtime / "flight.ring", settings.ring_size)
            except StoreError as error:
                buffer._ring_problem = str(error)
        if buffer._ring_problem:
            log.warning(
                "%s: what is not on disk dies with this process, so everything is committed at once",
                buffer._ring_problem,
            )
        try:
            buffer._adopt(await buffer._in_store(buffer._store.open))
        except StoreError as error:
            buffer._failed(error)
        buffer._recover(sort_out(found, buffer._covered))
        return buffer

    async def run(self) -> None:
        """Commits what is due, for ever."""
        while True:
            due_at = self._due_at()
            now = self._clock.monotonic()
            if due_at is not None and due_at <= now:
                await self._commit()
                continue
            self._kick.clear()
            timer = self._loop.call_later(due_at - now, self._kick.set) if due_at is not None else None
            try:
                await self._kick.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def drain(self) -> None:
        """Ends the open streams and commits everything; what is appended later goes to new streams."""
        for lane in Lane:
            self.seal(lane)
        self._urgent = True
        self._retry_at = None
        await self._commit()

    async def release(self) -> None:
        """Lets go of the files. What is not committed stays in the ring."""
        for batch in self._open.values():
            if batch.timer is not None:
                batch.timer.cancel()
        await self._in_store(self._store.close)
        if self._ring is not None:
            self._ring.close()
        if isinstance(self._executor, ThreadPoolExecutor):
            self._executor.shutdown(wait=False)

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, rows: Sequence[Row], settled: Callable[[], None] | None = None) -> None:
        """Takes rows over; when this returns they survive the death of this process.

        `settled` is called once, when all of them are committed or acked. Waits when memory is full, and without a
        ring for the commit. Cancelling before it returns may or may not have handed over the rows.
        """
        if not rows:
            if settled is not None:
                settled()
            return
        while self._memory_bytes >= self._settings.memory_limit and not self._shed(settled is not None):
            self._hurry()
            await self._change()
        settling = Settling(settled) if settled is not None else None
        safe = True
        for portion in batching.portions(rows):
            safe &= self._place(portion, settling, None)
        if settling is not None:
            settling.done()
        self._accepted_rows += len(rows)
        if not safe:
            await self._next_commit()

    def _place(self, portion: batching.Portion, settling: Settling | None, entry: Entry | None) -> bool:
        """Puts rows into the open batch of their lane. False: a crash would take them as yet."""
        lane = portion.lane
        batch = self._open[lane]
        if batch.rows and not batching.fits(batch.cost_bytes, batch.readings, portion):
            self.close(lane)
            batch = self._open[lane]
        safe = True
        if portion.origins:
            for origin in portion.origins:
                self.ledger.accept(origin)
            batch.origins += portion.origins
        if entry is None and self._needs_ring(portion):
            entry = self._ring.put(ROWS, encode_rows(lane, portion.rows)) if self._ring is not None else None
            safe = entry is not None
        if entry is not None:
            batch.entries.append(entry)
        if settling is not None:
            settling.left += 1
            batch.settlings.append(settling)
        first = not batch.rows
        batch.rows += portion.rows
        batch.cost_bytes += portion.cost_bytes
        batch.readings += portion.readings
        self._memory_bytes += portion.cost_bytes
        if first:
            self._batch_begins(lane, batch)
        elif settling is not None and len(batch.settlings) == 1 and not self._online:
            self._kick.set()
        if not self._online and self._memory_bytes >= OFFLINE_GROUP_BYTES:
            self._kick.set()
        return safe

    def _needs_ring(self, portion: batching.Portion) -> bool:
        """Rows with an origin are still with their source until they are settled."""
        return not portion.origins or any(row.origin is None for row in portion.rows)

    def _batch_begins(self, lane: Lane, batch: OpenBatch) -> None:
        batch.since_s = self._clock.monotonic()
        linger_s = 0.0 if lane is Lane.ALARM else self._settings.linger if self._online else None
        if linger_s is not None:
            batch.timer = self._loop.call_later(linger_s, self.close, lane)
        else:
            self._kick.set()  # offline, the commit closes it
        self._wake()

    def close(self, lane: Lane) -> bool:
        """Encodes the rows of the open batch into a record (or several, if they are too large). False: none."""
        batch = self._open[lane]
        if not batch.rows:
            return False
        self._open[lane] = OpenBatch()
        if batch.timer is not None:
            batch.timer.cancel()
        self._memory_bytes -= batch.cost_bytes
        encoded = batching.encode(batch.rows, self._clock_state)
        self._add(self._current[lane], encoded, batch)
        if lane is Lane.ALARM:
            self._hurry()
        return True

    def _add(self, stream: Stream, encoded: Sequence[batching.Encoded], batch: OpenBatch | None = None) -> list[Held]:
        """Numbers records and makes them fresh; those of one batch enter the ring together."""
        at_ms = self._boot_ms()
        utc_ms = batching.utc(at_ms, self._clock_state)
        now = self._clock.monotonic()
        origins = tuple(batch.origins) if batch is not None else ()
        settlings = tuple(batch.settlings) if batch is not None else ()
        helds = []
        for i, (kind, body, readings) in enumerate(encoded):
            last = i == len(encoded) - 1
            # a message that had to be split is known by its last part: a power cut may repeat it, never lose it
            record = Record(stream.name, stream.lane, stream.next, kind, body, readings, 0, origins if last else ())
            held = Held(record, at_ms, utc_ms, now)
            held.settlings = settlings
            stream.insert(held)
            helds.append(held)
            if kind is RecordKind.GAP:
                self._count(_loss(body))
        for settling in settlings:
            settling.left += len(helds) - 1
        entries = batch.entries if batch is not None else []
        self._fly(helds, Covers(entries[0].number, entries[-1].number) if entries else NO_ROWS)
        if helds[0].flight is not None:
            self._free(entries)
        else:
            helds[-1].grounded = entries
        if origins:
            helds[-1].home = home = Home()
            self.ledger.house(origins, home)
        self._memory_bytes += sum(held.bytes for held in helds)
        self._kick.set()
        self._wake()
        return helds

    def _fly(self, helds: Sequence[Held], covers: Covers = NO_ROWS) -> None:
        if self._ring is not None:
            flown = [Flown(held.record, held.at_ms) for held in helds]
            entry = self._ring.put(RECORDS, encode_records(flown, covers))
            if entry is not None:
                flight = Flight(entry, len(helds))
                for held in helds:
                    held.flight = flight

    def _free(self, entries: Iterable[Entry]) -> None:
        if self._ring is not None:
            for entry in entries:
                self._ring.free(entry)

    def _leave(self, held: Held, *, committed: bool) -> None:
        """A record is no longer fresh: its origins get their next home, then the ring gets its space back."""
        record, home = held.record, held.home
        self._memory_bytes -= held.bytes
        self.ledger.settle(record.origins)
        if home is not None and home.left:
            if committed:
                home.row = (record.stream, record.seq)
                self._streams[record.stream].pins[record.seq] = home
            elif self._ring is not None:
                home.entry = self._ring.put(ORIGINS, encode_origins(self.ledger.known(record.origins)))
        self._land(held)
        settlings, held.settlings = held.settlings, ()
        for settling in settlings:
            settling.done()

    def _land(self, held: Held) -> None:
        flight, held.flight = held.flight, None
        if flight is not None:
            flight.left -= 1
            if flight.left == 0:
                self._free((flight.entry,))
        self._free(held.grounded)

    def _homeless(self, home: Home) -> None:
        """The source will not send these messages again: nothing needs to remember them."""
        if home.entry is not None:
            self._free((home.entry,))
        if home.row is not None:
            stream = self._streams.get(home.row[0])
            if stream is not None and stream.pins.get(home.row[1]) is home:
                del stream.pins[home.row[1]]
                self._trim_later(stream)
        home.entry = home.row = None

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def offers(self) -> tuple[StreamOffer, ...]:
        self._sweep()
        sealed = [stream for stream in self._streams.values() if stream.sealed and stream.waiting]
        sealed.sort(key=lambda stream: stream.lane is Lane.LIVE)  # stable: by age within a lane
        return tuple(stream.offer() for stream in (*(self._current[lane] for lane in Lane), *sealed[:SEALED_OFFERED]))

    def waiting(self) -> tuple[int, float]:
        count, age_s = 0, 0.0
        now, boot_ms = self._clock.monotonic(), self._boot_ms()
        for stream in self._streams.values():
            count += stream.waiting
            if stream.fresh:
                age_s = max(age_s, now - next(iter(stream.fresh.values())).born_s)
            if stream.waiting_on_disk and stream.disk is not None:
                same_boot = stream.boot == self._clock_state.boot
                age_s = max(age_s, (boot_ms - stream.disk.first_at_ms) / 1000 if same_boot else now - self._opened_s)
        return count, age_s

    async def fetch(self, stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
        found = self._streams.get(stream)
        if found is None:
            return ()
        # memory first: what is committed while the disk is read is then in one of the two, or in both
        memory: dict[int, Record] = {n: record for n, record in found.kept.items() if record.upto >= seq}
        end = found.next
        for n, held in found.fresh.items():
            if held.flight is None and not self._store_problem:
                end = n  # not before it is committed: a crash would take its identity
                break
            if held.record.upto >= seq:
                memory[n] = held.record
        complete = True
        disk = found.disk
        if disk is not None and disk.last >= seq and self._store_open:
            stored = await self._read(stream, seq, max_bytes)
            complete = bool(stored) and stored[-1].record.upto >= disk.last
            if stored and not complete:
                end = min(end, stored[-1].record.upto + 1)
            for each in stored:
                memory.setdefault(each.record.seq, each.record)
        result: list[Record] = []
        size = 0
        for n in sorted(memory):
            if n >= end or size >= max_bytes:
                break
            result.append(memory[n])
            size += len(memory[n].body)
        if result:
            found.sent = max(found.sent, result[-1].upto)
        return result

    async def _read(self, stream: str, seq: int, max_bytes: int) -> Sequence[Stored]:
        try:
            stored = await self._in_store(self._store.read, stream, seq, max_bytes)
        except CorruptError:
            await self._rescue()
            raise
        for loss in self._store.take_losses():
            self._count(loss)
        return stored

    def hold(self, stream: str, upto: int) -> None:
        found = self._streams.get(stream)
        if found is not None:
            found.held = upto

    def ack(self, sink: str, stream: str, seq: int) -> None:
        found = self._streams.get(stream)
        if found is None:
            return
        if not found.sealed:
            seq = min(seq, found.next - 1)
        found.marks[sink] = max(found.marks.get(sink, 0), seq)
        found.mark = max(found.mark, seq)
        acked = []
        for held in found.fresh.values():
            if held.record.upto > seq:
                break
            acked.append(held)
        for held in acked:
            del found.fresh[held.record.seq]
            self._kept.add(found, held.record)
            self._leave(held, committed=False)
        self._trim_later(found)
        self._changed()

    def _trim_later(self, stream: Stream) -> None:
        if stream.trimmable and self._trim_at is None:
            self._trim_at = self._clock.monotonic() + TRIM_S
            self._kick.set()

    async def fill(self, sink: str, stream: str, first: int, last: int) -> None:
        found = self._streams.get(stream)
        if found is None or first > last:
            return
        elsewhere = max((mark for other, mark in found.marks.items() if other != sink), default=0)
        middle = min(last, max(elsewhere, first - 1))
        for low, high, reason in (
            (first, middle, GapReason.STORED_ELSEWHERE),
            (middle + 1, last, GapReason.UNSENT),
        ):
            if low <= high:
                body = GapBody(reason, 0 if reason is GapReason.STORED_ELSEWHERE else None)
                self._insert_gap(found, low, high, body)
                if reason is GapReason.UNSENT:
                    self._count(Loss(reason, None))

    def _insert_gap(self, stream: Stream, first: int, last: int, body: GapBody) -> None:
        record = Record(stream.name, stream.lane, first, RecordKind.GAP, msgspec.json.encode(body), 0, last)
        born_s = min([self._clock.monotonic(), *(held.born_s for held in stream.fresh.values())])
        held = Held(record, self._boot_ms(), None, born_s)
        self._fly([held])
        stream.insert(held)
        self._memory_bytes += held.bytes
        self._kick.set()
        self._wake()

    def seal(self, lane: Lane) -> None:
        self.close(lane)
        stream = self._current[lane]
        if stream.next == 1:
            return
        self._add(stream, [batching.Encoded(RecordKind.END, b"", 0)])
        stream.sealed = True
        self._current[lane] = self._new_stream(lane)
        self._wake()

    async def distrust(self, stream: str) -> None:
        found = self._streams.get(stream)
        if found is None or found.boot != self._clock_state.boot:
            return
        log.warning(
            "stream %s: the sink knows more of it than was ever sent, so this machine is a restored copy; "
            "what is un-acked moves to a new stream",
            stream,
        )
        if not found.sealed:
            self.close(found.lane)
            self._current[found.lane] = self._new_stream(found.lane)
            found.sealed = True
        self._urgent = True
        await self._commit()  # then all of it is on disk, unless the disk fails
        target = self._new_stream(found.lane)
        target.sealed = True
        if found.waiting_on_disk:
            disks = await self._in_store(self._store.move, stream, found.mark, target.name, self._clock_state.boot)
            for name, disk in disks.items():
                self._streams[name].set_disk(disk)
        for held in list(found.fresh.values()):
            del found.fresh[held.record.seq]
            moved = msgspec.structs.replace(held.record, stream=target.name, seq=target.next, last=0)
            again = Held(moved, held.at_ms, held.utc_ms, held.born_s)
            again.settlings, again.home, held.settlings = held.settlings, held.home, ()
            self._fly([again])
            self._land(held)
            target.insert(again)
        self._kick.set()
        self._wake()

    def online(self, up: bool) -> None:
        if up is self._online:
            return
        self._online = up
        for lane, batch in self._open.items():
            if up and batch.rows and batch.timer is None:
                batch.timer = self._loop.call_later(self._settings.linger, self.close, lane)
        self._kick.set()

    def listen(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    # ── clock, status ────────────────────────────────────────────────────────────────────────────────────────────────

    def clock(self, state: ClockState, *, record: bool = False) -> None:
        """What is known of UTC from now on. With `record`, the open streams say so: it became trusted, or was wrong."""
        if record:
            for lane in Lane:
                self.close(lane)
        self._clock_state = state
        if state.trust is not Trust.UNSYNCED:
            # the earliest UTC that was ever believed: a step expires nothing
            known = self._age_offset_ms
            self._age_offset_ms = state.offset_ms if known is None else min(known, state.offset_ms)
        if record:
            for stream in self._current.values():
                if stream.next > 1 or stream.lane is Lane.LIVE:
                    self._add(stream, [batching.Encoded(RecordKind.CLOCK, msgspec.json.encode(state), 0)])
            self._hurry()

    def stats(self) -> dict[str, Json]:
        """For status; cheap."""
        records, age_s = self.waiting()
        problems = [each for each in (self._ring_problem, self._store_problem) if each]
        return {
            "mode": "degraded" if problems else "healthy",
            "problems": problems,
            "records": records,
            "oldest_age_s": round(age_s, 3),
            "memory_bytes": self._memory_bytes,
            "kept_bytes": self._kept.bytes,
            "disk_bytes": self._store.used_bytes,
            "ring_bytes": self._ring.used_bytes if self._ring is not None else 0,
            "streams": len(self._streams),
            "rows_accepted": self._accepted_rows,
            "origins": len(self.ledger),
            "sources_waiting": len(self._waiters),
            "readings_lost": {reason.value: count for reason, count in self._lost.items()},
            "gaps_of_unknown_size": {reason.value: count for reason, count in self._lost_unknown.items()},
            "commits": self._store.commits,
            "fsyncs": self._store.fsyncs,
            "committed_bytes": self._store.committed_bytes,
        }

    def _count(self, loss: Loss) -> None:
        if loss.readings is None:
            self._lost_unknown[loss.reason] += 1
        else:
            self._lost[loss.reason] += loss.readings
        if loss.reason not in self._lost_said:
            self._lost_said.add(loss.reason)
            log.warning("readings are being given up: %s; further ones are counted in status", loss.reason.value)

    # ── commit ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hurry(self) -> None:
        self._urgent = True
        self._kick.set()

    def _due_at(self) -> float | None:
        """When the next commit is due; None: nothing waits for the disk."""
        if self._retry_at is not None:
            return self._retry_at
        if self._urgent:
            return 0.0
        after_s = self._settings.commit_after
        due = [] if self._trim_at is None else [self._trim_at]
        if self._settings.max_age is not None and any(stream.disk for stream in self._streams.values()):
            due.append(self._expire_at)
        for stream in self._streams.values():
            if stream.fresh:
                first = next(iter(stream.fresh.values()))
                hurry = first.flight is None or next(reversed(stream.fresh.values())).flight is None
                due.append(0.0 if hurry else first.born_s + self._patience_s(first.settlings, after_s))
        if not self._online:
            due += [
                batch.since_s + self._patience_s(batch.settlings, after_s)
                for batch in self._open.values()
                if batch.rows
            ]
            if self._memory_bytes >= OFFLINE_GROUP_BYTES:
                due.append(0.0)
        return min(due, default=None)

    def _patience_s(self, settlings: Sequence[Settling], after_s: float) -> float:
        return min(HURRY_S, after_s) if settlings and not self._online else after_s

    async def _next_commit(self) -> None:
        """Returns once a commit that begins from now on has ended, or the disk has failed."""
        target = self._started + 1
        self._close_all = True
        self._hurry()
        while self._finished < target and not self._store_problem:
            await self._change()

    async def _commit(self) -> None:
        async with self._commit_lock:
            if self._close_all or not self._online:
                for lane in Lane:
                    self.close(lane)
            self._close_all = self._urgent = False
            self._started += 1
            helds, work = self._work()
            for held in helds:
                held.writing = True
            try:
                if not self._store_open:
                    self._adopt(await self._in_store(self._store.open))
                if work is not None:
                    self._committed(helds, await self._in_store(self._store.commit, work))
            except CorruptError as error:
                self._failed(error)
                await self._rescue()
            except StoreError as error:
                self._failed(error)
            else:
                self._healthy()
            finally:
                for held in helds:
                    held.writing = False
            self._finished = self._started
            self._changed()

    def _work(self) -> tuple[list[Held], Work | None]:
        """All that waits for the disk."""
        now = self._clock.monotonic()
        streams = self._streams.values()
        helds = [held for stream in streams for held in stream.fresh.values()]
        trimmable = [stream for stream in streams if stream.trimmable]
        expiry = self._expiry()
        expire = expiry is not None and now >= self._expire_at
        if expire:
            self._expire_at = now + EXPIRE_S
        trim = self._trim_at is not None and now >= self._trim_at
        if not (helds or expire or trim):
            return [], None
        self._trim_at = None
        covered: dict[Lane, int] = {}
        for held in helds:
            if held.grounded:
                covered[held.record.lane] = held.grounded[-1].number
        work = Work(
            records=[Stored(held.record, held.at_ms, held.utc_ms) for held in helds],
            boot=self._clock_state.boot,
            keep=frozenset(stream.name for stream in self._current.values()),
            marks={stream.name: stream.mark for stream in trimmable},
            pins={stream.name: frozenset(stream.pins) for stream in trimmable if stream.pins},
            held={stream.name: stream.held for stream in streams if stream.held},
            sent={stream.name: stream.sent for stream in streams if stream.name in self._ours},
            expiry=expiry if expire else None,
            ring=self._ring.name if self._ring is not None else b"",
            covered=covered,
        )
        return helds, work

    def _expiry(self) -> Expiry | None:
        if self._settings.max_age is None or self._clock_state.trust is Trust.UNSYNCED:
            return None
        before_ms = self._boot_ms() - int(self._settings.max_age * 1000)
        offset_ms = self._age_offset_ms if self._age_offset_ms is not None else self._clock_state.offset_ms
        return Expiry(self._clock_state.boot, before_ms, before_ms + offset_ms)

    def _committed(self, helds: Sequence[Held], done: Done) -> None:
        for name, disk in done.disks.items():
            stream = self._streams.get(name)
            if stream is not None:
                stream.set_disk(disk)
        for held in helds:
            fresh = self._streams[held.record.stream].fresh
            if fresh.get(held.record.seq) is held:
                del fresh[held.record.seq]
                self._leave(held, committed=True)
        for loss in done.losses:
            self._count(loss)
        self._sweep()
        for stream in self._streams.values():
            self._trim_later(stream)

    async def _rescue(self) -> None:
        try:
            self._adopt(await self._in_store(self._store.rescue))
            self._retry_at = None
            self._urgent = True
        except StoreError as error:
            self._failed(error)

    def _failed(self, error: StoreError) -> None:
        if not self._store_problem:
            log.warning(
                "the store fails (%s): going on from memory, %d bytes at most", error, self._settings.memory_limit
            )
        self._store_problem = str(error)
        self._retry_at = self._clock.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_S[1])
        self._changed()
        self._wake()

    def _healthy(self) -> None:
        if self._store_problem:
            log.info("the store works again")
            self._store_problem = ""
        self._retry_at = None
        self._retry_s = RETRY_S[0]

    async def _in_store(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._loop.run_in_executor(self._executor, functools.partial(call, *args, **kwargs))

    # ── memory is full ───────────────────────────────────────────────────────────────────────────────────────────────

    def _shed(self, promised: bool) -> bool:
        """Gives up the oldest records that may be, while the disk takes none. False: wait."""
        if promised or not self._store_problem or self._settings.when_full is WhenFull.REFUSE:
            return False
        target = self._settings.memory_limit // SHED_SHARE
        freed = 0
        for lane in (Lane.LIVE, Lane.ALARM):
            for stream in list(self._streams.values()):
                if stream.lane is lane and freed < target:
                    freed += self._shed_stream(stream, target - freed)
        return freed > 0

    def _shed_stream(self, stream: Stream, target: int) -> int:
        run, freed = Run(GapReason.OVERFLOW), 0
        gone: list[Held] = []
        for held in list(stream.fresh.values()):
            if freed >= target:
                break
            record = held.record
            if not run.follows(record.seq):
                self._give_up(stream, run, gone)
                run, gone = Run(GapReason.OVERFLOW), []
            if evictable(stream, held):
                run.add(record.seq, record.seq, record.readings, held.at_ms, held.utc_ms)
                freed += held.bytes
                gone.append(held)
            elif (body := self._mergeable(stream, held)) is not None:
                run.absorb(record.seq, record.upto, body, held.at_ms)
                gone.append(held)
        self._give_up(stream, run, gone)
        return freed

    def _mergeable(self, stream: Stream, held: Held) -> GapBody | None:
        """A gap of ours that nobody has seen yet may grow."""
        unsent = stream.name in self._ours and held.record.seq > stream.sent
        if held.record.kind is not RecordKind.GAP or not unsent or held.writing or held.settlings:
            return None
        body = gap_body(held.record.body)
        return body if body is not None and body.reason is GapReason.OVERFLOW else None

    def _give_up(self, stream: Stream, run: Run, gone: Sequence[Held]) -> None:
        if not run.batches:
            return
        stored = run.gap(stream.name, stream.lane)
        gap = Held(stored.record, stored.at_ms, stored.utc_ms, gone[0].born_s)
        self._fly([gap])
        for held in gone:
            del stream.fresh[held.record.seq]
            self._memory_bytes -= held.bytes
            self._land(held)
        stream.insert(gap)
        self._memory_bytes += gap.bytes
        self._count(Loss(run.reason, run.lost))

    async def _change(self) -> None:
        """Waits until something was committed, acked or given up."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_stream(self, lane: Lane) -> Stream:
        stream = Stream(secrets.token_hex(16), lane, self._clock_state.boot)
        self._streams[stream.name] = stream
        self._ours.add(stream.name)
        return stream

    def _sweep(self) -> None:
        for name in [stream.name for stream in self._streams.values() if stream.sealed and stream.empty]:
            del self._streams[name]
            self._ours.discard(name)

    def _boot_ms(self) -> int:
        return self._clock.boot_ns() // 1_000_000

    def _adopt(self, opened: Opened) -> None:
        """Takes over what the store holds: at the start, or when it could be opened at last, or after a rescue."""
        self._store_open = True
        for stream in self._streams.values():
            stream.set_disk(opened.disks.get(stream.name))
        older = {}
        for name, disk in opened.disks.items():
            if name not in self._streams:
                older[name] = stream = Stream(name, disk.lane, disk.boot, sealed=True)
                stream.set_disk(disk)
        self._streams = older | self._streams
        for name, seq, origins in opened.origins:
            home = Home()
            home.row = (name, seq)
            self.ledger.recall(origins, home, settled=True)
            self._streams[name].pins[seq] = home
        for loss in opened.losses:
            self._count(loss)
        if self._ring is not None:
            self._covered = {lane: n for (ring, lane), n in opened.covered.items() if ring == self._ring.name}
            self._ring.skip_to(max(self._covered.values(), default=0))
        if opened.damaged:
            log.warning("the store was damaged and is set aside; what could be read of it was saved")
            body = GapBody(GapReason.CORRUPT)
            self._add(self._current[Lane.LIVE], [batching.Encoded(RecordKind.GAP, msgspec.json.encode(body), 0)])

    def _recover(self, recovered: Recovered) -> None:
        """Takes over what the ring holds: records under their old identity, loose rows into the new streams."""
        now = self._clock.monotonic()
        for entry, flown in recovered.records:
            flight = Flight(entry, len(flown))
            for record, at_ms in flown:
                stream = self._streams.get(record.stream)
                if stream is None:
                    stream = Stream(record.stream, record.lane, self._clock_state.boot, sealed=True)
                    self._streams[record.stream] = stream
                held = Held(record, at_ms, batching.utc(at_ms, self._clock_state), now)
                held.flight = flight
                if record.origins:
                    held.home = Home()
                    self.ledger.recall(record.origins, held.home, settled=False)
                stream.insert(held)
                self._memory_bytes += held.bytes
        for entry, origins in recovered.origins:
            home = Home()
            home.entry = entry
            self.ledger.recall(origins, home, settled=True)
        for loose in recovered.loose:
            for portion in batching.portions(loose.rows):
                self._place(portion._replace(lane=loose.lane), None, loose.entry)
        self._free(recovered.useless)
        if recovered.records or recovered.loose:
            log.info(
                "recovered from the flight ring: %d entries of records, %d of rows",
                len(recovered.records),
                len(recovered.loose),
            )


def _loss(body: bytes) -> Loss:
    gap = gap_body(body)
    return Loss(GapReason.CORRUPT, None) if gap is None else Loss(gap.reason, gap.readings)


def _nobody() -> None:
    """Nobody listens yet."""
