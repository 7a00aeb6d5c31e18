"""Pure: every message of the uplink, one struct each. `README.md` beside this file is the specification.

Text frames of JSON, tagged by `type`. A `batch` carries its body verbatim: the bytes that were stored are the bytes
that are sent, so the body is spliced in and never parsed on the way out.

A limit of a type is checked while a frame is decoded, or only written into the JSON Schema (`_said`) where the session
checks it itself: with a close code of its own, or more cheaply.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gateway.errors import RemoteProtocolError
from gateway.model import ClockState, GapReason, Json, Lane, Outcome, Record, RecordKind, Value

SUBPROTOCOL: Final = "gateway.uplink.v1"
MAX_BATCH_BYTES: Final = 256 * 1024
"""Body of a record; every conforming server accepts it."""
MAX_BATCH_READINGS: Final = 4096
MAX_MESSAGE_BYTES: Final = MAX_BATCH_BYTES + 4096
"""A whole text frame from the gateway: the largest body and its envelope."""
MAX_DOWN_BYTES: Final = 64 * 1024
"""A whole text frame from the server."""
MAX_COMMAND_ID: Final = 128
"""Characters."""
MAX_OPEN_COMMANDS: Final = 256
"""Named in one welcome; 64 KiB of message hold them several times."""
MAX_OFFERS: Final = 64
"""In one hello: the two open streams, 32 sealed ones, and room for a gateway that counts otherwise."""
MAX_SEQ: Final = 2**63 - 1
_EXACT: Final = 2**53
"""What a server's time or amount may be: beyond this nothing means anything, and arithmetic with it may fail."""
_ID: Final = "^[0-9a-f]{32}$"


def _said(**schema: Json) -> msgspec.Meta:
    """For the JSON Schema alone."""
    return msgspec.Meta(extra_json_schema=schema)


def _refer(name: str) -> msgspec.Meta:
    """What a body is; it is decoded by itself, because one that is wrong closes nothing."""
    return _said(**{"$ref": f"#/$defs/{name}"})


Millis = Annotated[int, msgspec.Meta(ge=-_EXACT, le=_EXACT)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=_EXACT)]
MarkNumber = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
Number = Annotated[int, _said(minimum=1, maximum=MAX_SEQ)]
"""Of a record; the server closes with 1002 where it cannot be."""
Id = Annotated[str, _said(pattern=_ID)]
"""128 random bits of a process or a stream; checked by the server, with 1002."""
SinkId = Annotated[str, msgspec.Meta(pattern=_ID)]
CommandId = Annotated[str, _said(maxLength=MAX_COMMAND_ID)]
"""The gateway answers a longer one with `rejected`: a session that ended over it would meet it again."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Unknown fields are ignored: a newer peer may say more."""


class StreamOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stream that the gateway still holds something of."""

    stream: Id
    lane: Lane
    first: Number
    """Lowest number still held."""
    next: Number
    """The number that the next record of this stream will take."""
    sealed: bool = False


# ── gateway → server ─────────────────────────────────────────────────────────────────────────────────────────────────


class Hello(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """First message of a session."""

    process: Id
    """128 random bits of this process: sessions of one process coexist, a newer process evicts an older one's."""
    software: str
    clock: ClockState
    standby: bool = False
    streams: Annotated[tuple[StreamOffer, ...], _said(maxItems=MAX_OFFERS)] = ()
    """The open streams and the 32 oldest sealed ones."""
    devices: dict[str, dict[str, str]] = {}
    """Tags of configured devices."""
    writable: dict[str, list[str]] = {}
    """Device → points that accept a write, so that the cloud side can offer them."""


class Batch(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="batch"):
    """Readings."""

    stream: Id
    lane: Lane
    body: Annotated[msgspec.Raw, _refer("Body")]
    """See `batch.py`."""
    seq: Number
    """Behind the body: all that comes before its times then compresses as one piece, 7 % of a small batch."""


class Gap(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="gap"):
    """Numbers seq..last carry nothing: their readings were given up."""

    stream: Id
    lane: Lane
    seq: Number
    last: Number
    body: Annotated[msgspec.Raw, _refer("GapBody")]


class ClockRecord(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="clock"):
    """The clock of a boot became trusted, or was found wrong."""

    stream: Id
    lane: Lane
    seq: Number
    body: Annotated[msgspec.Raw, _refer("ClockState")]


class End(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="end"):
    """The gateway closed this stream; nothing follows."""

    stream: Id
    lane: Lane
    seq: Number


