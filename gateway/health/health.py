"""Feeds the watchdog only while real work advances, and keeps systemd's status line true.

Work that must advance: the event loop (this task runs on it), the store's thread (a probe goes through it), and every
connector within the deadline it set itself with its last beat. An unplugged sensor is not a reason: its connector
still beats while it waits. When something is overdue the watchdog is simply no longer fed; systemd kills the process
and starts a clean one, and the flight ring keeps what was accepted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.clock import Clock
from gateway.health.systemd import Notifier

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_PROBE_LIMIT_S = 20.0
"""A commit on a slow SD card takes up to a few seconds; a store that does not answer for 20 s is stuck."""


class Probe(Protocol):
    """Something that must answer."""

    async def __call__(self) -> None: ...


class Health:
    """The watch. `probe` goes through the store's thread; `overdue` names connectors past their own deadline."""

    def __init__(
        self,
        clock: Clock,
        notifier: Notifier,
        probe: Probe,
        overdue: Callable[[float], Sequence[str]],
        sentence: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._notifier = notifier
        self._probe = probe
        self._overdue = overdue
        self._sentence = sentence
        self._complaint = ""

    async def run(self) -> None:
        """Looks several times within the watchdog's interval, until cancelled."""
        watchdog = self._notifier.watchdog_s
        pause = min(_LOOK_EVERY_S, watchdog / 3) if watchdog else _LOOK_EVERY_S
        while True:
            await self.look()
            await asyncio.sleep(pause)

    async def look(self) -> bool:
        """One look: True when everything advances (and the watchdog was fed)."""
        complaint = await self._what_is_stuck()
        if complaint and complaint != self._complaint:
            log.error("%s: no longer feeding the watchdog", complaint)
        elif self._complaint and not complaint:
            log.info("work advances again (was: %s)", self._complaint)
        self._complaint = complaint
        if complaint:
            self._notifier.status(f"Stuck: {complaint}")
            return False
        self._notifier.status(self._sentence())
        self._notifier.feed()
        return True

    async def _what_is_stuck(self) -> str:
        late = self._overdue(self._clock.monotonic())
        if late:
            return f"no sign of life from {', '.join(late)}"
        try:
            async with asyncio.timeout(_PROBE_LIMIT_S):
                await self._probe()
        except TimeoutError:
            return f"the store has not answered for {_PROBE_LIMIT_S:.0f} s"
        return ""
