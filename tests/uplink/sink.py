"""A small server of the protocol, written from the specification alone, that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol


class Store:
    """What a sink has stored; outlives its servers."""

    def __init__(self, name: str = "a") -> None:
        self.id = (name.encode().hex() * 32)[:32]
        self.marks: dict[str, int] = {}
        self.records: list[dict[str, Any]] = []

    def rows(self) -> list[Any]:
        return [row for record in self.records if record["type"] == "batch" for row in record["body"]["rows"]]

    def take(self, record: dict[str, Any]) -> int | None:
        """The transaction rule. Returns what is expected when the record is from further ahead."""
        mark = self.marks.get(record["stream"], 0)
        last = record.get("last", record["seq"])
        if record["seq"] > mark + 1:
            return mark + 1
        if last > mark:
            self.records.append(record)
            self.marks[record["stream"]] = last
        return None


class Sink:
    """`async with Sink(store) as sink:` … `sink.url`."""

    def __init__(
        self,
        store: Store,
        *,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        token: str = "",
        host: str = "127.0.0.1",
        sock: socket.socket | None = None,
    ) -> None:
        self.store = store
        self.host = host
        self.port = port
        self.token = token
        self.status: tuple[int, dict[str, str]] | None = None
        self.on_hello: tuple[int, str] | None = None
        """Close code and reason instead of a welcome."""
        self.silent = False
        """Reads, stores, and answers nothing, not even pings: a stopped process, seen from outside."""
        self.mute_acks = False
        self.ack_after_s = 0.0
        self.window = {"batches": 32, "bytes": 1 << 20}
        self.open_commands: list[str] = []
        self.hellos: list[dict[str, Any]] = []
        self.stats: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.byes: list[str] = []
        self.authorizations: list[str | None] = []
        self.sessions: list[ServerConnection] = []
        self.violations: list[str] = []
        self._late: set[asyncio.Task[None]] = set()
        self._tls = tls
        self._sock = sock
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}/uplink"

    async def __aenter__(self) -> Sink:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            None if self._sock else self.host,
            None if self._sock else self.port,
            sock=self._sock,
            subprotocols=[Subprotocol("gateway.uplink.v1")],
            process_request=self._door,
            ssl=self._tls,
            max_size=266_240,
            close_timeout=0.2,
            ping_interval=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self, code: int = 1001) -> None:
        if self._server is not None:
            self._server.close(code=code)
            await self._server.wait_closed()
            self._server = None

    def kill(self) -> None:
        """As by kill -9: resets, nothing listens any more."""
        assert self._server is not None
        self._server.server.close()
        for session in list(self._server.connections):
            session.transport.abort()

    async def send(self, message: dict[str, Any]) -> None:
        for session in self.sessions:
            try:
                await session.send(json.dumps(message))
            except ConnectionClosed:
                continue

    async def _ack(self, session: ServerConnection, ack: str) -> None:
        if not self.ack_after_s:
            await session.send(ack)
            return

        async def later() -> None:
            await asyncio.sleep(self.ack_after_s)
            with contextlib.suppress(ConnectionClosed):
                await session.send(ack)

        task = asyncio.create_task(later())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def _door(self, connection: ServerConnection, request: Request) -> Response | None:
        self.authorizations.append(request.headers.get("Authorization"))
        if self.status is not None:
            response = connection.respond(HTTPStatus(self.status[0]), "no\n")
            response.headers.update(self.status[1])
            return response
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no\n")
        return None

    async def _serve(self, session: ServerConnection) -> None:
        try:
            await self._converse(session)
        except ConnectionClosed:
            pass
        finally:
            if session in self.sessions:
                self.sessions.remove(session)

    async def _converse(self, session: ServerConnection) -> None:
        hello = json.loads(await session.recv())
        if hello["type"] != "hello":
            self.violations.append(f"{hello['type']} before hello")
        self.hellos.append(hello)
        if self.on_hello is not None:
            await session.close(*self.on_hello)
            return
        marks = {
            o["stream"]: self.store.marks[o["stream"]] for o in hello["streams"] if o["stream"] in self.store.marks
        }
        welcome = {
            "type": "welcome",
            "sink": self.store.id,
            "session": "0" * 32,
            "marks": marks,
            "window": self.window,
            "mono_ms": int(time.monotonic() * 1000),
            "open_commands": self.open_commands,
        }
        if self.silent:
            await asyncio.Event().wait()
        await session.send(json.dumps(welcome))
        self.sessions.append(session)
        discarding: set[str] = set()
        async for frame in session:
            if not isinstance(frame, str):
                self.violations.append("a binary frame")
            await self._message(session, json.loads(frame), discarding)

    async def _message(self, session: ServerConnection, message: dict[str, Any], discarding: set[str]) -> None:
        match message["type"]:
            case "bye":
                self.byes.append(message.get("reason", ""))
            case "stats":
                self.stats.append(message["values"])
            case "result":
                self.results.append(message)
                await session.send(json.dumps({"type": "result_ack", "id": message["id"]}))
            case _:
                stream = message["stream"]
                if self.silent:
                    return
                expected = self.store.take(message)
                if expected is None:
                    discarding.discard(stream)
                    if not self.mute_acks:
                        ack = json.dumps({"type": "ack", "marks": {stream: self.store.marks[stream]}})
                        await self._ack(session, ack)
                elif stream not in discarding:
                    discarding.add(stream)
                    await session.send(json.dumps({"type": "nack", "stream": stream, "expected": expected}))
