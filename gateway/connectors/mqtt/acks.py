"""Pure but for the ledger it keeps in step: who waits for an acknowledgement on one connection, and what is proved.

    emitted / held ──settled──▶ PUBACK sent (unproved) ──asked──▶ PINGREQ under way ──answered──▶ forgotten

An origin stays in the ledger until the broker cannot send its message again. That is so when a PINGRESP answers a
PINGREQ that followed the PUBACK, and for all of a session when the broker says that it has lost it.

What an earlier process had acknowledged without living to see the proof is found by exclusion: brokers send again what
is un-acknowledged as soon as a session is resumed, so what has not come a minute later never comes; not counting the
time in which the gateway takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.connectors.base import Ledger
from gateway.model import Origin

_ALL_AGAIN_S = 60.0


class Acks:
    """One connection. `now` is monotonic seconds."""

    def __init__(self, ledger: Ledger, session: bytes) -> None:
        self._ledger = ledger
        self._session = session
        self._emitted: set[Origin] = set()
        self.held: set[Origin] = set()
        """Redelivered, handed over on an earlier connection, not settled when last asked."""
        self.unproved: list[Origin] = []
        """Acknowledged, no PINGREQ sent since."""
        self._asked: list[list[Origin]] = []
        """Acknowledged, PINGREQ under way."""
        self._exclude_at: float | None = None
        self._progress = 0.0

    def connected(self, resumed: bool, now: float) -> None:
        """The broker still has the session, or it has not: then nothing of it comes again."""
        self._progress = now
        if resumed:
            self._exclude_at = now + _ALL_AGAIN_S
        else:
            self._ledger.keep_only(self._session, ())

    def unread(self, now: float) -> None:
        """Some of what came has not been looked at: the time in which all comes again begins anew."""
        if self._exclude_at is not None:
            self._exclude_at = now + _ALL_AGAIN_S

    @property
    def waiting(self) -> int:
        """Messages that the broker has sent and that are not acknowledged."""
        return len(self._emitted) + len(self.held)

    def stalled_s(self, now: float) -> float:
        """How long messages have waited without any progress."""
        return now - self._progress if self.waiting else 0.0

    def awaits(self, origin: Origin) -> bool:
        return origin in self._emitted or origin in self.held

    def reused(self, origin: Origin) -> None:
        """The broker uses a packet id again for an equal message: proofs under way are of the old one only."""
        for acknowledged in (self.unproved, *self._asked):
            if origin in acknowledged:
                acknowledged.remove(origin)
        self._ledger.forget((origin,))

    def emitted(self, origins: Sequence[Origin], now: float) -> None:
        self._moved(now)
        self._emitted.update(origins)

    def hold(self, origin: Origin, now: float) -> None:
        self._moved(now)
        self.held.add(origin)

    def settled(self, origins: Sequence[Origin], now: float) -> list[int]:
        """Returns the packet ids to acknowledge."""
        self._progress = now
        self._emitted.difference_update(origins)
        self.unproved += origins
        return [origin.packet_id for origin in origins]

    def poll(self, now: float) -> list[int]:
        """Asks the ledger for held messages; returns the packet ids to acknowledge."""
        ready = [origin for origin in self.held if self._ledger.settled(origin)]
        if not ready:
            return []
        self.held.difference_update(ready)
        return self.settled(ready, now)

    def asked(self, now: float) -> Callable[[], None]:
        """A PINGREQ is sent now; the answer to it calls what is returned."""
        asked, self.unproved = self.unproved, []
        self._asked.append(asked)
        exclude = self._exclude_at is not None and now >= self._exclude_at
        if exclude:
            self._exclude_at = None

        def answered() -> None:
            self._asked = [each for each in self._asked if each is not asked]
            self._ledger.forget(asked)
            if exclude:
                pending = [origin for each in self._asked for origin in each]
                self._ledger.keep_only(self._session, {*self._emitted, *self.held, *self.unproved, *pending})

        return answered

    def exclusion_due(self, now: float) -> bool:
        """Whether a PINGREQ is worth sending though nothing is unproved."""
        return self._exclude_at is not None and now >= self._exclude_at

    def _moved(self, now: float) -> None:
        if not self.waiting:
            self._progress = now
