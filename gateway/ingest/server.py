"""The cloud side in one process: listeners, sessions, one store, commands, viewers.

What a stop means: nobody new comes in (503), gateways are asked to move, and who is still here at the deadline is
closed with 1012; then everything handed over is committed, and only then does the store close.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.errors import AuthError, ConfigError, StoreError
from gateway.ingest import commands
from gateway.ingest.commands import Issued
from gateway.ingest.committer import MAX_GROUP, Committer
from gateway.ingest.config import Settings, shown
from gateway.ingest.connection import TRY_LATER, Uplink
from gateway.ingest.control import Control
from gateway.ingest.descriptors import Descriptors
from gateway.ingest.door import Forbidden, gateway_name
from gateway.ingest.fleet import Fleet
from gateway.ingest.live import LiveState
from gateway.ingest.sinks.group import StoredResult, Verdict
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.ingest.tokens import Tokens
from gateway.ingest.web.page import LIVE, LIVE_PATH, Viewers
from gateway.model import Outcome
from gateway.protocol.entry import Entry
from gateway.protocol.marks import Mark
from gateway.protocol.messages import (
    MAX_MESSAGE_BYTES,
    SUBPROTOCOL,
    CommandMessage,
    Hello,
    Stats,
    Window,
)

log = logging.getLogger(__name__)
_wire_log = logging.getLogger(f"{__name__}.wire")
"""Of the library, which reports every connection; what concerns us is logged here."""

PING_EVERY_S: Final = 30.0
PONG_WITHIN_S: Final = 30.0
"""60 s of silence at most; gateways ping by themselves, this finds those that vanished."""
RESULT_GRACE_S: Final = 5.0
"""A result may come that much after the command's time to live: it was begun in time."""
WIDE: Final = Window()
NARROW: Final = Window(batches=4, bytes=128 * 1024)
"""For each session while the store is behind."""
_RESTART: Final = 1012
_REVOKED: Final = 4403


class Time(Protocol):
    def monotonic(self) -> float: ...

    def utc_ms(self) -> int: ...


