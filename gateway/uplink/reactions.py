"""Pure: what the gateway does after a close code, an HTTP status or a refusal. The table of the specification [B2]."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final, NamedTuple

from gateway.errors import GatewayError

QUARTER_HOUR_S: Final = 900.0
HOUR_S: Final = 3600.0
PROTOCOL_PAUSE_S: Final = 60.0
EVICTED_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = HOUR_S
"""A server that asks for more is asked again all the same: what it said may be a mistake, and readings wait."""


class Kind(Enum):
    RETRY = "retry"
    """After back-off, or after `wait_s` where that is longer."""
    REST = "rest"
    """Leave it alone for `wait_s` whatever else happens: trying again changes nothing."""
    TOKEN = "token"
    """Try once more at once when the token file has changed, else rest."""
    EVICTED = "evicted"
    """Another process says that it is this gateway."""


class Reaction(NamedTuple):
    """`wait_s` plus a random part of `spread_s`."""

    kind: Kind
    reason: str
    wait_s: float = 0.0
    spread_s: float = 0.0


class Refused(GatewayError):
    """The connection could not be opened, or was closed: `reaction` says what to do."""

    def __init__(self, reaction: Reaction) -> None:
        super().__init__(reaction.reason)
        self.reaction = reaction


_CLOSES: Final[dict[int, tuple[Kind, str, float, float]]] = {
    1000: (Kind.RETRY, "the server finished the session", 0, 0),
    1001: (Kind.RETRY, "the server is going away", 0, 0),
    1002: (Kind.RETRY, "the protocol was broken", PROTOCOL_PAUSE_S, 0),
    1003: (Kind.RETRY, "the protocol was broken", PROTOCOL_PAUSE_S, 0),
    1007: (Kind.RETRY, "a message could not be read", PROTOCOL_PAUSE_S, 0),
    1008: (Kind.REST, "refused by policy", QUARTER_HOUR_S, 0),
    1009: (Kind.RETRY, "a message was too big", PROTOCOL_PAUSE_S, 0),
    1011: (Kind.RETRY, "server error", 0, 0),
    1012: (Kind.RETRY, "the server restarts", 0, 5),
    1013: (Kind.RETRY, "the server is overloaded", 30, 30),
    1014: (Kind.RETRY, "bad gateway", 0, 0),
    4401: (Kind.TOKEN, "token refused", QUARTER_HOUR_S, 0),
    4403: (Kind.REST, "this identity may not connect", QUARTER_HOUR_S, 0),
    4406: (Kind.REST, "no common protocol version", HOUR_S, 0),
    4408: (Kind.RETRY, "hello came too late", 0, 0),
    4409: (Kind.EVICTED, "a newer process of this gateway is connected; is this machine a clone?", EVICTED_S, 0),
    4410: (Kind.RETRY, "the sequence was broken", 0, 0),
}
_TRANSIENT: Final = (408, 425, 429)


def to_close(code: int, text: str) -> Reaction:
    """The server closed with `code`; `text` is its reason."""
    kind, reason, wait_s, spread_s = _CLOSES.get(code, (Kind.RETRY, "connection closed", 0, 0))
    said = f": {text}" if text else ""
    return Reaction(kind, f"{reason} ({code}{said})", wait_s, spread_s)


def to_status(status: int, retry_after_s: float | None) -> Reaction:
    """The HTTP handshake was answered by something other than 101."""
    if status == 401:
        return Reaction(Kind.TOKEN, "token or certificate refused (HTTP 401)", QUARTER_HOUR_S)
    if status in (403, 404):
        return Reaction(Kind.REST, f"this identity may not connect here (HTTP {status})", QUARTER_HOUR_S)
    if status in _TRANSIENT or status >= 500:
        return Reaction(Kind.RETRY, f"HTTP {status}", retry_after_s or 0.0)
    if 300 <= status < 400:  # most often a captive portal, which passes
        return Reaction(Kind.RETRY, f"HTTP {status}: redirects are not followed", PROTOCOL_PAUSE_S)
    if status < 300:  # the same portal, with its page
        return Reaction(Kind.RETRY, f"not a server of this protocol (HTTP {status})", PROTOCOL_PAUSE_S)
    if status == 426:
        return Reaction(Kind.REST, "no common protocol version (HTTP 426)", HOUR_S)
    return Reaction(Kind.REST, f"not a server of this protocol (HTTP {status})", QUARTER_HOUR_S)


def to_proxy_status(status: int, way: str, retry_after_s: float | None) -> Reaction:
    """The proxy answered our CONNECT with something other than 2xx; `way` names it and where it was to lead."""
    said = f"{way}: HTTP {status}"
    if status in (401, 407):  # some say 401 to a wrong password
        return Reaction(Kind.REST, f"{said}: the proxy does not accept our name and password", QUARTER_HOUR_S)
    if status in _TRANSIENT or status >= 500:
        return Reaction(Kind.RETRY, f"{said}: the proxy cannot connect", retry_after_s or 0.0)
    if status < 400:
        return Reaction(Kind.RETRY, f"{said}: not what a proxy answers", PROTOCOL_PAUSE_S)
    return Reaction(Kind.REST, f"{said}: the proxy does not let us through", QUARTER_HOUR_S)


def retry_after_s(value: str, date: str) -> float | None:
    """`Retry-After`, in seconds or as a date; an hour at most; None when it cannot be read [RFC 9110 10.2.3].

    A date counts from the server's own `Date`: our clock may be wrong.
    """
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        wait_s = (parsedate_to_datetime(value) - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: only one of the two names its zone
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
