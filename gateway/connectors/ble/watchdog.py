"""Pure: when a scan must be started again, though nothing said that it ended, and when that is not enough.

BlueZ goes deaf without an error: when its service restarts, when a driver hangs, when discovery stalls. So a scan is
started again when the medium was upset (the service or the adapter came anew) and when nothing at all was heard for
`silence_s`. The first restart comes at once; after that there is at most one remedy in `spacing_s`, for a site may
simply be quiet, and each restart costs the air a second of deafness.

Where something was heard before, silence that outlasts `RESTARTS` restarts is taken for a hung controller: the adapter
is switched off and on. If that brings nothing either it is `wedged`: a person must look, and meanwhile the scan is
started again and again, and every `RESET_EVERY`th time the adapter is switched again.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

SPACING_S: Final = 60.0
RESTARTS: Final = 2
RESET_EVERY: Final = 10


class Remedy(Enum):
    """What is done about a deaf scan."""

    RESTART = "starting the scan again"
    RESET = "switching the adapter off and on"


class Advice(NamedTuple):
    """What is to be done now, and why."""

    remedy: Remedy
    why: str


class Watchdog:
    """`tick` says what to do; the driver does it and calls `started`."""

    def __init__(self, silence_s: float, spacing_s: float = SPACING_S) -> None:
        self._silence_s = silence_s
        self._spacing_s = spacing_s
        self._alive_at = 0.0
        self._heard_at: float | None = None
        self._upset = ""
        self._remedied_at: float | None = None
        self._in_vain = 0

    @property
    def wedged(self) -> bool:
        """Neither restarts nor a reset brought anything back."""
        return self._heard_at is not None and self._in_vain > RESTARTS + 1

    def started(self, now: float) -> None:
        """The scan runs (again)."""
        self._alive_at = now

    def heard(self, now: float) -> None:
        """Anything came in, whoever sent it."""
        self._alive_at = self._heard_at = now
        self._in_vain = 0

    def upset(self, why: str) -> None:
        """The medium changed under the scan."""
        self._upset = why

    def deadline(self) -> float:
        """When `tick` has something to say at the latest."""
        due = 0.0 if self._upset else self._alive_at + self._silence_s
        return due if self._remedied_at is None else max(due, self._remedied_at + self._spacing_s)

    def tick(self, now: float) -> Advice | None:
        """What must be done now, or None."""
        if now < self.deadline():
            return None
        self._remedied_at = now
        if self._upset:
            why, self._upset = self._upset, ""
            return Advice(Remedy.RESTART, why)
        silent_s = now - (self._alive_at if self._heard_at is None else self._heard_at)
        self._in_vain += 1
        deaf = self._heard_at is not None and self._in_vain > RESTARTS
        reset = deaf and (self._in_vain - RESTARTS - 1) % RESET_EVERY == 0
        return Advice(Remedy.RESET if reset else Remedy.RESTART, f"nothing heard for {silent_s:.0f} s")
