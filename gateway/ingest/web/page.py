"""Serves the page over the port of the uplink, and feeds it: everything once, then what changed, twice a second.

The page asks nobody else for anything, and its policy forbids it to. Viewers only look: nothing that they send is read.
"""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.errors import AuthError
from gateway.ingest.door import COOKIE, check_viewer
from gateway.ingest.tokens import Tokens

if TYPE_CHECKING:
    from gateway.ingest.server import IngestServer

LIVE: Final = Subprotocol("gateway.live.v1")
LIVE_PATH: Final = "/live"
EVERY_S: Final = 0.5
SEND_WITHIN_S: Final = 10.0
MAX_VIEWERS: Final = 32

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_POLICY = (
    ("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
     "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),
)  # fmt: skip
_encode = msgspec.json.Encoder().encode


class Viewers:
    """Browsers on this server."""

    def __init__(self, server: IngestServer, tokens: Tokens) -> None:
        self._server = server
        self._tokens = tokens
        self._count = 0
        folder = resources.files(__package__)
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    def knock(self, connection: ServerConnection, request: Request) -> Response | None:
        """A file, a refusal, or None: the WebSocket may be opened."""
        path = request.path.partition("?")[0]
        try:
            token = check_viewer(request, connection.remote_address, self._tokens)
        except AuthError as error:
            response = connection.respond(401, f"{error}\n")
            response.headers["WWW-Authenticate"] = 'Basic realm="gateway viewer, token as password", charset="UTF-8"'
            return response
        if path == LIVE_PATH:
            if self._count >= MAX_VIEWERS:
                return connection.respond(503, "Too many viewers.\n")
            return None
        if path not in self._files:
            return connection.respond(404, "There is nothing here.\n")
        body, kind = self._files[path]
        headers = Headers([("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")])
        for name, value in _POLICY:
            headers[name] = value
        if token is not None:
            # browsers do not all repeat a password on a WebSocket of the same page; they do send its cookie
            secure = "; Secure" if self._server.settings.cert is not None else ""
            headers["Set-Cookie"] = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/{secure}"
        return Response(200, "OK", headers, body)

    async def serve(self, ws: ServerConnection) -> None:
        """Returns when the viewer has gone."""
        self._count += 1
        try:
            version = -1
            while True:
                version, message = self._news(version)
                async with asyncio.timeout(SEND_WITHIN_S):
                    await ws.send(_encode(message), text=True)
                await asyncio.sleep(EVERY_S)
        except (ConnectionClosed, TimeoutError):
            return
        finally:
            self._count -= 1

    def _news(self, since: int) -> tuple[int, dict[str, Any]]:
        live = self._server.live
        now_ms = self._server.utc_ms()
        message: dict[str, Any] = {
            "now_ms": now_ms,
            "sink": self._server.sink_id,
            "storing": not self._server.committer.failures,
            "gateways": live.gateways_at(now_ms),
            # values of commands are shown, not computed with: as text they keep all their digits
            "commands": [
                {**msgspec.to_builtins(each), "value": _text(each.value), "result": _text(each.result)}
                for each in self._server.commands
            ],
        }
        if since < 0:
            message["series"] = [{"view": view, "trail": trail} for view, trail in live.series()]
        else:
            message["changed"] = live.changed(since)
        return live.version, message


def _text(value: Any) -> str:
    return "" if value is None else msgspec.json.encode(value).decode()
