"""What the tests of the cloud side share: bodies, entries, a server, and a gateway that is only a socket."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from gateway.clock import SystemClock
from gateway.ingest.config import Settings
from gateway.ingest.server import IngestServer, running
from gateway.ingest.tokens import Role
from gateway.model import ClockState, GapReason, Lane, RecordKind, Trust, Value
from gateway.protocol import batch
from gateway.protocol.entry import Entry
from gateway.protocol.messages import SUBPROTOCOL, GapBody

BOOT = "b" * 32
SYNCED = ClockState(BOOT, 1_700_000_000_000, 3, Trust.SYNCED)
UNSYNCED = ClockState(BOOT, 0, -1, Trust.UNSYNCED)
PROCESS = "a" * 32


def stream_id() -> str:
    return secrets.token_hex(16)


def body(
    values: list[Value | None],
    at_ms: int = 1000,
    clock: ClockState = SYNCED,
    device: str = "meter",
    source_ms: int | None = None,
) -> bytes:
    """One row: points p0, p1, …"""
    group = batch.Group(
        device,
        tuple(f"p{i}" for i in range(len(values))),
        ("V",) * len(values),
        [0],
        [[value] for value in values],
        None,
        [source_ms] if source_ms is not None else None,
    )
    return msgspec.json.encode(batch.Body(clock, at_ms, [group]))


def entry(
    stream: str,
    seq: int,
    content: bytes | GapBody | ClockState | None,
    gateway: str = "g1",
    last: int = 0,
    attempt: int = 0,
) -> Entry:
    match content:
        case bytes():
            kind, decoded, raw = RecordKind.BATCH, batch.decode(content), content
        case GapBody():
            kind, decoded, raw = RecordKind.GAP, content, b"{}"
        case ClockState():
            kind, decoded, raw = RecordKind.CLOCK, content, b"{}"
        case None:
            kind, decoded, raw = RecordKind.END, None, b""
    return Entry(gateway, stream, Lane.LIVE, seq, last or seq, kind, raw, decoded, attempt=attempt)


def gap(readings: int | None = 7) -> GapBody:
    return GapBody(GapReason.EVICTED, readings)


@asynccontextmanager
async def cloud(folder: Path, **settings: Any) -> AsyncIterator[IngestServer]:
    """The real server, on a port of the system's choice."""
    chosen = {"listen": (("127.0.0.1", 0),), "drain_s": 0.2, **settings}
    async with running(Settings(folder / "data", **chosen), SystemClock()) as server:
        yield server


def url(server: IngestServer, scheme: str = "ws", listener: int = 0) -> str:
    host, port = server.addresses[listener]
    return f"{scheme}://{host}:{port}/"


class Gateway:
    """Speaks JSON by hand, so that it can also speak wrongly."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.welcome: dict[str, Any] = {}

    async def send(self, **message: Any) -> None:
        await self.ws.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return json.loads(await self.ws.recv())  # type: ignore[no-any-return]

    async def expect(self, kind: str) -> dict[str, Any]:
        """The next message of this type; others that come before it are passed over."""
        while True:
            message = await self.receive()
            if message["type"] == kind:
                return message

    async def hello(self, *streams: str, process: str = PROCESS, standby: bool = False) -> dict[str, Any]:
        offers = [{"stream": stream, "lane": "live", "first": 1, "next": 1} for stream in streams]
        clock = msgspec.to_builtins(SYNCED)
        await self.send(type="hello", process=process, software="test", clock=clock, streams=offers, standby=standby)
        self.welcome = await self.expect("welcome")
        return self.welcome

    async def batch(self, stream: str, seq: int, content: bytes | None = None) -> None:
        raw = content if content is not None else body([seq], at_ms=seq * 1000)
        await self.ws.send(f'{{"type":"batch","stream":"{stream}","lane":"live","seq":{seq},"body":{raw.decode()}}}')

    async def acked(self, stream: str, seq: int) -> None:
        while (await self.expect("ack"))["marks"].get(stream, 0) < seq:
            pass

    async def closed(self) -> int:
        """The close code, once the server has closed."""
        async with asyncio.timeout(10):
            await self.ws.wait_closed()
        assert self.ws.close_code is not None
        return self.ws.close_code


@asynccontextmanager
async def gateway(
    server: IngestServer,
    token: str = "",
    name: str = "g1",
    context: ssl.SSLContext | None = None,
    listener: int = 0,
    certified: bool = False,
) -> AsyncIterator[Gateway]:
    """Connected, nothing said yet. Without a token it is given one."""
    if not token and not certified:
        token = await server.committer.call(server.tokens.add, name, Role.GATEWAY, 0)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(
        url(server, "wss" if context else "ws", listener),
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        additional_headers=headers,
        compression=None,
        extensions=[
            ClientPerMessageDeflateFactory(
                server_no_context_takeover=True, client_max_window_bits=15, compress_settings={"memLevel": 4}
            )
        ],
        ssl=context,
        proxy=None,
        close_timeout=1,
    ) as ws:
        yield Gateway(ws)


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits for a condition, not for a time."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)
