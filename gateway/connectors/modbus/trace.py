"""Pure: what travels on a Modbus bus, as lines a person reads at a glance: one for a question and how it ended.

It is made of the raw bytes alone (`tap.Event`), on the side of who looks, and knows nothing of what the gateway made of
them but the word for how a question ended. Frames are cut out of what came wherever their checksum proves them, so it
shows too what the gateway passes over: echoes, answers that come after their time, frames of other masters, noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.connectors.modbus.framing import crc, lrc
from gateway.connectors.modbus.values import reason_of
from gateway.connectors.tap import Event, What

_REMEMBERED = 32
"""Questions without an answer whose late reply is still recognised."""
_VALUES = 10
_NOISE_BYTES = 4096

_TABLES = {1: "coil", 2: "discrete", 3: "holding", 4: "input", 5: "coil", 6: "holding", 15: "coil", 16: "holding"}
_VERDICTS = {"ok": "ok", "exception": "refused", "comm_timeout": "no answer", "crc": "crc", "doubtful": "doubtful"}


class Entry(NamedTuple):
    """One line of a trace."""

    at_ns: int
    """When the question was sent, or the bytes came."""
    unit: int | None
    question: str
    answer: str
    took_ms: float | None
    verdict: str
    sent: bytes
    received: bytes


class Frame(NamedTuple):
    """A whole frame in what came."""

    start: int
    end: int
    unit: int
    pdu: bytes
    transaction: int = 0


class _Question(NamedTuple):
    at_ns: int
    frame: Frame
    sent: bytes


class Tracer:
    """Give it every event in turn; it gives back finished lines."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._asked: _Question | None = None
        self._unanswered: deque[_Question] = deque(maxlen=_REMEMBERED)
        self._heard = b""
        self._heard_ns = 0

    def feed(self, event: Event) -> list[Entry]:
        """Events may be missing; what cannot be made sense of without them is left out."""
        if event.what is What.RECEIVED:
            self._heard_ns = event.at_ns if not self._heard else self._heard_ns
            self._heard = (self._heard + event.data)[-_NOISE_BYTES:]
            return self._strays(whole=False) if self._asked is None else []
        if event.what is What.SENT:
            entries = self._cancelled() + self._strays(whole=True)
            frame = next(iter(frames(self._kind, event.data, questions=True)), None)
            self._asked = _Question(event.at_ns, frame, event.data) if frame else None
            return entries
        if event.what is What.LOST:
            self._asked, self._heard = None, b""
            return [Entry(event.at_ns, None, "", event.said, None, "lost", b"", b"")]
        return self._ended(event)

    def _cancelled(self) -> list[Entry]:
        asked = self._asked
        if asked is None:
            return []
        return [Entry(asked.at_ns, asked.frame.unit, question(asked.frame.pdu), "", None, "given up", asked.sent, b"")]

    def _ended(self, event: Event) -> list[Entry]:
        asked, self._asked = self._asked, None
        if asked is None:
            return []
        # the answer to a single write looks like the question
        echo = self._heard.startswith(asked.sent) and (self._heard != asked.sent or event.said != "ok")
        heard = self._heard[len(asked.sent) :] if echo else self._heard
        found = list(frames(self._kind, heard))
        mine = next(
            (each for each in reversed(found) if event.said != "comm_timeout" and self._fits(each, asked)), None
        )
        self._heard = heard if mine is None else heard[: mine.start] + heard[mine.end :]
        verdict = _VERDICTS.get(event.said, event.said)
        if event.said == "comm_timeout":
            self._unanswered.append(asked)
            verdict += ", quarantined" if "rtu" in self._kind or "ascii" in self._kind else ""
        entry = Entry(
            asked.at_ns,
            asked.frame.unit,
            question(asked.frame.pdu),
            answer(mine.pdu, asked.frame.pdu) if mine else "",
            (event.at_ns - asked.at_ns) / 1e6,
            verdict + (", echo" if echo else ""),
            asked.sent,
            heard[mine.start : mine.end] if mine else heard if event.said == "crc" else b"",
        )
        if event.said == "crc":
            self._heard = b""  # shown with its question
        return [*self._strays(whole=False), entry]

    def _fits(self, frame: Frame, asked: _Question) -> bool:
        alike = frame.unit == asked.frame.unit and frame.pdu[0] & 0x7F == asked.frame.pdu[0]
        return alike and frame.transaction == asked.frame.transaction

    def _strays(self, whole: bool) -> list[Entry]:
        """What came that no pending question explains; `whole`: nothing more will come to it."""
        entries, at = [], 0
        for frame in frames(self._kind, self._heard):
            if frame.start > at:
                entries.append(self._noise(self._heard[at : frame.start]))
            entries.append(self._stray(frame))
            at = frame.end
        rest = self._heard[at:]
        if rest and whole:
            entries.append(self._noise(rest))
            rest = b""
        self._heard = rest
        return entries

    def _noise(self, data: bytes) -> Entry:
        size = f"{len(data)} byte{'s' * (len(data) != 1)}"
        return Entry(self._heard_ns, None, "", f"{size}: {data[:16].hex(' ')}", None, "noise", b"", data)

    def _stray(self, frame: Frame) -> Entry:
        late = next((each for each in self._unanswered if self._fits(frame, each)), None)
        received = self._heard[frame.start : frame.end]
        if late is None:
            return Entry(self._heard_ns, frame.unit, "", said_by(frame.pdu), None, "foreign", b"", received)
        self._unanswered.remove(late)
        took_ms = (self._heard_ns - late.at_ns) / 1e6
        said = answer(frame.pdu, late.frame.pdu)
        verdict = f"late {took_ms:.0f} ms, thrown away"
        return Entry(self._heard_ns, frame.unit, question(late.frame.pdu), said, took_ms, verdict, b"", received)


