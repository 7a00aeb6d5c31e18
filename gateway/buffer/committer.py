"""When records go to disk, and what happens when it does not take them.

One transaction at a time, in the store's thread; all that is fresh of a lane goes in it, so a hole below a committed
number means "was acked". Disk trouble is a state, not an error: records stay fresh, the disk is tried again with
growing pauses. A damaged file is rescued at once, one that fails again and again too: new blocks may be good. Where
there is no room for readings, alarms still have their reserve.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, ParamSpec, TypeVar

from gateway.buffer import inheritance
from gateway.buffer.config import BufferSettings
from gateway.buffer.database import CorruptError, DiskError
from gateway.buffer.records import Expiry, Limits
from gateway.buffer.schema import Disk, Stored
from gateway.buffer.shelf import Shelf
from gateway.buffer.store import Done, FullError, Opened, Store, Work
from gateway.buffer.streams import Held, Stream
from gateway.clock import Clock
from gateway.errors import StoreError
from gateway.model import Lane

log = logging.getLogger(__name__)

HURRY_S: Final = 0.05
"""Offline, a source that waits for its acknowledgement waits this long: brokers drop what they cannot deliver."""
TRIM_S: Final = 10.0
EXPIRE_S: Final = 60.0
RETRY_S: Final = (1.0, 60.0)
RESCUE_AFTER: Final = 5
"""The disk failed so many times in a row, over half a minute."""

P = ParamSpec("P")
R = TypeVar("R")


class Committer:
    """Owns the store.

    `before` is called when a commit begins: whoever has rows that belong into it adds them. `due_at` says when the
    rows and records of others are due.
    """

    def __init__(
        self,
        settings: BufferSettings,
        store: Store,
        clock: Clock,
        executor: Executor,
        shelf: Shelf,
        before: Callable[[], None],
        due_at: Callable[[], float | None],
    ) -> None:
        self._settings = settings
        ages = {Lane.LIVE: settings.max_age, Lane.ALARM: settings.alarm_max_age}
        self._max_ages = {lane: age_s for lane, age_s in ages.items() if age_s is not None}
        self._clock = clock
        self._executor = executor
        self._shelf = shelf
        self._before = before
        self._others_due_at = due_at
        self._loop = asyncio.get_running_loop()
        self.store = store
        self.opened = False
        """What the store holds is known."""
        self.whole = False
        """It was opened, and nothing of it was lost."""
        self._store_open = False
        self._damaged = False
        self._report: tuple[Stream, int] | None = None
        """The gap for what a rescue could not save, until the store knows that it is safe."""
        self.problem = ""
        """Why records stay in memory."""
        self._full = False
        """There is no room for readings; alarms are committed."""
        self._failures: Counter[str] = Counter()
        """Of the disk, in a row."""
        self._trouble = False
        self._retry_s = RETRY_S[0]
        self._retry_at: float | None = None
        self._urgent = False
        self._trim_at: float | None = None
        self._expire_at = clock.monotonic() + EXPIRE_S
        self._started = self._finished = 0
        self._lock = asyncio.Lock()
        self._kick = asyncio.Event()
        self._sleeps_until: float | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.changed: Callable[[], None] = _nobody
        shelf.trimmable = self._trim_later

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Commits what is due, for ever."""
        while True:
            at, now = self._due_at(), self._clock.monotonic()
            if at is not None and at <= now:
                await self.commit()
                continue
            self._kick.clear()
            self._sleeps_until = at
            timer = self._loop.call_later(at - now, self._kick.set) if at is not None else None
            try:
                await self._kick.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _due_at(self) -> float | None:
        if self._retry_at is not None:
            return 0.0 if self._full and self._urgent and self._waiting_alarms() else self._retry_at
        if self._urgent:
            return 0.0
        due = [at for at in (self._trim_at, self._others_due_at()) if at is not None]
        if self._max_ages and any(stream.disk for stream in self._shelf.streams.values()):
            due.append(self._expire_at)
        return min(due, default=None)

    def look(self) -> None:
        """Something may be due earlier than it was. To wake up too early, once, is cheaper than with every ack."""
        at = self._due_at()
        if at is not None and (self._sleeps_until is None or at < self._sleeps_until):
            self._kick.set()

    def hurry(self) -> None:
        """Commit now."""
        self._urgent = True
        self._kick.set()

    def _trim_later(self) -> None:
        if self._trim_at is None:
            self._trim_at = self._clock.monotonic() + TRIM_S
            self._kick.set()

    async def next(self) -> None:
        """Returns once a commit that begins from now on has ended, or while the disk fails."""
        target = self._started + 1
        self.hurry()
        while self._finished < target and not self.problem:
            await self.change()

    async def change(self) -> None:
        """Waits until something was committed, acked or given up."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def release_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def waiting(self) -> int:
        """Sources that are held back."""
        return len(self._waiters)

    # ── what ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self) -> None:
        """One transaction with all that is fresh. StoreErrors end here."""
        async with self._lock:
            self._before()
            self._urgent = False
            self._started += 1
            try:
                if not self._store_open:
                    self._adopt(await self._call(self.store.open))
                await self._transact()
            except StoreError as error:
                self._full = False
                self._fail(error)
                await self._mend(error)
            self._finished = self._started
            self._shelf.sweep()
            self.release_waiters()
            self.changed()

    async def _transact(self) -> None:
        now = self._clock.monotonic()
        if self._full and self._retry_at is not None and now < self._retry_at:
            await self._store(self._waiting_alarms())
            return
        helds = [held for stream in self._shelf.streams.values() for held in stream.fresh.values()]
        try:
            await self._store(helds)
        except FullError as error:
            self._fail(error)
            alarms = self._waiting_alarms()
            self._full = len(alarms) < len(helds)
            if self._full:
                await self._store(alarms)
        else:
            self._recover()

    def _waiting_alarms(self) -> list[Held]:
        streams = self._shelf.streams.values()
        return [held for stream in streams if stream.lane is Lane.ALARM for held in stream.fresh.values()]

    async def _store(self, helds: Sequence[Held]) -> None:
        work = self._work(helds)
        if work is None:
            if self.problem and not self._full:
                await self._call(self.store.probe)
            return
        for held in helds:
            held.writing = True
        try:
            done = await self._call(self.store.commit, work)
        finally:
            for held in helds:
                held.writing = False
        self._trim_at = None
        self._done(helds, work, done)

    def _work(self, helds: Sequence[Held]) -> Work | None:
        now, streams = self._clock.monotonic(), self._shelf.streams.values()
        expiry = self._expiry() if now >= self._expire_at else {}
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_S
        if not helds and not expiry and (self._trim_at is None or now < self._trim_at):
            return None
        on_disk = [stream for stream in streams if stream.disk is not None]
        return Work(
            records=[Stored(held.record, held.at_ms, held.utc_ms) for held in helds],
            boot=self._shelf.clock_state.boot,
            keep=frozenset(stream.name for stream in self._shelf.current.values()),
            limits=Limits(
                marks={stream.name: stream.mark for stream in on_disk if stream.mark},
                pins={stream.name: frozenset(stream.pins) for stream in on_disk if stream.pins},
                held={stream.name: stream.pinned for stream in on_disk if stream.pinned},
                sent={stream.name: stream.sent for stream in on_disk if stream.ours},
            ),
            expiry=expiry,
            sinks={stream.name: dict(stream.marks) for stream in streams if stream.marks_due},
            proved={stream.name: stream.proved for stream in on_disk if stream.proved_due},
            ring=self._shelf.flights.name,
            covered={held.record.lane: held.grounded[-1].number for held in helds if held.grounded},
            reported=self._reported(helds),
        )

    def _reported(self, helds: Sequence[Held]) -> bool:
        if self._report is None:
            return False
        stream, seq = self._report
        held = stream.fresh.get(seq)
        return held is None or held in helds

    def _expiry(self) -> dict[Lane, Expiry]:
        state = self._shelf.clock_state
        if not state.trust.own:
            return {}
        expiry = {}
        for lane, age_s in self._max_ages.items():
            before_ms = self._shelf.boot_ms() - int(age_s * 1000)
            expiry[lane] = Expiry(state.boot, before_ms, before_ms + self._shelf.earliest_offset_ms)
        return expiry

    def _done(self, helds: Sequence[Held], work: Work, done: Done) -> None:
        self._set_disks(done.disks)
        for name, marks in work.sinks.items():
            stream = self._shelf.streams[name]
            if stream.disk is not None:
                stream.marks_on_disk = dict(marks)
                stream.ackers = dict.fromkeys(marks) | stream.ackers
        for name, number in work.proved.items():
            self._shelf.streams[name].proved_on_disk = number
        if work.reported:
            self._report = None
        for held in helds:
            self._shelf.committed(held)
        for loss in done.losses:
            self._shelf.count(loss)
        if done.unpinned:
            self._shelf.rows_made_room()

    def _set_disks(self, disks: Mapping[str, Disk | None]) -> None:
        for name, disk in disks.items():
            stream = self._shelf.streams.get(name)
            if stream is not None:
                stream.set_disk(disk)

    # ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> dict[Lane, int]:
        """The first look at the disk; see `inheritance.adopt`."""
        try:
            opened = await self._call(self.store.open)
        except StoreError as error:
            self._fail(error)
            return {}
        return self._adopt(opened)

    def _adopt(self, opened: Opened) -> dict[Lane, int]:
        covered = inheritance.adopt(self._shelf, opened)
        self.whole = not (opened.damaged or opened.losses) and (self.whole or not self._shelf.current)
        self._store_open = self.opened = True
        self._damaged = opened.damaged
        if self._shelf.current:
            self.report_damage()
        return covered

    def report_damage(self) -> None:
        """A gap of unknown size in the open stream, if the store had to be set aside."""
        if not self._damaged:
            return
        self._damaged = False
        log.warning("the store was damaged and is set aside; what could be read of it was saved")
        self._shelf.report_corruption()
        stream = self._shelf.current[Lane.LIVE]
        self._report = (stream, stream.next - 1)

    async def _mend(self, error: StoreError) -> None:
        """A damaged file is set aside at once, one that fails after some patience."""
        corrupt = isinstance(error, CorruptError)
        if not corrupt and max(self._failures.values(), default=0) < RESCUE_AFTER:
            return
        self._failures.clear()
        if not corrupt:
            log.warning("the store goes on failing: what it holds is copied into a new file")
        try:
            self._adopt(await self._call(self.store.rescue, corrupt=corrupt))
        except StoreError as failed:
            self._fail(failed)
            self._store_open = False  # it was closed for the rescue; opening it tries that again
        else:
            self._retry_at = self._clock.monotonic()

    def _fail(self, error: StoreError, doing: str = "write") -> None:
        if isinstance(error, DiskError):
            self._failures[doing] += 1
        if not self.problem:
            log.warning(
                "the store fails (%s): going on from memory, %d bytes at most", error, self._settings.memory_limit
            )
        self.problem = str(error)
        if doing == "write" or self._retry_at is None:  # who reads asks again and again
            self._retry_at = self._clock.monotonic() + self._retry_s
            self._retry_s = min(self._retry_s * 2, RETRY_S[1])

    def _recover(self) -> None:
        if self.problem:
            log.info("the store works again")
            self.problem = ""
        self._retry_at = None
        self._retry_s = RETRY_S[0]
        self._full = False
        del self._failures["write"]
        trouble = self.store.trouble
        if trouble and not self._trouble:
            log.warning("the store takes records, but cannot be tidied: %s", trouble)
        self._trouble = bool(trouble)

    def trouble(self) -> str:
        """`problem`, for people: with what is done about it."""
        if not self.problem:
            return ""
        wait_s = 0.0 if self._retry_at is None else max(0.0, self._retry_at - self._clock.monotonic())
        return f"{self.problem}: going on from memory, tried again in {wait_s:.0f} s"

    # ── the store's thread ───────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, stream: str, seq: int, max_bytes: int) -> Sequence[Stored]:
        """Records of a stream on disk. Raises StoreError: ask again later."""
        try:
            stored, losses = await self._call(self.store.read, stream, seq, max_bytes)
        except StoreError as error:
            self._fail(error, "read")
            self._kick.set()
            async with self._lock:
                await self._mend(error)
            raise
        del self._failures["read"]
        for loss in losses:
            self._shelf.count(loss)
        return stored

    async def move(self, stream: str, target: Stream) -> None:
        """What is un-acked of a stream on disk goes to a new one. Raises StoreError."""
        async with self._lock:
            known = self._shelf.streams.get(stream)
            if known is None or known.disk is None:
                return  # two sessions were told the same, and the other one did it
            boot, pins = self._shelf.clock_state.boot, frozenset(known.pins)
            try:
                done = await self._call(self.store.move, stream, known.mark, target.name, boot, pins)
            except StoreError as error:  # with nothing else to write, nobody would find the damage
                self._fail(error, "move")
                await self._mend(error)
                raise
            del self._failures["move"]
            self._shelf.rehouse(known, target, done.moved)
            self._set_disks(done.disks)
            for loss in done.losses:
                self._shelf.count(loss)

    async def probe(self) -> None:
        """Returns when the store's thread has come to it."""
        await self._call(lambda: None)

    async def close(self) -> None:
        await self._call(self.store.close)

    async def _call(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._loop.run_in_executor(self._executor, functools.partial(call, *args, **kwargs))


def _nobody() -> None:
    """Nothing to do, nobody to tell."""
