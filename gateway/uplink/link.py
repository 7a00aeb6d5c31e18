"""One WebSocket connection: the only place that knows the library. Text frames out, text frames in, errors mapped.

The library's connection class is used without its reconnecting iterator: no redirects, no proxies from the environment,
no keepalive of its own (the session pings), and `abort` instead of a closing handshake when the peer is silent.

Each step of connecting has its own limit and its own words: DNS, TCP, the proxy, TLS, the upgrade.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from gateway.errors import DecodeError, LinkError, RemoteProtocolError
from gateway.protocol.messages import MAX_DOWN_BYTES, SUBPROTOCOL
from gateway.uplink import reactions
from gateway.uplink.auth import Credential
from gateway.uplink.certificate import pin
from gateway.uplink.config import Endpoint, Speech
from gateway.uplink.dial import dial, talk_through
from gateway.uplink.meter import wire_bytes
from gateway.uplink.proxy import talk
from gateway.uplink.reactions import Kind, Reaction, Refused

CLOSE_WITHIN_S: Final = 1.0
_MAX_REASON_BYTES: Final = 123  # RFC 6455 5.5: a control frame has 125, two are the code
MAX_PLAIN_BYTES: Final = 1 << 20
"""Of what a plain peer says: it may echo what it was sent."""
WRITE_LIMIT_BYTES: Final = 64 * 1024
USER_AGENT: Final = "gateway"
_DEFLATE_LEVEL: Final = 8
"""A tenth fewer bytes than the usual 6, for 1 µs more a reading; beyond it nothing gets smaller."""
_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_log = logging.getLogger(__name__)
_library_log = logging.getLogger("gateway.uplink.websocket")


class Link:
    """An open connection."""

    def __init__(self, connection: ClientConnection, text_only: bool) -> None:
        self._connection = connection
        self._text_only = text_only

    def send(self, frame: bytes) -> None:
        """Hands one text frame to the socket's buffer; never waits. A connection that has `ended` drops it."""
        if not self.ended:
            self._connection.protocol.send_text(frame)
            self._connection.send_data()

    @property
    def ended(self) -> bool:
        """Nothing that is sent arrives any more; `receive` tells why in a moment."""
        return self._connection.protocol.state is not State.OPEN or self._connection.transport.is_closing()

    @property
    def full(self) -> bool:
        """The socket does not keep up (or has ended): `drain` before more is sent."""
        return self._connection.paused or self._connection.transport.is_closing()

    async def drain(self) -> None:
        """Waits while the socket's buffer is too full."""
        try:
            await self._connection.drain()
        except OSError as error:
            raise LinkError(f"connection lost: {error}") from error

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            Refused: the connection was closed.
            RemoteProtocolError: a binary frame, where only text is spoken.
        """
        try:
            frame = await self._connection.recv()
        except ConnectionClosed as error:
            raise Refused(_closed(error)) from error
        if isinstance(frame, str):
            return frame.encode()
        if self._text_only:
            raise RemoteProtocolError("a binary frame", CloseCode.UNSUPPORTED_DATA)
        return frame

    async def ping(self, number: int) -> None:
        """Sends a ping and waits for its pong; each number once, 0 as often as wanted. Raises Refused."""
        try:
            await (await self._connection.ping(str(number) if number else None))
        except ConnectionClosed as error:
            raise Refused(_closed(error)) from error

    @property
    def wire_bytes(self) -> int:
        """What this connection has cost so far, both ways."""
        sock: socket.socket | None = self._connection.transport.get_extra_info("socket")
        return wire_bytes(sock) if sock is not None else 0

    def abort(self) -> None:
        """Drops the connection without a word."""
        self._connection.transport.abort()

    async def close(self, code: int, reason: str) -> None:
        """Closes politely, for a second at most. `reason` may hold what the peer said, and is cut to what fits."""
        fits = reason.encode(errors="replace")[:_MAX_REASON_BYTES].decode(errors="ignore")
        try:
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._connection.close(code, fits)
        except TimeoutError:
            self.abort()
        except OSError as error:
            _log.debug("while closing: %s", error)


async def open_link(endpoint: Endpoint, credential: Credential) -> Link:
    """Name, TCP, proxy, TLS, pins, upgrade: within `connect_timeout` each.

    Raises:
        Refused: it did not work; the reaction says what to do.
    """
    sock = await _reach(endpoint, credential)
    connection = await _secure(sock, endpoint, credential)
    try:
        if endpoint.tls.pins:
            _check_pin(connection.transport.get_extra_info("ssl_object"), endpoint.tls.pins)
        await _upgrade(connection, endpoint, credential)
    except BaseException:
        connection.transport.abort()
        raise
    return Link(connection, endpoint.protocol is Speech.GATEWAY)


async def _reach(endpoint: Endpoint, credential: Credential) -> socket.socket:
    """A socket that leads to the endpoint, perhaps through a proxy."""
    uri, within_s = parse_uri(endpoint.url), endpoint.connect_timeout
    if not endpoint.proxy:
        return await dial(uri.host, uri.port, endpoint.interface, within_s)
    proxy = urlsplit(endpoint.proxy)
    host, port = proxy.hostname or "", proxy.port or 0  # both are there: the configuration has been checked
    try:
        sock = await dial(host, port, endpoint.interface, within_s)
    except Refused as error:
        raise Refused(error.reaction._replace(reason=f"proxy: {error.reaction.reason}")) from error
    way = f"proxy {proxy.netloc} to {uri.host}:{uri.port}"
    try:
        await talk_through(sock, talk(proxy.scheme, uri.host, uri.port, credential.proxy, way), way, within_s)
    except BaseException:
        sock.close()
        raise
    return sock


async def _secure(sock: socket.socket, endpoint: Endpoint, credential: Credential) -> ClientConnection:
    """The connection object on the socket; with wss:// when the certificate of the server is found good."""
    uri = parse_uri(endpoint.url)
    deflate = ClientPerMessageDeflateFactory(
        server_no_context_takeover=True,
        client_max_window_bits=15,
        compress_settings={"level": _DEFLATE_LEVEL, "memLevel": 5},
    )
    protocol = ClientProtocol(
        uri,
        extensions=[deflate],
        subprotocols=[Subprotocol(SUBPROTOCOL)] if endpoint.protocol is Speech.GATEWAY else None,
        max_size=MAX_DOWN_BYTES if endpoint.protocol is Speech.GATEWAY else MAX_PLAIN_BYTES,
        logger=_library_log,
    )
    try:
        async with asyncio.timeout(endpoint.connect_timeout):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: ClientConnection(
                    protocol, ping_interval=None, close_timeout=CLOSE_WITHIN_S, write_limit=WRITE_LIMIT_BYTES
                ),
                sock=sock,
                ssl=credential.context,
                server_hostname=uri.host if uri.secure else None,
            )
    except TimeoutError as error:
        reason = f"TLS handshake stalled: not done within {endpoint.connect_timeout:g} s"
        raise Refused(Reaction(Kind.RETRY, reason)) from error
    except OSError as error:
        raise Refused(_insecure(error)) from error
    return connection


