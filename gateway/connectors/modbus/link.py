"""The medium under a Modbus bus, and one transaction at a time over it.

Only this module does I/O. A `Line` owns an open port or socket and the protocol core that goes with it: `ask` sends
one request and returns its reply, never raising for a device that is silent or refuses. Cancelling `ask` is safe: the
answer that nobody waits for any more is owed by its unit like one that did not come in time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.clock import Clock
from gateway.connectors.hosts import UNREACHABLE, unanswered, unreachable
from gateway.connectors.modbus.client import Client, Reply
from gateway.connectors.modbus.config import AnyBus, RtuBus, TcpBus, character_s, gap_s, late_window_s
from gateway.connectors.modbus.framing import ASCII, RTU, TCP
from gateway.connectors.modbus.request import Request
from gateway.connectors.port import SerialPort
from gateway.connectors.tap import NOBODY, Event, Tap, What
from gateway.errors import LinkError

log = logging.getLogger(__name__)

FRAMINGS = {
    "modbus-rtu": RTU,
    "modbus-ascii": ASCII,
    "modbus-tcp": TCP,
    "modbus-rtu-over-tcp": RTU,
    "modbus-ascii-over-tcp": ASCII,
}

_CONNECT_TIMEOUT_S = 5.0
_KEEPALIVE_S = 20
_USER_TIMEOUT_MS = 10_000
"""Sent bytes unacknowledged for so long end a connection; without it a half-open one lives for 15 minutes."""


class Medium(Protocol):
    """What carries the bytes."""

    async def open(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def drain(self) -> None:
        """Throws away input that waits unread."""

    def close(self) -> None: ...


class Acquired(NamedTuple):
    """A reply and when its last byte came."""

    reply: Reply
    at_ns: int
    """CLOCK_BOOTTIME."""
    took_s: float = 0.0
    """From sending the request, wire and all."""


class _Hex:
    """Bytes as the log shows them, should it show them: they are many."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __str__(self) -> str:
        return self._data.hex(" ")


class Line:
    """One open Modbus line; `lost` is called when the medium goes."""

    def __init__(self, bus: AnyBus, clock: Clock, lost: Callable[[], None], tap: Tap = NOBODY) -> None:
        self._bus = bus
        self._clock = clock
        self._tell_lost = lost
        self._tap = tap
        self._news = asyncio.Event()
        self._reply: Reply | None = None
        self._reply_ns = 0
        self._lost: LinkError | None = None
        self._gap_s = gap_s(bus)
        self._medium: Medium = (
            _Serial(bus, self._received, self._fail)
            if isinstance(bus, RtuBus)
            else _Tcp(bus, self._received, self._fail)
        )
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        assert self._client is not None, "the line is not open"
        return self._client

    async def open(self) -> None:
        """Opens the medium.

        Raises:
            LinkError: it cannot be opened.
        """
        await self._medium.open()
        bus = self._bus
        self._client = Client(
            FRAMINGS[bus.kind],
            self._clock.monotonic(),
            timeout=bus.timeout,
            late_window=late_window_s(bus),
            character_s=character_s(bus),
            echo=None if not isinstance(bus, RtuBus) or bus.local_echo == "auto" else bus.local_echo,
        )

    def close(self) -> None:
        """Closes the medium; closing twice is fine."""
        self._medium.close()

    @property
    def lost(self) -> LinkError | None:
        """Why the medium has gone, when it has."""
        return self._lost

    async def ask(self, request: Request, gap: float = 0.0, timeout: float | None = None) -> Acquired:
        """Waits until the unit may be asked, asks, and returns how that ended.

        `timeout`: in place of the bus's, for a unit that is slower.

        Raises:
            LinkError: the medium has gone.
        """
        client, clock = self.client, self._clock
        gap = max(gap, self._gap_s)
        # a line that never falls silent is asked all the same, or noise would stop the bus for good
        patience = max(clock.monotonic(), client.free_at(request.unit, 0.0)) + gap + self._bus.timeout
        while (wait := client.free_at(request.unit, gap, patience) - clock.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait)  # bytes that come meanwhile move the goal
        if self._lost:
            raise self._lost
        self._medium.drain()
        self._reply = None
        sent_at = clock.monotonic()
        frame = client.start(request, sent_at, timeout)
        log.debug("> %s", _Hex(frame))
        if self._tap:
            self._tap.show(Event(clock.boot_ns(), What.SENT, frame))
        self._medium.write(frame)
        reply = await self._end()
        if self._tap:
            self._tap.show(Event(self._reply_ns, What.ENDED, said=reply.outcome))
        return Acquired(reply, self._reply_ns, clock.monotonic() - sent_at)

    async def _end(self) -> Reply:
        """How the pending request ends."""
        client, clock = self.client, self._clock
        while self._reply is None:
            if self._lost:
                raise self._lost
            deadline = client.deadline()
            assert deadline is not None, "a request is pending"
            self._news.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - clock.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                if self._reply is None:  # it may have come in the very moment
                    self._reply = client.tick(clock.monotonic())
                    self._reply_ns = clock.boot_ns()
            except asyncio.CancelledError:
                client.cancel(clock.monotonic())
                raise
        return self._reply

    def _received(self, data: bytes) -> None:
        log.debug("< %s", _Hex(data))
        if self._tap:
            self._tap.show(Event(self._clock.boot_ns(), What.RECEIVED, data))
        if self._client is None:
            return
        reply = self._client.received(data, self._clock.monotonic())
        if reply is not None:
            self._reply, self._reply_ns = reply, self._clock.boot_ns()
            self._news.set()

    def _fail(self, error: LinkError) -> None:
        self._lost = error
        self._news.set()
        if self._tap:
            self._tap.show(Event(self._clock.boot_ns(), What.LOST, said=str(error)))
        self._tell_lost()


class _Serial:
    def __init__(self, bus: RtuBus, received: Callable[[bytes], None], lost: Callable[[LinkError], None]) -> None:
        self._port = SerialPort(bus, received, lost)
        self.write = self._port.write
        self.drain = self._port.drain
        self.close = self._port.close

    async def open(self) -> None:
        self._port.open()


class _Tcp(asyncio.Protocol):
    """A socket that ends as a `LinkError` and nothing else."""

    def __init__(self, bus: TcpBus, received: Callable[[bytes], None], lost: Callable[[LinkError], None]) -> None:
        self._bus = bus
        self._received = received
        self._lost = lost
        self._transport: asyncio.Transport | None = None

    async def open(self) -> None:
        host, port = self._bus.host, self._bus.tcp_port
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                transport, _ = await loop.create_connection(lambda: self, host, port)
        except TimeoutError as error:
            raise unanswered(host, port, _CONNECT_TIMEOUT_S) from error
        except UNREACHABLE as error:
            raise unreachable(host, port, error) from error
        self._transport = transport
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S // 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        await asyncio.sleep(self._bus.connect_delay)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def drain(self) -> None:
        """Nothing to do: what a transport has read it has handed over."""

    def close(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._received(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is None:
            return
        self._transport = None
        reason = f"connection lost: {error}" if error else "closed by the other side"
        self._lost(LinkError(f"{self._bus.host}:{self._bus.tcp_port}: {reason}"))
