"""Pure: one session as the server sees it, and the marks that all sessions of one gateway share. `README.md` rules.

What holds, whatever the gateway sends and whatever the disk does:

* A record is handed to the store (`Store`) only when it continues its stream: its first number is the one after the
  last number handed over. The store compares once more, inside its transaction, and its word is final (`settle`).
* An ack names committed marks only. What repeats a record that waits for its commit waits for the same commit.
* A record from further ahead is answered by one nack; then its stream is discarded in silence until the expected
  number comes. There is no time window anywhere.
* When a group fails, or the store refuses, what was handed over is forgotten: the next number expected is the one
  after the committed mark, and every session that had something under way gets one nack.
* A body that cannot be decoded is stored as what it is (`Entry.poison`) and acked: it never blocks its lane.

Messages go in through `receive`; what must be done comes out as a list. `Greet` and `LookUp` ask for something that
only the store knows: answer with `welcome` or `learned` before anything else of this session is fed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from gateway.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from gateway.model import ClockState, Lane, RecordKind
from gateway.protocol import batch
from gateway.protocol.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_READINGS,
    UNREADABLE,
    Ack,
    Batch,
    ClockRecord,
    CommandMessage,
    End,
    Flow,
    FromGateway,
    FromServer,
    Gap,
    GapBody,
    GatewayBye,
    Hello,
    Move,
    Nack,
    ResultAck,
    ResultMessage,
    Stats,
    Welcome,
    Window,
)

HELLO_WITHIN_S: Final = 5.0
"""From the end of the handshake; one round trip and a slow gateway fit in many times."""
MAX_OFFERS: Final = 64
"""In one hello: the two open streams, 32 sealed ones, and room for a gateway that counts otherwise."""
MAX_STREAMS: Final = 1024
"""Of one gateway in memory; a stream that was put out is looked up again when it is heard of."""

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_SEQ = 2**63 - 1
_MAX_TIME_MS = 2**60
"""Times and offsets up to here can be added up and still fit into 64 bits."""
_gaps = msgspec.json.Decoder(GapBody)
_clocks = msgspec.json.Decoder(ClockState)


class Entry(msgspec.Struct, frozen=True):
    """One record on its way into the store, numbers `seq..last`."""

    gateway: str
    stream: str
    lane: Lane
    seq: int
    last: int
    kind: RecordKind
    raw: bytes
    """The body as it came."""
    body: batch.Body | GapBody | ClockState | None
    """None for an end record and for a body that is poison."""
    poison: str = ""
    """Why the body cannot be used."""
    attempt: int = 0
    """Of its stream: an answer to an earlier attempt does not speak for the present one."""


class Greet(NamedTuple):
    """The gateway said hello: look its marks up, then call `welcome`."""

    hello: Hello


class LookUp(NamedTuple):
    """A record of a stream that is not in memory: call `learned` with its mark."""

    stream: str


class Store(NamedTuple):
    """Commit this; give the answer to `Streams.settle` (or `failed`), then call `flush` of every session."""

    entry: Entry


class StoreResult(NamedTuple):
    """Commit this result of a command, then call `result_stored`."""

    result: ResultMessage


class Report(NamedTuple):
    """What the gateway knows of itself."""

    stats: Stats


class Promoted(NamedTuple):
    """The standby became the active session: commands come here now."""


class Leave(NamedTuple):
    """The gateway closes on purpose."""

    reason: str


class Send(NamedTuple):
    message: FromServer


Output = Greet | LookUp | Store | StoreResult | Report | Promoted | Leave | Send


class Mark(NamedTuple):
    """What the store knows of one stream; of an unknown one, nothing."""

    number: int = 0
    lane: Lane | None = None
    ended: bool = False


class _Stream:
    __slots__ = ("attempt", "committed", "end", "lane", "pending")

    def __init__(self, mark: Mark) -> None:
        self.committed = mark.number
        self.pending = mark.number
        """Highest number handed to the store."""
        self.lane = mark.lane
        self.end = mark.number if mark.ended else None
        """Number of its end record, once that has been handed over."""
        self.attempt = 0

    def forget(self, mark: int) -> None:
        """What was handed over beyond this mark does not count."""
        self.committed = self.pending = mark
        if self.end is not None and self.end > mark:
            self.end = None
        self.attempt += 1


class Streams:
    """The marks of one gateway, shared by its sessions: a batch may come over two of them at the same time."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def __contains__(self, stream: str) -> bool:
        return stream in self._streams

    def learn(self, marks: Mapping[str, Mark]) -> None:
        """What the store says of streams; one that is in memory already knows better."""
        for stream, mark in marks.items():
            self._streams.setdefault(stream, _Stream(mark))
        excess = len(self._streams) - MAX_STREAMS
        # what failed once stays: a session may not have been told yet that its records came to nothing
        rest = [name for name, s in self._streams.items() if s.pending == s.committed and not s.attempt]
        idle = [name for name in rest if name not in marks]
        for name in idle[: max(0, excess)]:
            del self._streams[name]

    def mark(self, stream: str) -> int:
        """Highest number known to be committed."""
        return self._streams[stream].committed

    def expected(self, stream: str) -> int:
        """The number that continues what was handed over."""
        return self._streams[stream].pending + 1

    def attempt(self, stream: str) -> int:
        return self._streams[stream].attempt

    def hand_over(self, entry: Entry) -> None:
        """The entry goes to the store now. Raises RemoteProtocolError: another lane, or after the end (R5)."""
        state = self._streams[entry.stream]
        if state.end is not None:
            raise RemoteProtocolError(f"number {entry.seq} of stream {entry.stream} comes after its end", 4410)
        if state.lane is not None and state.lane is not entry.lane:
            raise RemoteProtocolError(f"stream {entry.stream} is of lane {state.lane}, not {entry.lane}", 4410)
        state.lane, state.pending = entry.lane, entry.last
        if entry.kind is RecordKind.END:
            state.end = entry.last

    def settle(self, entry: Entry, mark: int) -> None:
        """The store committed: this is the mark of the stream in that transaction, whether it took the entry or not."""
        state = self._streams.get(entry.stream)
        if state is None:
            return
        refused = mark < entry.last and entry.attempt == state.attempt
        if refused:
            state.forget(mark)
        elif mark > state.committed:
            state.committed = mark
            state.pending = max(state.pending, mark)

    def failed(self, entries: Iterable[Entry]) -> None:
        """A group was not committed: nothing of it, nor what was handed over behind it, counts."""
        for entry in entries:
            state = self._streams.get(entry.stream)
            if state is not None and entry.attempt == state.attempt:
                state.forget(state.committed)


