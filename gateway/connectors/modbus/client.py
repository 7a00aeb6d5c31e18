"""Pure: the client's side of a Modbus line, RTU or TCP framing, one request at a time.

A wrong value is worse than none. What makes sure that no register is ever read as another:

- A frame is the answer only if transaction (TCP) or CRC (RTU), unit, function and byte count fit the pending request,
  or for a write the echoed address and value or quantity. It is hunted for anywhere in what came: bytes of noise or
  the late frame of another unit in front of it do no harm.
- On RTU nothing in a frame says which of two alike questions it answers. So after a timeout the unit is in
  *quarantine*: it is asked nothing until its late reply came or `late_window` passed. Other units go on; a frame names
  its unit.
- A window that passed in silence leaves a *doubt*: the reply may still be under way. Then an answer that could as well
  be the one to an earlier, different question is not taken (`Reply.doubtful`; ask again). One that could only be about
  the registers in question is, late or not. After either the unit is listened to for a window more, and replies that
  turn up in that time widen the window of that unit.
- An RS-485 adapter may return what is sent, and the answer to a single write looks exactly like the request. Whether
  there is an echo shows at the first read; no write may be started before (`echo` is None).

Time is an argument everywhere. The driver sends what `start` returns, feeds `received`, and calls `tick` at `deadline`.
Modbus Application Protocol V1.1b3; Modbus over Serial Line V1.02; Modbus Messaging on TCP/IP V1.0b.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from gateway.model import Status

_FRAME_BYTES_MAX = 260  # MBAP header 7 + PDU 253; an RTU frame has 256
_OWED_MAX = 16  # distinct questions of one unit whose replies are still recognised
WINDOW_GROWTH_MAX = 16
"""So many late windows is the longest that a unit is ever left alone."""


class Framing(Enum):
    """How a request is wrapped."""

    RTU = "rtu"
    TCP = "tcp"


class Function(IntEnum):
    """Function codes (V1.1b3 §6)."""

    READ_COILS = 1
    READ_DISCRETE_INPUTS = 2
    READ_HOLDING_REGISTERS = 3
    READ_INPUT_REGISTERS = 4
    WRITE_SINGLE_COIL = 5
    WRITE_SINGLE_REGISTER = 6
    WRITE_MULTIPLE_COILS = 15
    WRITE_MULTIPLE_REGISTERS = 16


EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge, still working",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}

GATEWAY = (10, 11)
"""Exceptions by which a gateway speaks for a unit that it does not reach."""


class Request(NamedTuple):
    """One question. `data` holds what is written: register bytes, or coils packed eight to a byte."""

    unit: int
    function: Function
    address: int
    quantity: int = 1
    data: bytes = b""

    @property
    def writes(self) -> bool:
        return self.function >= Function.WRITE_SINGLE_COIL

    def pdu(self) -> bytes:
        head = bytes([self.function]) + self.address.to_bytes(2, "big")
        if self.function in (Function.WRITE_SINGLE_COIL, Function.WRITE_SINGLE_REGISTER):
            return head + self.data
        head += self.quantity.to_bytes(2, "big")
        return head + bytes([len(self.data)]) + self.data if self.writes else head

    def answer_start(self) -> bytes:
        """What the PDU of a good answer starts with: all of it for a write."""
        return self.pdu()[:5] if self.writes else bytes([self.function, self.answer_bytes])

    @property
    def answer_bytes(self) -> int:
        """Data bytes of a good answer to a read."""
        return -(-self.quantity // 8) if self.function <= Function.READ_DISCRETE_INPUTS else 2 * self.quantity

    @property
    def answer_size(self) -> int:
        """Bytes of the PDU of a good answer."""
        return 5 if self.writes else 2 + self.answer_bytes


class Reply(NamedTuple):
    """How a request ended: `data` (empty for a write), or an exception `code`, or neither and a `fault`."""

    data: bytes | None
    code: int = 0
    fault: Status | None = None
    doubtful: bool = False
    """The unit answered, but it cannot be told what; ask again."""

    @property
    def heard(self) -> bool:
        """The unit lives."""
        return self.fault is None or self.doubtful


class _Sent(NamedTuple):
    """A request as it went out, and what its answers start with and how long they are."""

    request: Request
    frame: bytes
    answer: tuple[bytes, int]
    refusal: tuple[bytes, int]


class _Found(NamedTuple):
    start: int
    end: int
    pdu: bytes


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
        self.echo = echo if framing is Framing.RTU else False
        """Does the line return what is sent? None: not known yet."""
        self.late_discarded: dict[int, int] = {}
        self._units: dict[int, _Unit] = {}
        self._pending: _Sent | None = None
        self._deadline = 0.0
        self._awaited_echo = b""
        self._buffer = bytearray()
        # On RTU an earlier owner of the line may have left a question behind.
        self._quiet_from = now if framing is Framing.TCP else now + late_window
        self._last_byte = now
        self._transaction = 0

    def free_at(self, unit: int, gap: float) -> float:
        """When this unit may be asked: the line quiet for `gap` seconds, the unit's quarantine over."""
        state = self._units.get(unit)
        return max(self._last_byte + gap, self._quiet_from, state.until if state else 0.0)

    def start(self, request: Request, now: float) -> bytes:
        """The frame to send. Nothing may be pending, `free_at` has passed, a write needs a known echo."""
        assert self._pending is None, "one request at a time"
        assert self.echo is not None or not request.writes, "no write before the echo is known"
        state = self._units.get(request.unit)
        if state is not None and state.owed:
            state.doubt = not state.listening
            if state.listening:
                state.owed, state.listening = (), False
        self._pending = sent = self._wrapped(request)
        self._buffer.clear()
        self._awaited_echo = b"" if self.echo is False else sent.frame
        wire_s = (len(sent.frame) + sent.answer[1]) * self._character_s
        self._deadline = now + wire_s + self._timeout
        self._last_byte = now + len(sent.frame) * self._character_s
        return sent.frame

    def deadline(self) -> float | None:
        """When to call `tick`; None when nothing is pending."""
        return self._deadline if self._pending else None

    def tick(self, now: float) -> Reply | None:
        """The pending request has ended without an answer, if its time is over."""
        sent = self._pending
        if sent is None or now < self._deadline:
            return None
        self._pending = None
        head, size = sent.answer
        start = self._buffer.find(head) if not sent.request.writes else -1
        if start >= 0 and len(self._buffer) - start >= size:
            return Reply(None, fault=Status.CRC)  # it did answer: nothing is owed
        state = self._units.setdefault(sent.request.unit, _Unit())
        state.owed = (*(each for each in state.owed if each != sent), sent)[-_OWED_MAX:]
        state.until = now + self._window(state)
        state.listening = False
        return Reply(None, fault=Status.CRC if start >= 0 else Status.COMM_TIMEOUT)

    def received(self, data: bytes, now: float) -> Reply | None:
        """Bytes came; the reply if they complete it."""
        self._last_byte = max(self._last_byte, now)
        self._buffer += data
        for unit, state in self._units.items():
            self._discard_late(unit, state, now)
        reply = self._answer(now) if self._pending else None
        if len(self._buffer) > 2 * _FRAME_BYTES_MAX:
            del self._buffer[:-_FRAME_BYTES_MAX]
        return reply

    def _discard_late(self, unit: int, state: _Unit, now: float) -> None:
        if now >= state.until or (self._pending and self._pending.request.unit == unit):
            return
        for found in iter(lambda: self._find(*state.owed), None):
            del self._buffer[found.start : found.end]
            self.late_discarded[unit] = self.late_discarded.get(unit, 0) + 1
            if state.doubt or state.listening:
                # later than we wait, and there may be more of them
                state.growth = min(2 * state.growth, WINDOW_GROWTH_MAX)
                state.listening = True
                state.until = now + self._window(state)
            else:
                state.owed, state.until = (), now

    def _answer(self, now: float) -> Reply | None:
        sent = self._pending
        assert sent is not None
        if self._awaited_echo:
            self._strip_echo(sent)
        if self._awaited_echo and sent.request.writes:
            return None
        found = self._find(sent)
        if found is None:
            return None
        if self.echo is None:
            self.echo = False
        del self._buffer[: found.end]
        self._pending = None
        reply = Reply(None, code=found.pdu[1]) if found.pdu[0] & 0x80 else Reply(self._payload(sent, found.pdu))
        state = self._units.get(sent.request.unit)
        if state is None or not state.doubt:
            return reply
        ambiguous = any(
            each.request != sent.request
            and (each.refusal == sent.refusal if reply.code else each.answer == sent.answer)
            for each in state.owed
        )
        state.owed = (*state.owed, sent)[-_OWED_MAX:]
        state.doubt, state.listening, state.until = False, True, now + self._window(state)
        return Reply(None, fault=Status.COMM_TIMEOUT, doubtful=True) if ambiguous else reply

    def _strip_echo(self, sent: _Sent) -> None:
        at = self._buffer.find(self._awaited_echo)
        if at < 0:
            return
        del self._buffer[: at + len(self._awaited_echo)]
        self._awaited_echo = b""
        # A read of 17 to 24 coils can be answered by the very bytes of its question; that proves nothing.
        if self.echo is None and not sent.frame.startswith(sent.answer[0]):
            self.echo = True

    @staticmethod
    def _payload(sent: _Sent, pdu: bytes) -> bytes:
        return b"" if sent.request.writes else pdu[2:]

    def _window(self, state: _Unit) -> float:
        return self._late_window * state.growth

    def _wrapped(self, request: Request) -> _Sent:
        unit, pdu = bytes([request.unit]), request.pdu()
        answer, size = request.answer_start(), request.answer_size
        refusal = bytes([request.function | 0x80])
        if self._framing is Framing.RTU:
            frame = unit + pdu
            return _Sent(request, frame + crc(frame), (unit + answer, 3 + size), (unit + refusal, 5))
        self._transaction = (self._transaction + 1) & 0xFFFF

        def head(length: int) -> bytes:
            return self._transaction.to_bytes(2, "big") + b"\0\0" + (1 + length).to_bytes(2, "big") + unit

        return _Sent(request, head(len(pdu)) + pdu, (head(size) + answer, 7 + size), (head(2) + refusal, 9))

    def _find(self, *wanted: _Sent) -> _Found | None:
        """The first complete and valid frame that answers one of them."""
        best: _Found | None = None
        for head, size in (pattern for sent in wanted for pattern in (sent.answer, sent.refusal)):
            start = self._buffer.find(head)
            while 0 <= start <= len(self._buffer) - size and (best is None or start < best.start):
                frame = bytes(self._buffer[start : start + size])
                if self._framing is Framing.TCP:
                    best = _Found(start, start + size, frame[7:])
                elif frame[-2:] == crc(frame[:-2]):
                    best = _Found(start, start + size, frame[1:-2])
                start = self._buffer.find(head, start + 1)
        return best


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(_crc_of(byte) for byte in range(256))


def crc(data: bytes) -> bytes:
    """CRC-16/MODBUS as it travels, low byte first (Serial Line V1.02 §6.2.2)."""
    value = 0xFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value.to_bytes(2, "little")
