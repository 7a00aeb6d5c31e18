"""Pure: the `[uplink]` table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from gateway.codec.path import Path as JsonPath
from gateway.settings import ID_PATTERN, Duration, Key, Mistake, Size, Table

PING_S: Final = 20.0
PING_METERED_S: Final = 50.0
"""Below the minute after which many balancers and mobile networks forget an idle connection."""
PING_MAX_S: Final = 110.0
"""A server may drop a session that it has not heard from for 120 s."""


class Standby(StrEnum):
    """Whether a second session waits, open, for the first to fail."""

    AUTO = "auto"
    WARM = "warm"
    COLD = "cold"


class Speech(StrEnum):
    """What an endpoint understands."""

    GATEWAY = "gateway"
    PLAIN = "plain"


class WhenSpent(StrEnum):
    """What still goes out when the data budget of the day is down to its reserve."""

    ALARMS_ONLY = "alarms_only"
    HOLD = "hold"
    GO_ON = "go_on"


class AckPath(Table, frozen=True, kw_only=True):
    """An ack in the peer's own words."""

    path: Annotated[
        str, Key("where in a JSON message of the peer the `id` or `n` stands that it acks", example='"ack"')
    ]

    def mistakes(self) -> Iterable[Mistake]:
        try:
            JsonPath.of(self.path)
        except ValueError as error:
            yield Mistake(("path",), str(error))


class TlsSettings(Table, frozen=True, kw_only=True):
    """Whom to trust, and who we are."""

    cafile: Annotated[Path | None, Key("private CA in PEM; replaces the system's trust store")] = None
    certfile: Annotated[Path | None, Key("our certificate chain in PEM")] = None
    keyfile: Annotated[Path | None, Key("its private key; readable by the gateway's user only")] = None
    pins: Annotated[
        tuple[str, ...],
        Key(
            "SHA-256 of the keys the server may have, beside a good certificate: the one in use and a spare",
            pattern=r"sha256/[A-Za-z0-9+/]{43}=",
            example='["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", '
            '"sha256/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="]',
        ),
    ] = ()

    def mistakes(self) -> Iterable[Mistake]:
        if len(set(self.pins)) == 1:
            yield Mistake(
                ("pins",),
                "one pin is a trap: the day the server needs a new key nobody gets in; add that of a spare key",
            )
        if (self.certfile is None) != (self.keyfile is None):
            missing = "keyfile" if self.keyfile is None else "certfile"
            yield Mistake((), f"`{missing}` is missing: certificate and key belong together")