class ServerSession:
    """One authenticated connection. `gateway` comes from the handshake; nothing in a message can change it."""

    def __init__(self, gateway: str, session: str, streams: Streams, now: float, window: Window | None = None) -> None:
        self.gateway = gateway
        self.session = session
        self.hello: Hello | None = None
        self._streams = streams
        self._window = window or Window()
        self.active = False
        """It carries records, so commands go here; a standby becomes active by the first thing it sends (P4)."""
        self._hello_by: float | None = now + HELLO_WITHIN_S
        self._welcomed = False
        self._held: Batch | Gap | ClockRecord | End | None = None
        self._discarding: set[str] = set()
        self._under_way: dict[str, tuple[int, int]] = {}
        """Stream → attempt and highest number that this session waits for."""
        self._told: dict[str, int] = {}
        """Stream → mark in the latest ack, while something of it is under way."""

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def deadline(self) -> float | None:
        """When to call `tick`."""
        return self._hello_by

    def tick(self, now: float) -> None:
        """Raises RemoteProtocolError when the hello is overdue."""
        if self._hello_by is not None and now >= self._hello_by:
            raise RemoteProtocolError(f"no hello within {HELLO_WITHIN_S:g} s", 4408)

    def receive(self, message: FromGateway) -> list[Output]:
        """One message of the gateway. Raises RemoteProtocolError; its `code` closes the connection."""
        if self._held is not None or (self.hello is not None and not self._welcomed):
            raise LocalProtocolError("the session waits for an answer of the store")
        if isinstance(message, Hello):
            return self._greet(message)
        if self.hello is None:
            raise RemoteProtocolError("the first message must be hello")
        promoted: list[Output] = []
        if not self.active and not isinstance(message, GatewayBye):
            self.active = True
            promoted = [Promoted()]
        return promoted + self._take(message)

    def _take(self, message: Batch | Gap | ClockRecord | End | ResultMessage | Stats | GatewayBye) -> list[Output]:
        match message:
            case Batch() | Gap() | ClockRecord() | End():
                return self._record(message)
            case ResultMessage():
                if abs(message.utc_ms or 0) > _MAX_TIME_MS:
                    message = msgspec.structs.replace(message, utc_ms=None)  # closing would bring it again for ever
                return [StoreResult(message)]
            case Stats():
                return [Report(message)]
            case GatewayBye():
                return [Leave(message.reason)]

    def _greet(self, hello: Hello) -> list[Output]:
        if self.hello is not None:
            raise RemoteProtocolError("hello comes once")
        if not _ID.fullmatch(hello.process) or not all(_ID.fullmatch(offer.stream) for offer in hello.streams):
            raise RemoteProtocolError("ids of processes and streams are 32 hex digits, lower case")
        if len(hello.streams) > MAX_OFFERS:
            raise RemoteProtocolError(f"hello offers {len(hello.streams)} streams; {MAX_OFFERS} fit", 1008)
        self.hello = hello
        self._hello_by = None
        return [Greet(hello)]

    def welcome(
        self, sink: str, marks: Mapping[str, Mark], open_commands: tuple[str, ...], utc_ms: int, now: float
    ) -> list[Output]:
        """Answers `Greet`: `marks` of the streams in the hello as the store has them."""
        if self.hello is None or self._welcomed:
            raise LocalProtocolError("welcome answers one hello")
        self._welcomed = True
        self.active = not self.hello.standby
        offered = [offer.stream for offer in self.hello.streams]
        self._streams.learn({stream: marks.get(stream, Mark()) for stream in offered})
        known = {stream: self._streams.mark(stream) for stream in offered}
        return [
            Send(
                Welcome(
                    sink=sink,
                    session=self.session,
                    marks={stream: mark for stream, mark in known.items() if mark},
                    window=self._window,
                    utc_ms=utc_ms,
                    mono_ms=int(now * 1000),
                    open_commands=open_commands,
                )
            )
        ]

    def learned(self, stream: str, mark: Mark) -> list[Output]:
        """Answers `LookUp`."""
        if self._held is None or self._held.stream != stream:
            raise LocalProtocolError("nobody asked for this stream")
        self._streams.learn({stream: mark})
        held, self._held = self._held, None
        return self._record(held)

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _record(self, message: Batch | Gap | ClockRecord | End) -> list[Output]:
        stream, seq = message.stream, message.seq
        last = message.last if isinstance(message, Gap) else seq
        if not _ID.fullmatch(stream) or not 1 <= seq <= last <= _MAX_SEQ:
            raise RemoteProtocolError(f"record {seq}..{last} of stream {stream[:40]!r} cannot be")
        if stream not in self._streams:
            self._held = message
            return [LookUp(stream)]
        expected = self._streams.expected(stream)
        if seq > expected:
            return self._nack(stream, expected)
        self._discarding.discard(stream)
        entry = None
        if last >= expected:
            entry = self._entry(message, expected, last)
            self._streams.hand_over(entry)
        attempt, upto = self._under_way.get(stream, (0, 0))
        if not upto:
            attempt = self._streams.attempt(stream)
        self._under_way[stream] = (attempt, max(upto, last))
        mark = self._streams.mark(stream)
        if last <= mark:
            self._told[stream] = 0  # it asks again: it is told again
        else:
            self._told.setdefault(stream, mark)
        return [] if entry is None else [Store(entry)]

    def _nack(self, stream: str, expected: int, reason: str = "") -> list[Output]:
        if stream in self._discarding:
            return []
        if len(self._discarding) >= MAX_STREAMS:
            raise RemoteProtocolError("too many streams out of order", 1008)
        self._discarding.add(stream)
        return [Send(Nack(stream=stream, expected=expected, reason=reason))]

    def _entry(self, message: Batch | Gap | ClockRecord | End, seq: int, last: int) -> Entry:
        raw = b"" if isinstance(message, End) else bytes(message.body)
        if len(raw) > MAX_BATCH_BYTES:
            raise RemoteProtocolError(f"a body of {len(raw)} bytes; {MAX_BATCH_BYTES} are the limit", 1009)
        kind, decode = _KINDS[type(message)]
        body, poison = None, ""
        try:
            body = decode(raw)
        except (DecodeError, *UNREADABLE) as error:
            poison = str(error)
        if isinstance(body, GapBody) and seq > message.seq:
            body = msgspec.structs.replace(body, readings=None)  # part of it is stored: what is lost is not known
        return Entry(
            self.gateway,
            message.stream,
            message.lane,
            seq,
            last,
            kind,
            raw,
            body,
            poison,
            self._streams.attempt(message.stream),
        )

    def flush(self) -> list[Output]:
        """Call it when the store has answered, and after records came in: acks for what is committed, one nack for
        each stream whose records under way came to nothing. Cheap when there is nothing to say."""
        marks: dict[str, int] = {}
        outputs: list[Output] = []
        for stream, (attempt, upto) in list(self._under_way.items()):
            mark = self._streams.mark(stream) if stream in self._streams else upto
            if mark > self._told.get(stream, 0):
                self._told[stream] = marks[stream] = mark
            if mark >= upto:
                del self._under_way[stream]
                self._told.pop(stream, None)
            elif attempt != self._streams.attempt(stream):
                del self._under_way[stream]
                self._told.pop(stream, None)
                self._discarding.discard(stream)
                outputs += self._nack(stream, mark + 1, "not stored")
        if marks:
            outputs.insert(0, Send(Ack(marks=marks)))
        return outputs

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ready(self) -> bool:
        """Welcomed: commands and moves may be sent."""
        return self._welcomed

    def result_stored(self, command_id: str) -> list[Output]:
        return [Send(ResultAck(id=command_id))]

    def command(self, command: CommandMessage, now: float) -> list[Output]:
        """`ttl_ms` of the command is what is left now."""
        return self._send(msgspec.structs.replace(command, sent_ms=int(now * 1000)))

    def flow(self, window: Window) -> list[Output]:
        """A new window, once; the same again says nothing."""
        if window == self._window:
            return []
        self._window = window
        return self._send(Flow(window=window))

    def move(self, deadline_ms: int, spread_ms: int, reason: str) -> list[Output]:
        return self._send(Move(deadline_ms=deadline_ms, spread_ms=spread_ms, reason=reason))

    def _send(self, message: FromServer) -> list[Output]:
        if not self._welcomed:
            raise LocalProtocolError("nothing may be sent before welcome")
        return [Send(message)]


