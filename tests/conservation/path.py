"""Connections between the real uplink and the real server, in virtual time. The gateway's end fits
`gateway.uplink.link.Link`, the server's a `ServerConnection` of the library.

In fair weather frames keep their order and arrive once, as TCP has it. In foul weather single frames are dropped,
doubled, overtaken, which no TCP does; the protocol's numbers must be worth more than that.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Close

from gateway.uplink import reactions
from gateway.uplink.link import Refused
from gateway.uplink.reactions import Kind, Reaction


class Weather:
    """What happens to single frames, as probabilities."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.drop = self.double = self.overtake = 0.0

    def set(self, drop: float, double: float, overtake: float) -> None:
        self.drop, self.double, self.overtake = drop, double, overtake

    @property
    def foul(self) -> bool:
        return bool(self.drop or self.double or self.overtake)


class Way:
    """One direction. What is sent arrives after a while; while it is stalled, later."""

    def __init__(self, dice: random.Random, weather: Weather) -> None:
        self._dice = dice
        self._weather = weather
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._held: list[Any] = []
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.latency_s = 0.001
        self.stalled = False
        self.dead = False
        self.orphaned = False
        """Whoever sent it is gone."""

    def send(self, item: Any) -> None:
        if self.dead:
            return
        weather = self._weather
        if isinstance(item, bytes):
            weather.seen["frame " + item[:24].split(b'"', 4)[3].decode()] += 1
            if weather.foul:
                self._in_foul_weather(item)
                return
        at = self._loop.time() + self._dice.uniform(0.2, 2) * self.latency_s
        self._last = max(at, self._last)
        self._loop.call_at(self._last, self._arrive, item)

    def _in_foul_weather(self, item: bytes) -> None:
        weather, dice = self._weather, self._dice
        if dice.random() < weather.drop:
            weather.seen["dropped"] += 1
            return
        times = 1
        if dice.random() < weather.double:
            weather.seen["doubled"] += 1
            times = 2
        for _ in range(times):
            at = self._loop.time() + dice.uniform(0.2, 2) * self.latency_s
            if dice.random() < weather.overtake:
                weather.seen["overtaken"] += 1
                at += dice.uniform(0, 10) * self.latency_s
            else:
                at = self._last = max(at, self._last)
            self._loop.call_at(at, self._arrive, item)

    def _arrive(self, item: Any) -> None:
        if self.dead:
            return
        if self.stalled:
            self._held.append(item)
            return
        if self.orphaned and isinstance(item, bytes):
            self._weather.seen["late frame of a dead process"] += 1
        self.arrived.put_nowait(item)

    def heal(self) -> None:
        self.stalled = False
        held, self._held = self._held, []
        for item in held:
            self.arrived.put_nowait(item)

    def end(self, last: Any) -> None:
        """Nothing after this; what has not arrived never does."""
        if not self.dead:
            self.dead = True
            self.arrived.put_nowait(last)


class Connection:
    """Both ends of one connection."""

    def __init__(self, dice: random.Random, weather: Weather) -> None:
        self.up, self.down = Way(dice, weather), Way(dice, weather)
        self.near, self.far = Near(self), Far(self)
        self.open = True

    def stall(self) -> None:
        self.up.stalled = self.down.stalled = True

    def lose_acks(self) -> None:
        """The server goes on hearing the gateway."""
        self.down.stalled = True

    def heal(self) -> None:
        self.up.heal()
        self.down.heal()

    def slow(self, latency_s: float) -> None:
        self.up.latency_s = self.down.latency_s = latency_s

    def cut(self, code: int = 1006, reason: str = "") -> None:
        self.open = False
        self.up.end(Close(code, reason))
        self.down.end(Close(code, reason))

    def desert(self, for_s: float) -> None:
        """The gateway is gone: what it sent last is still on its way, for so long, and nobody reads the answers."""
        self.down.end(Close(1006, ""))
        self.open = False
        self.up.orphaned = True
        if self.up.stalled and not for_s:
            self.cut()
        else:
            asyncio.get_running_loop().call_later(for_s, self.cut)


class Near:
    """The gateway's end: a `Link`."""

    full = False
    wire_bytes = 0

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def ended(self) -> bool:
        return not self._connection.open

    def send(self, frame: bytes) -> None:
        if not self.ended:
            self._connection.up.send(frame)

    async def drain(self) -> None:
        """There is always room."""

    async def receive(self) -> bytes:
        item = await self._connection.down.arrived.get()
        if isinstance(item, Close):
            self._connection.down.arrived.put_nowait(item)
            if item.code == 1006:
                raise Refused(Reaction(Kind.RETRY, "connection lost"))
            raise Refused(reactions.to_close(item.code, item.reason))
        assert isinstance(item, bytes)
        return item

    async def ping(self, _: int = 0) -> None:
        pong = asyncio.get_running_loop().create_future()
        self._connection.up.send(pong)
        await pong

    def abort(self) -> None:
        if not self._connection.up.orphaned:  # a dead process does nothing
            self._connection.cut()

    async def close(self, code: int, reason: str) -> None:
        """The closing handshake is not waited for; what was said before arrives."""
        if self._connection.open:
            self._connection.open = False
            self._connection.up.send(Close(code, reason))
            asyncio.get_running_loop().call_later(5, self._connection.cut)


class Far:
    """The server's end."""

    subprotocol = "gateway.uplink.v1"
    remote_address = ("127.0.0.1", 1)
    username = "gw"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport = self

    async def recv(self) -> str:
        while True:
            item = await self._connection.up.arrived.get()
            if isinstance(item, Close):
                self._connection.up.arrived.put_nowait(item)
                raise (ConnectionClosedError if item.code == 1006 else ConnectionClosedOK)(None, None)
            if isinstance(item, bytes):
                return item.decode()
            loop = asyncio.get_running_loop()
            loop.call_later(self._connection.down.latency_s, self._pong, item)

    def _pong(self, pong: asyncio.Future[None]) -> None:
        if not (pong.done() or self._connection.down.stalled or self._connection.down.dead):
            pong.set_result(None)

    async def send(self, frame: bytes, text: bool) -> None:
        if self._connection.down.dead:
            raise ConnectionClosedError(None, None)
        self._connection.down.send(frame)

    async def close(self, code: int, reason: str) -> None:
        self._connection.down.send(Close(code, reason))
        asyncio.get_running_loop().call_later(5, self._connection.cut)
        self._connection.up.end(Close(1000, ""))

    def abort(self) -> None:
        self._connection.cut()
