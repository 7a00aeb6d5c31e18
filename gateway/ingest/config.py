"""What the cloud side is started with, and its paths. Everything comes from the command line; there is no file."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from gateway.errors import ConfigError

DEFAULT_PORT = 8765


class Settings(msgspec.Struct, frozen=True):
    """One process, one folder, any number of listeners."""

    data: Path
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", DEFAULT_PORT),)
    """Host and port; port 0 lets the system choose."""
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    """Client certificates that it signed name their gateway."""
    drain_s: float = 5.0
    """How long gateways have to move elsewhere when the server stops."""

    @property
    def control(self) -> Path:
        return self.data / "control.sock"

    @property
    def lock(self) -> Path:
        return self.data / "ingest.lock"

    def tls(self) -> ssl.SSLContext | None:
        """Raises ConfigError."""
        if self.cert is None:
            if self.key is not None or self.client_ca is not None:
                raise ConfigError(("--key and --client-ca need --cert",))
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                # optional: a gateway may show a token instead, and a browser has no certificate
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            raise ConfigError((f"the certificate cannot be used: {error}",)) from error
        return context


def address(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `:port` or `host`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError((f"{text!r} is not HOST:PORT",))
    return host, int(port)


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
