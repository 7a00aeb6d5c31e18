"""Pure: how a proxy is asked to lead somewhere: HTTP CONNECT [RFC 9110 9.3.6] and SOCKS5 [RFC 1928, 1929].

A `Talk` yields what is to be sent and is sent what came; it returns when the way is open and raises `Refused` when
there is none. The endpoint never speaks first, so nothing of what it says can come with the proxy's answer. Names go to
the proxy as they are, and it looks them up.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator
from ipaddress import ip_address
from typing import Final, NamedTuple

from gateway.uplink.reactions import (
    PROTOCOL_PAUSE_S,
    QUARTER_HOUR_S,
    Kind,
    Reaction,
    Refused,
    retry_after_s,
    to_proxy_status,
)

Talk = Generator[bytes, bytes, None]
"""Is sent b"" when the proxy has closed the connection."""

MAX_ANSWER_BYTES: Final = 16 * 1024


class Login(NamedTuple):
    name: str
    password: str


def talk(scheme: str, host: str, port: int, login: Login | None, way: str) -> Talk:
    """`way` is for people: which proxy, and where it is to lead."""
    return _connect(host, port, login, way) if scheme == "http" else _socks5(host, port, login, way)


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _connect(host: str, port: int, login: Login | None, way: str) -> Talk:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if login is not None:
        pair = base64.b64encode(f"{login.name}:{login.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {pair}")
    answer = bytearray((yield "\r\n".join([*lines, "", ""]).encode()))
    while b"\r\n\r\n" not in answer:
        if len(answer) > MAX_ANSWER_BYTES:
            raise _no_proxy(way)
        more = yield b""
        if not more:
            raise _closed(way)
        answer += more
    head, _, rest = bytes(answer).partition(b"\r\n\r\n")
    first, *rows = head.decode("latin-1").split("\r\n")
    status = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first, re.ASCII)
    if status is None:
        raise _no_proxy(way)
    code = int(status[1])
    if not 200 <= code < 300:
        headers = {name.strip().lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
        after = retry_after_s(headers.get("retry-after", ""), headers.get("date", ""))
        raise Refused(to_proxy_status(code, way, after))
    if rest:
        raise _no_proxy(way)


# ── SOCKS5 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_VERSION: Final = 5
_OPEN, _BY_PASSWORD, _NOTHING_FITS = 0x00, 0x02, 0xFF
_CONNECT: Final = 1
_ADDRESS_BYTES: Final = {1: 4, 4: 16}
_DOMAIN: Final = 3
_REPLIES: Final = {
    1: "general failure",
    2: "its rules do not allow this",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "no answer in time",
    7: "it does not know CONNECT",
    8: "it does not know this kind of address",
}
_LASTING: Final = (2, 7, 8)


def _socks5(host: str, port: int, login: Login | None, way: str) -> Talk:
    came = bytearray()
    methods = bytes([_OPEN] if login is None else [_OPEN, _BY_PASSWORD])
    method = yield from _ask(bytes([_VERSION, len(methods)]) + methods, came, way)
    if method == _BY_PASSWORD and login is not None:
        if (yield from _ask(b"\x01" + _counted(login.name) + _counted(login.password), came, way, version=1)) != 0:
            raise Refused(_rest(f"{way}: the proxy does not accept our name and password"))
    elif method == _NOTHING_FITS:
        wants = "wants a name and password" if login is None else "takes no name and password"
        raise Refused(_rest(f"{way}: the proxy {wants}"))
    elif method != _OPEN:
        raise _no_proxy(way)
    reply = yield from _ask(bytes([_VERSION, _CONNECT, 0]) + _address(host) + port.to_bytes(2, "big"), came, way)
    if reply != 0:
        reason = f"{way}: the proxy says: {_REPLIES.get(reply, f'error {reply}')}"
        raise Refused(_rest(reason) if reply in _LASTING else Reaction(Kind.RETRY, reason))
    _, kind = yield from _exactly(2, came, way)
    if kind == _DOMAIN:
        length = (yield from _exactly(1, came, way))[0]
    elif kind in _ADDRESS_BYTES:
        length = _ADDRESS_BYTES[kind]
    else:
        raise _no_proxy(way)
    yield from _exactly(length + 2, came, way)
    if came:
        raise _no_proxy(way)


def _ask(request: bytes, came: bytearray, way: str, version: int = _VERSION) -> Generator[bytes, bytes, int]:
    """Sends; returns the second byte of the answer, after the version."""
    if came:
        raise _no_proxy(way)
    came += yield request
    answer = yield from _exactly(2, came, way)
    if answer[0] != version:
        raise _no_proxy(way)
    return answer[1]


def _exactly(size: int, came: bytearray, way: str) -> Generator[bytes, bytes, bytes]:
    while len(came) < size:
        more = yield b""
        if not more:
            raise _closed(way)
        came += more
    taken = bytes(came[:size])
    del came[:size]
    return taken


def _counted(text: str) -> bytes:
    octets = text.encode()
    return bytes([len(octets)]) + octets


def _address(host: str) -> bytes:
    try:
        address = ip_address(host)
    except ValueError:
        return bytes([_DOMAIN]) + _counted(host)
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _rest(reason: str) -> Reaction:
    return Reaction(Kind.REST, reason, QUARTER_HOUR_S)


def _no_proxy(way: str) -> Refused:
    return Refused(Reaction(Kind.RETRY, f"{way}: this is not the answer of a proxy", PROTOCOL_PAUSE_S))


def _closed(way: str) -> Refused:
    return Refused(Reaction(Kind.RETRY, f"{way}: the proxy closed the connection"))