class Endpoint(Table, frozen=True, kw_only=True):
    """One place to deliver to. The first one that works is used; order is priority."""

    url: Annotated[str, Key("where to connect", pattern=r"wss?://[^\s#]+", example='"wss://ingest.example.com/uplink"')]
    name: Annotated[str, Key("how status and log call it; default: host and port of the URL", pattern=ID_PATTERN)] = ""
    token_file: Annotated[Path | None, Key("file with the bearer token; re-read when it changes")] = None
    tls: Annotated[TlsSettings, Key("certificates")] = TlsSettings()
    interface: Annotated[
        str,
        Key(
            "network interface to go out by; default: where the routes lead",
            pattern=r"|[^\s/]{1,15}",
            example='"wwan0"',
        ),
    ] = ""
    proxy: Annotated[
        str,
        Key(
            "HTTP proxy that knows CONNECT, or SOCKS5 proxy, on the way there",
            pattern=r"|(http|socks5)://[^\s/?#]+/?",
            example='"http://proxy.example.com:3128"',
        ),
    ] = ""
    proxy_auth_file: Annotated[Path | None, Key("file with `name:password` for the proxy; re-read when it changes")] = (
        None
    )
    connect_timeout: Annotated[
        Duration, Key("limit of each step of connecting: DNS, TCP, proxy, TLS, upgrade", min=0.1, max=60)
    ] = 3.0
    protocol: Annotated[Speech, Key("`plain`: any WebSocket listener, which is sent one JSON message per batch")] = (
        Speech.GATEWAY
    )
    ack: Annotated[
        Literal["pong", "none"] | AckPath,
        Key('plain only: what counts as delivered: a pong, `{ path = "…" }` in a message of the peer, or the sending'),
    ] = "pong"
    metered: Annotated[
        bool, Key("traffic costs money: no standby session here while all is well, slower pings, fewer messages")
    ] = False
    ping_interval: Annotated[
        Duration | None,
        Key("ping after this much silence; default 20s, metered 50s", min=1, max=PING_MAX_S, example='"20s"'),
    ] = None
    backfill_rate: Annotated[
        int | None, Key("readings per second of a backlog at most; new ones are not held back", min=1, example="1000")
    ] = None
    daily_budget: Annotated[
        Size | None,
        Key("bytes per UTC day, both ways, with everything that TCP and IP add", min=100_000, example='"20MB"'),
    ] = None
    when_spent: Annotated[
        WhenSpent, Key("at 90 % of it: alarms and results go on; `hold`: until all is spent; `go_on`: everything does")
    ] = WhenSpent.ALARMS_ONLY

    @property
    def label(self) -> str:
        return self.name or urlsplit(self.url).netloc

    @property
    def ping_s(self) -> float:
        return self.ping_interval or (PING_METERED_S if self.metered else PING_S)

    @property
    def trusted_time(self) -> bool:
        """Whoever is on the way cannot set our time: the server is known by its certificate, or is this machine."""
        return self.url.startswith("wss:") or _is_loopback(urlsplit(self.url).hostname or "")

    def warnings(self) -> Iterable[Mistake]:
        if self.protocol is Speech.PLAIN and self.ack == "none":
            yield Mistake(("ack",), f"the promise is {promise(self)}")

    def mistakes(self) -> Iterable[Mistake]:
        if self.protocol is Speech.GATEWAY and self.ack != "pong":
            yield Mistake(("ack",), 'is for endpoints with `protocol = "plain"`: ours has acks of its own')
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            yield Mistake(("url",), f"not a URL: {error}")
            return
        if not host:
            yield Mistake(("url",), "the URL names no host")
        elif not _can_be_host(host):
            yield Mistake(("url",), f"{host} can be no name of a host")
        if parts.username is not None or parts.password is not None:
            yield Mistake(("url",), "no credentials in the URL: use token_file or tls.certfile")
        yield from self._proxy_mistakes()
        if parts.scheme == "wss":
            return
        if self.tls != TlsSettings():
            yield Mistake(("tls",), "ws:// has no TLS; write wss://")
        if self.token_file is not None and (self.proxy or not _is_loopback(host or "")):
            yield Mistake(("token_file",), "a token over ws:// can be read on the way; write wss://")

    def _proxy_mistakes(self) -> Iterable[Mistake]:
        if not self.proxy:
            if self.proxy_auth_file is not None:
                yield Mistake(("proxy_auth_file",), "there is no `proxy` to show it to")
            return
        try:
            parts = urlsplit(self.proxy)
            known = bool(parts.hostname and parts.port)
        except ValueError as error:
            yield Mistake(("proxy",), f"not a URL: {error}")
            return
        if parts.username is not None or parts.password is not None:
            yield Mistake(("proxy",), "no credentials in the URL: use proxy_auth_file")
        elif not known:
            yield Mistake(("proxy",), "a proxy is named by host and port: http://proxy.example.com:3128")
        elif not _can_be_host(parts.hostname or ""):
            yield Mistake(("proxy",), f"{parts.hostname} can be no name of a host")


class UplinkSettings(Table, frozen=True, kw_only=True):
    """Where readings go."""

    endpoint: Annotated[tuple[Endpoint, ...], Key("endpoints, best first; without one the gateway only buffers")] = ()
    standby: Annotated[
        Standby, Key("keep a second session open: `auto` does with two endpoints or more, unless metered")
    ] = Standby.AUTO
    use_server_time: Annotated[
        bool, Key("without NTP, stamp by the time of the servers, to their error; the system's clock is not touched")
    ] = True

    def mistakes(self) -> Iterable[Mistake]:
        seen: set[str] = set()
        for i, endpoint in enumerate(self.endpoint):
            if endpoint.label in seen:
                yield Mistake(("endpoint", i), f"a second endpoint called `{endpoint.label}`; give it a `name`")
            seen.add(endpoint.label)


def promise(endpoint: Endpoint) -> str:
    """What delivery means at this endpoint, in words for people."""
    if endpoint.protocol is Speech.GATEWAY:
        return "exactly once: stored by the sink, nothing lost, nothing twice"
    if endpoint.ack == "none":
        return "at most once: what is under way when the connection breaks is lost"
    if endpoint.ack == "pong":
        return "at least once, as far as the peer's WebSocket library: nothing lost on the way, some of it twice"
    return "at least once, as far as what sends the acks: nothing lost, some of it twice"


def _can_be_host(name: str) -> bool:
    """Empty labels, those of more than 63 letters, and more than 253 in all cannot even be asked for."""
    try:
        return len(name.encode("idna")) <= 253
    except UnicodeError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
