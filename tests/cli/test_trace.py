"""`gateway trace` on a gateway at work, and reading registers through it."""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from modbus.pair import PtyPair
from modbus.slave import Slave

from cli.command import Done, Running, gateway
from gateway.connectors.modbus.framing import RTU


@contextmanager
def at_work(folder: Path, slave: Slave) -> Iterator[Path]:
    """A gateway that polls units 1 and 9, of which 9 is dead; yields its configuration."""
    config = folder / "config.toml"
    config.write_text(
        f"""
        [gateway]
        state_dir = "{folder}"
        runtime_dir = "{folder}"

        [[bus]]
        name = "rs485a"
        kind = "modbus-rtu"
        port = "{slave.path}"
        baud_rate = 115200
        timeout = "200ms"
        late_window = "100ms"

        [[bus]]
        name = "line"
        kind = "serial"
        port = "{folder}/none"

        [[device]]
        name = "scale"
        bus = "line"
        format = "json"
        points = "auto"

        [[device]]
        name = "meter"
        bus = "rs485a"
        unit_id = 1
        interval = "100ms"
        points = [ {{ name = "x", address = 5 }}, {{ name = "c", register = "coil", address = 3 }} ]

        [[device]]
        name = "dead"
        bus = "rs485a"
        unit_id = 9
        interval = "1s"
        points = [ {{ name = "x", register = "input", address = 5 }} ]
        """
    )
    with Running(folder, "run", "--config", config) as daemon:
        daemon.until(lambda: slave.asked(1) > 1, "it polls")
        yield config


def traced(folder: Path, config: Path, *words: str, until: str) -> Done:
    with Running(folder, "trace", "rs485a", "--config", config, *words) as trace:
        trace.says(until)
        return trace.end(signal.SIGINT)


def test_a_trace_says_what_travels_and_how_it_ended(folder: Path) -> None:
    with Slave(folder, units=(1,)) as slave, at_work(folder, slave) as config:
        done = traced(folder, config, until="no answer")
        assert done.code == 130
        assert done.err == ""
        stamp = r"^\d\d:\d\d:\d\d\.\d{3}  "
        assert re.search(stamp + r"unit 1    read holding 5 → 5 +\d+ ms  ok$", done.out, re.M)
        assert re.search(stamp + r"unit 1    read coil 3 → 1 +\d+ ms  ok$", done.out, re.M)
        assert re.search(stamp + r"unit 9    read input 5 +\d+ ms  no answer, quarantined$", done.out, re.M)

        done = traced(folder, config, "--unit", "1", "--raw", until=" < 01 03 02")
        assert "unit 9" not in done.out
        assert re.search(r"^ +> 01 03 00 05 00 01 94 0b$\n +< 01 03 02 00 05 78 47$", done.out, re.M)

        with Running(folder, "trace", "rs485a", "--config", config, "--json") as trace:
            trace.says("read coil")
            slave.delays = [0.0, 0.3]
            trace.says("late")
            done = trace.end(signal.SIGINT)
        entries = [msgspec.json.decode(line) for line in done.out.splitlines()]
        (late,) = [entry for entry in entries if entry["verdict"].startswith("late")]
        assert late["unit"] == 1
        assert late["took_ms"] > 250


def test_a_bus_that_is_none_of_these_is_one_line(folder: Path) -> None:
    with Slave(folder, units=(1,)) as slave, at_work(folder, slave) as config:
        done = gateway("trace", "rs485b", "--config", config)
        assert (done.code, done.out) == (1, "")
        assert done.err == "no bus 'rs485b'; did you mean `rs485a`?\n"
        done = gateway("trace", "line", "--config", config)
        assert (done.code, done.out) == (1, "")
        assert done.err == "line is a bus of kind serial; only Modbus can be traced\n"
    done = gateway("trace", "rs485a", "--socket", folder / "none.sock")
    assert (done.code, done.out) == (69, "")
    assert "no gateway answers" in done.err


def test_registers_of_a_bus_in_use_are_read_through_the_gateway_that_holds_it(folder: Path) -> None:
    with Slave(folder, units=(1, 2)) as slave, at_work(folder, slave) as config:
        slave.registers |= {(2, 40 + at): 2300 + at for at in range(4)}
        slave.holes = set(range(44, 60))
        words = ("--unit", 2, "--address", 40, "--count", 10, "--looks", 1)
        done = gateway("read", "modbus", "rs485a", "--config", config, *words)
        assert done.code == 0, done.err
        assert "asking through the running gateway, between its polls on rs485a" in done.err
        assert "6 addresses refused" in done.err
        (device,) = tomllib.loads(done.out)["device"]
        assert (device["bus"], [point["address"] for point in device["points"]]) == ("rs485a", [40, 41, 42, 43])

        done = gateway("read", "modbus", slave.path)
        assert (done.code, done.out) == (1, "")
        assert "in use by" in done.err
        assert "`gateway read modbus BUS` asks through it" in done.err

        polls = slave.asked(1)
        done = gateway("read", "modbus", "rs485a", "--config", config, "--unit", 3, "--looks", 1)
        assert (done.code, done.out) == (1, "")
        assert "unit 3 does not answer" in done.err
        assert slave.asked(1) > polls


def test_a_port_is_listened_to_without_a_word(folder: Path) -> None:
    with PtyPair(folder) as pair, Running(folder, "trace", pair.here) as trace:
        with pair.there.open("wb", buffering=0) as other:
            question = RTU.frame(9, b"\x03\0\0\0\2", 0)
            answer = RTU.frame(9, b"\x03\4\0\1\0\2", 0)
            trace.until(lambda: bool(other.write(question + answer)) and "foreign" in trace.out, "it hears")
        done = trace.end(signal.SIGINT)
    assert done.code == 130
    assert re.search(r"unit 9    read holding 0…1 +foreign$", done.out, re.M)
    assert re.search(r"unit 9    read holding: 1 2 +foreign$", done.out, re.M)
    done = gateway("trace", folder / "none")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"cannot open {folder / 'none'}: No such file or directory\n"
