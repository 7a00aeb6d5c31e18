"""Pure: what a `ClientSession` wants done. The driver carries the outputs out in the order in which they come."""

from __future__ import annotations

from typing import NamedTuple

from gateway.model import Command, Lane


class Send(NamedTuple):
    """One text frame."""

    frame: bytes


class Fetch(NamedTuple):
    """Get records of `stream` from `seq` on and give them to `fetched`, which sends at most `max_records` of them."""

    stream: str
    seq: int
    max_bytes: int
    max_records: int


class Fill(NamedTuple):
    """The sink misses first..last and nobody holds them: have a gap put there, unless another sink has them; answer
    with `filled`."""

    stream: str
    lane: Lane
    first: int
    last: int


class Acked(NamedTuple):
    """Durably stored by this sink up to `seq`."""

    stream: str
    seq: int


class Hold(NamedTuple):
    """In flight on this session up to this number; 0: nothing of the stream."""

    stream: str
    upto: int


class Seal(NamedTuple):
    """End the open stream of this lane: another sink acked part of it [M5]."""

    lane: Lane


class Distrust(NamedTuple):
    """Never use this stream again: a copy of this process lives or lived [M4]."""

    stream: str


class Welcomed(NamedTuple):
    sink: str
    session: str
    utc_ms: int = 0
    """The server's time; 0: it says nothing of it."""
    waited_s: float = 0.0
    """From the hello to the welcome."""


class Execute(NamedTuple):
    command: Command


class Missing(NamedTuple):
    """Commands without a result at the server."""

    ids: tuple[str, ...]


class ResultStored(NamedTuple):
    command_id: str


class MoveAsked(NamedTuple):
    deadline_s: float
    spread_s: float
    reason: str


class Complaint(NamedTuple):
    """The server's last words."""

    reason: str


class Ping(NamedTuple):
    """Send a WebSocket ping; call `pong` with the same number when it is answered."""

    number: int = 0


class Suspect(NamedTuple):
    """Acks are overdue: send on another session."""


class Recovered(NamedTuple):
    """Acks came after all, or the server asked for a pause."""


class Dead(NamedTuple):
    """Abort the connection, without a closing handshake."""

    reason: str


Output = (
    Send
    | Fill
    | Acked
    | Hold
    | Seal
    | Distrust
    | Welcomed
    | Execute
    | Missing
    | ResultStored
    | MoveAsked
    | Complaint
    | Ping
    | Suspect
    | Recovered
    | Dead
)
