"""Who may come in, decided from the handshake alone: certificate, token, address, Host and Origin.

A gateway is who its client certificate or its bearer token says; where it shows both, they must agree. A person on
the machine itself may look without a token, and only under a loopback name: a foreign page that resolves its own name
to 127.0.0.1 (DNS rebinding) comes with that name in Host and is refused. From elsewhere a viewer token is needed, as a
bearer, as the password of the browser's own dialogue, or in the cookie that this leaves behind.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.http11 import Request

from gateway.errors import AuthError
from gateway.ingest.tokens import Role, Tokens

COOKIE: Final = "gateway_viewer"


class Forbidden(AuthError):
    """Known, and not allowed: a new token would not help."""


def gateway_name(request: Request, certificate: dict[str, Any] | None, tokens: Tokens) -> str:
    """The gateway that knocks. Raises AuthError; its text is fit for the answer."""
    names = []
    token = _bearer(request)
    if token:
        identity = tokens.identify(token)
        if identity.role is not Role.GATEWAY:
            raise AuthError("this token is for viewers")
        names.append(identity.name)
    if certificate:
        names.append(_certified(certificate))
    if not names:
        raise AuthError("a gateway shows a bearer token or a client certificate")
    if len(set(names)) > 1:
        raise AuthError("certificate and token name different gateways")
    if tokens.revoked(names[0]):
        raise Forbidden("this gateway has been revoked")
    return names[0]


def check_viewer(request: Request, peer: Any, tokens: Tokens) -> str | None:
    """May this browser look? Returns the token that let it in, None on loopback. Raises AuthError."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise AuthError("a page of another origin may not look in here")
    if _is_loopback(peer) and _is_loopback_name(host) and "X-Forwarded-For" not in request.headers:
        return None
    token = _bearer(request) or _password(request) or _cookie(request)
    if not token:
        raise AuthError("a viewer token is needed: `gateway ingest add --viewer NAME` makes one")
    if tokens.identify(token).role is not Role.VIEWER:
        raise AuthError("this token is not for viewers")
    return token


def _certified(certificate: dict[str, Any]) -> str:
    """Common name, else the first DNS name or URI of the certificate that TLS has verified."""
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName" and value:
                return str(value)
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "URI"):
            return str(value)
    raise AuthError("the client certificate names nobody")


def _header(request: Request, name: str) -> str:
    values = request.headers.get_all(name)
    return values[0] if len(values) == 1 else ""


def _bearer(request: Request) -> str:
    scheme, _, rest = _header(request, "Authorization").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else ""


def _password(request: Request) -> str:
    scheme, _, rest = _header(request, "Authorization").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeError):
        return ""


def _cookie(request: Request) -> str:
    try:
        cookie: SimpleCookie = SimpleCookie(_header(request, "Cookie"))
    except CookieError:
        return ""
    return cookie[COOKIE].value if COOKIE in cookie else ""


def _is_loopback(peer: Any) -> bool:
    try:
        return isinstance(peer, tuple) and ipaddress.ip_address(peer[0]).is_loopback
    except ValueError:
        return False


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
