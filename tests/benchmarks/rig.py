"""A whole installation on loopback: mosquitto, machines, the real gateway, a sink; each a process of its own.

    async with Rig(broker, sink="ingest") as rig: … `rig.add(…)`, `await rig.start()`, `rig.gateway.pid`

State goes to a new folder on the disk, the runtime directory (flight ring) to tmpfs, as systemd has it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from loads import REGISTERS, modbus_host

from gateway.control.client import ControlClient
from gateway.demo.child import Child, until
from gateway.demo.world import free_port
from gateway.errors import GatewayError, LinkError
from gateway.testing.broker import Mosquitto
from gateway.testing.process import end_with_parent

HERE = Path(__file__).parent
_READY_S = 60.0


class Tool:
    """One of the programs beside this file: a line in, a line of JSON out. `where`: the beginning of a command line
    that runs it somewhere else."""

    def __init__(self, *arguments: object, where: Sequence[str] = ()) -> None:
        self._arguments = [str(each) for each in arguments]
        self._where = where
        self.said: Any = None
        """Its first line."""

    async def __aenter__(self) -> Self:
        program, *rest = self._arguments
        self._process = await asyncio.create_subprocess_exec(
            *self._where, sys.executable, str(HERE / program), *rest,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 30, preexec_fn=end_with_parent,
        )  # fmt: skip
        self.said = await self._answer()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, word: str = "") -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Rig:
    """The gateway between its sources and its sink. `sink_port` is where that listens; `entrance` where the gateway
    looks for it, the same unless something is put between before `start`; `endpoint` is more lines for the endpoint."""

    def __init__(
        self, sink: Literal["ingest", "counting"], ack_after_s: float = 0.0, state: Path | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
        self._state = state or self.folder / "state"
        tmpfs = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._runtime = Path(tempfile.mkdtemp(prefix="gw-bench-", dir=tmpfs))
        self._ingest = sink == "ingest"
        self.sink_port = self.entrance = free_port()
        self.endpoint = ""
        self.counting = Tool("counting_sink.py", ack_after_s)
        self.ingest = Child(
            ("ingest", "--data", str(self.folder / "cloud"), "--listen", f"127.0.0.1:{self.sink_port}", "--plain"),
            self.folder / "ingest.log",
        )
        self.gateway = Child(("run", "--config", str(self.folder / "gateway.toml")), self.folder / "gateway.log")
        self._control = ControlClient(self._runtime / "control.sock", timeout_s=5)
        self._toml = ""

    async def __aenter__(self) -> Self:
        if self._ingest:
            await self.ingest.start()
            await until(self._ingest_answers, _READY_S, "the cloud side answers")
            file = self.folder / "token"
            add = Child(("ingest", "--data", str(self.folder / "cloud"), "add", "bench", "--token-file", str(file)),
                        self.folder / "commands.log")  # fmt: skip
            await add.start()
            await add.wait()
            self.endpoint = f'token_file = "{file}"\n'
        else:
            await self.counting.__aenter__()
            self.sink_port = self.entrance = self.counting.said
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in (self.gateway, self.ingest):
            if child.log.exists() and child.running:
                await child.end()
        if not self._ingest:
            await self.counting.__aexit__(kind, error, trace)
        if kind is not None and self.gateway.log.exists():
            print(self.gateway.last_words(), file=sys.stderr)
        shutil.rmtree(self.folder)
        shutil.rmtree(self._runtime)

    def add(self, toml: str) -> None:
        """More of the configuration."""
        self._toml += toml

    def mqtt(self, broker: Mosquitto) -> None:
        """20 devices by one rule, two points of each."""
        self._toml += f"""
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
tcp_port = {broker.port}
client_id = "bench"

[[device]]
name = "{{device}}"
bus = "broker"
topic = "plant/{{device}}/state"
points = [ {{ name = "temperature", unit = "Cel" }}, {{ name = "humidity", unit = "%RH" }} ]
"""

    def modbus(self, port: int, devices: int, interval: str, registers: int = REGISTERS, units: int = 1) -> None:
        """So many units behind each host, one request for the registers of each."""
        points = ", ".join(f'{{ name = "r{i}", address = {i}, type = "uint16" }}' for i in range(registers))
        said = []
        for number in range(devices):
            line, unit = divmod(number, units)
            if not unit:
                said.append(
                    f'[[bus]]\nname = "line-{line}"\nkind = "modbus-tcp"\n'
                    f'host = "{modbus_host(line)}"\ntcp_port = {port}\n'
                )
            unit = (number if units == 1 else unit) % 250 + 1
            said.append(
                f'[[device]]\nname = "meter-{number + 1}"\nbus = "line-{line}"\nunit_id = {unit}\n'
                f'interval = "{interval}"\npoints = [ {points} ]\n'
            )
        self._toml += "\n" + "\n".join(said)

    async def start(self) -> None:
        """Returns when every bus is open and the uplink has a session."""
        self.write()
        await self.gateway.start()
        await until(self._listens, _READY_S, "the gateway collects")

    def write(self) -> None:
        head = (
            f'[gateway]\nname = "bench"\nstate_dir = "{self._state}"\nruntime_dir = "{self._runtime}"\n'
            f'[[uplink.endpoint]]\nname = "sink"\nurl = "ws://127.0.0.1:{self.entrance}/"\n{self.endpoint}'
        )
        (self.folder / "gateway.toml").write_text(head + self._toml)

    async def status(self) -> Any:
        return await asyncio.to_thread(self._control.ask, "status")

    async def _listens(self) -> bool:
        if not self.gateway.running:
            raise GatewayError("the gateway ended")
        try:
            status = await self.status()
        except LinkError:
            return False
        return status["uplink"]["active"] and all(bus["bus"].get("open") for bus in status["buses"].values())

    async def _ingest_answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.sink_port)
        except OSError:
            return False
        writer.close()
        return True

    async def stored(self, readings: int, within_s: float = 60.0) -> None:
        """Returns when the ingest server has committed so many readings in all."""
        db = sqlite3.connect(f"file:{self.folder / 'cloud' / 'ingest.db'}?mode=ro", uri=True, timeout=5)
        try:
            await until(
                lambda: (db.execute("SELECT max(id) FROM reading").fetchone()[0] or 0) >= readings,
                within_s, f"{readings} readings are stored",
            )  # fmt: skip
        finally:
            db.close()
