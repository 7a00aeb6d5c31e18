"""`gateway read modbus` against real counterparts: what it prints goes through `gateway check`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from modbus.slave import Slave

from cli.command import Done, Running, gateway
from gateway.codec.words import parse
from gateway.demo.machines import Pty

TESTS = Path(__file__).parents[1]


@contextmanager
def somebody(*words: str) -> Iterator[str]:
    """A server as a process of its own; yields the first line that it says."""
    server = subprocess.Popen([sys.executable, *words], cwd=TESTS, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def pasted(folder: Path, done: Done) -> dict[str, Any]:
    """What was printed, after `gateway check` has accepted it as it is."""
    (folder / "found.toml").write_text(done.out)
    checked = gateway("check", folder / "found.toml")
    assert checked.code == 0, checked.err + done.out
    return tomllib.loads(done.out)


def meter(slave: Slave, unit: int = 7, at: int = 100) -> None:
    """Phases of a meter as floats whose registers are swapped; everything else is refused."""
    data = b"".join(parse("float32", "CDAB").encode(each) for each in (230.1342, 229.87, 231.4, 5.123, 4.9123, 5.01))
    words = [int.from_bytes(data[place : place + 2], "big") for place in range(0, len(data), 2)]
    slave.registers |= {(unit, at + place): word for place, word in enumerate(words)}
    slave.holes = set(range(200)) - set(range(at, at + len(words)))


def test_a_block_is_read_round_what_is_refused_and_ends_in_a_configuration(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave)
        done = gateway("read", "modbus", slave.path, "--unit", 7, "--address", 90, "--count", 40)
        assert {frame[1] for _, frame in slave.requests} == {3}
    assert done.code == 0, done.err
    assert re.search(r"^90…99 +40091…40100 +- +no such registers", done.err, re.M)
    assert re.search(r"^100 +40101 +2 ?25b .*230\.1342 <.*mains voltage\?", done.err, re.M)
    assert "6 numbers marked, 6 of them for certain; byte order CDAB (100%); looked 3 times." in done.err
    assert "28 addresses refused" in done.err
    found = pasted(tmp_path, done)
    assert [(bus["port"], bus["baud_rate"]) for bus in found["bus"]] == [(str(slave.path), 9600)]
    (device,) = found["device"]
    assert (device["unit_id"], device["byte_order"]) == (7, "CDAB")
    assert [(point["address"], point["type"]) for point in device["points"]] == [
        (at, "float32") for at in range(100, 112, 2)
    ]


def test_all_orders_are_shown_the_likeliest_first(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave)
        words = ("--unit", 7, "--address", 100, "--count", 12, "--as", "all", "--looks", 1)
        done = gateway("read", "modbus", slave.path, *words)
    assert re.findall(r"byte order ([ABCD]{4}), ", done.err) == [
        "CDAB",
        *re.findall(r"order (\w+), unlikely", done.err),
    ]
    assert len(re.findall("unlikely", done.err)) == 3
    assert "(" in done.err, "nonsense is struck out"


def test_one_type_in_one_order_is_one_column_and_all_of_it_is_pasted(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave)
        words = ("--unit", 7, "--address", 100, "--count", 6, "--as", "float32:CDAB", "--looks", 1)
        done = gateway("read", "modbus", slave.path, *words)
    assert re.search(r"^102 +40103 +\w{4} \w{4} +229\.87", done.err, re.M)
    (device,) = pasted(tmp_path, done)["device"]
    assert [point["address"] for point in device["points"]] == [100, 102, 104]


def test_a_program_gets_one_document(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave)
        words = ("--unit", 7, "--address", 98, "--count", 14, "--json", "--looks", 2)
        done = gateway("read", "modbus", slave.path, *words)
    document = msgspec.json.decode(done.out)
    assert document["missing"] == [98, 99]
    assert document["looks"] == 2
    assert [mark["address"] for mark in document["marks"]] == list(range(100, 112, 2))
    assert document["marks"][0]["value"] == 230.1342
    assert max(document["orders"], key=document["orders"].get) == "CDAB"


def test_coils_are_on_or_off(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        slave.coils = {(1, 3): True, (1, 4): False}
        done = gateway("read", "modbus", slave.path, "--register", "coil", "--address", 3, "--count", 2)
    assert re.search(r"^3 +00004 +on", done.err, re.M)
    assert re.search(r"^4 +00005 +off", done.err, re.M)
    (device,) = pasted(tmp_path, done)["device"]
    assert [point["register"] for point in device["points"]] == ["coil", "coil"]


def test_a_server_of_somebody_else_is_read_over_tcp(tmp_path: Path) -> None:
    with somebody("modbus/pymodbus_server.py", "tcp") as port:
        words = ("--register", "input", "--address", 1990, "--count", 20, "--looks", 1, "--timeout", 5)
        done = gateway("read", "modbus", f"127.0.0.1:{port}", *words)
    assert done.code == 0, done.err
    assert re.search(r"^1990 +31991 +1b4e +6990", done.err, re.M)
    assert re.search(r"^2000…2009 +32001…32010 +- +no such registers", done.err, re.M)


def test_a_device_that_nobody_described_is_read_over_tcp(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    with somebody("-m", "modbus.shuffled", "7", str(truth)) as port:
        told = msgspec.json.decode(truth.read_bytes())
        words = ("--unit", told["unit"], "--register", told["table"], "--count", 100)
        done = gateway("read", "modbus", f"127.0.0.1:{port}", *words)
    (device,) = pasted(tmp_path, done)["device"]
    found = {(point["address"], point["type"]) for point in device["points"]}
    real = {(point["address"], point["type"]) for point in told["points"]}
    assert len(found & real) >= 0.8 * len(real)
    assert device["byte_order"] == told["points"][0]["order"]


def test_nobody_there_and_nothing_there_are_one_line(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        done = gateway("read", "modbus", slave.path, "--unit", 2, "--timeout", 0.1)
        assert (done.code, done.out) == (1, "")
        assert done.err == f"unit 2 does not answer; who does: gateway scan modbus {slave.path}\n"
        slave.holes = set(range(20))
        done = gateway("read", "modbus", slave.path)
        assert (done.code, done.out) == (1, "")
        assert "none of these 20 registers exists; another table: --register input" in done.err
        slave.exceptions = [1]
        done = gateway("read", "modbus", slave.path)
        assert (done.code, done.out) == (1, "")
        assert "unit 1 has no holding registers: illegal function (exception 1)" in done.err
    done = gateway("read", "modbus", "127.0.0.1:1")
    assert (done.code, done.out, done.err) == (1, "", "cannot connect to 127.0.0.1:1: Connection refused\n")
    done = gateway("read", "modbus", tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    assert done.err.strip() == f"cannot open {tmp_path / 'none'}: No such file or directory"


def test_a_port_that_another_program_holds_names_it() -> None:
    pty = Pty()
    program = f"import serial; p = serial.Serial({pty.path!r}, exclusive=True); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.close(pty._far)  # so that the holder is the only one
        for command in ("read", "scan"):
            done = gateway(command, "modbus", pty.path)
            assert (done.code, done.out) == (1, "")
            assert re.search(rf"in use by .*\(pid {holder.pid}\)", done.err)
    finally:
        holder.communicate(b"\n", timeout=10)
        os.close(pty.fd)


def test_ctrl_c_prints_what_was_read_so_far(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave, at=0)
        slave.delays = [0.0] * 10 + [0.2] * 1000
        words = ("--unit", 7, "--address", 0, "--count", 200)
        with Running(tmp_path, "read", "modbus", slave.path, *words) as command:
            command.until(lambda: len(slave.requests) > 16, "it reads")
            done = command.end(signal.SIGINT)
    assert done.code == 130
    assert "6 numbers marked" in done.err
    assert len(tomllib.loads(done.out)["device"][0]["points"]) == 6


def test_watching_looks_until_ctrl_c_and_says_what_moves(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        for at in range(4):
            slave.registers[1, at] = 2300 + at
        with Running(tmp_path, "read", "modbus", slave.path, "--count", 4, "--watch") as command:
            command.until(lambda: len(slave.requests) > 1, "it looks again")
            slave.registers[1, 0] = 2311
            seen = len(slave.requests)
            command.until(lambda: len(slave.requests) > seen + 1, "it looks again")
            done = command.end(signal.SIGINT)
    assert done.code == 0
    assert re.search(r"^0 +40001 +0907 +2311 <.*moves", done.err, re.M)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--as", "float33"), "unknown type 'float33'"),
        (("--as", "float32:ABBA"), "unknown byte order 'ABBA'"),
        (("--unit", "300"), "from 0 to 255"),
    ],
)
def test_wrong_usage_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    done = gateway("read", "modbus", "127.0.0.1:1", *words)
    assert done.code == 2
    assert said in done.err


def test_a_bus_of_the_configuration_is_read_by_its_name(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(7,)) as slave:
        meter(slave)
        config = tmp_path / "config.toml"
        config.write_text(
            f"""
            [gateway]
            state_dir = "{tmp_path}"
            runtime_dir = "{tmp_path}"
            [[bus]]
            name = "rs485a"
            kind = "modbus-rtu"
            port = "{slave.path}"
            """
        )
        words = ("-c", config, "--unit", 7, "--address", 100, "--count", 12, "--looks", 1)
        done = gateway("read", "modbus", "rs485a", *words)
        unknown = gateway("read", "modbus", "rs485b", "-c", config)
    assert done.code == 0, done.err
    assert "[[bus]]" not in done.out
    assert tomllib.loads(done.out)["device"][0]["bus"] == "rs485a"
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.endswith(f"Nor is there a bus of this name in {config}.\n")


def test_a_range_ends_at_the_last_address(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        done = gateway("read", "modbus", slave.path, "--address", 65_530, "--count", 100, "--looks", 1, "--json")
    assert list(msgspec.json.decode(done.out)["values"]) == [str(each) for each in range(65_530, 65_536)]


@pytest.mark.parametrize("name", ["int8", "uint8", "bool", "string", "float16", "int64:DCBA", "float64:CDAB", "bcd16"])
def test_every_type_can_be_asked_for(tmp_path: Path, name: str) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        slave.registers = {(1, at): 0x3132 for at in range(8)}
        words = ("--count", 8, "--as", name, "--looks", 1)
        done = gateway("read", "modbus", slave.path, *words)
    assert done.code == 0, done.err
    assert "reference" in done.err
    if done.out:
        pasted(tmp_path, done)