def _check_pin(tls: ssl.SSLObject, pins: Sequence[str]) -> None:
    """The key of the server's own certificate: the only one that every handshake shows. Raises Refused."""
    try:
        found = pin(tls.getpeercert(binary_form=True) or b"")
    except DecodeError as error:
        found = str(error)
    if found not in pins:
        reason = f"the key of the server is not one of the pins: its certificate has {found}"
        raise Refused(Reaction(Kind.REST, reason, reactions.QUARTER_HOUR_S))


async def _upgrade(connection: ClientConnection, endpoint: Endpoint, credential: Credential) -> None:
    traces, connection.protocol.debug = connection.protocol.debug, False  # the request holds our token
    try:
        async with asyncio.timeout(endpoint.connect_timeout):
            await connection.handshake(credential.headers, USER_AGENT)
    except (InvalidStatus, InvalidHandshake, OSError, TimeoutError) as error:
        raise Refused(_refused(endpoint, error, connection.connection_exc)) from error
    finally:
        connection.protocol.debug = traces
    if endpoint.protocol is Speech.GATEWAY and connection.subprotocol != SUBPROTOCOL:
        raise Refused(Reaction(Kind.REST, f"the server does not speak {SUBPROTOCOL}", reactions.HOUR_S))


def _insecure(error: OSError) -> Reaction:
    """A failed certificate check is an OSError as well, but no passing one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"certificate of the server refused: {error.verify_message}"
        if error.verify_code == _NOT_YET_VALID:  # our clock is not set yet, which passes
            return Reaction(Kind.RETRY, reason)
        return Reaction(Kind.REST, reason, reactions.QUARTER_HOUR_S)
    if isinstance(error, ssl.SSLError):
        return _tls_failed(error)
    if isinstance(error, ConnectionError):
        return Reaction(Kind.RETRY, "the server closed the connection during the TLS handshake")
    return Reaction(Kind.RETRY, f"TLS handshake failed: {error.strerror or error}")


def _tls_failed(error: ssl.SSLError) -> Reaction:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:  # the server said why it does not like us
        return Reaction(Kind.REST, f"the server refused our TLS handshake: {reason}", reactions.QUARTER_HOUR_S)
    return Reaction(Kind.RETRY, f"TLS handshake failed: {reason}")


def _refused(endpoint: Endpoint, error: Exception, lost: BaseException | None) -> Reaction:
    """`lost`: what broke the connection below the handshake, if anything did."""
    if isinstance(lost, ssl.SSLError):  # TLS 1.3: our certificate is refused only after our side is done
        return _tls_failed(lost)
    match error:
        case InvalidStatus():
            return reactions.to_status(error.response.status_code, _retry_after_s(error.response.headers))
        case InvalidMessage() if isinstance(error.__cause__, EOFError):
            return Reaction(Kind.RETRY, "connection lost during the handshake")
        case InvalidHandshake():
            return Reaction(Kind.RETRY, f"not a server of this protocol: {error}", reactions.PROTOCOL_PAUSE_S)
        case TimeoutError():
            return Reaction(Kind.RETRY, f"no answer to the upgrade within {endpoint.connect_timeout:g} s")
        case _:
            return Reaction(Kind.RETRY, f"connection lost during the handshake: {error}")


def _retry_after_s(headers: Headers) -> float | None:
    said, dated = headers.get_all("Retry-After"), headers.get_all("Date")
    return reactions.retry_after_s(said[0], dated[0] if dated else "") if said else None


def _closed(error: ConnectionClosed) -> Reaction:
    """What the server said, or what broke the connection."""
    if error.rcvd is not None:
        return reactions.to_close(error.rcvd.code, error.rcvd.reason)
    if error.sent is not None and error.sent.code not in (CloseCode.NORMAL_CLOSURE, CloseCode.INTERNAL_ERROR):
        return reactions.to_close(error.sent.code, error.sent.reason)
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return _tls_failed(cause)
    return Reaction(Kind.RETRY, f"connection lost{f': {cause}' if cause else ''}")
