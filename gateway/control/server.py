"""The daemon's end of the local socket.

One JSON document per line each way: `{"op": "status"}` → `{"ok": {…}}` or `{"error": "…"}`; `tail` and `trace` answer
with line after line until the caller hangs up. Who may connect is decided by the socket's mode: owner and group of the
service.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from gateway.errors import GatewayError
from gateway.model import Json

log = logging.getLogger(__name__)

Answer = Callable[[Mapping[str, Json]], Awaitable[Json]]
Follow = Callable[[Mapping[str, Json]], AsyncIterator[Json]]

_LINE_LIMIT = 64 * 1024
_IDLE_S = 60.0
"""A caller that asks nothing for this long is hung up on: sockets are not for keeps."""
_MAX_CALLERS = 16


class ControlServer:
    """Answers single questions (`answers`) and endless ones (`follows`), each by its `op`."""

    def __init__(self, path: Path, answers: Mapping[str, Answer], follows: Mapping[str, Follow]) -> None:
        self._path = path
        self._answers = answers
        self._follows = follows
        self._callers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listens while the block runs. A stale socket of a dead process is replaced.

        Raises:
            GatewayError: the socket cannot be made.
        """
        old = os.umask(0o117)  # rw for owner and group from the first moment
        try:
            self._path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._accept, self._path, limit=_LINE_LIMIT)
        except OSError as error:
            raise GatewayError(f"cannot listen on {self._path}: {error.strerror or error}") from error
        finally:
            os.umask(old)
        try:
            yield
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            callers = tuple(self._callers)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a task of our own: asyncio logs a traceback for each of its own that is cancelled
        task = asyncio.get_running_loop().create_task(self._caller(reader, writer), name="control caller")
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def _caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._callers) > _MAX_CALLERS:
                await self._say(writer, {"error": f"more than {_MAX_CALLERS} callers"})
                return
            while True:
                async with asyncio.timeout(_IDLE_S):
                    line = await reader.readline()
                if not line:
                    return
                await self._answer(line, writer)
        except (TimeoutError, OSError, ValueError):
            return  # gone, silent, or a line without an end
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            question = msgspec.json.decode(line, type=dict[str, Json])
            op = str(question.get("op"))
            if op in self._follows:
                async for item in self._follows[op](question):
                    await self._say(writer, {"ok": item})
                return
            if op not in self._answers:
                known = ", ".join(sorted([*self._answers, *self._follows]))
                await self._say(writer, {"error": f"unknown op {op!r}; known: {known}"})
                return
            await self._say(writer, {"ok": await self._answers[op](question)})
        except (msgspec.MsgspecError, GatewayError) as error:
            await self._say(writer, {"error": str(error)})

    async def _say(self, writer: asyncio.StreamWriter, answer: Json) -> None:
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()