def frames(kind: str, data: bytes, questions: bool = False) -> Iterator[Frame]:
    """Every whole frame in what came, wherever it stands; of two that overlap the first."""
    at = 0
    while at < len(data):
        found = _frame(kind, data, at, questions)
        if found is None:
            at += 1
        else:
            yield found
            at = found.end


def _frame(kind: str, data: bytes, at: int, question: bool) -> Frame | None:
    if "ascii" in kind:
        return _ascii(data, at)
    if kind == "modbus-tcp":
        if len(data) < at + 8 or data[at + 2 : at + 4] != b"\0\0":
            return None
        end = at + 6 + int.from_bytes(data[at + 4 : at + 6], "big")
        if not at + 8 <= end <= min(len(data), at + 260):
            return None
        return Frame(at, end, data[at + 6], data[at + 7 : end], int.from_bytes(data[at : at + 2], "big"))
    for size in _rtu_sizes(data[at + 1 : at + 260], question):
        end = at + size + 3
        if end <= len(data) and crc(data[at : end - 2]) == data[end - 2 : end]:
            return Frame(at, end, data[at], data[at + 1 : end - 2])
    return None


def _ascii(data: bytes, at: int) -> Frame | None:
    end = data.find(b"\r\n", at)
    if data[at : at + 1] != b":" or end < 0:
        return None
    try:
        body = bytes.fromhex(data[at + 1 : end].decode("ascii"))
    except ValueError:
        return None
    if len(body) < 3 or lrc(body[:-1]) != body[-1]:
        return None
    return Frame(at, end + 2, body[0], body[1:-1])


def _rtu_sizes(pdu: bytes, question: bool) -> Iterator[int]:
    """How long a PDU that begins like this may be: as an answer, then as a question."""
    if not pdu:
        return
    function = pdu[0]
    if function & 0x80:
        yield 2
        return
    counted = [2 + pdu[1]] if len(pdu) > 1 and function in (1, 2, 3, 4, 17, 23) else []
    fixed = {1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 15: 5, 16: 5, 17: 1, 22: 7, 43: 4}.get(function)
    asked = [fixed] if fixed else []
    yield from asked + counted if question else counted + asked
    if function in (15, 16) and len(pdu) > 5:
        yield 6 + pdu[5]
    if function == 23 and len(pdu) > 9:
        yield 10 + pdu[9]
    if function == 43:
        yield from range(7, len(pdu) + 1)


def question(pdu: bytes) -> str:
    """`read holding 100…119`, `write coil 3 = on`."""
    function = pdu[0]
    if function == 17:
        return "server id"
    if function == 43:
        return "identification"
    if len(pdu) < 5:
        return f"function {function}"
    address, number = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
    table = _TABLES.get(function, "")
    if function == 5:
        return f"write coil {address} = {'on' if number else 'off'}"
    if function == 6:
        return f"write holding {address} = {number}"
    span = f"{address}…{address + number - 1}" if number > 1 else f"{address}"
    if function in (15, 16):
        values = _bits(pdu[6:], number) if function == 15 else _registers(pdu[6:])
        return f"write {table} {span} = {values}"
    if function == 22:
        return f"mask holding {address}"
    if function == 23:
        return f"write and read holding {span}"
    return f"read {table} {span}" if table else f"function {function}"


def answer(pdu: bytes, asked: bytes) -> str:
    """The values, or why there are none."""
    function = pdu[0]
    if function & 0x80:
        return reason_of(pdu[1]) if len(pdu) > 1 else "exception"
    if function in (1, 2):
        return _bits(pdu[2:], int.from_bytes(asked[3:5], "big"))
    if function in (3, 4, 23):
        return _registers(pdu[2:])
    if function in (17, 43):
        return _text(pdu[2:] if function == 17 else pdu[7:])
    return "done"


def said_by(pdu: bytes) -> str:
    """A frame that nobody here asked for: a question of another master, or an answer to it."""
    function = pdu[0]
    if function & 0x80:
        return answer(pdu, b"")
    counted = function in (1, 2, 3, 4) and len(pdu) > 1 and len(pdu) == 2 + pdu[1]
    if not counted:
        return question(pdu)
    return f"read {_TABLES[function]}: {_registers(pdu[2:]) if function > 2 else pdu[2:].hex(' ')}"


def _registers(data: bytes) -> str:
    return _some([str(int.from_bytes(data[at : at + 2], "big")) for at in range(0, len(data) - 1, 2)])


def _bits(data: bytes, number: int) -> str:
    return _some([str(data[at // 8] >> at % 8 & 1) for at in range(min(number, 8 * len(data)))])


def _some(words: Sequence[str]) -> str:
    more = f" … {len(words)} in all" if len(words) > _VALUES else ""
    return " ".join(words[:_VALUES]) + more


def _text(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else " " for byte in data).strip()
