"""Pure: the client's side of a Modbus line, whatever the framing, one request at a time.

A wrong value is worse than none. What makes sure that no register is ever read as another:

- A frame is the answer only if transaction (TCP) or checksum (RTU, ASCII), unit, function and byte count fit the
  pending request, or for a write the echoed address and value or quantity. It is hunted for anywhere in what came:
  bytes of noise or the late frame of another unit in front of it do no harm.
- Nothing in an RTU or ASCII frame says which of two alike questions it answers, and a TCP gateway with such a line
  behind it may put the right number on the wrong answer. So after a timeout, or when nobody waits any more, the unit is
  in *quarantine*: it is asked nothing until its late reply came or `late_window` passed. Other units go on; a frame
  names its unit.
- A window that passed in silence leaves a *doubt*: the reply may still be under way. Then an answer that could as well
  be the one to an earlier, different question is not taken (`Reply.doubtful`; ask again). One that could only be about
  the registers in question is, late or not. After either the unit is listened to for a window more, and replies that
  turn up in that time widen the window of that unit.
- A frame with a wrong checksum is no proof that the unit has answered: noise may begin like its answer, and damage
  change whose it is. The answer is owed as if nothing had come.
- An RS-485 adapter may return what is sent, and the answer to a single write looks exactly like the request. Whether
  there is an echo shows at the first read; no write may be started before (`echo` is None).
- A broadcast (unit 0 on a serial line) is answered by nobody. It ends after a pause in which the units carry it out.

Time is an argument everywhere. The driver sends what `start` returns, feeds `received`, and calls `tick` at `deadline`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gateway.connectors.modbus.framing import Found, Framing, Pattern
from gateway.connectors.modbus.request import Request
from gateway.model import Status

_OWED_MAX = 16  # distinct questions of one unit whose replies are still recognised
WINDOW_GROWTH_MAX = 16
"""So many late windows is the longest that a unit is ever left alone."""
TURNAROUND_S = 0.2
"""After a broadcast; 100 to 200 ms are usual (Serial Line V1.02 §2.4.1)."""


class Reply(NamedTuple):
    """How a request ended: `data` (empty for most writes), or an exception `code`, or neither and a `fault`.

    None of these: it was a broadcast, and is out.
    """

    data: bytes | None
    code: int = 0
    fault: Status | None = None
    doubtful: bool = False
    """The unit answered, but it cannot be told what; ask again."""

    @property
    def heard(self) -> bool:
        """The unit lives."""
        return self.data is not None or self.code > 0 or self.doubtful

    @property
    def outcome(self) -> str:
        """In a word: `ok`, `exception`, `doubtful`, `comm_timeout`, `crc`."""
        if self.code:
            return "exception"
        if self.doubtful:
            return "doubtful"
        return self.fault.reason if self.fault else "ok"


class _Sent(NamedTuple):
    """A request as it went out, and what its answers look like."""

    request: Request
    frame: bytes
    answer: Pattern
    refusal: Pattern

    def alike(self, other: _Sent, refused: bool) -> bool:
        """Could the answer to this be the one to that, which asked for something else?"""
        if self.request == other.request:
            return False
        return self.refusal.shape == other.refusal.shape if refused else self.answer.shape == other.answer.shape


class _Unit:
    """What one unit may still say unasked."""

    def __init__(self) -> None:
        self.owed: tuple[_Sent, ...] = ()
        self.until = 0.0
        """Quarantined up to here."""
        self.doubt = False
        self.listening = False
        """Silence up to `until` clears the doubt."""
        self.growth = 1
        self.grown = False
        """Widened since the last question."""


class Client:
    """See the module. One object lives as long as one open link."""

    def __init__(
        self,
        framing: Framing,
        now: float,
        *,
        timeout: float,
        late_window: float,
        character_s: float = 0.0,
        echo: bool | None = False,
    ) -> None:
        self._framing = framing
        self._timeout = timeout
        self._late_window = late_window
        self._character_s = character_s
        self.echo = echo if framing.serial else False
        """Does the line return what is sent? None: not known yet."""
        self.late_discarded: dict[int, int] = {}
        self._units: dict[int, _Unit] = {}
        self._pending: _Sent | None = None
        self._deadline = 0.0
        self._awaited_echo = b""
        self._buffer = bytearray()
        # On a serial line an earlier owner may have left a question behind.
        self._quiet_from = now + late_window if framing.serial else now
        self._last_byte = now
        self._transaction = 0

    def free_at(self, unit: int, gap: float, patience: float = math.inf) -> float:
        """When this unit may be asked: the line quiet for `gap` seconds, the unit's quarantine over.

        A line that never falls silent is taken for quiet from `patience` on; nothing shortens a quarantine.
        """
        state = self._units.get(unit)
        return max(min(self._last_byte + gap, patience), self._quiet_from, state.until if state else 0.0)

    def broadcasts(self, request: Request) -> bool:
        """Is it for all units, so that none answers? Behind TCP unit 0 is a unit like others."""
        return request.unit == 0 and self._framing.serial

    def start(self, request: Request, now: float, timeout: float | None = None) -> bytes:
        """The frame to send. Nothing may be pending, `free_at` has passed, a write needs a known echo.

        `timeout`: in place of the line's, for a unit that is slower.
        """
        assert self._pending is None, "one request at a time"
        everybody = self.broadcasts(request)
        assert everybody or self.echo is not None or not request.writes, "no write before the echo is known"
        state = self._units.get(request.unit)
        if state is not None:
            if state.listening:
                state.owed, state.listening = (), False
            state.doubt, state.grown = bool(state.owed), False
        self._pending = sent = self._wrapped(request)
        self._buffer.clear()
        self._awaited_echo = b"" if self.echo is False or everybody else sent.frame
        self._last_byte = now + len(sent.frame) * self._character_s
        if everybody:
            self._deadline = self._last_byte + TURNAROUND_S
        else:
            answering_s = self._framing.size(sent.answer.shape.size) * self._character_s
            self._deadline = self._last_byte + answering_s + (self._timeout if timeout is None else timeout)
        return sent.frame

    def deadline(self) -> float | None:
        """When to call `tick`; None when nothing is pending."""
        return self._deadline if self._pending else None

    def tick(self, now: float) -> Reply | None:
        """How the pending request has ended, if its time is over."""
        sent = self._pending
        if sent is None or now < self._deadline:
            return None
        reply = self._look(now, last_call=True)
        if reply is not None:
            return reply
        self._pending = None
        if self.broadcasts(sent.request):
            return Reply(None)
        begun = self._may_be_answered(sent) and sent.answer.mark in self._buffer
        self._owe(sent, now)
        return Reply(None, fault=Status.CRC if begun and self._framing.serial else Status.COMM_TIMEOUT)

    def cancel(self, now: float) -> None:
        """Nobody waits for the pending answer any more: it is owed like one that did not come."""
        sent, self._pending = self._pending, None
        if sent is not None and not self.broadcasts(sent.request):
            self._owe(sent, max(now, self._deadline))

    def received(self, data: bytes, now: float) -> Reply | None:
        """Bytes came; the reply if they complete it."""
        self._last_byte = max(self._last_byte, now)
        self._buffer += self._framing.folded(data)
        reply = self._look(now, last_call=False)
        if len(self._buffer) > 2 * self._framing.frame_bytes_max:
            del self._buffer[: -self._framing.frame_bytes_max]
        return reply

    def _look(self, now: float, last_call: bool) -> Reply | None:
        """Takes what is whole out of the buffer, in its order, up to the answer."""
        while True:
            sent = self._pending
            patterns = list(self._owed_patterns(now)) if self._units else []
            if sent and self._may_be_answered(sent):
                patterns += (sent.answer, sent.refusal)
            found = self._framing.first(self._buffer, patterns, last_call)
            echo_at = self._buffer.find(self._awaited_echo) if sent and self._awaited_echo else -1
            if sent and echo_at >= 0 and (found is None or echo_at <= found.start):
                self._strip_echo(sent, echo_at)
            elif found is None or not found.pdu:
                return None
            elif sent and found.pattern in (sent.answer, sent.refusal):
                return self._answered(sent, found, now)
            else:
                del self._buffer[found.start : found.end]
                self._discarded_late(found.pattern, now)

    def _may_be_answered(self, sent: _Sent) -> bool:
        """Not a broadcast, and not a write before its echo, which is the answer's twin."""
        return not (sent.request.writes and self._awaited_echo) and not self.broadcasts(sent.request)

    def _owed_patterns(self, now: float) -> Iterator[Pattern]:
        pending = self._pending.request.unit if self._pending else None
        for unit, state in self._units.items():
            if now < state.until and unit != pending:
                for sent in state.owed:
                    yield sent.answer
                    yield sent.refusal

    def _discarded_late(self, late: Pattern, now: float) -> None:
        unit, state = late.unit, self._units[late.unit]
        self.late_discarded[unit] = self.late_discarded.get(unit, 0) + 1
        if not state.doubt and not state.listening:
            state.owed, state.until = (), now
            return
        # later than we wait, and there may be more of them: a device that hung says all that it owes, in its order
        first = next(number for number, each in enumerate(state.owed) if late in (each.answer, each.refusal))
        state.owed = state.owed[first:]
        if not state.grown:
            state.growth, state.grown = min(2 * state.growth, WINDOW_GROWTH_MAX), True
        state.until = now + self._window(state)

    def _answered(self, sent: _Sent, found: Found, now: float) -> Reply:
        if self.echo is not True and self._framing.serial:
            self._learn_echo(sent, found)
        del self._buffer[: found.end]
        self._pending = None
        refused = bool(found.pdu[0] & 0x80)
        reply = Reply(None, code=found.pdu[1]) if refused else Reply(sent.request.payload(found.pdu))
        state = self._units.get(sent.request.unit)
        if state is None or not state.doubt:
            return reply
        ambiguous = any(each.alike(sent, refused) for each in state.owed)
        state.owed = (*state.owed, sent)[-_OWED_MAX:]
        state.doubt, state.listening, state.until = False, True, now + self._window(state)
        return Reply(None, fault=Status.COMM_TIMEOUT, doubtful=True) if ambiguous else reply

    def _strip_echo(self, sent: _Sent, at: int) -> None:
        del self._buffer[: at + len(self._awaited_echo)]
        self._awaited_echo = b""
        shape = sent.answer.shape
        # A read of 17 to 24 coils can be answered by the very bytes of its question; that alone proves nothing.
        may_be_answer = sent.frame.startswith(sent.answer.mark) and len(sent.frame) == self._framing.size(shape.size)
        if self.echo is None and not may_be_answer:
            self.echo = True

    def _learn_echo(self, sent: _Sent, found: Found) -> None:
        before = self._buffer[: found.start]
        if self.echo is False:
            self.echo = sent.frame in before  # whoever said that there is none was wrong
        elif not self._awaited_echo:
            # our own bytes came before the answer, and were not the answer itself twice
            self.echo = True if self._buffer[found.start : found.end] != sent.frame else None
        elif len(before) < len(sent.frame) // 2:
            self.echo = False  # more in front of it may be an echo that was damaged

    def _owe(self, sent: _Sent, now: float) -> None:
        state = self._units.setdefault(sent.request.unit, _Unit())
        state.owed = (*(each for each in state.owed if each != sent), sent)[-_OWED_MAX:]
        state.until = now + self._window(state)
        state.listening = False

    def _window(self, state: _Unit) -> float:
        return self._late_window * state.growth

    def _wrapped(self, request: Request) -> _Sent:
        framing, unit = self._framing, request.unit
        self._transaction = number = (self._transaction + 1) & 0xFFFF
        return _Sent(
            request,
            framing.frame(unit, request.pdu(), number),
            framing.pattern(unit, request.answer(), number),
            framing.pattern(unit, request.refusal(), number),
        )
