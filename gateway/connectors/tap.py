"""Where a bus shows what travels on it, to whoever looks.

Nobody looks most of the time: then a tap is false, and costs its connector one look at that. Who looks has a queue of
its own, of `_EVENTS` at most; one that does not read loses the oldest and is told how many. A tap outlives the
connectors of its bus, which are built anew whenever a link is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

_EVENTS = 1000
"""A full Modbus line at 115200 baud has about 300 a second."""


class What(StrEnum):
    """What an event is about."""

    SENT = "sent"
    RECEIVED = "received"
    ENDED = "ended"
    """A question has its answer, or none."""
    LOST = "lost"
    """The medium is gone."""


class Event(NamedTuple):
    """Bytes on the wire, or how what they were for ended."""

    at_ns: int
    """CLOCK_BOOTTIME."""
    what: What
    data: bytes = b""
    said: str = ""


class Viewer:
    """An endless iterator over events, as many at a time as have come."""

    def __init__(self, events: int) -> None:
        self._events: deque[Event] = deque(maxlen=events)
        self._news = asyncio.Event()
        self.missed = 0
        """Events that were dropped because nobody read them in time."""

    def show(self, event: Event) -> None:
        """Called by the tap."""
        self.missed += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._news.set()

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._events:
            self._news.clear()
            await self._news.wait()
        events = list(self._events)
        self._events.clear()
        return events


class Tap:
    """True while somebody looks: `if tap: tap.show(…)`."""

    def __init__(self) -> None:
        self._viewers: set[Viewer] = set()

    def __bool__(self) -> bool:
        return bool(self._viewers)

    def show(self, event: Event) -> None:
        """To all who look; never waits."""
        for viewer in self._viewers:
            viewer.show(event)

    @contextmanager
    def viewer(self, events: int = _EVENTS) -> Iterator[Viewer]:
        """Shows what happens from now on, while the context is open."""
        viewer = Viewer(events)
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)


NOBODY = Tap()
"""For who has nobody to show anything to."""