class IngestServer:
    """`async with running(settings, clock) as server`."""

    def __init__(self, settings: Settings, clock: Time) -> None:
        self.settings = settings
        self.monotonic = clock.monotonic
        self.utc_ms = clock.utc_ms
        self.sink = SqliteSink(settings.data)
        self.sink_id = self.sink.sink_id
        self.tokens = Tokens(self.sink)
        self.committer = Committer(self.sink, clock.utc_ms, self)
        self.fleet = Fleet()
        self.live = LiveState()
        self.commands: list[Issued] = []
        """The newest, for viewers."""
        self.draining = False
        self.addresses: list[tuple[str, int]] = []
        self.viewers = Viewers(self, self.tokens)
        self.window = WIDE
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._listeners: list[Server] = []

    # ── starting and stopping ────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Raises ConfigError, StoreError."""
        Descriptors(asyncio.get_running_loop())
        self.live.seed(await self.committer.call(self.sink.latest))
        for gap in await self.committer.call(self.sink.gaps):
            self.live.gaps(*gap)
        await self._refresh_commands()
        _wire_log.setLevel(logging.ERROR)
        tls = self.settings.tls()
        for host, port in self.settings.listen:
            try:
                listener = await self._listen(host, port, tls)
            except OSError as error:
                raise ConfigError((f"cannot listen on {shown(host, port)}: {error}",)) from error
            self._listeners.append(listener)
            self.addresses += [socket.getsockname()[:2] for socket in listener.sockets]
        for address in self.addresses:
            log.info("listening on %s", shown(*address))

    async def _listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> Server:
        return await serve(
            self._connected,
            host,
            port,
            ssl=tls,
            select_subprotocol=_subprotocol,
            extensions=[
                # the gateway's context is kept, ours is not: 49 KiB for a connection, 32 of them the gateway's window
                ServerPerMessageDeflateFactory(
                    server_no_context_takeover=True,
                    server_max_window_bits=9,
                    client_max_window_bits=15,
                    compress_settings={"memLevel": 1},
                )
            ],
            compression=None,
            process_request=self._knock,
            max_size=MAX_MESSAGE_BYTES,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=2.0,
            server_header=None,
            logger=_wire_log,
        )

    async def drain(self) -> None:
        """Asks everybody to move, waits for it up to `drain_s`, closes the rest. Idempotent."""
        self.draining = True
        deadline_ms = int(self.settings.drain_s * 1000)
        for connection in self.fleet:
            connection.move(deadline_ms, deadline_ms // 2, "this server stops")
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.fleet.empty.wait()
        except TimeoutError:
            pass  # the rest is closed now
        for listener in self._listeners:
            listener.close(code=_RESTART, reason="this server stops")
        for listener in self._listeners:
            await listener.wait_closed()
        self.committer.close()

    # ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _knock(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.draining:
            response = connection.respond(503, "This server stops; please come back later.\n")
            response.headers["Retry-After"] = "5"
            return response
        if "Upgrade" not in request.headers or request.path.partition("?")[0] == LIVE_PATH:
            return self.viewers.knock(connection, request)
        try:
            certificate = connection.transport.get_extra_info("peercert")
            connection.username = gateway_name(request, certificate, self.tokens)
        except Forbidden as error:
            return connection.respond(403, f"{error}\n")
        except AuthError as error:
            response = connection.respond(401, f"{error}\n")
            response.headers["WWW-Authenticate"] = 'Bearer realm="gateway"'
            return response
        return None

    async def _connected(self, ws: ServerConnection) -> None:
        if ws.subprotocol == LIVE:
            await self.viewers.serve(ws)
            return
        connection = Uplink(ws, ws.username, secrets.token_hex(16), self.fleet.streams(ws.username), self)
        self.fleet.join(connection)
        try:
            await connection.run()
        finally:
            self.fleet.leave(connection)
            self._show_sessions(connection.gateway)
            if connection.session.hello is not None:
                log.info("%s at %s left", connection.gateway, connection.endpoint)

    # ── what a connection needs ──────────────────────────────────────────────────────────────────────────────────

    async def greeted(self, connection: Uplink, hello: Hello) -> tuple[dict[str, Mark], tuple[str, ...]]:
        self.fleet.hello(connection, hello.process)
        if connection.closing:
            return {}, ()
        found = await self.committer.call(self.sink.hello, connection.gateway, hello, self.utc_ms())
        self.live.hello(connection.gateway, hello)
        log.info("%s at %s: %s", connection.gateway, connection.endpoint, "standby" if hello.standby else "active")
        return found

    async def active(self, connection: Uplink) -> None:
        self.fleet.activated(connection)
        self._show_sessions(connection.gateway)
        await self._deliver(connection.gateway)

    def reported(self, connection: Uplink, stats: Stats) -> None:
        self.live.stats(connection.gateway, stats.values)

    def _show_sessions(self, gateway: str) -> None:
        ready = [each for each in self.fleet.of(gateway) if each.session.ready and not each.closing]
        standbys = sum(not each.session.active for each in ready)
        self.live.sessions(gateway, [each.endpoint for each in ready], standbys, self.utc_ms())

    # ── what the committer tells ─────────────────────────────────────────────────────────────────────────────────

    def committed(self, entries: Sequence[Entry], verdicts: Sequence[Verdict], results: Sequence[StoredResult]) -> None:
        now_ms = self.utc_ms()
        for entry, verdict in zip(entries, verdicts, strict=True):
            if entry.gateway in self.fleet:
                self.fleet.streams(entry.gateway).settle(entry, verdict.mark)
            if verdict.stored:
                self.live.stored(entry, verdict.offset_ms, now_ms)
        self.fleet.wake({entry.gateway for entry in entries})
        if self.committer.waiting > MAX_GROUP:
            self._flow(NARROW)
        elif not self.committer.waiting:
            self._flow(WIDE)
        for stored in results:
            self.commands = [_answered(each, stored) for each in self.commands]
            for future in self._waiting.pop(stored.result.id, ()):
                if not future.done():
                    future.set_result(None)

    def failed(self, entries: Sequence[Entry], error: StoreError) -> None:
        gateways = {entry.gateway for entry in entries}
        for gateway in gateways:
            if gateway in self.fleet:
                self.fleet.streams(gateway).failed(entry for entry in entries if entry.gateway == gateway)
        self.fleet.wake(gateways)
        if self.committer.failures > 1:
            # a nack makes them try again at once; that was worth one try
            for connection in self.fleet:
                connection.close(TRY_LATER, "the store takes no data at present")

    def _flow(self, window: Window) -> None:
        """More than a whole group waits: acks take longer than promised, so everybody sends less until it is gone."""
        if window != self.window:
            self.window = window
            for connection in self.fleet:
                connection.flow(window)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def send(self, gateway: str, command: CommandMessage, queue: bool) -> Issued:
        """Waits for the result. Offline: `unavailable` at once, or with `queue` kept until its time to live ends.

        Raises StoreError. Cancelling is safe: the command goes its way, only nobody waits.
        """
        connection = self.fleet.best(gateway)
        if connection is None and not queue:
            return self._declined(gateway, command, Outcome.UNAVAILABLE, "the gateway is offline")
        if connection is not None and not connection.takes_command():
            return self._declined(gateway, command, Outcome.REJECTED, "busy: more commands than a gateway takes")
        try:
            await self.committer.call(commands.issue, self.sink, gateway, command, self.utc_ms())
        except commands.TooManyError as error:
            return self._declined(gateway, command, Outcome.REJECTED, f"busy: {error}")
        if connection is not None:
            await self._wait_for(command, gateway)
        await self._refresh_commands()
        found = await self.committer.call(commands.recent, self.sink, self.utc_ms(), ids=[command.id])
        return found[0]

    async def _wait_for(self, command: CommandMessage, gateway: str) -> None:
        """Sends it, and returns when its result is stored or no longer to be expected."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(command.id, []).append(future)
        try:
            await self._deliver(gateway, command.id)
            async with asyncio.timeout(command.ttl_ms / 1000 + RESULT_GRACE_S):
                await future
        except TimeoutError:
            pass  # how it stands is the answer
        finally:
            waiting = self._waiting.get(command.id, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._waiting.pop(command.id, None)

    def _declined(self, gateway: str, command: CommandMessage, outcome: Outcome, reason: str) -> Issued:
        """It never left: nothing of it is kept."""
        now_ms = self.utc_ms()
        what = (command.device, command.point, command.op, command.value)
        return Issued(command.id, gateway, *what, now_ms, now_ms + command.ttl_ms, outcome.value, reason)

    async def _deliver(self, gateway: str, only: str = "") -> None:
        for command in await self.committer.call(commands.due, self.sink, gateway, self.utc_ms(), only):
            connection = self.fleet.best(gateway)
            if connection is not None:  # else it goes when the next session becomes active
                connection.command(command)
        await self._refresh_commands()

    async def _refresh_commands(self) -> None:
        self.commands = await self.committer.call(commands.recent, self.sink, self.utc_ms())

    # ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def revoke(self, name: str) -> bool:
        """Takes the name's tokens back and ends its sessions. Raises StoreError."""
        gone = await self.committer.call(self.tokens.revoke, name)
        for connection in self.fleet.of(name):
            connection.close(_REVOKED, "this gateway has been revoked")
        return gone


def _answered(issued: Issued, stored: StoredResult) -> Issued:
    """The command with this result, where it is its first."""
    result = stored.result
    if (issued.gateway, issued.id) != (stored.gateway, result.id) or issued.state not in commands.OPEN:
        return issued
    return msgspec.structs.replace(issued, state=result.outcome.value, reason=result.reason, result=result.value)


def _subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol:
    """By path: viewers and gateways never meet in the same room."""
    assert connection.request is not None
    wanted = LIVE if connection.request.path.partition("?")[0] == LIVE_PATH else SUBPROTOCOL
    if wanted not in offered:
        raise NegotiationError(f"this server speaks {wanted}")
    return Subprotocol(wanted)


@asynccontextmanager
async def running(settings: Settings, clock: Time) -> AsyncIterator[IngestServer]:
    """The server in its folder, alone there; drains when the block ends.

    Raises:
        StoreError: another server runs on this folder, or the store cannot be opened.
        ConfigError: a certificate that cannot be used, an address that cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        stack.callback(os.close, take(settings))
        server = IngestServer(settings, clock)
        stack.callback(server.sink.close)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.committer.run(), name="ingest commit")
                try:
                    async with Control(server):
                        await server.start()
                        yield server
                finally:
                    await server.drain()
        except ExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None  # the group is ours; whoever calls wants to know what happened
            raise


def take(settings: Settings) -> int:
    """The folder, for one process alone: a descriptor to close. The system lets go of it however that ends.

    Raises StoreError.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(settings.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
    except OSError as error:
        raise StoreError(f"{settings.data}: cannot be taken, is another server running on it? ({error})") from error
    return lock