class ResultMessage(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """How a command ended; repeated until `result_ack`."""

    id: CommandId
    outcome: Outcome
    reason: str = ""
    value: Value | None = None
    """Read back, where that was asked."""
    utc_ms: int | None = None
    """When it ended, as far as the gateway knows UTC."""


class Stats(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="stats"):
    """Every minute: what the gateway knows of itself."""

    values: dict[str, Json]


class GatewayBye(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="bye"):
    """The gateway closes on purpose."""

    reason: str = ""


# ── server → gateway ─────────────────────────────────────────────────────────────────────────────────────────────────


class Window(msgspec.Struct, frozen=True):
    """How much may be in flight without an ack."""

    batches: Amount = 32
    bytes: Amount = 1 << 20


class Welcome(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """The answer to `hello`: what is stored, how much may be in flight, what time it is."""

    sink: SinkId
    """128 random bits of the store behind this server: two endpoints with one sink share their marks."""
    session: Annotated[str, msgspec.Meta(max_length=128)]
    """For logs."""
    marks: dict[Id, MarkNumber]
    """Stream → highest number durably stored; a stream that is not named has 0."""
    window: Window = Window()
    ack_budget_ms: Amount = 100
    """How long the server may take from receipt to ack."""
    utc_ms: Millis = 0
    mono_ms: Millis = 0
    """The server's monotonic clock, the base of `sent_ms` in commands."""
    open_commands: Annotated[tuple[CommandId, ...], _said(maxItems=MAX_OPEN_COMMANDS)] = ()
    """Commands that still have no result here."""


class Ack(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="ack"):
    """Cumulative: everything up to these numbers is durably stored."""

    marks: dict[Id, MarkNumber]


class Nack(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="nack"):
    """Something is missing; the server discards this stream until `expected` comes."""

    stream: Id
    expected: Number
    reason: str = ""


class CommandMessage(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="command"):
    """The cloud side asks for an action."""

    id: CommandId
    """Chosen by the caller; executed at most once whatever happens."""
    device: str
    op: str
    """`write`."""
    ttl_ms: Millis
    """Time to live left when this message was sent."""
    sent_ms: Millis
    """The server's monotonic clock when it was sent."""
    point: str = ""
    value: Value | None = None


class ResultAck(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="result_ack"):
    """This result is stored."""

    id: CommandId


class Flow(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="flow"):
    """A new window, absolute; 0 batches = pause."""

    window: Window


class Move(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="move"):
    """Please go elsewhere: within `deadline_ms`, after a random wait up to `spread_ms`."""

    deadline_ms: Amount = 60_000
    spread_ms: Amount = 30_000
    reason: str = ""


class ServerError(_Message, frozen=True, kw_only=True, omit_defaults=True, tag="error"):
    """What the server holds against the last message; it closes next."""

    reason: str


Numbered = Batch | Gap | ClockRecord | End
"""The records: what takes a number in a stream."""
FromGateway = Hello | Numbered | ResultMessage | Stats | GatewayBye
FromServer = Welcome | Ack | Nack | CommandMessage | ResultAck | Flow | Move | ServerError


class GapBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was given up."""

    reason: GapReason
    readings: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """None: nobody knows how many."""
    device: str = ""
    """Empty: several, or unknown."""
    since_utc_ms: int | None = None
    until_utc_ms: int | None = None


UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding raises. The last: brackets within brackets within brackets, in a member that nobody asked for."""

_encoder = msgspec.json.Encoder()
_from_gateway: msgspec.json.Decoder[FromGateway] = msgspec.json.Decoder(FromGateway)
_from_server: msgspec.json.Decoder[FromServer] = msgspec.json.Decoder(FromServer)


def encode(message: FromGateway | FromServer) -> bytes:
    """One text frame."""
    return _encoder.encode(message)


def encode_record(record: Record) -> bytes:
    """The frame that carries a stored record; its body goes in as it is."""
    where: dict[str, Json] = {"stream": record.stream, "lane": record.lane, "seq": record.seq}
    match record.kind:
        case RecordKind.BATCH:
            return _encoder.encode(Batch(**where, body=msgspec.Raw(record.body)))
        case RecordKind.GAP:
            return _encoder.encode(Gap(**where, last=record.upto, body=msgspec.Raw(record.body)))
        case RecordKind.CLOCK:
            return _encoder.encode(ClockRecord(**where, body=msgspec.Raw(record.body)))
        case RecordKind.END:
            return _encoder.encode(End(**where))


def decode_from_gateway(frame: bytes | str) -> FromGateway:
    """Raises RemoteProtocolError."""
    try:
        return _from_gateway.decode(frame)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"not a message of this protocol: {error}", 1007) from error


def decode_from_server(frame: bytes | str) -> FromServer:
    """Raises RemoteProtocolError."""
    try:
        return _from_server.decode(frame)
    except UNREADABLE as error:
        raise RemoteProtocolError(f"not a message of this protocol: {error}", 1007) from error
