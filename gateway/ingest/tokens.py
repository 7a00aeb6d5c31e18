"""Who may connect: names, and tokens of which only the SHA-256 is kept.

A token is 256 random bits, so its hash needs no salt and cannot be guessed. `add`, `revoke` and `load` touch the store
and run in its thread; `identify` looks into memory only and runs on the event loop.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from enum import StrEnum
from typing import NamedTuple

from gateway.errors import AuthError, ConfigError
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.settings import ID_PATTERN


class Role(StrEnum):
    GATEWAY = "gateway"
    VIEWER = "viewer"


class Identity(NamedTuple):
    name: str
    role: Role


class Listed(NamedTuple):
    """One line of `ingest list`."""

    name: str
    role: str
    tokens: int
    hello_ms: int | None
    software: str
    revoked: int


class Tokens:
    """Raises StoreError wherever it touches the store."""

    def __init__(self, sink: SqliteSink) -> None:
        self._sink = sink
        self._known: dict[bytes, Identity] = {}
        self._revoked: frozenset[str] = frozenset()
        self.load()

    def load(self) -> None:
        rows = self._sink.query("SELECT digest, name, role FROM token")
        self._known = {digest: Identity(name, Role(role)) for digest, name, role in rows}
        self._revoked = frozenset(row[0] for row in self._sink.query("SELECT name FROM gateway WHERE revoked"))

    def add(self, name: str, role: Role, now_ms: int) -> str:
        """A new token for this name; those it had stay valid until `revoke`. Raises ConfigError for a bad name."""
        if not re.fullmatch(ID_PATTERN, name) or len(name) > 128:
            raise ConfigError((f"{name!r} cannot be a name: letters, digits and _.:- only, 128 at most",))
        token = secrets.token_urlsafe(32)
        with self._sink.transaction() as db:
            db.execute("INSERT INTO token VALUES (?, ?, ?, ?)", (_digest(token), name, role.value, now_ms))
            if role is Role.GATEWAY:
                db.execute(
                    "INSERT INTO gateway (name, added_ms) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET revoked = 0",
                    (name, now_ms),
                )
        self.load()
        return token

    def revoke(self, name: str) -> bool:
        """Takes all tokens of this name back, and its certificate too. False: nobody of this name is known."""
        with self._sink.transaction() as db:
            gone = db.execute("DELETE FROM token WHERE name = ?", (name,)).rowcount
            gone += db.execute("UPDATE gateway SET revoked = 1 WHERE name = ?", (name,)).rowcount
        self.load()
        return gone > 0

    def list(self) -> list[Listed]:
        rows = self._sink.query(
            "SELECT g.name, 'gateway', (SELECT count(*) FROM token t WHERE t.name = g.name AND t.role = 'gateway'),"
            " g.hello_ms, g.software, g.revoked FROM gateway g"
            " UNION ALL SELECT name, role, count(*), NULL, '', 0 FROM token WHERE role = 'viewer' GROUP BY name"
            " ORDER BY 2, 1"
        )
        return [Listed(*row) for row in rows]

    def identify(self, token: str) -> Identity:
        """Raises AuthError."""
        digest = _digest(token)
        found = None
        for known, identity in self._known.items():
            # every one is compared, and in constant time: how long it takes says nothing about what is known
            if hmac.compare_digest(known, digest):
                found = identity
        if found is not None:
            return found
        raise AuthError("this token is not known here")

    def revoked(self, name: str) -> bool:
        return name in self._revoked


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
