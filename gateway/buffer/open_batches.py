"""Rows that are in no record yet: one open batch for each lane, and when it becomes a record. Event loop only.

An alarm waits for nothing; readings wait for company: `linger` while a session takes records, for the group commit
while none does. Whatever happens, the time until a row is on disk counts from its own arrival.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from gateway.buffer import batching
from gateway.buffer.ledger import OriginLedger
from gateway.buffer.ring import Entry
from gateway.buffer.shelf import Shelf
from gateway.buffer.streams import Settling
from gateway.clock import Clock
from gateway.model import Lane, Origin, Row


class OpenBatch:
    """Rows of one lane."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.entries: list[Entry] = []
        self.origins: list[Origin] = []
        self.settlings: list[Settling] = []
        self.cost_bytes = 0
        self.readings = 0
        self.since_s = 0.0
        self.timer: asyncio.TimerHandle | None = None


class OpenBatches:
    """`closed` is called with the lane of every batch that has become a record."""

    def __init__(self, clock: Clock, shelf: Shelf, linger_s: float, closed: Callable[[Lane], None]) -> None:
        self._clock = clock
        self._shelf = shelf
        self._linger_s = linger_s
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Lane, OpenBatch] = {lane: OpenBatch() for lane in Lane}
        self._online = False

    @property
    def ledger(self) -> OriginLedger:
        return self._shelf.ledger

    @property
    def cost_bytes(self) -> int:
        return self._lanes[Lane.LIVE].cost_bytes + self._lanes[Lane.ALARM].cost_bytes

    def started(self) -> Collection[OpenBatch]:
        """Those with rows in them."""
        return [batch for batch in self._lanes.values() if batch.rows]

    def add(self, portion: batching.Portion, settling: Settling | None, entry: Entry | None) -> tuple[OpenBatch, bool]:
        """Puts rows into the open batch of their lane; `entry`: they are in the ring already.

        Returns that batch, and whether they survive the process.
        """
        lane, origins = portion.lane, portion.origins
        batch = self._lanes[lane]
        if batch.rows and not batching.fits(batch.cost_bytes, batch.readings, portion):
            self.close(lane)
            batch = self._lanes[lane]
        safe = True
        if entry is None and (not origins or any(row.origin is None for row in portion.rows)):
            entry = self._shelf.flights.put_rows(lane, portion.rows)
            safe = entry is not None
        if entry is not None:
            batch.entries.append(entry)
        for origin in origins:
            self._shelf.ledger.accept(origin)
        batch.origins += origins
        if settling is not None:
            settling.left += 1
            batch.settlings.append(settling)
        if not batch.rows:
            batch.since_s = self._clock.monotonic()
            self._set_timer(lane, batch)
        batch.rows += portion.rows
        batch.cost_bytes += portion.cost_bytes
        batch.readings += portion.readings
        return batch, safe

    def _set_timer(self, lane: Lane, batch: OpenBatch) -> None:
        if lane is Lane.ALARM:
            batch.timer = self._loop.call_later(0, self.close, lane)
        elif self._online:
            batch.timer = self._loop.call_later(self._linger_s, self.close, lane)

    def online(self, up: bool, linger_s: float) -> None:
        """Whether a session takes records, and how long a batch that is begun from now on waits for more rows."""
        self._online = up
        self._linger_s = linger_s
        for lane, batch in self._lanes.items():
            if up and batch.rows and batch.timer is None:
                self._set_timer(lane, batch)

    def close(self, lane: Lane) -> bool:
        """Makes a record of the rows in the open batch (several, if they are too large). False: there were none."""
        batch = self._lanes[lane]
        if not batch.rows:
            return False
        self._lanes[lane] = OpenBatch()
        if batch.timer is not None:
            batch.timer.cancel()
        encoded = batching.encode(batch.rows, self._shelf.clock_state)
        current = self._shelf.current[lane]
        self._shelf.add(current, encoded, batch.entries, batch.origins, batch.settlings, batch.since_s)
        self._closed(lane)
        return True

    def close_due(self, before_s: float) -> None:
        """Closes those that were begun at that time or earlier."""
        for lane, batch in self._lanes.items():
            if batch.rows and batch.since_s <= before_s:
                self.close(lane)

    def cancel(self) -> None:
        """Nothing closes by itself any more."""
        for batch in self._lanes.values():
            if batch.timer is not None:
                batch.timer.cancel()
