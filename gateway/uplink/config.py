"""Pure: the `[uplink]` table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from gateway.settings import ID_PATTERN, Duration, Key, Mistake, Table


class Standby(StrEnum):
    """Whether a second session waits, open, for the first to fail."""

    AUTO = "auto"
    WARM = "warm"
    COLD = "cold"


class TlsSettings(Table, frozen=True, kw_only=True):
    """Whom to trust, and who we are."""

    cafile: Annotated[Path | None, Key("private CA in PEM; replaces the system's trust store")] = None
    certfile: Annotated[Path | None, Key("our certificate chain in PEM")] = None
    keyfile: Annotated[Path | None, Key("its private key; readable by the gateway's user only")] = None

    def mistakes(self) -> Iterable[Mistake]:
        if (self.certfile is None) != (self.keyfile is None):
            missing = "keyfile" if self.keyfile is None else "certfile"
            yield Mistake((), f"`{missing}` is missing: certificate and key belong together")


class Endpoint(Table, frozen=True, kw_only=True):
    """One place to deliver to. The first one that works is used; order is priority."""

    url: Annotated[str, Key("where to connect", pattern=r"wss?://[^\s#]+", example='"wss://ingest.example.com/uplink"')]
    name: Annotated[str, Key("how status and log call it; default: host and port of the URL", pattern=ID_PATTERN)] = ""
    token_file: Annotated[Path | None, Key("file with the bearer token; re-read when it changes")] = None
    tls: Annotated[TlsSettings, Key("certificates")] = TlsSettings()
    connect_timeout: Annotated[Duration, Key("give up connecting after", min=0.1, max=60)] = 3.0
    metered: Annotated[bool, Key("traffic costs money: no standby session here while all is well")] = False

    @property
    def label(self) -> str:
        return self.name or urlsplit(self.url).netloc

    def mistakes(self) -> Iterable[Mistake]:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            yield Mistake(("url",), f"not a URL: {error}")
            return
        if not host:
            yield Mistake(("url",), "the URL names no host")
        if parts.username is not None or parts.password is not None:
            yield Mistake(("url",), "no credentials in the URL: use token_file or tls.certfile")
        if parts.scheme == "wss":
            return
        if self.tls != TlsSettings():
            yield Mistake(("tls",), "ws:// has no TLS; write wss://")
        if self.token_file is not None and not _is_loopback(host or ""):
            yield Mistake(("token_file",), "a token over ws:// can be read on the way; write wss://")


class UplinkSettings(Table, frozen=True, kw_only=True):
    """Where readings go."""

    endpoint: Annotated[tuple[Endpoint, ...], Key("endpoints, best first; without one the gateway only buffers")] = ()
    standby: Annotated[
        Standby, Key("keep a second session open: `auto` does with two endpoints or more, unless metered")
    ] = Standby.AUTO

    def mistakes(self) -> Iterable[Mistake]:
        seen: set[str] = set()
        for i, endpoint in enumerate(self.endpoint):
            if endpoint.label in seen:
                yield Mistake(("endpoint", i), f"a second endpoint called `{endpoint.label}`; give it a `name`")
            seen.add(endpoint.label)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
