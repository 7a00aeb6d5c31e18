"""The way in: samples → rows → buffer, and the latest value of everything for those who look.

Invariants:
- `emit` never fails because of a sample. One that contradicts itself is a bug of its connector: it is left out,
  counted, and logged once for each device.
- Normalising is synchronous, so rows reach the buffer in the order in which `emit` was called.
- `settled` is handed to the buffer with the rows, or called at once when no row came out: all readings were no news,
  or the sample is of no use, and then keeping it at its source would bring it back for ever.
- A viewer that does not read loses the oldest rows and is told how many; it never slows the intake down.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from gateway.clock import Clock
from gateway.errors import DecodeError
from gateway.model import ClockState, Json, Reading, Row, Sample, Shape, Status
from gateway.normalise.normaliser import Normaliser

log = logging.getLogger(__name__)

_LATEST_READINGS = 20_000  # about 100 bytes each: 2 MB
_VIEWER_ROWS = 1000
_CLOCK_S = 1.0  # how often UTC is looked at


class Buffer(Protocol):
    """Where rows go; what the intake needs of it."""

    async def append(self, rows: Sequence[Row], settled: Callable[[], None] | None = None) -> None:
        """When it returns the rows survive the death of this process. `settled` is called once, on the event loop, as
        soon as all of them are on disk or acknowledged. Waits when there is no room."""


class Viewer:
    """An endless iterator over what comes in: readings of a row at a time."""

    def __init__(self, rows: int) -> None:
        self._rows: deque[tuple[Row, ClockState]] = deque(maxlen=rows)
        self._news = asyncio.Event()
        self.missed = 0
        """Rows that were dropped because nobody read them in time."""

    def show(self, row: Row, clock: ClockState) -> None:
        """Called by the intake."""
        self.missed += len(self._rows) == self._rows.maxlen
        self._rows.append((row, clock))
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[list[Reading]]:
        while True:
            while self._rows:
                yield list(_readings(*self._rows.popleft()))
            self._news.clear()
            await self._news.wait()


class Intake:
    """Its `emit` is what connectors get; its `run` must run as long as they do."""

    def __init__(self, normaliser: Normaliser, buffer: Buffer, clock: Clock) -> None:
        self._normaliser = normaliser
        self._buffer = buffer
        self._clock = clock
        self._state = clock.state()
        self._latest: OrderedDict[Shape, Row] = OrderedDict()
        self._width = 0
        self._viewers: set[Viewer] = set()
        self._blamed: set[str] = set()
        self._wake = asyncio.Event()
        self._sleeps_until_ns = 0
        self._samples = self._readings = self._rejected = 0

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        """See `connectors.base.Emit`."""
        rows: list[Row] = []
        for sample in samples:
            try:
                rows += self._normaliser.rows(sample, self._state)
            except DecodeError as error:
                self._reject(sample, error)
        self._samples += len(samples)
        due_ns = self._normaliser.deadline()
        if due_ns is not None and due_ns < self._sleeps_until_ns:
            self._wake.set()
        if rows:
            self._note(rows)
            await self._buffer.append(rows, settled)
        elif settled is not None:
            settled()

    async def run(self) -> None:
        """Says what time alone makes news, and looks at the clock by which stamps of devices are judged. Until
        cancelled."""
        while True:
            self._state = self._clock.state()
            rows = self._normaliser.tick(self._clock.boot_ns())
            if rows:
                self._note(rows)
                await self._buffer.append(rows)
            await self._sleep()

    async def _sleep(self) -> None:
        """Until something is due or the clock wants to be looked at; `emit` may find that something is due earlier."""
        now_ns = self._clock.boot_ns()
        due_ns = self._normaliser.deadline()
        pause_ns = round(_CLOCK_S * 1e9) if due_ns is None else min(round(_CLOCK_S * 1e9), max(due_ns - now_ns, 0))
        self._sleeps_until_ns = now_ns + pause_ns
        self._wake.clear()
        try:
            async with asyncio.timeout(pause_ns / 1e9):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _reject(self, sample: Sample, error: DecodeError) -> None:
        self._rejected += 1
        if sample.device not in self._blamed and len(self._blamed) < 1000:
            self._blamed.add(sample.device)
            log.error("a sample was rejected, which is a bug of its connector: %s", error)

    def _note(self, rows: Sequence[Row]) -> None:
        for row in rows:
            shape = row.shape
            width = len(shape.points)
            self._readings += width
            known = self._latest.pop(shape, None)
            if known is None:
                self._width += width
            elif _utc_ms(known, self._state) > _utc_ms(row, self._state):
                self._latest[shape] = known  # the newest acquisition, not the newest arrival
            self._latest.setdefault(shape, row)
            for viewer in self._viewers:
                viewer.show(row, self._state)
        while self._width > _LATEST_READINGS:
            self._width -= len(self._latest.popitem(last=False)[0].points)

    def latest(self) -> list[Reading]:
        """The newest reading of each point, by device and point; the least recently updated are forgotten when there
        are too many."""
        newest: dict[tuple[str, str], Reading] = {}
        for row in self._latest.values():
            for reading in _readings(row, self._state):
                known = newest.get((reading.device, reading.point))
                if known is None or known.utc_ms <= reading.utc_ms:
                    newest[reading.device, reading.point] = reading
        return [newest[key] for key in sorted(newest)]

    @contextmanager
    def viewer(self, rows: int = _VIEWER_ROWS) -> Iterator[Viewer]:
        """Shows what comes in from now on, while the context is open."""
        viewer = Viewer(rows)
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    def status(self) -> dict[str, Json]:
        """Counters since the start."""
        return {
            "samples": self._samples,
            "readings": self._readings,
            "suppressed": self._normaliser.suppressed,
            "rejected": self._rejected,
            "forgotten": self._normaliser.forgotten,
            "viewers": len(self._viewers),
        }


def _utc_ms(row: Row, clock: ClockState) -> int:
    return row.source_ms if row.source_ms is not None else row.at_ms + clock.offset_ms


def _readings(row: Row, clock: ClockState) -> Iterator[Reading]:
    shape, utc_ms = row.shape, _utc_ms(row, clock)
    for i, point in enumerate(shape.points):
        status = row.status[i] if row.status is not None else Status.GOOD
        yield Reading(shape.device, point, row.values[i], shape.units[i], status, utc_ms, clock.trust)
