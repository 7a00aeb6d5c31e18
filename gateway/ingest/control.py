"""The local socket of the running server: a person on the machine adds, revokes, lists, looks and sends commands.

One request in one line of JSON, one answer in one line, then it closes. Whoever may open the folder may use it: the
socket has mode 0600 and the folder 0700.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.errors import GatewayError, LinkError
from gateway.ingest.commands import Issued
from gateway.ingest.config import shown
from gateway.ingest.tokens import Listed, Role
from gateway.model import Value
from gateway.protocol.messages import CommandMessage

if TYPE_CHECKING:
    from gateway.ingest.server import IngestServer

log = logging.getLogger(__name__)

MAX_LINE: Final = 64 * 1024
REQUEST_WITHIN_S: Final = 5.0


class Add(msgspec.Struct, tag_field="op", tag="add"):
    name: str
    role: Role


class Revoke(msgspec.Struct, tag_field="op", tag="revoke"):
    name: str


class List(msgspec.Struct, tag_field="op", tag="list"):
    pass


class Recent(msgspec.Struct, tag_field="op", tag="commands"):
    pass


class SendCommand(msgspec.Struct, tag_field="op", tag="send"):
    gateway: str
    id: str
    device: str
    point: str
    value: Value | None
    ttl_ms: int
    queue: bool = False
    command: str = "write"


class Answer(msgspec.Struct, omit_defaults=True):
    """One of them, or an error."""

    error: str = ""
    token: str = ""
    url: str = ""
    """Where the server listens, as a gateway of this machine reaches it."""
    revoked: bool = False
    listed: tuple[Listed, ...] = ()
    online: tuple[str, ...] = ()
    commands: tuple[Issued, ...] = ()


Request = Add | Revoke | List | Recent | SendCommand
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)


class Control:
    """`async with Control(server)`: open while inside."""

    def __init__(self, server: IngestServer) -> None:
        self._server = server
        self._path = server.settings.control
        self._listener: asyncio.Server | None = None
        self._answering: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Control:
        self._path.unlink(missing_ok=True)  # of a server that was killed: the lock of the folder is ours
        before = os.umask(0o177)
        try:
            with _short(self._path) as path:
                self._listener = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        finally:
            os.umask(before)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            async with asyncio.timeout(REQUEST_WITHIN_S):
                line = await reader.readline()
            try:
                answer = await self._answer(_requests.decode(line))
            except (GatewayError, msgspec.MsgspecError) as error:
                answer = Answer(error=str(error))
            writer.write(msgspec.json.encode(answer) + b"\n")
            async with asyncio.timeout(REQUEST_WITHIN_S):
                await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            log.debug("control socket: %s", error)
        finally:
            self._answering.discard(task)
            writer.close()

    async def _answer(self, request: Request) -> Answer:
        server = self._server
        call = server.committer.call
        match request:
            case Add(name, role):
                token = await call(server.tokens.add, name, role, server.utc_ms())
                scheme = "wss" if server.settings.cert is not None else "ws"
                return Answer(token=token, url=f"{scheme}://{shown(*server.addresses[0])}/")
            case Revoke(name):
                return Answer(revoked=await server.revoke(name))
            case List():
                online = tuple(view.name for view in server.live.gateways.values() if view.online)
                return Answer(listed=tuple(await call(server.tokens.list)), online=online)
            case Recent():
                return Answer(commands=tuple(server.commands))
            case SendCommand():
                command = CommandMessage(
                    id=request.id,
                    device=request.device,
                    op=request.command,
                    point=request.point,
                    value=request.value,
                    ttl_ms=request.ttl_ms,
                    sent_ms=0,
                )
                return Answer(commands=(await server.send(request.gateway, command, request.queue),))


async def ask(path: Path, request: Request, within_s: float) -> Answer:
    """From another process. Raises LinkError when no server answers there."""
    try:
        async with asyncio.timeout(within_s):
            with _short(path) as name:
                reader, writer = await asyncio.open_unix_connection(name, limit=16 * 1024 * 1024)
            try:
                writer.write(msgspec.json.encode(request) + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
        return _answers.decode(line)
    except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
        raise LinkError(f"no server answers at {path}: {error or type(error).__name__}") from error


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The same place by way of its open folder: the name of a socket ends at 107 bytes, folders may be deeper."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
