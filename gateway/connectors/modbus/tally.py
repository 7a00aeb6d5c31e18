"""Pure: what is counted on a bus: the answers of each device, how long it thinks, how much the line is taken."""

from __future__ import annotations

from gateway.connectors.modbus.latency import ENOUGH, Latency
from gateway.model import Json

_WINDOW_S = 30.0
MARGIN = 2
"""A timeout shorter than so many times what nearly every answer takes will be missed by some."""


class Account:
    """Of one device."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.exceptions = 0
        self.cuts: list[str] = []
        """Reads that it refused whole, and that were cut in two."""
        self.latency = Latency()
        self._warned = False

    def answered(self, thought_s: float, timeout_s: float) -> float | None:
        """Beyond the time on the wire it took so long. Returns the 99th percentile once, if the timeout is short."""
        self.succeeded += 1
        latency = self.latency
        latency.add(thought_s)
        if self._warned or latency.count % ENOUGH:
            return None
        usual_s = latency.within(0.99)
        self._warned = usual_s is not None and timeout_s < MARGIN * usual_s
        return usual_s if self._warned else None

    def told(self) -> dict[str, Json]:
        said: dict[str, Json] = {"succeeded": self.succeeded, "failed": self.failed, "exceptions": self.exceptions}
        for name, share in (("reply_p50_ms", 0.5), ("reply_p99_ms", 0.99)):
            within_s = self.latency.within(share)
            said[name] = None if within_s is None else round(1000 * within_s, 1)
        return {**said, "cut": self.cuts}


class BusyTime:
    """The share of the last half minute or minute in which the line was taken, silences before requests included."""

    def __init__(self, now: float) -> None:
        self._busy_s = 0.0
        self._since = self._mark = (now, 0.0)

    def spent(self, began: float, ended: float) -> None:
        self._busy_s += ended - began
        if ended - self._mark[0] >= _WINDOW_S:
            self._since, self._mark = self._mark, (ended, self._busy_s)

    def share(self, now: float) -> float:
        at, busy_s = self._since
        return (self._busy_s - busy_s) / (now - at) if now > at else 0.0
