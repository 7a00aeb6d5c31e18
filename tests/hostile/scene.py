"""What the attacks are aimed at: a real gateway that polls a real machine and has an honest sink as its last endpoint.

Whatever is done to it, three things are asked afterwards: is it the same process, did its memory stay within bounds,
and do new readings arrive at the honest sink.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.control.client import ControlClient
from gateway.demo.child import Child, until
from gateway.demo.machines import ModbusTcp, Registers
from gateway.demo.world import free_port
from gateway.errors import LinkError
from gateway.model import Json

PATIENCE_S = 60.0
MAX_GROWTH_KIB = 48 * 1024
"""What an attack may cost the gateway at its peak: buffers of sockets and library, a frame, its decoded form."""


class Scene:
    """`endpoints` are (name, port), best first; the honest sink comes after them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = free_port()
        self._control = ControlClient(folder / "run" / "control.sock", timeout_s=5)
        self.registers = Registers("meter")
        self.ingest = Child(
            ("ingest", "--listen", f"127.0.0.1:{self._port}", "--data", str(folder / "cloud"), "--plain"),
            folder / "ingest.log",
        )
        self.gateway = Child(("run", "--config", str(folder / "gateway.toml")), folder / "gateway.log")

    @property
    def port(self) -> int:
        """Of the honest sink."""
        return self._port

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text().strip()

    async def start_sink(self) -> None:
        await self.ingest.start()
        await until(self._sink_answers, PATIENCE_S, "the sink answers")
        await self.add("plant", self.folder / "token")

    async def add(self, name: str, token_file: Path) -> None:
        data = str(self.folder / "cloud")
        command = Child(
            ("ingest", "--data", data, "add", name, "--token-file", str(token_file)), self.folder / "add.log"
        )
        await command.start()
        assert await command.wait() == 0, command.last_words()

    async def start_gateway(self, endpoints: Sequence[tuple[str, int]], machine_port: int) -> None:
        lines = [
            f'[gateway]\nname = "plant"\nstate_dir = "{self.folder / "state"}"\nruntime_dir = "{self.folder / "run"}"',
            *(
                f'[[uplink.endpoint]]\nname = "{name}"\nurl = "ws://127.0.0.1:{port}/"\n'
                f'token_file = "{self.folder / "token"}"'
                for name, port in [*endpoints, ("honest", self._port)]
            ),
            f'[[bus]]\nname = "net"\nkind = "modbus-tcp"\nhost = "127.0.0.1"\ntcp_port = {machine_port}',
            '[[device]]\nname = "meter"\nbus = "net"\nunit_id = 1\ninterval = "100ms"\npoints = [\n'
            '  { name = "sequence", address = 0, type = "uint32" },\n'
            '  { name = "setpoint", address = 7, type = "uint16", scale = 0.1, write = { min = 5, max = 35 } },\n]',
        ]
        (self.folder / "gateway.toml").write_text("\n".join(lines) + "\n")
        await self.gateway.start()
        await until(self._gateway_answers, PATIENCE_S, "the gateway answers")

    async def status(self) -> Json:
        return await asyncio.to_thread(self._control.ask, "status")

    def said(self) -> str:
        """The gateway's log."""
        return self.gateway.log.read_text(errors="replace")

    async def delivers(self) -> None:
        """Returns when a reading that was made from now on is at the honest sink."""
        assert self.gateway.running, self.gateway.last_words()
        target = self.registers.produced + 1
        await until(lambda: self._newest() >= target, PATIENCE_S, "new readings arrive at the honest sink")

    def _newest(self) -> int:
        db = sqlite3.connect(f"file:{self.folder / 'cloud' / 'ingest.db'}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("SELECT max(value) FROM readings WHERE point = 'sequence'").fetchone()[0] or 0)
        finally:
            db.close()

    async def _sink_answers(self) -> bool:
        assert self.ingest.running, self.ingest.last_words()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        return True

    async def _gateway_answers(self) -> bool:
        assert self.gateway.running, self.gateway.last_words()
        try:
            status = await self.status()
        except LinkError:
            return False
        return bool(status["buses"]["net"]["bus"].get("open"))


def peak_kib(child: Child) -> int:
    """The most memory that the process has ever had (VmHWM)."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Scene, int]]:
    """The scene with its sink and its machine at work, and the machine's port; the gateway is yet to be started."""
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="gw-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        here = Scene(folder)

        async def end() -> None:
            for child in (here.gateway, here.ingest):
                if child.running:
                    await child.end()

        stack.push_async_callback(end)
        machine = ModbusTcp(here.registers)
        await machine.listen()
        serving = asyncio.create_task(machine.run())
        stack.callback(serving.cancel)
        await here.start_sink()
        yield here, machine.port
