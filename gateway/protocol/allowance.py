"""Pure: how much may be in flight: what the server's window leaves, and what the path has shown that it carries.

The server's window says what it takes; on a slow path most of it would only lie in queues, and every ack would come
late. So the bytes begin small and grow while acks come quickly. Sealed streams are held to a share [M6].
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.protocol.messages import Window

BACKLOG_SHARE: Final = 5
"""Sealed streams get at least 1/5 of the window, and leave at least 1/5 to new readings."""
OWN_WINDOW_BYTES: Final = 64 * 1024
"""In flight at first, before the path has shown that it is fast."""
SMALLEST_WINDOW_BYTES: Final = 16 * 1024
MAX_WINDOW: Final = Window(1024, 8 << 20)
"""Whatever the server offers: what is in flight is kept in memory, and cannot be given up for something newer."""
FAST_ACK_S: Final = 1.0
SLOW_ACK_S: Final = 2.0


class Room(NamedTuple):
    """What may be sent, or what is in flight."""

    records: int
    bytes: int

    def least(self, other: Room) -> Room:
        return Room(min(self.records, other.records), min(self.bytes, other.bytes))


class Allowance:
    """The window of one session."""

    def __init__(self) -> None:
        self.window = Window()
        self._own_bytes = OWN_WINDOW_BYTES

    def grant(self, window: Window) -> None:
        """What the server takes from now on."""
        self.window = Window(min(window.batches, MAX_WINDOW.batches), min(window.bytes, MAX_WINDOW.bytes))

    @property
    def bytes(self) -> int:
        return min(self.window.bytes, self._own_bytes)

    def measured(self, sample_s: float) -> None:
        """An ack took that long."""
        if sample_s > SLOW_ACK_S:
            self._own_bytes = max(SMALLEST_WINDOW_BYTES, self._own_bytes // 2)
        elif sample_s < FAST_ACK_S:
            self._own_bytes = min(self._own_bytes * 2, max(self.window.bytes, OWN_WINDOW_BYTES))

    def room(self, flying: Room, extra: int) -> Room:
        """What may be sent now [W1], `extra` records of the alarm lane on top [W2]."""
        if not flying.records:
            return Room(self.window.batches + extra, max(1, self.bytes))
        return Room(self.window.batches + extra - flying.records, max(1 if extra else 0, self.bytes - flying.bytes))

    def backlog(self, flying: Room) -> tuple[Room, Room]:
        """What sealed streams are owed, and what they may take when nothing new waits. `flying`: of theirs."""
        owed = Room(max(1, self.window.batches // BACKLOG_SHARE), max(1, self.bytes // BACKLOG_SHARE))
        spare = Room(max(1, self.window.batches - owed.records), max(1, self.bytes - owed.bytes))
        return _without(owed, flying), _without(spare, flying)


def _without(room: Room, taken: Room) -> Room:
    return Room(room.records - taken.records, room.bytes - taken.bytes)
