"""What is known of every device: its state, since when and why. Connectors report, people look."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from gateway.clock import Clock
from gateway.model import DeviceState, Json

log = logging.getLogger(__name__)

_MOST = 10_000
"""One rule can make many devices; beyond this many new ones are counted, not kept."""


class _Entry(msgspec.Struct):
    bus: str
    state: DeviceState
    why: str
    since: float


class Devices:
    """The board. Configured devices are on it from the start, as waiting."""

    def __init__(self, clock: Clock, buses: Mapping[str, str]) -> None:
        """`buses`: device → the bus it sits on."""
        self._clock = clock
        now = clock.monotonic()
        self._entries = {
            name: _Entry(bus, DeviceState.WAITING, "", now) for name, bus in buses.items() if "{" not in name
        }
        self.unlisted = 0

    def report(self, bus: str, device: str, state: DeviceState, why: str) -> None:
        """One change is one line in the log; the same again costs nothing."""
        entry = self._entries.get(device)
        if entry is None:
            if len(self._entries) >= _MOST:
                self.unlisted += 1
                return
            entry = self._entries[device] = _Entry(bus, DeviceState.WAITING, "", 0.0)
        if entry.state is state:
            entry.why = why
            return
        level = logging.INFO if state is DeviceState.ONLINE else logging.WARNING
        log.log(level, "%s is %s%s", device, state, f": {why}" if why else "")
        entry.state, entry.why, entry.since = state, why, self._clock.monotonic()

    def failing(self) -> int:
        """How many devices do not deliver."""
        bad = (DeviceState.FAILING, DeviceState.OFFLINE)
        return sum(entry.state in bad for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def status(self) -> dict[str, Json]:
        """For `gateway status`."""
        now = self._clock.monotonic()
        return {
            name: {"bus": e.bus, "state": e.state, "why": e.why, "since_s": round(now - e.since, 1)}
            for name, e in sorted(self._entries.items())
        }
