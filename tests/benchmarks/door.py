"""A front door as operators put them before a server: it ends TLS, passes bytes on, and notes every ack that goes out.

    door.py HOST PORT TARGET_PORT [CERTIFICATE_AND_KEY]

A process of its own, so that it can be killed or stopped: for the gateway that is the death of the server. It prints
its port as one line of JSON, and for each line on its input what it noted since the last one: for each connection the
moment at which it was accepted, and for each ack the moment at which it was handed to the gateway's socket and the
marks in it. Times are CLOCK_MONOTONIC. Frames of the server are not masked, and its compression keeps no context, so an
ack can be read in passing.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
import zlib
from typing import Any

_CHUNK = 256 * 1024


class Tap:
    """Finds the acks in what a server sends over one connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._upgraded = False

    def acks(self, data: bytes) -> list[dict[str, int]]:
        """The marks of each ack that these bytes complete."""
        self._rest += data
        if not self._upgraded:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return []
            self._upgraded, self._rest = head.startswith(b"HTTP/1.1 101"), rest
        return [found for payload in self._texts() if (found := _marks(payload)) is not None]

    def _texts(self) -> list[bytes]:
        found = []
        while len(self._rest) >= 2:
            first, size, start = self._rest[0], self._rest[1], 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self._rest[2:start], "big")
            if len(self._rest) < start + size:
                break
            payload, self._rest = self._rest[start : start + size], self._rest[start + size :]
            if first & 0x0F == 1:
                found.append(zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") if first & 0x40 else payload)
        return found


def _marks(payload: bytes) -> dict[str, int] | None:
    message = json.loads(payload)
    return message["marks"] if message["type"] == "ack" else None


class Door:
    """Both directions of every connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.accepted: list[float] = []
        self.acks: list[tuple[float, dict[str, int]]] = []

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(time.monotonic())
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=_CHUNK)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, inner_writer, None))
                both.create_task(self._pump(inner_reader, writer, Tap()))
        except* OSError:
            pass  # an end of the connection went away
        finally:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Tap | None) -> None:
        try:
            while data := await reader.read(_CHUNK):
                writer.write(data)
                if tap is not None:
                    now = time.monotonic()
                    self.acks += [(now, marks) for marks in tap.acks(data)]
                await writer.drain()
            raise ConnectionResetError("end of stream")
        finally:
            writer.close()

    def told(self) -> dict[str, Any]:
        said = {"accepted": self.accepted, "acks": self.acks}
        self.accepted, self.acks = [], []
        return said


async def main() -> None:
    host, port, target, *certificate = sys.argv[1:]
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[0])
    door = Door(int(target))
    server = await asyncio.start_server(door.pass_on, host, int(port), ssl=context, limit=_CHUNK)
    print(json.dumps(server.sockets[0].getsockname()[1]), flush=True)
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(json.dumps(door.told()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
