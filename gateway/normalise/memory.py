"""Pure: what the normaliser remembers of each point: what was told last, and what that means for the next value."""

from __future__ import annotations

from typing import Final

from gateway.model import Lane, Status, Value
from gateway.normalise.counter import Counter
from gateway.points import Point

NS_PER_S: Final = 1_000_000_000
_NOISE = 2.0**-51
"""Two decimal fractions read as floats are off by half a unit in the last place each (2^-53 of their size); twice
that for their difference, and once more to be above it."""


class Home:
    """What the cells of one device share."""

    __slots__ = ("cells", "troubled")

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = {}
        self.troubled = 0
        """Cells whose last word was not good."""


class Held:
    """News that waits for the end of `min_interval`."""

    __slots__ = ("at_ns", "source_ms", "status", "value")

    def __init__(self, value: Value | None, status: Status, at_ns: int, source_ms: int | None) -> None:
        self.value = value
        self.status = status
        self.at_ns = at_ns
        self.source_ms = source_ms


class Cell:
    """One point of one device: what was told last, and what that means for the next."""

    __slots__ = (
        "counter", "deadband", "device", "expire_ns", "forgotten", "heard_ns", "held", "holding", "home", "lane",
        "max_ns", "min_ns", "pinned", "plans", "point", "status", "thinned", "told_ns", "unit", "value",
    )  # fmt: skip

    def __init__(self, home: Home, device: str, name: str, point: Point | None, pinned: bool) -> None:
        self.home = home
        self.device = device
        self.point = name
        self.unit = ""
        self.lane = point.lane if point else Lane.LIVE
        self.deadband = point.deadband if point else None
        self.min_ns = ns(point.min_interval) if point else None
        self.max_ns = ns(point.max_interval) if point else None
        self.expire_ns = ns(point.expire_after) if point else None
        self.counter = Counter(point.max_rate) if point and point.monotonic else None
        self.thinned = self.deadband is not None or self.min_ns is not None
        self.pinned = pinned
        self.plans = 0
        self.forgotten = False
        self.status: Status | None = None
        self.value: Value | None = None
        self.told_ns = 0
        self.heard_ns = 0
        self.held: Held | None = None
        self.holding = False

    def tell(self, value: Value | None, status: Status, at_ns: int) -> None:
        self.home.troubled += (status is not Status.GOOD) - (self.status not in (None, Status.GOOD))
        self.value, self.status, self.told_ns = value, status, at_ns

    def changed(self, value: Value) -> bool:
        """By more than the deadband; what is no number changes when it is another."""
        if self.deadband is None:
            return True
        last = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(last, int | float):
            return value != last
        if self.deadband == 0 or (isinstance(value, int) and isinstance(last, int)):
            return abs(value - last) > self.deadband
        # 21.6 - 21.5 is a little more than 0.1, 21.7 - 21.6 a little less: neither is larger than a deadband of 0.1
        return abs(value - last) > self.deadband + max(abs(value), abs(last)) * _NOISE

    def hear(self, value: Value | None, status: Status, at_ns: int, source_ms: int | None, heartbeat_ns: int) -> bool:
        """Is it news? Then it counts as told. What `min_interval` keeps back is in `held`."""
        self.heard_ns = at_ns
        self.held = None
        if status is self.status:
            if value is not None and not self.thinned:
                return True
            since_ns = at_ns - self.told_ns
            if value is None:
                if since_ns < heartbeat_ns:
                    return False
            elif self.max_ns is None or since_ns < self.max_ns:
                if not self.changed(value):
                    return False
                if self.min_ns is not None and since_ns < self.min_ns:
                    self.held = Held(value, status, at_ns, source_ms)
                    return False
        self.tell(value, status, at_ns)
        return True


def ns(seconds: float | None) -> int | None:
    """An interval of 0 asks for nothing."""
    return round(seconds * NS_PER_S) or None if seconds else None
