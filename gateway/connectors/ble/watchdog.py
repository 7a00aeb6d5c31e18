"""Pure: when a scan must be started again, though nothing said that it ended.

BlueZ goes deaf without an error: when its service restarts, when a driver hangs, when discovery stalls. So a scan is
started again when the medium was upset (the service or the adapter came anew) and when nothing at all was heard for
`silence_s`. The first restart comes at once; after that there is at most one in `spacing_s`, for a site may simply be
quiet, and each restart costs the air a second of deafness.
"""

from __future__ import annotations

from typing import Final

SPACING_S: Final = 60.0


class Watchdog:
    """`tick` says when to restart; the driver does it and calls `started`."""

    def __init__(self, silence_s: float, spacing_s: float = SPACING_S) -> None:
        self._silence_s = silence_s
        self._spacing_s = spacing_s
        self._alive_at = 0.0
        self._upset = ""
        self._restarted_at: float | None = None

    def started(self, now: float) -> None:
        """The scan runs (again)."""
        self._alive_at = now

    def heard(self, now: float) -> None:
        """Anything came in, whoever sent it."""
        self._alive_at = now

    def upset(self, why: str) -> None:
        """The medium changed under the scan."""
        self._upset = why

    def deadline(self) -> float:
        """When `tick` has something to say at the latest."""
        due = 0.0 if self._upset else self._alive_at + self._silence_s
        return due if self._restarted_at is None else max(due, self._restarted_at + self._spacing_s)

    def tick(self, now: float) -> str | None:
        """Why the scan must be restarted now, or None."""
        if now < self.deadline():
            return None
        why = self._upset or f"nothing heard for {now - self._alive_at:.0f} s"
        self._upset = ""
        self._restarted_at = now
        return why
