"""Pure: UTC from what the servers say in their welcomes, for plants in which NTP is blocked.

A welcome was written between our hello and its arrival, so it gives an interval for the offset of UTC to boot time: the
round trip and twice the server's own error wide. The interval grows while nothing renews it, because our oscillator
drifts. Endpoints that agree narrow it down: what all of them allow is believed.

Where they disagree one of them lies, or its clock is not set:

* The largest group that agrees is believed; of two as large the one that was believed before, then the better endpoint.
* An endpoint that contradicts what it said before is not heard until it says the same again, ten minutes later or more.
* What lies before the year in which this was written, or 200 years after it, is no time.

It is used only while nothing better is known, it never sets a clock, and no timer looks at it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from gateway.clock import DRIFT_PPM

SERVER_ERROR_MS: Final = 1000
"""Of a server that does not say; one that is synchronised is far better."""
CONFIRM_AFTER_S: Final = 600.0
EARLIEST_MS: Final = 1_767_225_600_000
"""2026-01-01."""
LATEST_MS: Final = EARLIEST_MS + 200 * 365 * 86_400_000


class Span(NamedTuple):
    """An interval for the offset; it was as wide as this at `at_s`, seconds of boot time."""

    low_ms: float
    high_ms: float
    at_s: float

    def at(self, now_s: float) -> Span:
        drift_ms = max(0.0, now_s - self.at_s) * DRIFT_PPM / 1000
        return Span(self.low_ms - drift_ms, self.high_ms + drift_ms, now_s)

    def meets(self, other: Span) -> bool:
        return self.low_ms <= other.high_ms and other.low_ms <= self.high_ms


class Heard(NamedTuple):
    """What became of one statement."""

    complaint: str
    """Empty, or why this statement is not believed."""
    offset_ms: int = 0
    error_ms: int | None = None
    """None: no time is known yet."""


class ServerTime:
    """What the endpoints said, by their number."""

    def __init__(self) -> None:
        self._said: dict[int, Span] = {}
        self._doubted: dict[int, Span] = {}
        """What contradicts what the same endpoint said before."""
        self._believed: Span | None = None

    def heard(self, endpoint: int, utc_ms: int, rtt_s: float, boot_s: float) -> Heard:
        """A welcome that was awaited for `rtt_s` says that it is `utc_ms`."""
        complaint = self._take(endpoint, utc_ms, rtt_s, boot_s)
        self._believed = self._agreed(boot_s)
        if self._believed is None:
            return Heard(complaint)
        low_ms, high_ms, _ = self._believed
        if not complaint and not self._said[endpoint].at(boot_s).meets(self._believed):
            complaint = "it contradicts the time that is believed"
        offset_ms = round((low_ms + high_ms) / 2)
        return Heard(complaint, offset_ms, max(1, round((high_ms - low_ms) / 2 + 0.5)))

    def _take(self, endpoint: int, utc_ms: int, rtt_s: float, boot_s: float) -> str:
        if not EARLIEST_MS <= utc_ms <= LATEST_MS:
            return "what it says is no time of today"
        middle_ms = utc_ms - (boot_s - rtt_s / 2) * 1000
        width_ms = rtt_s * 500 + SERVER_ERROR_MS
        new = Span(middle_ms - width_ms, middle_ms + width_ms, boot_s)
        known, doubted = self._said.get(endpoint), self._doubted.pop(endpoint, None)
        if known is not None and not known.at(boot_s).meets(new):
            confirmed = doubted is not None and doubted.at(boot_s).meets(new)
            if doubted is None or not confirmed or boot_s < doubted.at_s + CONFIRM_AFTER_S:
                self._doubted[endpoint] = doubted if doubted is not None and confirmed else new
                return "it contradicts what it said before"
        self._said[endpoint] = new
        return ""

    def _agreed(self, now_s: float) -> Span | None:
        """The intersection of the largest group that agrees."""
        spans = [self._said[endpoint].at(now_s) for endpoint in sorted(self._said)]
        if not spans:
            return None
        groups = [[span for span in spans if span.low_ms <= edge <= span.high_ms] for edge in _edges(spans)]
        before = self._believed.at(now_s) if self._believed is not None else None

        def weight(group: list[Span]) -> tuple[int, bool, int]:
            common = _common(group, now_s)
            return len(group), before is not None and common.meets(before), -spans.index(group[0])

        return _common(max(groups, key=weight), now_s)


def _edges(spans: Iterable[Span]) -> list[float]:
    """Every largest group has a point at which one of its intervals begins."""
    return [span.low_ms for span in spans]


def _common(group: list[Span], now_s: float) -> Span:
    return Span(max(span.low_ms for span in group), min(span.high_ms for span in group), now_s)
