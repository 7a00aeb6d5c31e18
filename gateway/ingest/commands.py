"""Commands as the cloud side keeps them: issued once, sent until there is a result or no time left.

The times to live are counted in the server's own UTC, so they go on over a restart. A result belongs to the gateway
that the command was for; the first one stands. These functions enter the store: call them in its thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import GatewayError
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.model import Value
from gateway.protocol.messages import MAX_OPEN_COMMANDS, CommandMessage

OPEN = ("queued", "sent")
"""States in which there is no result yet."""

_encode = msgspec.json.Encoder().encode


class Issued(msgspec.Struct, frozen=True):
    """One command and how it stands, for people."""

    id: str
    gateway: str
    device: str
    point: str
    op: str
    value: Value | None
    issued_ms: int
    expires_ms: int
    state: str
    """queued, sent, expired (it never left), or the outcome."""
    reason: str = ""
    result: Value | None = None


class TooManyError(GatewayError):
    """As many commands of one gateway as a welcome can name have time left and no result."""


def issue(sink: SqliteSink, gateway: str, command: CommandMessage, now_ms: int) -> bool:
    """False: there is a command with this id already, and nothing is changed. Raises TooManyError, StoreError."""
    with sink.transaction() as db:
        ((waiting,),) = db.execute(
            "SELECT count(*) FROM command c WHERE gateway = ? AND expires_ms > ?"
            " AND NOT EXISTS (SELECT 1 FROM result r WHERE r.gateway = c.gateway AND r.command = c.id)",
            (gateway, now_ms),
        )
        if waiting >= MAX_OPEN_COMMANDS:
            raise TooManyError(f"{waiting} commands wait for {gateway} already")
        done = db.execute(
            "INSERT OR IGNORE INTO command VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                command.id,
                gateway,
                command.device,
                command.point,
                command.op,
                _encode(command.value).decode(),
                now_ms,
                now_ms + command.ttl_ms,
            ),
        )
        return done.rowcount == 1


def due(sink: SqliteSink, gateway: str, now_ms: int, only: str = "") -> list[CommandMessage]:
    """What this gateway is to be sent now, oldest first, with the time to live that is left; noted as sent.
    `only` one command, or all that have no result.

    It is noted before it is sent: what may have left is never taken for something that stayed here.
    """
    with sink.transaction() as db:
        rows = db.execute(
            "SELECT id, device, op, expires_ms, point, value FROM command c WHERE gateway = ? AND expires_ms > ?"
            " AND ? IN ('', id)"
            " AND NOT EXISTS (SELECT 1 FROM result r WHERE r.gateway = c.gateway AND r.command = c.id)"
            " ORDER BY issued_ms, id",
            (gateway, now_ms, only),
        ).fetchall()
        db.executemany(
            "UPDATE command SET sent_ms = ? WHERE id = ? AND sent_ms IS NULL", [(now_ms, row[0]) for row in rows]
        )
    return [
        CommandMessage(
            id=row[0],
            device=row[1],
            op=row[2],
            ttl_ms=row[3] - now_ms,
            sent_ms=0,
            point=row[4],
            value=msgspec.json.decode(row[5]),
        )
        for row in rows
    ]


def recent(sink: SqliteSink, now_ms: int, limit: int = 50, ids: Sequence[str] = ()) -> list[Issued]:
    """Newest first; with `ids`, only these."""
    chosen = f"WHERE c.id IN ({', '.join('?' * len(ids))})" if ids else ""
    rows: list[Any] = sink.query(
        "SELECT c.id, c.gateway, c.device, c.point, c.op, c.value, c.issued_ms, c.expires_ms, c.sent_ms,"
        " r.outcome, r.reason, r.value FROM command c"
        f" LEFT JOIN result r ON r.gateway = c.gateway AND r.command = c.id {chosen}"
        " ORDER BY c.issued_ms DESC, c.id DESC LIMIT ?",
        (*ids, limit),
    )
    return [_issued(row, now_ms) for row in rows]


def _issued(row: Any, now_ms: int) -> Issued:
    number, gateway, device, point, op, value, issued_ms, expires_ms, sent_ms, outcome, reason, result = row
    waiting = "sent" if sent_ms is not None else "queued" if expires_ms > now_ms else "expired"
    return Issued(
        number,
        gateway,
        device,
        point,
        op,
        value=msgspec.json.decode(value),
        issued_ms=issued_ms,
        expires_ms=expires_ms,
        state=outcome or waiting,
        reason=reason or "",
        result=msgspec.json.decode(result) if result else None,
    )
