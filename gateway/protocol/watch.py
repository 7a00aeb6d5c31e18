"""Pure: what a session of the gateway knows of time: how long the path takes, and when the server is overdue.

Silence has one meaning at a time: before the welcome the welcome is late; with records in flight their ack is late,
first a suspicion and then the end; with nothing in flight a ping is, once it has been sent. A pause that the server
asked for (a window of 0) is no silence, but it ends: somebody else may take what waits.
"""

from __future__ import annotations

from typing import Final

from gateway.protocol.outputs import Dead, Output, Ping, Recovered, Suspect

WELCOME_WITHIN_S: Final = 2.0
ACK_TIMEOUT_MIN_S: Final = 0.7
ACK_TIMEOUT_MAX_S: Final = 5.0
ABANDON_AFTER_S: Final = 3.0
"""From suspicion to giving a session up."""
PING_ACTIVE_S: Final = 20.0
PING_STANDBY_S: Final = 45.0
PONG_WITHIN_S: Final = 5.0
PAUSE_MAX_S: Final = 60.0


class Watch:
    """`waits`, where it is asked for: records are in flight and the server is to ack them."""

    def __init__(self, ping_s: float = PING_ACTIVE_S, patience_s: float = 0.0) -> None:
        self._ping_s = ping_s
        self._patience_s = patience_s
        """Until the first ack has measured the path: what earlier sessions there did not wait for."""
        self.srtt_s = 0.0
        self.suspect = False
        self.active = False
        """It carries records, so it is pinged more often."""
        self._rttvar_s = 0.0
        self._budget_s = 0.0
        self._said_hello_at: float | None = None
        """None: before the hello, and after the welcome."""
        self._heard_at = 0.0
        self._pong_by: float | None = None
        self._progress_at = 0.0
        self._suspect_since = 0.0
        self._pause_by: float | None = None

    def hello(self, now: float) -> None:
        self._said_hello_at = self._heard_at = now

    def welcomed(self, budget_s: float, now: float) -> None:
        """The first measure of the path. `budget_s`: what the server may take from receipt to ack."""
        if self._said_hello_at is not None:
            self.srtt_s = max(0.0, now - self._said_hello_at)
            self._rttvar_s = self.srtt_s / 2
            self._said_hello_at = None
        self._budget_s = budget_s

    def heard(self, now: float) -> None:
        self._heard_at = now

    def pong(self, now: float) -> None:
        self._heard_at = now
        self._pong_by = None

    def progress(self, now: float) -> None:
        """Waiting for acks begins anew."""
        self._progress_at = now

    def paused(self, pause: bool, now: float) -> None:
        """Whether the server takes nothing for now [W3c]."""
        if not pause:
            self._pause_by = None
        elif self._pause_by is None:
            self._pause_by = now + PAUSE_MAX_S

    def relieve(self) -> list[Output]:
        """There is no reason to suspect any more."""
        if not self.suspect:
            return []
        self.suspect = False
        return [Recovered()]

    def measure(self, sample_s: float) -> None:
        """One round trip (RFC 6298 §2)."""
        self._patience_s = 0.0
        self._rttvar_s += (abs(self.srtt_s - sample_s) - self._rttvar_s) / 4
        self.srtt_s += (sample_s - self.srtt_s) / 8

    @property
    def ack_timeout_s(self) -> float:
        wanted = self.srtt_s + 4 * self._rttvar_s + self._budget_s
        return min(max(wanted, ACK_TIMEOUT_MIN_S, self._patience_s), ACK_TIMEOUT_MAX_S)

    def deadline(self, waits: bool) -> float:
        """When to call `tick`."""
        if self._said_hello_at is not None:
            return self._said_hello_at + WELCOME_WITHIN_S
        ping_at = self._ping_at() if self._pong_by is None else self._pong_by
        return min(at for at in (ping_at, self._ack_by(waits), self._pause_by) if at is not None)

    def tick(self, waits: bool, now: float) -> list[Output]:
        if self._said_hello_at is not None:
            return [Dead(f"no welcome within {WELCOME_WITHIN_S:g} s")] if now >= self.deadline(waits) else []
        outputs: list[Output] = []
        ack_by = self._ack_by(waits)
        if ack_by is not None and now >= ack_by:
            if self.suspect:
                return [Dead(f"no ack for {now - self._progress_at:.1f} s")]
            self.suspect = True
            self._suspect_since = now
            outputs.append(Suspect())
        if self._pong_by is not None and now >= self._pong_by:
            return [Dead(f"no pong within {PONG_WITHIN_S:g} s")]
        if self._pause_by is not None and now >= self._pause_by:
            return [Dead(f"the server has taken nothing for {PAUSE_MAX_S:g} s")]
        if self._pong_by is None and now >= self._ping_at():
            self._pong_by = now + PONG_WITHIN_S
            outputs.append(Ping())
        return outputs

    def _ping_at(self) -> float:
        return self._heard_at + (self._ping_s if self.active else max(self._ping_s, PING_STANDBY_S))

    def _ack_by(self, waits: bool) -> float | None:
        if self.suspect:
            return self._suspect_since + ABANDON_AFTER_S
        return self._progress_at + self.ack_timeout_s if waits else None
