"""The connector against servers that others wrote, over TCP and a pseudo-terminal: libmodbus, pymodbus, modbus-serial.

Random images of registers are written to each and read back as every type in every byte order. What a value should be
others say: pymodbus's own conversion, JavaScript's buffers in the modbus-serial server, and mbpoll, which is built on
libmodbus, as a second client of the same server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import SystemClock
from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.config import TcpBus
from gateway.connectors.modbus.identity import identify, server_id
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import Function, Request
from gateway.demo.world import free_port
from gateway.errors import CommandError
from gateway.model import Status, Write

from .bench import Bench, device, rtu
from .images import Images
from .pair import PtyPair

HERE = Path(__file__).parent
POINTS = [
    {"name": "h", "address": 100, "type": "uint32", "write": {}},
    {"name": "i", "address": 200, "register": "input"},
    {"name": "c", "address": 9, "register": "coil", "write": {}},
    {"name": "d", "address": 10, "register": "discrete"},
    {"name": "w", "address": 300, "write": {"fc": 6}},
    {"name": "beyond", "address": 60000},
]


Ask = Callable[[], str]


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[str]:
    """A server and the line that it prints when it is ready."""
    with process(command, env) as (_, line):
        yield line


@contextmanager
def process(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[tuple[Ask, str]]:
    """Asks a server on its input, too: one line there, one line back."""
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert server.stdin is not None
    assert server.stdout is not None
    into, out = server.stdin, server.stdout

    def ask() -> str:
        into.write("\n")
        into.flush()
        return out.readline()

    try:
        line = out.readline().strip()
        assert line, "the server did not start"
        yield ask, line
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="session")
def libmodbus(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the libmodbus server with")
    program = tmp_path_factory.mktemp("libmodbus") / "server"
    source = HERE / "libmodbus_server.c"
    built = subprocess.run(
        ["gcc", "-Wall", "-o", program, source, "-I/usr/include/modbus", "-lmodbus"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "modbus.h" in built.stderr:
        pytest.skip("libmodbus is not installed (libmodbus-dev)")
    assert built.returncode == 0, built.stderr
    return str(program)


def poll_and_write(bus: Mapping[str, Any], unit: int) -> None:
    """What every server must give, whoever wrote it."""

    async def scenario() -> None:
        bench = Bench(bus, [device("meter", unit, *POINTS, interval=0.1)])
        async with bench.running():
            await bench.until(lambda: all(bench.values("meter", point) for point in "hicdw"))
            await bench.until(lambda: bool(bench.statuses("meter", "beyond")))
            assert bench.values("meter", "h")[0] == (100 << 16) + 101
            assert bench.values("meter", "i")[0] == 5200
            assert bench.values("meter", "c")[0] is True
            assert bench.values("meter", "d")[0] is False
            assert bench.statuses("meter", "beyond")[0] is Status.CONFIG
            for point, value in (("h", 0xFFFFFFFE), ("c", False), ("w", 12345)):
                assert await bench.connector.execute(Write("meter", point, value, verify=True)) == value
                await bench.until(lambda p=point, v=value: bench.values("meter", p)[-1] == v)  # type: ignore[misc]
            with pytest.raises(CommandError):
                await bench.connector.execute(Write("meter", "i", 1))
            assert bench.connector.status()["devices"]["meter"]["failed"] == 0

    asyncio.run(scenario())


@pytest.fixture(scope="session")
def modbus_serial() -> Mapping[str, str]:
    """The environment in which Node finds the package."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node.js to run modbus-serial on")
    root = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(root, "modbus-serial").is_dir():
        pytest.skip("modbus-serial is not installed (npm install --global --omit=optional modbus-serial)")
    return {**os.environ, "NODE_PATH": root}


def test_libmodbus_over_tcp(libmodbus: str) -> None:
    with running([libmodbus, "tcp"]) as port:
        poll_and_write({"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": int(port), "timeout": 2}, 1)


def test_libmodbus_over_a_serial_line(libmodbus: str, tmp_path: Path) -> None:
    with PtyPair(tmp_path) as pair, running([libmodbus, "rtu", str(pair.there), "7"]):
        poll_and_write(rtu(pair.here, baud_rate=9600, timeout=2), 7)


def test_pymodbus_over_tcp() -> None:
    with running([sys.executable, str(HERE / "pymodbus_server.py"), "tcp"]) as port:
        poll_and_write({"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": int(port), "timeout": 2}, 1)


