"""Which gateways are connected, and which of their sessions may stay.

Sessions of one process coexist, at most four: the active one, a standby, and one more of each while they move. A hello
of another process evicts them all (4409): that is a restarted gateway, or a copy of it. The evicted process is refused
as long as the one that evicted it is here, so two copies do not take turns. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from gateway.ingest.connection import Uplink
from gateway.protocol.marks import Streams

MAX_SESSIONS: Final = 4
MAX_EVICTED: Final = 64
"""Processes of one gateway that are remembered: one that calls itself by a new name each time fills no memory."""
CONFLICT: Final = 4409
"""Close code: a newer session of the same gateway is here."""


class _Gateway:
    def __init__(self) -> None:
        self.streams = Streams()
        self.process = ""
        self.evicted: dict[str, None] = {}
        """The oldest first (a dict, for its order)."""
        self.connections: list[Uplink] = []
        """In the order in which they came or became active; those without a hello too."""


class Fleet:
    """All connections of this server, over all its listeners."""

    def __init__(self) -> None:
        self.empty = asyncio.Event()
        self.empty.set()
        self._gateways: dict[str, _Gateway] = {}

    def __contains__(self, gateway: str) -> bool:
        return gateway in self._gateways

    def streams(self, gateway: str) -> Streams:
        """The marks that all sessions of this gateway share, as long as it has one."""
        return self._gateways.setdefault(gateway, _Gateway()).streams

    def join(self, connection: Uplink) -> None:
        self._gateways.setdefault(connection.gateway, _Gateway()).connections.append(connection)
        self.empty.clear()

    def leave(self, connection: Uplink) -> None:
        known = self._gateways[connection.gateway]
        known.connections.remove(connection)
        if not known.connections:
            # what is still under way is judged by the store, against the mark of that time
            del self._gateways[connection.gateway]
        if not self._gateways:
            self.empty.set()

    def hello(self, connection: Uplink, process: str) -> None:
        """Makes room for this session, or closes it."""
        known = self._gateways[connection.gateway]
        others = [each for each in known.connections if each is not connection and not each.closing]
        greeted = [each for each in others if each.session.hello is not None]
        if not greeted:
            known.evicted.clear()
        if process in known.evicted:
            connection.close(CONFLICT, "a newer process of this gateway is connected")
            return
        if greeted and process != known.process:
            for each in greeted:
                each.close(CONFLICT, "a newer process of this gateway is connected")
            known.evicted[known.process] = None
            if len(known.evicted) > MAX_EVICTED:
                del known.evicted[next(iter(known.evicted))]
        elif len(greeted) >= MAX_SESSIONS:
            greeted[0].close(1000, f"more than {MAX_SESSIONS} sessions of one process")
        known.process = process

    def activated(self, connection: Uplink) -> None:
        """It is the newest active session now."""
        connections = self._gateways[connection.gateway].connections
        connections.remove(connection)
        connections.append(connection)

    def of(self, gateway: str) -> list[Uplink]:
        """Its connections, the one that became active last behind the others."""
        known = self._gateways.get(gateway)
        return list(known.connections) if known is not None else []

    def best(self, gateway: str) -> Uplink | None:
        """Where a command goes: the session that became active last, never a standby (P5)."""
        active = [each for each in self.of(gateway) if each.session.active and not each.closing]
        return active[-1] if active else None

    def wake(self, gateways: Iterable[str]) -> None:
        """Marks of these changed: their sessions look whether there is something to ack."""
        for gateway in gateways:
            for connection in self.of(gateway):
                connection.settled(0)

    def __iter__(self) -> Iterator[Uplink]:
        for known in list(self._gateways.values()):
            yield from list(known.connections)
