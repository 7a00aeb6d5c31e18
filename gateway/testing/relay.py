"""A TCP relay whose path can be broken in every way a network breaks: for tests and for the demo.

`PASS` forwards. `BLACK_HOLE` keeps every connection open and forwards nothing more, new ones are accepted and go
nowhere: what a dead radio link or a firewall that forgot us looks like. `REFUSE` cuts what is open and refuses new
connections. `cut` ends what is open and lets new ones pass. Connections that were in a black hole do not come back.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from types import TracebackType

_CHUNK = 64 * 1024


class Mode(Enum):
    PASS = "pass"
    BLACK_HOLE = "black hole"
    REFUSE = "refuse"


class Relay:
    """`async with Relay(host, port) as relay:` … connect to `127.0.0.1:relay.port`."""

    def __init__(self, host: str, port: int, listen_port: int = 0, delay_s: float = 0.0) -> None:
        self.host = host
        self.target = port
        self.port = listen_port
        self.mode = Mode.PASS
        self.delay_s = delay_s
        """One way."""
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Relay:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK)
            self.port = self._server.sockets[0].getsockname()[1]

    async def forward(self) -> None:
        """New connections pass (again)."""
        if self.mode is Mode.BLACK_HOLE:
            self.cut()
        self.mode = Mode.PASS
        await self._listen()

    def black_hole(self) -> None:
        self.mode = Mode.BLACK_HOLE

    def cut(self) -> None:
        """Resets every open connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def refuse(self) -> None:
        self.mode = Mode.REFUSE
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._join(reader, writer), name="relayed connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.mode is Mode.BLACK_HOLE:
                await asyncio.Event().wait()
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target, limit=_CHUNK)
            self._writers.add(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer))
                both.create_task(self._pump(far_reader, writer))
        except* OSError:
            pass  # an end of a connection went away: what a relay is for
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ends with an error when either side does, and takes the other direction with it."""
        try:
            while data := await reader.read(_CHUNK):
                if self.mode is Mode.BLACK_HOLE:
                    await asyncio.Event().wait()
                if self.delay_s:
                    asyncio.get_running_loop().call_later(self.delay_s, writer.write, data)
                else:
                    writer.write(data)
                    await writer.drain()
            raise ConnectionResetError("end of stream")
        finally:
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, writer.transport.abort)
            else:
                writer.close()
            self._writers.discard(writer)
