"""Pure: whether a sealed packet is of now, or a recording.

A device counts up with every packet that it seals, and the count is part of what the seal protects. So a packet with a
smaller count than one already heard is a recording, or comes very late. A device whose battery was changed may begin
to count anew: that is believed when nothing of the old count was heard for `RESTART_S` and the new one has risen over
`RESTART_PACKETS` packets. The first packet after a start of this program is believed as it comes.
"""

from __future__ import annotations

from typing import Final

RESTART_S: Final = 300.0
RESTART_PACKETS: Final = 3


class Replays:
    """Judges the packets of one device."""

    def __init__(self) -> None:
        self._newest: int | None = None
        self._newest_at = 0.0
        self._lower = -1
        self._risen = 0

    def fresh(self, counter: int, now: float) -> bool:
        """False: it is to be dropped. The very packet that came last is no recording: the radio repeats itself."""
        if self._newest is None or counter >= self._newest:
            self._believe(counter, now)
            return True
        if counter <= self._lower:
            return False
        self._lower = counter
        self._risen += 1
        if self._risen < RESTART_PACKETS or now - self._newest_at < RESTART_S:
            return False
        self._believe(counter, now)
        return True

    def _believe(self, counter: int, now: float) -> None:
        self._newest, self._newest_at = counter, now
        self._lower, self._risen = -1, 0
