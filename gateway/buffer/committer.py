"""When records go to disk, and what happens when it does not take them.

One transaction at a time, in the store's thread; all that is fresh goes in it, so a hole below a committed number
means "was acked". Disk trouble is a state, not an error: records stay fresh, the disk is tried again with growing
pauses, a damaged file is rescued.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, ParamSpec, TypeVar

from gateway.buffer.config import BufferSettings
from gateway.buffer.database import CorruptError
from gateway.buffer.records import Expiry, Limits
from gateway.buffer.schema import Disk, Stored
from gateway.buffer.shelf import Shelf
from gateway.buffer.store import Done, Opened, Store, Work
from gateway.buffer.streams import Held
from gateway.clock import Clock
from gateway.errors import StoreError
from gateway.model import Lane, Trust

log = logging.getLogger(__name__)

HURRY_S: Final = 0.05
"""Offline, a source that waits for its acknowledgement waits this long: brokers drop what they cannot deliver."""
TRIM_S: Final = 10.0
EXPIRE_S: Final = 60.0
RETRY_S: Final = (1.0, 60.0)

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
        self._clock = clock
        self._executor = executor
        self._shelf = shelf
        self._before = before
        self._others_due_at = due_at
        self._loop = asyncio.get_running_loop()
        self.store = store
        self._store_open = False
        self._damaged = False
        self.problem = ""
        """Why records stay in memory."""
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
            return self._retry_at
        if self._urgent:
            return 0.0
        due = [at for at in (self._trim_at, self._others_due_at()) if at is not None]
        if self._settings.max_age is not None and any(stream.disk for stream in self._shelf.streams.values()):
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
            except CorruptError as error:
                self._fail(error)
                await self._rescue()
            except StoreError as error:
                self._fail(error)
            else:
                self._recover()
            self._finished = self._started
            self._shelf.sweep()
            self.release_waiters()
            self.changed()

    async def _transact(self) -> None:
        helds, work = self._work()
        if work is None:
            if self.problem:
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
        self._done(helds, done)

    def _work(self) -> tuple[list[Held], Work | None]:
        now, streams = self._clock.monotonic(), self._shelf.streams.values()
        helds = [held for stream in streams for held in stream.fresh.values()]
        expiry = self._expiry() if now >= self._expire_at else None
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_S
        if not helds and expiry is None and (self._trim_at is None or now < self._trim_at):
            return [], None
        on_disk = [stream for stream in streams if stream.disk is not None]
        return helds, Work(
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
            ring=self._shelf.ring_name,
            covered={held.record.lane: held.grounded[-1].number for held in helds if held.grounded},
        )

    def _expiry(self) -> Expiry | None:
        state = self._shelf.clock_state
        if self._settings.max_age is None or state.trust is Trust.UNSYNCED:
            return None
        before_ms = self._shelf.boot_ms() - int(self._settings.max_age * 1000)
        return Expiry(state.boot, before_ms, before_ms + self._shelf.earliest_offset_ms)

    def _done(self, helds: Sequence[Held], done: Done) -> None:
        self._set_disks(done.disks)
        for held in helds:
            self._shelf.committed(held)
        for loss in done.losses:
            self._shelf.count(loss)

    def _set_disks(self, disks: Mapping[str, Disk | None]) -> None:
        for name, disk in disks.items():
            stream = self._shelf.streams.get(name)
            if stream is not None:
                stream.set_disk(disk)

    # ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> dict[Lane, int]:
        """The first look at the disk; see `Shelf.adopt`."""
        try:
            opened = await self._call(self.store.open)
        except StoreError as error:
            self._fail(error)
            return {}
        return self._adopt(opened)

    def _adopt(self, opened: Opened) -> dict[Lane, int]:
        covered = self._shelf.adopt(opened)
        self._store_open = True
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

    async def _rescue(self) -> None:
        try:
            self._adopt(await self._call(self.store.rescue))
        except StoreError as error:
            self._fail(error)
            self._store_open = False  # it was closed for the rescue; opening it tries that again
        else:
            self._retry_at = self._clock.monotonic()

    def _fail(self, error: StoreError) -> None:
        if not self.problem:
            log.warning(
                "the store fails (%s): going on from memory, %d bytes at most", error, self._settings.memory_limit
            )
        self.problem = str(error)
        self._retry_at = self._clock.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_S[1])

    def _recover(self) -> None:
        if self.problem:
            log.info("the store works again")
            self.problem = ""
        self._retry_at = None
        self._retry_s = RETRY_S[0]

    # ── the store's thread ───────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, stream: str, seq: int, max_bytes: int) -> Sequence[Stored]:
        """Records of a stream on disk. Raises StoreError: ask again later."""
        try:
            stored, losses = await self._call(self.store.read, stream, seq, max_bytes)
        except StoreError as error:
            self._fail(error)
            self._kick.set()
            if isinstance(error, CorruptError):
                async with self._lock:
                    await self._rescue()
            raise
        for loss in losses:
            self._shelf.count(loss)
        return stored

    async def move(self, stream: str, mark: int, target: str) -> None:
        """What is un-acked of a stream on disk goes to a new one. Raises StoreError."""
        async with self._lock:
            boot = self._shelf.clock_state.boot
            self._set_disks((await self._call(self.store.move, stream, mark, target, boot)).disks)

    async def probe(self) -> None:
        """Returns when the store's thread has come to it."""
        await self._call(lambda: None)

    async def close(self) -> None:
        await self._call(self.store.close)

    async def _call(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._loop.run_in_executor(self._executor, functools.partial(call, *args, **kwargs))


def _nobody() -> None:
    """Nothing to do, nobody to tell."""