def test_pymodbus_with_rtu_frames_over_tcp() -> None:
    with running([sys.executable, str(HERE / "pymodbus_server.py"), "rtu-over-tcp"]) as port:
        bus = {"kind": "modbus-rtu-over-tcp", "host": "127.0.0.1", "tcp_port": int(port), "timeout": 2}
        poll_and_write(bus | {"late_window": 0.05}, 1)


def test_modbus_serial_over_tcp(modbus_serial: Mapping[str, str]) -> None:
    with running(["node", str(HERE / "modbus_serial_server.js"), str(free_port())], modbus_serial) as port:
        poll_and_write({"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": int(port), "timeout": 2}, 1)


def test_pymodbus_over_a_serial_line(tmp_path: Path) -> None:
    server = str(HERE / "pymodbus_server.py")
    with PtyPair(tmp_path) as pair, running([sys.executable, server, "rtu", str(pair.there)]):
        poll_and_write(rtu(pair.here, timeout=2), 1)


def test_pymodbus_over_a_serial_line_in_ascii(tmp_path: Path) -> None:
    server = str(Path(__file__).with_name("pymodbus_server.py"))
    with PtyPair(tmp_path) as pair, running([sys.executable, server, "ascii", str(pair.there)]):
        poll_and_write(rtu(pair.here, kind="modbus-ascii", timeout=2), 1)


def test_pymodbus_with_ascii_frames_over_tcp() -> None:
    with running([sys.executable, str(Path(__file__).with_name("pymodbus_server.py")), "ascii-over-tcp"]) as port:
        bus = {"kind": "modbus-ascii-over-tcp", "host": "127.0.0.1", "tcp_port": int(port), "timeout": 2}
        poll_and_write(bus | {"late_window": 0.05}, 1)


def less_common(port: str, kind: str = "modbus-tcp") -> dict[int, bytes]:
    """Functions 22, 23 and 17 as every server must know them; returns what it says to 43."""

    async def scenario() -> dict[int, bytes]:
        bus = TcpBus(name="b", kind=kind, host="127.0.0.1", tcp_port=int(port), timeout=2, late_window=0.05)
        line = Line(bus, SystemClock(), lambda: None)
        await line.open()

        async def ask(request: Request) -> Reply:
            return (await line.ask(request)).reply

        try:
            mask = Request(1, Function.MASK_WRITE_REGISTER, 0x12, 1, b"\x00\xf2\x00\x25")
            assert (await ask(Request(1, Function.READ_HOLDING_REGISTERS, 0x12))).data == b"\0\x12"
            assert await ask(mask) == Reply(b"")
            held = await ask(Request(1, Function.READ_HOLDING_REGISTERS, 0x12))
            assert held == Reply((0x12 & 0xF2 | 0x25 & ~0xF2).to_bytes(2, "big"))
            both = Request(1, Function.READ_WRITE_MULTIPLE_REGISTERS, 40, 2, b"\1\2\3\4")
            assert await ask(both) == Reply(b"\1\2\3\4")
            said = await ask(server_id(1))
            assert said.data
            return await identify(ask, 1)
        finally:
            line.close()

    return asyncio.run(scenario())


def test_libmodbus_knows_the_less_common_functions(libmodbus: str) -> None:
    with running([libmodbus, "tcp"]) as port:
        assert less_common(port) == {}  # no identification objects there


@pytest.mark.parametrize("framing", ["tcp", "rtu-over-tcp", "ascii-over-tcp"])
def test_pymodbus_knows_the_less_common_functions_and_says_who_it_is_in_several_answers(framing: str) -> None:
    server = str(Path(__file__).with_name("pymodbus_server.py"))
    with running([sys.executable, server, framing]) as port:
        told = less_common(port, f"modbus-{framing}")
    wanted = {0: b"ACME", 1: b"M-7", 2: b"V2.1", 3: b"http://acme.example", 4: b"Meter"}
    assert {number: told[number] for number in wanted} == wanted
    assert (told[0x80], told[0x81]) == (b"x" * 200, b"y" * 100)