def _batch_body(raw: bytes) -> batch.Body:
    body = batch.decode(raw)
    readings = sum(len(group.t) * len(group.points) for group in body.groups)
    if readings > MAX_BATCH_READINGS:
        raise DecodeError(f"{readings} readings in one batch; {MAX_BATCH_READINGS} are the limit")
    _bounded(body.base_ms, body.clock.offset_ms, body.clock.error_ms)
    return body


def _gap_body(raw: bytes) -> GapBody:
    body = _gaps.decode(raw)
    _bounded(body.readings or 0, body.since_utc_ms or 0, body.until_utc_ms or 0)
    return body


def _clock_body(raw: bytes) -> ClockState:
    body = _clocks.decode(raw)
    _bounded(body.offset_ms, body.error_ms)
    return body


def _bounded(*numbers: int) -> None:
    for number in numbers:
        if abs(number) > _MAX_TIME_MS:
            raise DecodeError(f"{number} is out of bounds")


_KINDS: dict[type, tuple[RecordKind, Callable[[bytes], batch.Body | GapBody | ClockState | None]]] = {
    Batch: (RecordKind.BATCH, _batch_body),
    Gap: (RecordKind.GAP, _gap_body),
    ClockRecord: (RecordKind.CLOCK, _clock_body),
    End: (RecordKind.END, lambda _: None),
}
