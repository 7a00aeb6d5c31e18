"""Who we are and whom we trust: the TLS context, the bearer token and the proxy's login of one endpoint.

Verification is never off: TLS 1.2 at least, with forward secrecy and AEAD only; the host name or address always; the
system's trust store or the private CA. A file that is missing, unreadable or open to others is an `AuthError` that
names it: the endpoint rests, the daemon goes on.

A secret may be readable by its group: a file of root's that is lent to the service is 0640, and one of systemd's
credentials shows the mask of its access list there. Nobody else may read it, and only its owner may write it.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import AuthError, DecodeError
from gateway.uplink.certificate import Validity, certificate_validity, token_validity
from gateway.uplink.config import Endpoint
from gateway.uplink.proxy import Login

_MAX_SECRET_BYTES: Final = 16 * 1024
_MAX_LOGIN_BYTES: Final = 255  # RFC 1929: its length is one octet
_OTHERS: Final = 0o037
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all of this kind."""


class Credential(NamedTuple):
    """What one connection shows, and what it demands."""

    headers: dict[str, str]
    context: ssl.SSLContext | None
    """None for ws://."""
    proxy: Login | None = None


class Credentials:
    """Reads the files anew for every connection, so that what was renewed is used."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def version(self) -> bytes:
        """Changes when any of the files does, also when a link to it leads elsewhere now."""
        tls = self._endpoint.tls
        digest = hashlib.blake2b(digest_size=16)
        for path in (self._endpoint.token_file, self._endpoint.proxy_auth_file, tls.cafile, tls.certfile, tls.keyfile):
            if path is not None:
                try:
                    info = path.stat()
                    digest.update(f"{info.st_dev} {info.st_ino} {info.st_mtime_ns} {info.st_size};".encode())
                except OSError as error:
                    digest.update(f"{error.errno};".encode())
        return digest.digest()

    def read(self) -> Credential:
        """Raises AuthError."""
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return Credential(headers, self._context(), self._login())

    def ends(self) -> dict[str, Validity]:
        """What of ours has an end, by a name for people. Raises AuthError."""
        found = {}
        token, path = token_validity(self._token()), self._endpoint.token_file
        certfile = self._endpoint.tls.certfile
        try:
            if token is not None and path is not None:  # without a date of its own it is as old as its file
                found["token"] = token if token.begins_s is not None else token._replace(begins_s=path.stat().st_mtime)
            if certfile is not None:
                der = ssl.PEM_cert_to_DER_cert(_first_certificate(certfile.read_text("ascii", "replace")))
                found["client certificate"] = certificate_validity(der)
        except (OSError, ValueError, DecodeError) as error:
            raise AuthError(f"certificate {certfile}: {_why(error)}") from error
        return found

    def _token(self) -> str:
        """Empty where none is asked for."""
        path = self._endpoint.token_file
        if path is None:
            return ""
        text = _secret(path, "token").strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise AuthError(f"token file {path} does not hold one token")
        return text

    def _login(self) -> Login | None:
        path = self._endpoint.proxy_auth_file
        if path is None:
            return None
        login = Login(*_secret(path, "proxy login").rstrip("\r\n").partition(":")[::2])
        if not all(each.isprintable() and 0 < len(each.encode()) <= _MAX_LOGIN_BYTES for each in login):
            raise AuthError(f"proxy login file {path} does not hold one line `name:password`")
        return login

    def _context(self) -> ssl.SSLContext | None:
        if not self._endpoint.url.startswith("wss:"):
            return None
        tls = self._endpoint.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        try:
            if tls.cafile is not None:
                context.load_verify_locations(tls.cafile)
            else:
                context.load_default_certs()
        except (OSError, ssl.SSLError) as error:
            raise AuthError(f"CA file {tls.cafile}: {_why(error)}") from error
        if tls.certfile is not None and tls.keyfile is not None:
            _load(context, tls.certfile, tls.keyfile)
        return context


def _load(context: ssl.SSLContext, certfile: Path, keyfile: Path) -> None:
    try:
        _private(keyfile.stat().st_mode, keyfile, "key")
        # an encrypted key must not ask on a terminal that nobody sits at
        context.load_cert_chain(certfile, keyfile, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise AuthError(f"certificate {certfile} with key {keyfile}: {_why(error)}") from error


def _first_certificate(text: str) -> str:
    """Ours; those of its issuers follow."""
    begin, end = ssl.PEM_HEADER, ssl.PEM_FOOTER
    return begin + text.partition(begin)[2].partition(end)[0] + end


def _secret(path: Path, what: str) -> str:
    """What a file holds that only we may read. Raises AuthError."""
    try:
        with path.open("rb") as file:
            _private(os.fstat(file.fileno()).st_mode, path, what)
            data = file.read(_MAX_SECRET_BYTES + 1)
        if len(data) > _MAX_SECRET_BYTES:
            raise AuthError(f"{what} file {path} is too large")
        return data.decode()
    except (OSError, UnicodeError) as error:
        raise AuthError(f"{what} file {path}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """For people: without numbers, without a path that stands there already, and without what a file holds."""
    if isinstance(error, UnicodeError):
        return "not text"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not what OpenSSL can use").replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _private(mode: int, path: Path, what: str) -> None:
    if mode & _OTHERS:
        raise AuthError(
            f"{what} file {path} has mode {mode & 0o777:03o}: others can read or change it; chmod 600 {path}"
        )
