"""The buffer: takes rows, hands out numbered records, and loses nothing on the way without saying so.

    append ──▶ open batch ──close──▶ fresh record ──ack──────▶ kept for a while
               (ROWS in the ring)    (RECORDS in the ring) ──commit_after──▶ row on disk ──ack──▶ trimmed

What holds at every instant:
- A row whose `append` returned is in the ring, in the store, acked, or reported by a gap; while there is no room in
  the ring, `append` returns only after the commit. Rows of a source that redelivers are its own until they settle.
- A record is handed out only when a crash of this process cannot take its identity: it is in the ring or on disk
  (or the disk fails too, which status says).
- An identity (stream, seq) never gets a second body. This process adds only to streams that it opened itself.
- Disk trouble is a state, not an error (`committer.py`).

Everything but the store runs on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from gateway.buffer import batching, inheritance
from gateway.buffer.committer import HURRY_S, Committer
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.flights import Flights
from gateway.buffer.ledger import OriginLedger
from gateway.buffer.open_batches import OpenBatches
from gateway.buffer.recovery import sort_out
from gateway.buffer.ring import Entry, Found, Ring, open_ring
from gateway.buffer.shelf import Shelf
from gateway.buffer.store import Store
from gateway.buffer.streams import Settling, Stream
from gateway.clock import Clock
from gateway.errors import StoreError
from gateway.model import ClockState, Json, Lane, Record, RecordKind, Row
from gateway.protocol.messages import StreamOffer

log = logging.getLogger(__name__)

OFFLINE_GROUP_BYTES: Final = 64 * 1024
SHED_SHARE: Final = 16
"""Memory is full and the disk does not take it: give up 1/16 at once."""
MOVE_AGAIN_S: Final = 5.0
"""What is in a distrusted stream, when the disk failed meanwhile."""
ALARM_SHARE: Final = 16
"""The last 1/16 of the memory is for alarms."""


class Buffer:
    """Fits `uplink.ports.Outbox`; its `ledger` fits `connectors.base.Ledger`.

    `open`, then `run` in a task, then cancel that, `drain`, `release`. All methods on the event loop.
    """

    def __init__(
        self, settings: BufferSettings, store: Store, clock: Clock, executor: Executor, ring: Ring | None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._ring = ring
        self._ring_problem = ""
        self._shelf = Shelf(clock, Flights(ring), settings.keep_acked)
        self._committer = Committer(settings, store, clock, executor, self._shelf, self._before_commit, self._due_at)
        self._open = OpenBatches(clock, self._shelf, settings.linger, self._closed)
        self._online = False
        self._close_all = False
        self._moving = asyncio.Lock()
        self._moves: set[asyncio.Task[None]] = set()
        """Of distrusted streams, to others."""
        self._wake: Callable[[], None] = _nobody
        self._accepted_rows = 0

    @property
    def ledger(self) -> OriginLedger:
        """For connectors whose source redelivers."""
        return self._shelf.ledger

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def open(
        cls,
        settings: BufferSettings,
        folder: Path,
        clock: Clock,
        runtime: Path | None,
        executor: Executor | None = None,
    ) -> Buffer:
        """Recovers what earlier processes left. Never fails because of it.

        Args:
            folder: directory of the store; made where it is missing.
            runtime: directory of the flight ring, on tmpfs; None: there is none.
            executor: where the store works; it runs one call at a time.
        """
        ring: Ring | None = None
        found: Sequence[Found] = ()
        problem = "no runtime directory, so no flight ring"
        if runtime is not None:
            try:
                (ring, found), problem = open_ring(runtime / "flight.ring", settings.ring_size), ""
            except StoreError as error:
                problem = str(error)
        store = Store(settings, folder, ring.name if ring is not None else b"")
        buffer = cls(settings, store, clock, executor or ThreadPoolExecutor(1, "buffer-store"), ring)
        if problem:
            log.warning("%s: each reading is committed at once, or it would die with this process", problem)
            buffer._ring_problem = problem
        await buffer._recover(found)
        return buffer

    async def _recover(self, found: Sequence[Found]) -> None:
        covered = await self._committer.open()
        recovered = sort_out(found, covered)
        if self._committer.store.ring_is_behind:
            recovered = recovered.behind()
        damaged = recovered.damaged or (self._ring is not None and self._ring.damaged)
        sound = self._committer.whole and not damaged
        inheritance.recover(self._shelf, recovered, self._clock.monotonic(), sound=sound)
        self._shelf.begin()
        self._committer.report_damage()
        if damaged:
            log.warning("the flight ring held something that cannot be read")
            self._shelf.report_corruption()
        for loose in recovered.loose:
            for portion in batching.portions(loose.rows):
                self._place(portion._replace(lane=loose.lane), None, loose.entry)
        for stream in self._shelf.distrusted:
            self._move(stream)
        if recovered.records or recovered.loose:
            self.hurry()  # it has been through one end already; the next may take the ring too
            log.info(
                "the flight ring held %d records and %d times rows that were in none",
                sum(len(flown) for _, flown in recovered.records),
                len(recovered.loose),
            )

    async def run(self) -> None:
        """Commits what is due, until cancelled."""
        await self._committer.run()

    async def drain(self) -> None:
        """Ends the open streams and commits everything; what is appended later goes to new streams."""
        await asyncio.gather(*self._moves, return_exceptions=True)
        for lane in Lane:
            self.seal(lane)
        await self._committer.commit()

    async def probe(self) -> None:
        """Returns when the store's thread has answered: what a watchdog asks."""
        await self._committer.probe()

    async def release(self) -> None:
        """Lets go of the files. What could not be committed stays in the ring."""
        self._open.cancel()
        await self._committer.close()
        if self._ring is not None:
            self._shelf.leave()
            self._ring.close()

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, rows: Sequence[Row], settled: Callable[[], None] | None = None) -> None:
        """Takes rows over; when this returns they survive the death of this process.

        `settled` is called once, when all of them are committed or acked. Waits when memory is full, and when the
        ring is, for the commit. Cancelling before it returns may or may not have handed over the rows.
        """
        while self._full_for(rows) and not self._shed(settled is not None):
            self.hurry()
            await self._committer.change()
        settling = Settling(settled) if settled is not None else None
        safe = True
        for portion in batching.portions(rows):
            safe &= self._place(portion, settling, None)
        if settling is not None:
            settling.done()
        self._accepted_rows += len(rows)
        if not safe:
            self._close_all = True
            await self._committer.next()

    @property
    def _memory_bytes(self) -> int:
        return self._shelf.memory_bytes + self._open.cost_bytes

    def _full_for(self, rows: Sequence[Row]) -> bool:
        """Whether memory is full; alarms find room that readings must leave."""
        limit, used = self._settings.memory_limit, self._memory_bytes
        if used < limit - limit // ALARM_SHARE:
            return False
        return used >= limit or all(row.shape.lane is Lane.LIVE for row in rows)

    def _shed(self, promised: bool) -> bool:
        """Memory is full. True: the oldest gave way, or room is not needed; False: wait.

        What a source keeps until it is settled waits with its source; it is neither given up nor gives up others.
        """
        if promised or not self._committer.problem or self._settings.when_full is WhenFull.REFUSE:
            return False
        return self._shelf.shed(self._settings.memory_limit // SHED_SHARE)

    def _place(self, portion: batching.Portion, settling: Settling | None, entry: Entry | None) -> bool:
        """Puts rows into the open batch of their lane. False: as yet a crash would take them."""
        batch, safe = self._open.add(portion, settling, entry)
        begins = len(batch.rows) == len(portion.rows)
        if begins:
            self._wake()
        if begins or (not self._online and (settling is not None or batch.cost_bytes >= OFFLINE_GROUP_BYTES)):
            self._committer.look()
        return safe

    def close(self, lane: Lane) -> bool:
        """See `Outbox`."""
        return self._open.close(lane)

    def _closed(self, lane: Lane) -> None:
        if lane is Lane.ALARM:
            self._committer.hurry()
        self._news()

    def _news(self) -> None:
        self._committer.look()
        self._wake()

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def offers(self) -> tuple[StreamOffer, ...]:
        """See `Outbox`."""
        return self._shelf.offers(grounded=bool(self._committer.problem))

    def holds(self) -> Collection[str]:
        """See `Outbox`."""
        return self._shelf.streams.keys()

    def waiting(self) -> tuple[int, float]:
        """See `Outbox`."""
        return self._shelf.waiting()

    async def fetch(self, stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
        """See `Outbox`."""
        found = self._shelf.streams.get(stream)
        if found is None:
            return ()
        while found.grounded_at(seq) and not self._committer.problem:
            await self._committer.next()
        found.fetching += 1
        try:
            records = await self._collect(found, seq, max_bytes)
        finally:
            found.fetching -= 1
        self._shelf.hand_out(found, records)
        return records

    async def _collect(self, found: Stream, seq: int, max_bytes: int) -> Sequence[Record]:
        # memory first: what is committed while the disk is read is then in one of the two, or in both
        memory, end = found.in_memory(seq, grounded=bool(self._committer.problem))
        if found.disk is not None and found.disk.last >= seq:
            on_disk = found.disk.last
            stored = await self._committer.read(found.name, seq, max_bytes)
            if stored and stored[-1].record.upto < on_disk:
                end = min(end, stored[-1].record.upto + 1)
            for each in stored:
                memory.setdefault(each.record.seq, each.record)
        records: list[Record] = []
        size = 0
        for number in sorted(memory):
            if number >= end or size >= max_bytes:
                break
            records.append(memory[number])
            size += len(memory[number].body)
        return records

    def hold(self, stream: str, upto: int) -> None:
        """See `Outbox`."""
        found = self._shelf.streams.get(stream)
        if found is not None:
            found.held = upto

    def ack(self, sink: str, stream: str, seq: int) -> None:
        """See `Outbox`."""
        found = self._shelf.streams.get(stream)
        if found is not None:
            self._shelf.ack(sink, found, seq)
            self._committer.release_waiters()

    async def fill(self, sink: str, stream: str, lane: Lane, first: int, last: int) -> int:
        """See `Outbox`. What is held is never covered, whatever is asked. Raises StoreError: that is not known yet."""
        found = self._shelf.streams.get(stream)
        if (found is None or not found.ours) and not self._committer.opened:
            raise StoreError("what the store holds of this stream will be known when it can be opened")
        if found is None:
            found = self._shelf.older_stream(stream, lane)
        held, _ = found.in_memory(first, grounded=True)
        if found.disk is not None and found.disk.last >= first:
            held |= {each.record.seq: each.record for each in await self._committer.read(stream, first, 1)}
            held |= found.in_memory(first, grounded=True)[0]  # another session may have asked for the same
        elsewhere = self._shelf.fill(sink, found, first, min([last, *(number - 1 for number in held)]))
        self._news()
        return elsewhere

    def seal(self, lane: Lane) -> None:
        """See `Outbox`."""
        self.close(lane)
        if self._shelf.seal(lane):
            self._news()

    async def distrust(self, stream: str) -> None:
        """See `Outbox`. Of a stream that an earlier process opened, a high mark is no reason to distrust anything."""
        found = self._shelf.streams.get(stream)
        if found is None or not found.ours:
            return
        if self._shelf.distrust(found):
            log.warning("the sink knows more of stream %s than was ever sent: is this machine a copy?", stream)
        await asyncio.shield(self._move(stream))  # whoever found it out may end before the disk is done

    def _move(self, stream: str) -> asyncio.Task[None]:
        move = asyncio.create_task(self._give_away(stream), name="distrusted stream")
        self._moves.add(move)
        move.add_done_callback(functools.partial(self._moved, stream))
        return move

    def _moved(self, stream: str, move: asyncio.Task[None]) -> None:
        self._moves.discard(move)
        if not move.cancelled() and isinstance(move.exception(), StoreError):  # no session uses the stream again
            asyncio.get_running_loop().call_later(MOVE_AGAIN_S, self._move, stream)

    async def _give_away(self, stream: str) -> None:
        async with self._moving:  # each session may find it out
            await self._committer.commit()
            found = self._shelf.streams.get(stream)
            if found is not None and found.waiting_on_disk:
                target = self._shelf.new_stream(found.lane)
                try:
                    await self._committer.move(stream, target)
                finally:
                    target.sealed = True  # not before: what has ended and holds nothing is forgotten by any commit
            # what the disk did not take
            whole = found is None or self._shelf.move(found, self._shelf.current[found.lane])
            if not whole or not self._committer.opened:
                raise StoreError(f"something is left of stream {stream}, or may be")
            self._shelf.flights.given_away(stream)
        self._news()

    def online(self, up: bool, patient: bool = False) -> None:
        """See `Outbox`."""
        self._open.online(up, self._settings.commit_after / 2 if patient else self._settings.linger)
        if up is not self._online:
            self._online = up
            self._committer.look()

    def listen(self, wake: Callable[[], None]) -> None:
        """See `Outbox`."""
        self._wake = self._committer.changed = wake

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def hurry(self) -> None:
        """What waits is committed now: a source would be held back."""
        self._close_all = True
        self._committer.hurry()

    def _before_commit(self) -> None:
        now = self._clock.monotonic()
        everything = self._close_all or not self._online
        self._open.close_due(now if everything else now - self._settings.commit_after)
        self._close_all = False

    def _due_at(self) -> float | None:
        """When rows and fresh records must be on disk; None: there are none."""
        due = [batch.since_s + self._patience_s(batch.settlings) for batch in self._open.started()]
        for stream in self._shelf.streams.values():
            if stream.fresh:
                first, last = next(iter(stream.fresh.values())), next(reversed(stream.fresh.values()))
                if first.flight is None or last.flight is None:
                    return 0.0
                due.append(first.born_s + self._patience_s(first.settlings))
        if not self._online and self._memory_bytes >= OFFLINE_GROUP_BYTES:
            return 0.0
        return min(due, default=None)

    def _patience_s(self, settlings: Sequence[Settling]) -> float:
        after_s = self._settings.commit_after
        return min(HURRY_S, after_s) if settlings and not self._online else after_s

    # ── clock, status ────────────────────────────────────────────────────────────────────────────────────────────────

    def clock(self, state: ClockState, *, record: bool = False) -> None:
        """What is known of UTC from now on. With `record` the streams say so: it became trusted, or was wrong."""
        if record:
            for lane in Lane:
                self.close(lane)
        self._shelf.set_clock(state)
        if record:
            for stream in self._shelf.current.values():
                if stream.next > 1 or stream.lane is Lane.LIVE:
                    self._shelf.add(stream, [batching.Encoded(RecordKind.CLOCK, msgspec.json.encode(state), 0)])
            self._committer.hurry()
            self._wake()

    def stats(self) -> dict[str, Json]:
        """For status; cheap."""
        records, oldest_s = self.waiting()
        store, shelf = self._committer.store, self._shelf
        untidy = f"records go to disk, but its log grows: {store.trouble}" if store.trouble else ""
        problems = [each for each in (self._ring_problem, self._committer.trouble(), untidy) if each]
        return {
            "mode": "degraded" if problems else "healthy",
            "why": "; ".join(problems),
            "records": records,
            "oldest_s": round(oldest_s, 3),
            "memory_bytes": self._memory_bytes,
            "kept_bytes": shelf.kept.bytes,
            "disk_bytes": store.used_bytes,
            "ring_bytes": shelf.flights.used_bytes,
            "streams": len(shelf.streams),
            "rows": self._accepted_rows,
            "origins": len(shelf.ledger),
            "held_back": self._committer.waiting,
            "lost": {reason.value: count for reason, count in shelf.lost.items() if count},
            "gaps_of_unknown_size": {reason.value: n for reason, n in shelf.gaps_of_unknown_size.items() if n},
            "commits": store.commits,
            "fsyncs": store.fsyncs,
            "committed_bytes": store.committed_bytes,
        }


def _nobody() -> None:
    """Nobody listens yet."""
