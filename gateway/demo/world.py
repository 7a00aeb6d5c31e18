"""Everything of the demo, wired together: the plant, the gateway, two roads to the cloud side, and the cloud side.

The gateway and the cloud side are the real programs, in processes of their own, with a configuration like a person's.
The two endpoints are relays on loopback in front of one `gateway ingest`: roads that can be cut.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.control.client import ControlClient
from gateway.demo.child import Child, until
from gateway.demo.plant import Plant
from gateway.demo.proof import Proof, take
from gateway.errors import GatewayError, LinkError
from gateway.model import Json
from gateway.testing.relay import Relay

ROADS = ("north", "south")
_START_S = 30.0
"""A Pi with a slow card takes seconds to load Python twice."""


class World:
    """See the module. `status` and `latest` are for looking; they ask the gateway and the sink."""

    def __init__(self, folder: Path, plant: Plant) -> None:
        self.folder = folder
        self.plant = plant
        self.port = free_port()
        self.relays: dict[str, Relay] = {}
        self.ingest = Child(
            ("ingest", "--listen", f"127.0.0.1:{self.port}", "--data", str(folder / "cloud")), folder / "ingest.log"
        )
        self.gateway = Child(
            ("run", "--config", str(folder / "gateway.toml")), folder / "gateway.log", plant.environment
        )
        self._control = ControlClient(folder / "run" / "control.sock", timeout_s=5)

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def database(self) -> Path:
        return self.folder / "cloud" / "ingest.db"

    async def start(self, stack: AsyncExitStack) -> None:
        """Cloud side, roads, configuration, gateway; then the machines that talk by themselves."""
        await self.ingest.start()
        await self._alive(self.ingest, self._ingest_answers, "the cloud side answers")
        token_file = self.folder / "token"
        await self._tell("ingest", "--data", str(self.folder / "cloud"), "add", "demo", "--token-file", str(token_file))
        for road in ROADS:
            self.relays[road] = await stack.enter_async_context(Relay("127.0.0.1", self.port))
        (self.folder / "gateway.toml").write_text(self._toml(token_file))
        await self.gateway.start()
        await self._alive(self.gateway, self._gateway_listens, "the gateway collects")
        self.plant.talk()

    def _toml(self, token_file: Path) -> str:
        lines = [
            "[gateway]",
            'name = "demo"',
            f'state_dir = "{self.folder / "state"}"',
            f'runtime_dir = "{self.folder / "run"}"',
        ]
        for road in ROADS:
            lines += [
                "",
                "[[uplink.endpoint]]",
                f'name = "{road}"',
                f'url = "ws://127.0.0.1:{self.relays[road].port}/"',
                f'token_file = "{token_file}"',
            ]
        return "\n".join(lines) + "\n" + self.plant.toml

    async def _alive(self, child: Child, answers: Callable[[], Awaitable[bool]], what: str) -> None:
        async def ready() -> bool:
            if not child.running:
                raise GatewayError(f"{what}: it ended instead\n{child.last_words()}")
            return await answers()

        await until(ready, _START_S, what)

    async def _ingest_answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def _gateway_listens(self) -> bool:
        """Every bus is open, so that nothing said from now on can be missed."""
        status = await self.status()
        return status is not None and all(bus["bus"].get("open") for bus in status["buses"].values())

    async def _tell(self, *arguments: str) -> None:
        """Runs one `gateway` command to its end."""
        log = self.folder / "commands.log"
        command = Child(arguments, log)
        await command.start()
        if await command.wait():
            raise GatewayError(f"`gateway {' '.join(arguments)}` failed\n{command.last_words()}")

    async def status(self) -> Json | None:
        """What `gateway status --json` says; None while it does not answer."""
        try:
            return await asyncio.to_thread(self._control.ask, "status")
        except LinkError:
            return None

    async def stored(self) -> int:
        """Readings at the sink."""
        return int((await asyncio.to_thread(self._query, "SELECT count(*) FROM reading"))[0][0])

    async def latest(self) -> list[tuple[str, str, Json, str, int]]:
        """Device, point, value, unit and UTC of the newest reading of each point at the sink."""
        return await asyncio.to_thread(self._query, "SELECT device, point, value, unit, ts_ms FROM latest")

    def _query(self, sql: str) -> list[tuple[Json, ...]]:
        db = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    async def settle(self, within_s: float = 60.0) -> Proof:
        """Silences the machines, waits until the backlog is away, ends the gateway in good order, takes the proof."""
        self.plant.hush()
        await self._drained(within_s)
        await self.gateway.end()
        return await asyncio.to_thread(take, self.database, self.plant.counters)

    async def _drained(self, within_s: float) -> None:
        """Sending, and nothing old waits, for a whole second: one look may come before a cut is noticed."""
        since: float | None = None

        async def empty() -> bool:
            nonlocal since
            status = await self.status()
            now = time.monotonic()
            if status is None or status["uplink"]["active"] is None or status["buffer"]["oldest_s"] >= 1.0:
                since = None
            elif since is None:
                since = now
            return since is not None and now - since >= 1.0

        await until(empty, within_s, "the gateway delivers what it holds")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(folder: Path, plant: Plant) -> AsyncIterator[World]:
    """A world at work around this plant; everything is ended when the block is left."""
    async with AsyncExitStack() as stack:
        world = World(folder, plant)

        async def end() -> None:
            for child in (world.gateway, world.ingest):
                if child.running:
                    await child.end()

        stack.push_async_callback(end)
        await world.start(stack)
        yield world
