"""The gateway's disk: a thread that is slow and mortal, and a model of the store that keeps its data in a `Platter`.

The model answers as `gateway.buffer.store.Store` does, call for call; `test_store_model.py` holds the two against each
other. Rows are the rows of `schema.py`, checksum and all. What is committed is on the platter, and survives a power
cut; what is not, does not. Its moods:

works   FULL  a write fails at the last moment, nothing of it is left
DEAD    nothing can be read or written
TORN    a write fails, and after a crash it may turn out to be there all the same: the sync failed, not the write
broken  the file is damaged: every call says so until it is rescued
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.buffer import retention
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.database import CorruptError
from gateway.buffer.gaps import Run, gap_body, gap_record
from gateway.buffer.records import Expiry, Limits
from gateway.buffer.schema import ROW_OVERHEAD, SEQ_MASK, SIZE, Disk, Loss, Stored, from_row, to_row
from gateway.buffer.store import Done, FullError, Opened, Work
from gateway.errors import DecodeError, StoreError
from gateway.model import GapReason, Lane, Record, RecordKind
from gateway.protocol.messages import MAX_BATCH_BYTES, GapBody

_LAST, _KIND, _READINGS, _AT_MS, _UTC_MS, _CRC, _ORIGINS, _BODY = 1, 2, 3, 4, 5, 7, 9, 10
"""Places in a row."""


class Thread:
    """An executor for `loop.Loop`: one call after another, each takes a while, and death comes in between.

    Half of the time passes before the call does what it does, half before anybody hears of it.
    """

    def __init__(self, dice: random.Random, latency_s: float = 0.001) -> None:
        self._dice = dice
        self.latency_s = latency_s
        self._free_at = 0.0
        self._busy_s = 0.0
        self._dead = False

    def start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> asyncio.Future[Any]:
        future = loop.create_future()
        now = loop.time()
        since = max(now, self._free_at)
        at = since + self._dice.uniform(0, self.latency_s)
        self._free_at = at + self._dice.uniform(0, self.latency_s)
        self._busy_s += self._free_at - since
        loop.call_at(at, self._do, loop, call, future, self._free_at)
        return future

    def _do(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any], future: Any, until: float) -> None:
        if self._dead:
            return
        try:
            result, error = call(), None
        except Exception as raised:
            result, error = None, raised
        loop.call_at(until, self._tell, future, result, error)

    def _tell(self, future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        if self._dead or future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def busy_s(self, now: float) -> float:
        """Seconds of its life up to now in which it was at something."""
        return self._busy_s - max(0.0, self._free_at - now)

    def die(self) -> None:
        """What has not been done yet never is."""
        self._dead = True

    def shutdown(self, wait: bool = True) -> None:
        """Nothing runs."""


class Mood(Enum):
    WORKS = "works"
    FULL = "full"
    DEAD = "dead"
    TORN = "torn"


class _Rows:
    """One stream."""

    __slots__ = ("boot", "lane", "proved", "rows", "sinks")

    def __init__(
        self,
        lane: Lane,
        boot: str,
        rows: dict[int, tuple[Any, ...]],
        sinks: Mapping[str, int] | None = None,
        proved: int = 0,
    ) -> None:
        self.lane, self.boot, self.rows, self.sinks, self.proved = lane, boot, rows, dict(sinks or {}), proved


class State(NamedTuple):
    """Everything of it, at one moment."""

    streams: dict[str, _Rows]
    covered: dict[Lane, tuple[bytes, int]]
    unreported: bool


class Platter:
    """What survives."""

    def __init__(self) -> None:
        self.streams: dict[str, _Rows] = {}
        self.covered: dict[Lane, tuple[bytes, int]] = {}
        self.unreported = False
        """A rescue could not save all, and no gap says so yet."""
        self.ring = b""
        """Of the process that used it last."""
        self.mood = Mood.WORKS
        self.broken = False
        self.repaired = 0
        """Rows that became a gap because they could not be read."""
        self._torn: State | None = None

    def copy(self) -> State:
        streams = {
            name: _Rows(each.lane, each.boot, dict(each.rows), dict(each.sinks), each.proved)
            for name, each in self.streams.items()
        }
        return State(streams, dict(self.covered), self.unreported)

    def put(self, state: State) -> None:
        self.streams, self.covered, self.unreported = state

    def tear(self, state: State | None) -> None:
        self._torn = state

    def crash(self, dice: random.Random) -> bool:
        """The writer is gone. True: what it was told had failed is there."""
        torn, self._torn = self._torn, None
        if torn is None or dice.random() < 0.5:
            return False
        self.put(torn)
        return True

    def rot(self, dice: random.Random) -> tuple[str, int] | None:
        """A bit flips in one row: in this one."""
        full = [name for name, each in self.streams.items() if each.rows]
        if not full:
            return None
        name = dice.choice(full)
        rows = self.streams[name].rows
        seq = dice.choice(list(rows))
        row = list(rows[seq])
        row[_CRC] ^= 1 << dice.randrange(32)
        rows[seq] = tuple(row)
        return name, seq


class ModelStore:
    """Fits `Store`. See the module."""

    def __init__(self, settings: BufferSettings, folder: Path, platter: Platter, ring: bytes = b"") -> None:
        self._settings = settings
        self._platter = platter
        self._ring = ring or b"none"
        self.ring_is_behind = False
        self._is_open = False
        self._losses: list[Loss] = []
        self._told: dict[str, Disk] = {}
        self.commits = self.checkpoints = self.fsyncs = self.committed_bytes = self.used_bytes = 0
        self.trouble = ""

    # ── open, rescue, close ──────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> Opened:
        if self._platter.mood is Mood.DEAD:
            raise StoreError("the disk is dead")
        self.ring_is_behind = self._platter.ring not in (b"", self._ring)
        self._platter.ring = self._ring
        if self._platter.broken:
            return self.rescue(corrupt=True)
        return self._load()

    def rescue(self, *, corrupt: bool) -> Opened:
        self._is_open = False
        if self._platter.mood is not Mood.WORKS:
            raise StoreError("the disk takes nothing")
        whole = not (corrupt or self._platter.broken or self._platter.unreported)
        for name, each in list(self._platter.streams.items()):
            whole &= self._salvage(name, each, corrupt)
        self._platter.covered = {}
        self._platter.broken = False
        self._platter.unreported = not whole
        return self._load()

    def _salvage(self, name: str, each: _Rows, corrupt: bool) -> bool:
        saved: dict[int, tuple[Any, ...]] = {}
        last, torn, whole = 0, corrupt, True
        for seq in sorted(each.rows):
            try:
                stored = from_row(name, each.lane, each.rows[seq])
            except DecodeError:
                whole, torn = False, True
                continue
            if seq <= last:
                continue
            if last and seq > last + 1 and torn:
                body = GapBody(GapReason.CORRUPT)
                saved[last + 1] = to_row(0, gap_record(name, each.lane, last + 1, seq - 1, body, stored.at_ms, None))
            saved[seq] = each.rows[seq]
            last, torn = stored.record.upto, corrupt
        each.rows = saved
        if corrupt:
            each.sinks, each.proved = {}, 0
        if not saved:
            del self._platter.streams[name]
        return whole

    def close(self) -> None:
        self._is_open = False

    def _load(self) -> Opened:
        self._is_open = True
        self._losses = []
        origins = []
        for name, each in self._platter.streams.items():
            for seq in sorted(each.rows):
                if each.rows[seq][_ORIGINS] is not None and seq > each.proved:
                    for stored in self._read(name, seq, 1):
                        if stored.record.origins:
                            origins.append((name, stored.record.seq, stored.record.origins))
            if each.rows:
                self._read(name, max(each.rows), 1)
        self.used_bytes = self._used()
        covered = {(ring, lane): number for lane, (ring, number) in self._platter.covered.items()}
        sinks = {name: dict(each.sinks) for name, each in self._platter.streams.items()}
        self._told = self._disks()
        proved = {name: each.proved for name, each in self._platter.streams.items()}
        return Opened(self._told, origins, self._take_losses(), covered, sinks, proved, self._platter.unreported)

    def _check(self, *, writes: bool) -> None:
        if not self._is_open:
            raise StoreError("the store is not open")
        if self._platter.mood is Mood.DEAD or (writes and self._platter.mood is Mood.FULL):
            raise StoreError(f"the disk is {self._platter.mood.value}")
        if self._platter.broken:
            raise CorruptError("the file is damaged")

    def _take_losses(self) -> tuple[Loss, ...]:
        losses, self._losses = tuple(self._losses), []
        return losses

    # ── the one transaction ──────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        platter = self._platter
        before, done = platter.copy(), False
        try:
            yield
            if platter.mood is Mood.TORN:
                platter.tear(platter.copy())
                raise StoreError("the sync failed")
            done = True
        finally:
            if not done:
                platter.put(before)
        platter.tear(None)

    def commit(self, work: Work) -> Done:
        self._check(writes=True)
        self._losses = []
        with self._all_or_nothing():
            self._trim(work.limits, work.limits.pins)
            for name, each in list(self._platter.streams.items()):
                if each.rows and each.lane in work.expiry:
                    self._give_up(work.limits, name, GapReason.EXPIRED, expiry=work.expiry[each.lane])
            unpinned = self._insert(work)
            for name, marks in work.sinks.items():
                if name in self._platter.streams:
                    self._platter.streams[name].sinks = dict(marks)
            for name, number in work.proved.items():
                if name in self._platter.streams:
                    self._platter.streams[name].proved = number
            for lane, number in work.covered.items():
                self._platter.covered[lane] = (work.ring, number)
            for name in [n for n, each in self._platter.streams.items() if not each.rows and n not in work.keep]:
                del self._platter.streams[name]
            self._platter.unreported &= not work.reported
        self.commits += 1
        self.fsyncs += 1
        self.used_bytes = self._used()
        return Done(self._changed(), self._take_losses(), unpinned)

    def _insert(self, work: Work) -> bool:
        streams = self._platter.streams
        rows = []
        for stored in work.records:
            record = stored.record
            streams.setdefault(record.stream, _Rows(record.lane, work.boot, {}))
            rows.append((record, to_row(0, stored)))
        if not rows:
            return False
        incoming = retention.Bytes(
            sum(row[SIZE] for record, row in rows if record.lane is Lane.LIVE),
            sum(row[SIZE] for record, row in rows if record.lane is Lane.ALARM),
        )
        unpinned = self._make_room(work.limits, incoming)
        ends = {name: self._disk(each).last for name, each in streams.items()}
        for record, row in rows:
            here = streams[record.stream].rows
            if record.seq <= ends[record.stream]:
                below = max((seq for seq in here if seq <= record.seq), default=None)
                if (
                    below is not None
                    and here[below][_KIND] == RecordKind.GAP.value
                    and here[below][_LAST] >= record.upto
                ):
                    continue
                for seq in [seq for seq in here if record.seq <= seq <= record.upto]:
                    del here[seq]
            here[record.seq] = row
        self.committed_bytes += sum(incoming)
        return unpinned

    def _trim(self, limits: Limits, pins: Mapping[str, frozenset[int]]) -> bool:
        before = sum(len(each.rows) for each in self._platter.streams.values())
        for name, mark in limits.marks.items():
            each = self._platter.streams.get(name)
            if each is not None:
                pinned = pins.get(name, frozenset())
                for seq in [s for s, row in each.rows.items() if s <= mark and row[_LAST] <= mark and s not in pinned]:
                    del each.rows[seq]
        return sum(len(each.rows) for each in self._platter.streams.values()) < before

    def _make_room(self, limits: Limits, incoming: retention.Bytes) -> bool:
        settings = self._settings
        space = retention.Space(self._used(), 0, 1 << 40)
        limit = retention.bounds(space, settings.max_size, settings.alarm_reserve, settings.free_space_floor)
        if not retention.refused(self._usage(), self._used(), incoming, limit):
            return False
        unpinned = self._trim(limits, {})
        refused = retention.refused(self._usage(), self._used(), incoming, limit)
        if settings.when_full is WhenFull.REFUSE and refused:
            raise FullError("full")
        for cut in retention.plan(self._usage(), self._used(), incoming, limit):
            self._give_up(limits, cut.stream, GapReason.EVICTED, max_bytes=cut.bytes)
        return unpinned

    def _usage(self) -> list[retention.Usage]:
        return [retention.Usage(name, disk.lane, disk.bytes) for name, disk in self._disks().items()]

    def _give_up(
        self,
        limits: Limits,
        name: str,
        reason: GapReason,
        *,
        max_bytes: int | None = None,
        expiry: Expiry | None = None,
    ) -> None:
        each = self._platter.streams[name]
        start = max(self._disk(each).first, limits.held.get(name, 0) + 1, limits.marks.get(name, 0) + 1)
        runs, run, freed = [], Run(reason), 0
        for seq in sorted(seq for seq in each.rows if seq >= start):
            row = each.rows[seq]
            if max_bytes is not None and freed >= max_bytes:
                break
            if row[_KIND] == RecordKind.BATCH.value:
                if expiry is not None and not _expired(expiry, each.boot, row[_AT_MS], row[_UTC_MS]):
                    break
                if not run.follows(seq):
                    runs.append(run)
                    run = Run(reason)
                run.add(seq, row[_READINGS], row[_AT_MS], row[_UTC_MS])
                freed += row[SIZE]
            elif row[_KIND] == RecordKind.GAP.value and seq > limits.sent.get(name, SEQ_MASK):
                old = gap_body(row[_BODY])
                if old is not None and old.reason is reason and old.readings is not None and run.follows(seq):
                    run.absorb(seq, row[_LAST], old, row[_AT_MS])
        for done in [*runs, run]:
            if done.batches:
                for seq in [seq for seq in each.rows if done.first <= seq <= done.last]:
                    del each.rows[seq]
                each.rows[done.first] = to_row(0, done.gap(name, each.lane))
                self._losses.append(Loss(reason, done.lost, name, done.first, done.last))

    def move(self, stream: str, mark: int, target: str, boot: str, pins: frozenset[int]) -> Done:
        self._check(writes=True)
        self._losses = []
        numbers: dict[int, int] = {}
        with self._all_or_nothing():
            moved = _Rows(self._platter.streams[stream].lane, boot, {})
            seq, at = 0, mark + 1
            while chunk := self._read(stream, at, MAX_BATCH_BYTES, repair=False):
                for stored in chunk:
                    if stored.record.kind is not RecordKind.END:
                        seq += 1
                        old = stored.record
                        origins = old.origins if old.seq in pins else ()
                        if old.seq in pins:
                            numbers[old.seq] = seq
                        record = msgspec.structs.replace(old, stream=target, seq=seq, last=0, origins=origins)
                        moved.rows[seq] = to_row(0, stored._replace(record=record))
                at = chunk[-1].record.upto + 1
            end = Record(target, moved.lane, seq + 1, RecordKind.END, b"")
            moved.rows[seq + 1] = to_row(0, Stored(end, 0, None))
            self._platter.streams[target] = moved
            here = self._platter.streams[stream].rows
            for seq in here.keys() - (pins - numbers.keys()):
                del here[seq]
            if not here:
                del self._platter.streams[stream]
        self.commits += 1
        return Done(self._changed(), self._take_losses(), moved=numbers)

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def probe(self) -> None:
        self._check(writes=True)
        if self._platter.mood is Mood.TORN:
            raise StoreError("the sync failed")

    def read(self, stream: str, seq: int, max_bytes: int) -> tuple[list[Stored], tuple[Loss, ...]]:
        self._check(writes=False)
        if stream not in self._platter.streams:
            return [], ()
        return self._read(stream, seq, max_bytes), self._take_losses()

    def _read(self, name: str, seq: int, max_bytes: int, *, repair: bool = True) -> list[Stored]:
        each = self._platter.streams[name]
        seqs = sorted(each.rows)
        below = [s for s in seqs if s <= seq]
        if below and each.rows[below[-1]][_LAST] >= seq:
            seq = below[-1]
        result: list[Stored] = []
        size = 0
        for at in [s for s in seqs if s >= seq]:
            try:
                stored = from_row(name, each.lane, each.rows[at])
            except DecodeError:
                stored = gap_record(name, each.lane, at, at, GapBody(GapReason.CORRUPT), 0, None)
                self._losses.append(Loss(GapReason.CORRUPT, None))
                if repair:
                    each.rows[at] = to_row(0, stored)
                    self._platter.repaired += 1
            result.append(stored)
            size += len(stored.record.body) + ROW_OVERHEAD
            if size >= max_bytes:
                break
        return result

    # ── what is there ────────────────────────────────────────────────────────────────────────────────────────────

    def _disk(self, each: _Rows) -> Disk:
        if not each.rows:
            return Disk(each.lane, each.boot, 0, 0, 0, 0, 0)
        first, last = min(each.rows), max(each.rows)
        size = sum(row[SIZE] for row in each.rows.values())
        return Disk(
            each.lane,
            each.boot,
            first,
            max(last, each.rows[last][_LAST]),
            len(each.rows),
            size,
            each.rows[first][_AT_MS],
        )

    def _changed(self) -> dict[str, Disk | None]:
        before, self._told = self._told, self._disks()
        names = before.keys() | self._told.keys()
        return {name: self._told.get(name) for name in names if before.get(name) != self._told.get(name)}

    def _disks(self) -> dict[str, Disk]:
        return {name: self._disk(each) for name, each in self._platter.streams.items()}

    def _used(self) -> int:
        return sum(row[SIZE] for each in self._platter.streams.values() for row in each.rows.values())


def _expired(expiry: Expiry, boot: str, at_ms: int, utc_ms: int | None) -> bool:
    if boot == expiry.boot:
        return at_ms < expiry.before_at_ms
    return utc_ms is not None and utc_ms < expiry.before_utc_ms
