"""Who we are and whom we trust: the TLS context and the bearer token of one endpoint.

Verification is never off: TLS 1.2 at least, the host name always, the system's trust store or the private CA. A file
that is missing, unreadable or open to others is an `AuthError` that names it: the endpoint rests, the daemon goes on.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import AuthError
from gateway.uplink.config import Endpoint, TlsSettings

_MAX_TOKEN_BYTES: Final = 16 * 1024


class Credential(NamedTuple):
    """What one connection shows, and what it demands."""

    headers: dict[str, str]
    context: ssl.SSLContext | None
    """None for ws://."""


class Credentials:
    """Reads the files anew for every connection, so that what was renewed is used."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def version(self) -> bytes:
        """Changes when any of the files does, also when a link to it leads elsewhere now."""
        tls = self._endpoint.tls
        digest = hashlib.blake2b(digest_size=16)
        for path in (self._endpoint.token_file, tls.cafile, tls.certfile, tls.keyfile):
            if path is not None:
                try:
                    info = path.stat()
                    digest.update(f"{info.st_ino} {info.st_mtime_ns} {info.st_size};".encode())
                except OSError as error:
                    digest.update(f"{error.errno};".encode())
        return digest.digest()

    def read(self) -> Credential:
        """Raises AuthError."""
        return Credential(self._headers(), self._context())

    def _headers(self) -> dict[str, str]:
        path = self._endpoint.token_file
        if path is None:
            return {}
        try:
            _private(path, "token")
            text = path.read_bytes()[: _MAX_TOKEN_BYTES + 1].decode("ascii").strip()
        except (OSError, UnicodeError) as error:
            raise AuthError(f"token file {path}: {error}") from error
        if not text or len(text) > _MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
            raise AuthError(f"token file {path} does not hold one token")
        return {"Authorization": f"Bearer {text}"}

    def _context(self) -> ssl.SSLContext | None:
        if not self._endpoint.url.startswith("wss:"):
            return None
        tls = self._endpoint.tls
        try:
            context = ssl.create_default_context(cafile=tls.cafile)
        except (OSError, ssl.SSLError) as error:
            raise AuthError(f"CA file {tls.cafile}: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if tls.certfile is not None and tls.keyfile is not None:
            _load(context, tls, tls.keyfile)
        return context


def _load(context: ssl.SSLContext, tls: TlsSettings, keyfile: Path) -> None:
    try:
        _private(keyfile, "key")
        # an encrypted key must not ask on a terminal that nobody sits at
        context.load_cert_chain(tls.certfile or keyfile, keyfile, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise AuthError(f"certificate {tls.certfile} with key {keyfile}: {error}") from error


def _private(path: Path, what: str) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077 & ~0o040:
        raise AuthError(f"{what} file {path} has mode {mode:03o}: others can read it; chmod 600 {path}")
