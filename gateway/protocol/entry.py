"""Pure: one record on its way into a store: its body read and checked, or kept as the poison that it is.

Nothing here closes a session but a body beyond the limit: what cannot be decoded or adds up to nonsense is stored as it
came (`Entry.poison`), because a record that is refused would come again for ever and block its lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.errors import DecodeError, RemoteProtocolError
from gateway.model import ClockState, Lane, RecordKind
from gateway.protocol import batch
from gateway.protocol.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_READINGS,
    UNREADABLE,
    Batch,
    ClockRecord,
    End,
    Gap,
    GapBody,
    Numbered,
)

MAX_TIME_MS: Final = 2**60
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


def entry_of(message: Numbered, gateway: str, seq: int, last: int, attempt: int) -> Entry:
    """The entry for numbers seq..last of this record; the part of a gap before `seq` is stored already.

    Raises:
        RemoteProtocolError: a body beyond the limit.
    """
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
    return Entry(gateway, message.stream, message.lane, seq, last, kind, raw, body, poison, attempt)


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
        if abs(number) > MAX_TIME_MS:
            raise DecodeError(f"{number} is out of bounds")


_KINDS: dict[type, tuple[RecordKind, Callable[[bytes], batch.Body | GapBody | ClockState | None]]] = {
    Batch: (RecordKind.BATCH, _batch_body),
    Gap: (RecordKind.GAP, _gap_body),
    ClockRecord: (RecordKind.CLOCK, _clock_body),
    End: (RecordKind.END, lambda _: None),
}
