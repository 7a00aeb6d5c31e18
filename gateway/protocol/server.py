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
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.protocol.entry import MAX_TIME_MS, Entry, entry_of
from gateway.protocol.marks import MAX_STREAMS, Mark, Streams
from gateway.protocol.messages import (
    MAX_OFFERS,
    MAX_SEQ,
    Ack,
    Batch,
    ClockRecord,
    CommandMessage,
    End,
    Flow,
    FromGateway,
    FromServer,
    Gap,
    GatewayBye,
    Hello,
    Move,
    Nack,
    Numbered,
    ResultAck,
    ResultMessage,
    Stats,
    Welcome,
    Window,
)

HELLO_WITHIN_S: Final = 5.0
"""From the end of the handshake; one round trip and a slow gateway fit in many times."""

_ID = re.compile(r"[0-9a-f]{32}")


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
        self._held: Numbered | None = None
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

    def _take(self, message: Numbered | ResultMessage | Stats | GatewayBye) -> list[Output]:
        match message:
            case Batch() | Gap() | ClockRecord() | End():
                return self._record(message)
            case ResultMessage():
                if abs(message.utc_ms or 0) > MAX_TIME_MS:
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

    def _record(self, message: Numbered) -> list[Output]:
        stream, seq = message.stream, message.seq
        last = message.last if isinstance(message, Gap) else seq
        if not _ID.fullmatch(stream) or not 1 <= seq <= last <= MAX_SEQ:
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
            entry = entry_of(message, self.gateway, expected, last, self._streams.attempt(stream))
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
        """A new window, once; the same again says nothing. Before the welcome, the welcome says it."""
        if window == self._window:
            return []
        self._window = window
        return self._send(Flow(window=window)) if self._welcomed else []

    def move(self, deadline_ms: int, spread_ms: int, reason: str) -> list[Output]:
        return self._send(Move(deadline_ms=deadline_ms, spread_ms=spread_ms, reason=reason))

    def _send(self, message: FromServer) -> list[Output]:
        if not self._welcomed:
            raise LocalProtocolError("nothing may be sent before welcome")
        return [Send(message)]
