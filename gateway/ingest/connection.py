"""Drives one uplink session over one WebSocket: frames in, `ServerSession` decides, frames out.

Two tasks: one receives, one sends. The sender asks the session what is to be acked when it is about to write, so acks
of a gateway that reads slowly become one. Reading stops while too much of this connection waits for the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from gateway.errors import RemoteProtocolError, StoreError
from gateway.ingest.committer import Committer
from gateway.ingest.sinks.group import StoredResult
from gateway.protocol.marks import Mark, Streams
from gateway.protocol.messages import (
    CommandMessage,
    FromServer,
    Hello,
    ServerError,
    Stats,
    Window,
    decode_from_gateway,
    encode,
)
from gateway.protocol.pace import COMMAND_BURST, COMMANDS_PER_S, Pace
from gateway.protocol.server import (
    Greet,
    Leave,
    LookUp,
    Output,
    Promoted,
    Report,
    Send,
    ServerSession,
    Store,
    StoreResult,
)

log = logging.getLogger(__name__)

MAX_UNDER_WAY: Final = 128
"""Entries and results of one connection that wait for the store; a window of 32 keeps gateways far below."""
MAX_UNDER_WAY_BYTES: Final = 4 << 20
"""The same in bytes; a window has 1 MiB. What is above either is not read from the socket."""
MAX_OUTBOX: Final = 1024
"""Messages for a gateway that does not read; then the connection is dropped."""
SEND_WITHIN_S: Final = 20.0
TRY_LATER: Final = 1013
"""Close code: the store takes no data at present."""


class House(Protocol):
    """What a connection needs of the server."""

    committer: Committer
    sink_id: str
    window: Window
    """For new sessions."""

    def utc_ms(self) -> int: ...

    def monotonic(self) -> float: ...

    async def greeted(self, connection: Uplink, hello: Hello) -> tuple[dict[str, Mark], tuple[str, ...]]:
        """Who else of this gateway may stay, and what the store knows. Raises StoreError."""

    async def active(self, connection: Uplink) -> None:
        """It became the active session. Raises StoreError."""

    def reported(self, connection: Uplink, stats: Stats) -> None: ...


class Uplink:
    """One connection of one gateway."""

    def __init__(self, ws: ServerConnection, gateway: str, session_id: str, streams: Streams, house: House) -> None:
        self.ws = ws
        self.gateway = gateway
        self.endpoint = _address(ws.remote_address)
        self.since_ms = house.utc_ms()
        self.session = ServerSession(gateway, session_id, streams, house.monotonic(), house.window)
        self._house = house
        self._pace = Pace(COMMAND_BURST // 2, 0.9 * COMMANDS_PER_S)
        """Half, because what was without a result is sent again when a session becomes active."""
        self._outbox: list[FromServer] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._entries: deque[int] = deque()
        self._results: deque[int] = deque()
        """Sizes of what waits for the store, which answers in order."""
        self._under_way_bytes = 0
        self._close: tuple[int, str] | None = None

    @property
    def closing(self) -> bool:
        return self._close is not None

    # ── from the server, on the event loop ───────────────────────────────────────────────────────────────────────

    def settled(self, mine: int) -> None:
        """The store answered `mine` entries of this connection; with 0, one of another session of the same gateway."""
        for _ in range(mine):
            self._under_way_bytes -= self._entries.popleft()
        self._make_room()

    def result_stored(self, command_id: str) -> None:
        self._under_way_bytes -= self._results.popleft()
        self._send(self.session.result_stored(command_id))
        self._make_room()

    def _make_room(self) -> None:
        if not self._full:
            self._room.set()
        self._wake.set()

    @property
    def _full(self) -> bool:
        waiting = len(self._entries) + len(self._results)
        return waiting >= MAX_UNDER_WAY or self._under_way_bytes >= MAX_UNDER_WAY_BYTES

    def takes_command(self) -> bool:
        """Whether one more keeps to the pace that a gateway allows (K7); counts it."""
        return self._pace.take(self._house.monotonic())

    def command(self, command: CommandMessage) -> None:
        self._send(self.session.command(command, self._house.monotonic()))

    def flow(self, window: Window) -> None:
        self._send(self.session.flow(window))

    def move(self, deadline_ms: int, spread_ms: int, reason: str) -> None:
        if self.session.ready:
            self._send(self.session.move(deadline_ms, spread_ms, reason))

    def close(self, code: int, reason: str) -> None:
        """Ends the connection; the first reason given stands."""
        if self._close is None:
            self._close = (code, reason)
            self._wake.set()
            self._room.set()

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Returns when the connection has ended, for whatever reason."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sender(), name=f"send {self.gateway}")
            try:
                await self._receiver()
            except RemoteProtocolError as error:
                log.warning("%s at %s broke the protocol: %s", self.gateway, self.endpoint, error)
                self._outbox.append(ServerError(reason=str(error)[:500]))
                self.close(error.code, str(error))
            except StoreError as error:
                self.close(TRY_LATER, str(error))
            except ConnectionClosed:
                pass
            finally:
                self.close(1011, "")

    async def _receiver(self) -> None:
        while self._close is None:
            await self._room.wait()
            deadline = self.session.deadline()
            if deadline is None:
                frame = await self.ws.recv()
            else:
                try:
                    async with asyncio.timeout(max(0.0, deadline - self._house.monotonic())):
                        frame = await self.ws.recv()
                except TimeoutError:
                    self.session.tick(self._house.monotonic())
                    continue
            if isinstance(frame, bytes):
                raise RemoteProtocolError("messages are text frames", 1003)
            if self._close is None:
                await self._act(self.session.receive(decode_from_gateway(frame)))

    async def _act(self, outputs: list[Output]) -> None:
        promoted = False
        for output in outputs:
            match output:
                case Store(entry):
                    self._takes(self._entries, len(entry.raw))
                    self._house.committer.store(entry, self)
                case Send(message):
                    self._outbox.append(message)
                case Greet(hello):
                    await self._greet(hello)
                case LookUp(stream):
                    call = self._house.committer.call
                    marks = await call(self._house.committer.sink.marks, self.gateway, [stream])
                    await self._act(self.session.learned(stream, marks[stream]))
                case StoreResult(result):
                    text = len(result.value) if isinstance(result.value, str) else 0
                    self._takes(self._results, len(result.id) + len(result.reason) + text)
                    self._house.committer.store_result(StoredResult(self.gateway, result), self)
                case Report(stats):
                    self._house.reported(self, stats)
                case Promoted():
                    promoted = True
                case Leave(reason):
                    self.close(1000, reason)
        self._wake.set()
        if promoted:  # not before: what another session brings meanwhile must not come to the store before this
            await self._house.active(self)

    def _takes(self, waiting: deque[int], size: int) -> None:
        waiting.append(size)
        self._under_way_bytes += size
        if self._full:
            self._room.clear()

    async def _greet(self, hello: Hello) -> None:
        house = self._house
        if not await house.committer.probe():
            raise StoreError("the store takes no data at present")
        marks, commands = await house.greeted(self, hello)
        if self._close is None:
            self._send(self.session.welcome(house.sink_id, marks, commands, house.utc_ms(), house.monotonic()))
            if self.session.active:
                await house.active(self)

    def _send(self, outputs: list[Output]) -> None:
        self._outbox += [output.message for output in outputs if isinstance(output, Send)]
        if len(self._outbox) > MAX_OUTBOX:
            self.close(1008, "does not read")
        self._wake.set()

    async def _sender(self) -> None:
        """Ends with the connection closed; failures to write end it as well, the receiver hears of it."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._send_flush()
                outbox, self._outbox = self._outbox, []
                async with asyncio.timeout(SEND_WITHIN_S):
                    for message in outbox:
                        await self.ws.send(encode(message), text=True)
                if self._close is not None and not self._outbox:
                    code, reason = self._close
                    await self.ws.close(code, _short(reason))
                    return
        except ConnectionClosed:
            pass  # the receiver hears it too
        except TimeoutError:
            self.ws.transport.abort()

    def _send_flush(self) -> None:
        self._outbox += [output.message for output in self.session.flush() if isinstance(output, Send)]


def _short(reason: str) -> str:
    """A close frame holds 123 bytes of reason (RFC 6455 §5.5)."""
    return reason.encode()[:120].decode(errors="ignore")


def _address(peer: object) -> str:
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
