"""Pure: how many commands a server may send [K7].

Each one is written down before anything else happens to it, so a server that has gone wrong could wear out the disk and
keep the processor from reading sensors. Who restores a hundred set points at once never meets this limit.
"""

from __future__ import annotations

from typing import Final

COMMAND_BURST: Final = 1024
COMMANDS_PER_S: Final = 20.0


class Pace:
    """A bucket of tokens: how many it holds, and how many it gains in a second."""

    def __init__(self, burst: int = COMMAND_BURST, per_s: float = COMMANDS_PER_S) -> None:
        self._burst = burst
        self._per_s = per_s
        self._tokens = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """One command. False: that is one too many."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
