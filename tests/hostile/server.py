"""A server that means harm: bytes on a socket, below any library that would keep it from sending them.

It does the opening handshake by hand (RFC 6455 §4.2.2), with permessage-deflate when the attack needs it, reads what
comes, and then does with the connection what the attack says.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n"
WELCOME: dict[str, Any] = {"type": "welcome", "sink": "bad0" * 8, "session": "0" * 32, "marks": {}}


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, compressed: bool = False) -> bytes:
    """One frame from a server: not masked."""
    head = bytes([fin << 7 | compressed << 6 | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", len(payload)) + payload
    return head + b"\x7f" + struct.pack(">Q", len(payload)) + payload


def bomb() -> bytes:
    """A compressed message (RFC 7692 §7.2.1) that inflates to a gigabyte: a thousand times the same block."""
    deflate = zlib.compressobj(9, wbits=-15)
    return (deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)) * 1024


class Victim:
    """The far end of one connection: a gateway that has done its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.streams: list[str] = []
        """Ids of streams that it has named, newest last."""
        self.sent = 0
        """Messages that this server sent."""
        self.closed_with: int | None = None
        self.results: list[str] = []
        self.gone = asyncio.Event()

    async def listen(self) -> None:
        """Reads until the gateway goes; remembers what an attacker can use."""
        try:
            while True:
                opcode, payload = await self._frame()
                if opcode == CLOSE:
                    self.closed_with = int.from_bytes(payload[:2], "big")
                    return
                if opcode == PING:
                    self.writer.write(frame(payload, PONG))
                elif opcode == TEXT and payload[:1] == b"{":
                    self._learn(json.loads(payload))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.gone.set()

    def _learn(self, message: dict[str, Any]) -> None:
        offered = [offer["stream"] for offer in message.get("streams", ())]
        for stream in [*offered, *([message["stream"]] if "stream" in message else ())]:
            if stream not in self.streams:
                self.streams.append(stream)
        if message["type"] == "result":
            self.results.append(message["id"])

    async def _frame(self) -> tuple[int, bytes]:
        head = await self._reader.readexactly(2)
        length = head[1] & 0x7F
        if length >= 126:
            length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8), "big")
        mask = await self._reader.readexactly(4)
        payload = bytearray(await self._reader.readexactly(length))
        for i in range(4):
            payload[i::4] = bytes(byte ^ mask[i] for byte in payload[i::4])
        return head[0] & 0x0F, bytes(payload) if not head[0] & 0x40 else b""

    async def say(self, message: dict[str, Any]) -> None:
        await self.raw(frame(json.dumps(message).encode()))

    async def raw(self, data: bytes) -> None:
        """Raises OSError when the gateway has gone."""
        self.sent += 1
        self.writer.write(data)
        await self.writer.drain()


Attack = Callable[[Victim], Awaitable[None]]
Door = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class HostileServer:
    """`async with HostileServer(attack) as server:` … `server.port`. The attack begins where a welcome is due."""

    def __init__(self, attack: Attack, *, deflate: bool = False, door: Door | None = None) -> None:
        self._attack = attack
        self._extra = DEFLATE if deflate else ""
        self._door = door or self._handshake
        self.port = 0
        self.victims: list[Victim] = []
        self.visits = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> HostileServer:
        self._server = await asyncio.start_server(self._visited, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._door(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it has gone, which is its right
        finally:
            writer.transport.abort()

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
        accept = base64.b64encode(hashlib.sha1(headers["Sec-WebSocket-Key"].encode() + _GUID).digest()).decode()
        answer = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: gateway.uplink.v1\r\n{self._extra}\r\n"
        )
        writer.write(answer.encode())
        victim = Victim(reader, writer)
        self.victims.append(victim)
        listening = asyncio.create_task(victim.listen())
        try:
            await self._attack(victim)
            await victim.gone.wait()
        finally:
            listening.cancel()
