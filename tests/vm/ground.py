"""What stays under power, on this host: mosquitto, a sensor that publishes, two Modbus machines, the cloud side.

The gateway is the installed service in the emulated machine and sees them through the rig's forwarded ports. After each
boot the network comes late: the ports are forwarded only when the system runs.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

from gateway.demo.child import Child, until
from gateway.demo.plant import Plant
from gateway.demo.publisher import publisher
from gateway.demo.world import free_port
from gateway.testing import broker
from tests.e2e.witness import Answer, Arrivals, Sensor, Witness
from vm.conftest import Machine

WINDOW = 20
"""How many messages the broker may send ahead of acknowledgements: the receive maximum of MQTT 5."""
PATIENCE_S = 240.0
_PACE_S = 0.2
_TOKEN = "/etc/gateway/credentials/uplink-token"
_TOKEN_INSIDE = "/run/credentials/gateway.service/uplink-token"


class Cut(NamedTuple):
    """The power went."""

    when: str
    at_s: float
    """Monotonic, just before."""
    utc_ms: int


class Row(NamedTuple):
    """One reading at the sink."""

    ts_ms: int
    received_ms: int
    status: str


class Ground:
    """What stays under power."""

    def __init__(self, machine: Machine, folder: Path, sensor: Sensor, witnesses: list[Witness], broker_port: int):
        self.machine, self.sensor, self.witnesses = machine, sensor, witnesses
        self.database = folder / "cloud" / "ingest.db"
        self.cuts: list[Cut] = []
        self._port = free_port()
        self._ports = (self._port, broker_port, *(witness.port for witness in witnesses))
        self._cloud = ("ingest", "--data", str(folder / "cloud"))
        self.ingest = Child((*self._cloud, "--listen", f"127.0.0.1:{self._port}"), folder / "ingest.log")
        self._arrivals = Arrivals(self.database)
        self._folder = folder

    async def install(self, toml: str) -> None:
        """Configuration and credential into the machine; the service starts with them, and without anything old."""
        token = self._folder / "token"
        add = Child((*self._cloud, "add", "vm", "--token-file", str(token)), self._folder / "add.log")
        await add.start()
        assert await add.wait() == 0, add.last_words()
        uplink = f'[[uplink.endpoint]]\nurl = "ws://127.0.0.1:{self._port}/"\ntoken_file = "{_TOKEN_INSIDE}"\n'
        await asyncio.to_thread(self.machine.write, self._folder, token.read_text(), _TOKEN)
        await asyncio.to_thread(self.machine.configure, self._folder, uplink + toml)
        await asyncio.to_thread(
            self.machine.run,
            f"chmod 600 {_TOKEN}; systemctl stop gateway; rm -rf /var/lib/gateway/* /run/gateway/*;"
            " systemctl start gateway; sync",
        )

    async def connect(self) -> None:
        for port in self._ports:
            await asyncio.to_thread(self.machine.call, "rforward", str(port))

    async def cloud(self, on: bool) -> None:
        if on and not self.ingest.running:
            await self.ingest.start()
        elif not on and self.ingest.running:
            await self.ingest.end(signal.SIGKILL)

    async def flows(self) -> None:
        """What is produced from now on arrives."""
        produced = {each.name: each.produced for each in (self.sensor, *self.witnesses)}
        await until(lambda: self._arrivals.beyond(produced), PATIENCE_S, "what is produced now arrives")

    async def polls(self, for_s: float) -> None:
        """Since this boot, for so long."""

        def long_enough() -> bool:
            now = time.monotonic()
            firsts = [
                min((a.at_s for c in witness.callers if c.process == len(self.cuts) for a in c.answers), default=now)
                for witness in self.witnesses
            ]
            return now - max(firsts) >= for_s

        await until(long_enough, PATIENCE_S, "the machines are asked")

    async def cut(self, when: str) -> None:
        """… and the power comes back. It starts by itself."""
        self.cuts.append(Cut(when, time.monotonic(), time.time_ns() // 1_000_000))
        await asyncio.to_thread(self.machine.call, "powercut")
        for witness in self.witnesses:
            witness.process = len(self.cuts)
        await asyncio.to_thread(self.machine.call, "start")
        state = await asyncio.to_thread(
            self.machine.run, "systemctl show -P ActiveState gateway; systemctl show -P NRestarts gateway"
        )
        assert state.split() == ["active", "0"], await asyncio.to_thread(self.machine.journal)

    async def complete(self) -> None:
        """What was produced until now, and survived, is at the sink. The sensor is silent; machines go on answering."""

        async def nothing_old_waits() -> bool:
            if set(range(1, self.sensor.produced + 1)) - set(self.stored(self.sensor.name)):
                return False
            status = await asyncio.to_thread(self.machine.run, "gateway status --json")
            return bool(json.loads(status)["buffer"]["oldest_s"] < 3)

        await until(nothing_old_waits, PATIENCE_S, "the backlog is delivered")

    def given(self, witness: Witness) -> list[tuple[int, Answer]]:
        return [(caller.process, answer) for caller, answer in witness.answers()]

    def stored(self, device: str) -> dict[int, list[Row]]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as db:
            rows: dict[int, list[Row]] = defaultdict(list)
            for value, *row in db.execute(
                "SELECT r.value, r.ts_ms, b.received_ms, q.name FROM batch b"
                " CROSS JOIN reading r ON r.id BETWEEN b.first AND b.first + b.readings - 1"
                " CROSS JOIN series s ON s.id = r.series JOIN status q ON q.id = r.status"
                " WHERE s.device = ? AND s.point = 'sequence' AND r.value IS NOT NULL ORDER BY r.id",
                (device,),
            ):
                rows[value].append(Row(*row))
            return rows


@asynccontextmanager
async def running(machine: Machine, folder: Path) -> AsyncIterator[tuple[Ground, Plant]]:
    async with AsyncExitStack() as stack:
        mosquitto = stack.enter_context(broker.Mosquitto(folder, max_queued_messages=1_000_000))
        sensor = Sensor("office", stack.enter_context(publisher(mosquitto.port)).publish)
        plant = Plant(_PACE_S)
        stack.push_async_callback(plant.close)
        witnesses = [Witness("inverter"), Witness("meter")]
        toml = sensor.toml(mosquitto.port, WINDOW)
        for witness, interval_ms in zip(witnesses, (100, 250), strict=True):
            await witness.listen()
            plant.work(witness.name, witness.run())
            toml += witness.toml(f"line-{witness.name}", interval_ms)
        plant.work(sensor.name, plant.every(sensor.step))
        ground = Ground(machine, folder, sensor, witnesses, mosquitto.port)
        stack.push_async_callback(ground.cloud, False)
        stack.push_async_callback(asyncio.to_thread, machine.run, "systemctl stop gateway")
        await ground.install(toml)
        await ground.cloud(True)
        await ground.connect()
        await until(lambda: "Sending SUBACK" in mosquitto.log(), PATIENCE_S, "the gateway has subscribed")
        plant.talk()
        yield ground, plant