def test_a_server_that_hangs_up_between_polls_is_connected_to_again(libmodbus: str) -> None:
    async def scenario(port: int) -> None:
        # a forwarder that ends each connection after its second answer, as small devices do with their idle ones
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                there_writer.write(await reader.read(300))
                writer.write(await there_reader.read(300))
            for each in (writer, there_writer):
                each.close()

        front = await asyncio.start_server(forward, "127.0.0.1", 0)
        bus = {"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": front.sockets[0].getsockname()[1], "timeout": 2}
        bench = Bench(bus, [device("meter", 1, {"name": "h", "address": 5}, interval=0.05)])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h")) >= 7)
            assert bench.connector.status()["reopened"] >= 3
        assert set(bench.values("meter", "h")) == {5}
        front.close()

    with running([libmodbus, "tcp"]) as port:
        asyncio.run(scenario(int(port)))


def test_a_server_that_accepts_and_never_answers_is_recycled_and_said_to_be_offline() -> None:
    async def scenario() -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        bus = {"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": silent.getsockname()[1], "timeout": 0.05}
        bench = Bench(bus, [device("meter", 1, {"name": "h", "address": 5}, interval=0.05)])
        async with bench.running():
            await bench.until(lambda: bench.connector.status()["reopened"] >= 1)
            await bench.until(lambda: Status.DEVICE_OFFLINE in bench.statuses("meter", "h"))
        assert bench.values("meter", "h") == []
        silent.close()

    asyncio.run(scenario())


def test_a_device_that_ignores_what_comes_at_once_gets_its_pause_after_connecting(libmodbus: str) -> None:
    async def scenario(port: int) -> None:
        ignored: list[bytes] = []

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(0.3):  # still starting, as some dongles are for a second
                    ignored.append(await reader.read(300))
            except TimeoutError:
                pass
            while request := await reader.read(300):
                there_writer.write(request)
                writer.write(await there_reader.read(300))
            for each in (writer, there_writer):
                each.close()

        front = await asyncio.start_server(forward, "127.0.0.1", 0)
        bus = {"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": front.sockets[0].getsockname()[1], "timeout": 2}
        bench = Bench(bus | {"connect_delay": "600ms"}, [device("meter", 1, {"name": "h", "address": 5})])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
        assert bench.samples[0].values == (5,)
        assert ignored == []
        front.close()

    with running([libmodbus, "tcp"]) as port:
        asyncio.run(scenario(int(port)))


def test_a_stranger_on_the_connection_and_answers_out_of_order_are_passed_over() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = b""
        while request := await reader.read(300):
            address = int.from_bytes(request[8:10], "big")
            answer = request[:4] + b"\0\5" + request[6:8] + b"\2" + address.to_bytes(2, "big")
            # the answer of before comes again in front of this one, under its own number
            writer.write(held + answer)
            held = answer
        writer.close()

    async def scenario() -> None:
        front = await asyncio.start_server(serve, "127.0.0.1", 0)
        bus = {"kind": "modbus-tcp", "host": "127.0.0.1", "tcp_port": front.sockets[0].getsockname()[1], "timeout": 2}
        points = [{"name": f"h{address}", "address": address} for address in (10, 100)]
        bench = Bench(bus, [device("meter", 1, *points, interval=0.02)])
        async with bench.running():
            await bench.until(lambda: len(bench.values("meter", "h100")) >= 10)
        assert set(bench.values("meter", "h10")) == {10}
        assert set(bench.values("meter", "h100")) == {100}
        front.close()

    asyncio.run(scenario())


IMAGES = [4, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
"""Layouts of points, of 25 images each."""


@pytest.mark.parametrize("layouts", IMAGES)
def test_libmodbus_and_mbpoll_agree_about_every_type_in_every_order(libmodbus: str, layouts: int) -> None:
    with process([libmodbus, "tcp"]) as (_, port):
        Images(int(port), seed=1).compare(layouts)


@pytest.mark.parametrize("layouts", IMAGES)
def test_pymodbus_and_mbpoll_agree_about_every_type_in_every_order(layouts: int) -> None:
    with process([sys.executable, str(HERE / "pymodbus_server.py"), "tcp"]) as (_, port):
        Images(int(port), seed=2).compare(layouts)


@pytest.mark.parametrize("layouts", IMAGES)
def test_modbus_serial_and_mbpoll_agree_about_every_type_in_every_order(
    modbus_serial: Mapping[str, str], layouts: int
) -> None:
    command = ["node", str(HERE / "modbus_serial_server.js"), str(free_port())]
    with process(command, modbus_serial) as (ask, port):
        Images(int(port), seed=3, said=lambda: json.loads(ask())).compare(layouts)
