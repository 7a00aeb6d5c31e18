"""Pure: what the clock can be trusted with.

A Raspberry Pi has no battery clock: it boots in the past, and its UTC jumps when the network comes. So instants are
CLOCK_BOOTTIME, UTC is an offset that comes with a statement of trust, and when the offset turns out to be another one
a `clock` record says so once: the sink then puts every stamp of that boot right, the early ones too.
"""

from __future__ import annotations

from typing import Final

from gateway.model import ClockState, Trust

NS_PER_MS: Final = 1_000_000
STEP_MS: Final = 1000
"""A smaller change of the offset is slewing and rounding, and worth no record."""
PAST_MS: Final = 31 * 24 * 3600 * 1000
"""A logger that was out of reach for a month still tells when it measured; an unset clock (1970, 2000) is further."""
FUTURE_MS: Final = 60 * 1000
"""Nothing is measured in the future: a minute for two clocks that disagree."""


def source_stamp(source_ms: int | None, at_ms: int, clock: ClockState) -> int | None:
    """The device's own stamp where it can be believed, else None: then the time of arrival counts.

    Without a trusted clock of our own there is nothing to judge it by.
    """
    if source_ms is None or clock.trust is Trust.UNSYNCED:
        return None
    age_ms = at_ms + clock.offset_ms - source_ms
    return source_ms if -FUTURE_MS <= age_ms <= PAST_MS else None


class Timebase:
    """Says when a `clock` record is due, given one `ClockState` after the other of this process.

    Vouched for is a state that is synchronised, or by the servers where it never was. Due is one
    - at the first such state: batches before it, of this process or an earlier one of the same boot, may carry an
      offset that was wrong; and at the first synchronised one, which knows better than any server;
    - at such a state whose offset differs from the last record by more than both errors and `STEP_MS`;
    - at the first such state after the offset strayed that far while nothing vouched for it, though it is back
      where it was: batches in between carry the strayed one.

    An offset that nobody vouches for never makes a record.
    """

    def __init__(self) -> None:
        self._told: ClockState | None = None
        self._strayed = False

    def observe(self, state: ClockState) -> ClockState | None:
        """The state to record now, or None."""
        if self._told is not None and not self._strayed:
            known_ms = max(self._told.error_ms, 0) + max(state.error_ms, 0)
            self._strayed = abs(state.offset_ms - self._told.offset_ms) > max(STEP_MS, known_ms)
        if state.trust not in (Trust.SYNCED, Trust.SERVER):
            return None
        better = self._told is None or (state.trust is Trust.SYNCED and self._told.trust is Trust.SERVER)
        if not better and not self._strayed:
            return None
        self._told, self._strayed = state, False
        return state
