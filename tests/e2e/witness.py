"""Who can tell what must be at the sink without asking the gateway: a sensor that publishes, machines that answer.

A `Witness` is a Modbus machine that remembers what it answered, to whom and when. Every answer carries the next number.
The connector asks for the next one only when the last has been taken over (`emit` has returned), so a question proves
that the answer before it, on the same connection, was accepted. Of a process that was killed, the last answer on its
connection may have been on the way to it: that one, and no other, is `unproved`. How long anything takes plays no part.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gateway.demo.machines import Registers

ENERGY = 10_000
"""In every answer of `Registers` the point `energy` is the number plus this: it is stored whole or not at all."""


class Sensor:
    """Publishes ids: 1, 2, 3 …; `publish(topic, payload)` is the broker, QoS 1."""

    def __init__(self, name: str, publish: Callable[[str, bytes], None]) -> None:
        self.name = name
        self.produced = 0
        self._publish = publish

    def step(self) -> None:
        self.produced += 1
        state = {"sequence": self.produced, "energy": self.produced + ENERGY}
        self._publish(f"site/{self.name}", json.dumps(state).encode())

    def toml(self, port: int, window: int = 500) -> str:
        """The broker and its device, as a person would write them; `window`: messages ahead of acknowledgements."""
        return f"""
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
port = {port}
receive_maximum = {window}

[[device]]
name = "{self.name}"
bus = "broker"
topic = "site/{self.name}"
points = [ {{ name = "sequence" }}, {{ name = "energy", unit = "Wh" }} ]
"""


class Answer(NamedTuple):
    """One number that was given away. Seconds are of the monotonic clock."""

    number: int
    at_s: float
    accepted_by_s: float | None
    """When the next question came on the same connection; None: none came."""


class Caller:
    """One connection, of one process."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.answers: list[Answer] = []

    def asked(self, now: float) -> None:
        if self.answers:
            self.answers[-1] = self.answers[-1]._replace(accepted_by_s=now)


class Witness:
    """On a port of loopback, with the name of its device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.process = 0
        """Who is calling at present: set it before a process is started."""
        self.callers: list[Caller] = []
        self._registers = Registers(name)

    @property
    def produced(self) -> int:
        return self._registers.produced

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def run(self) -> None:
        async with self._server:
            await self._server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = Caller(self.process)
        self.callers.append(caller)
        try:
            while True:
                transaction, protocol, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                request = await reader.readexactly(length - 1)
                caller.asked(time.monotonic())
                before = self.produced
                reply = self._registers.answer(request)
                writer.write(struct.pack(">HHHB", transaction, protocol, len(reply) + 1, unit) + reply)
                if self.produced > before:
                    caller.answers.append(Answer(self.produced, time.monotonic(), None))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    def answers(self) -> Iterator[tuple[Caller, Answer]]:
        """Every number ever given away, in order."""
        for caller in self.callers:
            for answer in caller.answers:
                yield caller, answer

    def unproved(self) -> dict[int, int]:
        """Numbers that were on their way when their connection ended → the process they were meant for."""
        return {answer.number: caller.process for caller, answer in self.answers() if answer.accepted_by_s is None}

    def toml(self, bus: str, interval_ms: int) -> str:
        """Its bus and device, as a person would write them."""
        return f"""
[[bus]]
name = "{bus}"
kind = "modbus-tcp"
host = "127.0.0.1"
tcp_port = {self.port}
timeout = "20s"

[[device]]
name = "{self.name}"
bus = "{bus}"
unit_id = 1
interval = "{interval_ms}ms"
points = [
  {{ name = "sequence", register = "holding", address = 0, type = "uint32" }},
  {{ name = "energy", register = "holding", address = 4, type = "uint32", unit = "Wh" }},
]
"""


class Arrivals:
    """Looks at the sink's file for what is new since the last look."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._seen = 0

    def beyond(self, left: dict[str, int]) -> bool:
        """Removes from `left` (device → number) whoever has a greater number at the sink. True: nobody is left."""
        with closing(_opened(self._database)) as db:
            rows = db.execute(
                "SELECT r.id, s.device, r.value FROM reading r JOIN series s ON s.id = r.series"
                " WHERE r.id > ? AND s.point = 'sequence' AND r.value IS NOT NULL",
                (self._seen,),
            ).fetchall()
        for number, device, value in rows:
            self._seen = max(self._seen, number)
            if value > left.get(device, value):
                del left[device]
        return not left


def statuses(database: Path) -> set[str]:
    """Of all values at the sink."""
    with closing(_opened(database)) as db:
        rows = db.execute(
            "SELECT DISTINCT q.name FROM reading r JOIN status q ON q.id = r.status WHERE r.value IS NOT NULL"
        )
        return {name for (name,) in rows}


def orderly(database: Path) -> None:
    """Nothing was given up, everything could be used, in each stream all is in order, of each answer all is there."""
    with closing(_opened(database)) as db:
        for table in ("gap", "dead_letter"):
            assert not db.execute(f"SELECT * FROM {table}").fetchall(), table
        last: dict[tuple[int, str], int] = {}
        for stream, device, sequence, energy in db.execute(
            "SELECT b.stream, s.device, r.value, e.value FROM batch b"
            " CROSS JOIN reading r ON r.id BETWEEN b.first AND b.first + b.readings - 1"
            " CROSS JOIN series s ON s.id = r.series AND s.point = 'sequence'"
            " JOIN series p ON p.device = s.device AND p.point = 'energy'"
            " LEFT JOIN reading e ON e.series = p.id AND e.ts_ms = r.ts_ms AND e.value = r.value + ?"
            " WHERE r.value IS NOT NULL ORDER BY b.stream, b.seq, r.id",
            (ENERGY,),
        ):
            assert energy is not None, f"{device}: of answer {sequence} only a part is there"
            assert sequence > last.get((stream, device), 0), f"{device}: {sequence} is out of order in stream {stream}"
            last[stream, device] = sequence


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
