"""Finding what is on a bus, and getting it as configuration."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.connectors.modbus.candidates import LIKELY, LIKELY_TCP, SETTINGS, Step, host_steps, longest_s, port_steps
from gateway.connectors.modbus.config import ModbusDevice, RtuBus, TcpBus
from gateway.connectors.modbus.findings import Finding, paste
from gateway.connectors.modbus.framing import ASCII
from gateway.connectors.modbus.scan import Progress, Result, Scan, scan_network
from gateway.connectors.modbus.sunspec import Found, Model
from gateway.errors import LinkError
from gateway.settings import read

from .slave import Slave
from .test_sunspec import inverter

SERVER = Path(__file__).with_name("pymodbus_server.py")


async def scanned(steps: Sequence[Step], seen: list[Progress] | None = None) -> Result:
    return await Scan(steps, SystemClock(), (seen if seen is not None else []).append, asyncio.Event()).run()


# ── the order of things ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_likely_units_are_asked_under_every_setting_before_any_setting_is_tried_with_all() -> None:
    steps = port_steps("/dev/ttyUSB0")
    assert [step.units for step in steps[: len(SETTINGS)]] == [LIKELY] * len(SETTINGS)
    assert [(step.bus.baud_rate, step.bus.parity) for step in steps[:2] if isinstance(step.bus, RtuBus)] == [
        (9600, "N"),
        (19200, "E"),
    ]
    asked = [(step.bus, unit) for step in steps for unit in step.units]
    assert len(asked) == len(set(asked)) == 247 * len(SETTINGS)
    assert longest_s(steps[: len(SETTINGS)]) < 25 < longest_s(steps)


def test_a_host_is_asked_for_the_units_that_tcp_devices_have_and_in_rtu_frames_too() -> None:
    steps = host_steps("10.0.0.5")
    assert [(step.bus.kind, step.units) for step in steps[:2]] == [
        ("modbus-tcp", LIKELY_TCP),
        ("modbus-rtu-over-tcp", LIKELY_TCP),
    ]
    assert sorted(unit for step in steps if step.bus.kind == "modbus-tcp" for unit in step.units) == sorted(
        {0, 255, *range(1, 248)}
    )


def test_units_that_are_named_are_the_only_ones() -> None:
    assert [step.units for step in port_steps("/dev/x", [(9600, "N")], units=(2, 200))] == [(2,), (200,)]
    assert {unit for step in host_steps("h", units=(0, 99)) for unit in step.units} == {0, 99}


# ── a line ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_units_are_found_whether_they_answer_or_refuse_and_nothing_is_written(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with Slave(tmp_path, units=(2, 5)) as slave:
        slave.holes = {0}
        steps = port_steps(str(slave.path), [(9600, "N"), (19200, "E")], range(1, 8), 0.08)
        result = asyncio.run(scanned(steps, seen))
        assert {frame[1] for _, frame in slave.requests} <= {3, 4, 17, 43}
    assert [finding.unit for finding in result.findings] == [2, 5]
    assert "illegal data address" in result.findings[0].answer
    assert {finding.bus.baud_rate for finding in result.findings if isinstance(finding.bus, RtuBus)} == {9600}
    assert seen[0] == Progress(0, "9600 8N1, unit 1", 0)
    assert seen[-1] == Progress(1, "done", 2)
    assert [each.share for each in seen] == sorted(each.share for each in seen)


def test_a_unit_says_who_it_is(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1, 2, 3)) as slave:
        slave.identities[1, 43] = b"\x2b\x0e\3\x83\0\0\3\0\4ACME\1\3M-1\2\0031.2"
        slave.identities[2, 17] = b"\x11\x05SDM72"
        slave.registers |= {(3, address): word for address, word in inverter(40000).items()}
        result = asyncio.run(scanned(port_steps(str(slave.path), [(9600, "N")], (1, 2, 3), 0.3)))
    assert [finding.identity for finding in result.findings] == [
        "ACME M-1 1.2",
        "server id SDM72",
        "Solar AG X 8000 1.2.3 SN-77",
    ]
    sunspec = result.findings[2].sunspec
    assert sunspec is not None
    assert [model.id for model in sunspec.models] == [1, 103]
    text = paste(result.findings)
    assert "#   model 103 at 40072 inverter, three phases" in text
    assert len(tomllib.loads(text)["device"]) == 3


def test_the_next_setting_is_tried_when_one_finds_nobody(tmp_path: Path) -> None:
    with Slave(tmp_path, units=()) as slave:
        steps = port_steps(str(slave.path), [(9600, "N"), (19200, "E")], (1, 2), 0.02)
        assert asyncio.run(scanned(steps)).findings == []
        assert len(slave.requests) == 4


def test_once_a_setting_found_somebody_the_other_units_are_asked_under_it_alone(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(3, 40)) as slave:
        steps = port_steps(str(slave.path), [(9600, "N"), (19200, "E")], (1, 2, 3, 40, 41), 0.05)
        result = asyncio.run(scanned(steps))
        asked = [frame[0] for _, frame in slave.requests if frame[1] == 3 and frame[2:4] == b"\0\0" and frame[5] == 1]
    assert [finding.unit for finding in result.findings] == [3, 40]
    assert asked == [1, 2, 3, 40, 41]


def test_a_unit_that_answers_late_is_found_by_its_late_answer(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(2,)) as slave:
        slave.delays = [0.0, 0.3]
        result = asyncio.run(scanned(port_steps(str(slave.path), [(9600, "N")], range(1, 7), 0.08)))
    assert [(finding.unit, finding.answer) for finding in result.findings] == [(2, "answers later than 80 ms")]


def test_bytes_that_are_no_modbus_are_a_hint(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(1,)) as slave:
        slave.prefix = b"\xf8\x80\x78"
        slave.corrupt = lambda number: True
        result = asyncio.run(scanned(port_steps(str(slave.path), [(19200, "E")], (1, 2), 0.1)))
    assert result.findings == []
    assert "no Modbus (at 19200 8E1)" in result.remarks[0]


def test_an_adapter_that_returns_what_is_sent_is_no_hint_and_no_unit(tmp_path: Path) -> None:
    with Slave(tmp_path, units=()) as slave:
        slave.echo = True
        result = asyncio.run(scanned(port_steps(str(slave.path), [(9600, "N")], (1, 2, 3), 0.05)))
    assert result == Result([])


def test_a_port_that_is_not_there_ends_the_scan_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="nothing"):
        asyncio.run(scanned(port_steps(str(tmp_path / "nothing"))))


# ── hosts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_that_reaches_nobody_is_not_taken_for_247_units_and_one_that_hangs_up_is_asked_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(12):
            unit = head[6]
            if unit == 2:
                break  # this one hangs up
            body = b"\x03\x02\x00\x2a" if unit == head[7] == 3 else bytes([head[7] | 0x80, 11])
            writer.write(head[:4] + (1 + len(body)).to_bytes(2, "big") + bytes([unit]) + body)
        writer.close()

    async def scenario() -> Result:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await scanned(host_steps("127.0.0.1", port, units=range(1, 5), timeout_s=2)[:1])

    result = asyncio.run(scenario())
    assert [(finding.unit, finding.answer) for finding in result.findings] == [(3, "register 0 holds 42")]


def test_somebody_elses_server_that_answers_to_every_unit_is_one_device() -> None:
    server = subprocess.Popen([sys.executable, str(SERVER), "tcp"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = asyncio.run(scanned(host_steps("127.0.0.1", port, timeout_s=5)))
    finally:
        server.kill()
        server.communicate()
    assert [finding.unit for finding in result.findings] == [1]
    assert "one device" in result.remarks[0]


def test_a_serial_server_that_wants_rtu_frames_is_found() -> None:
    server = subprocess.Popen([sys.executable, str(SERVER), "rtu-over-tcp"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = asyncio.run(scanned(host_steps("127.0.0.1", port, units=(1,), timeout_s=0.7)))
    finally:
        server.kill()
        server.communicate()
    assert [(finding.bus.kind, finding.unit) for finding in result.findings] == [("modbus-rtu-over-tcp", 1)]


def test_of_a_network_the_hosts_that_speak_modbus_are_found_and_the_mute_ones_named() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(12):
            body = b"\x03\x02\x00\x2a" if head[7] == 3 and head[6] == 255 else bytes([head[7] | 0x80, 11])
            writer.write(head[:4] + (1 + len(body)).to_bytes(2, "big") + head[6:7] + body)
        writer.close()

    async def scenario() -> Result:
        server = await asyncio.start_server(serve, "127.0.0.3", 0)
        port = server.sockets[0].getsockname()[1]
        mute = socket.create_server(("127.0.0.5", port))
        hosts = [f"127.0.0.{n}" for n in range(2, 8)]
        async with server:
            try:
                return await scan_network(hosts, port, SystemClock(), lambda _: None, asyncio.Event())
            finally:
                mute.close()

    result = asyncio.run(scenario())
    found = [(each.bus.host, each.unit) for each in result.findings if isinstance(each.bus, TcpBus)]
    assert found == [("127.0.0.3", 255)]
    assert [remark.split()[0] for remark in result.remarks] == ["127.0.0.5"]


# ── what is pasted ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_findings_paste_into_the_configuration() -> None:
    serial, other = (step.bus for step in port_steps("/dev/serial/by-id/x", [(9600, "N"), (19200, "E")], (1,)))
    tcp = host_steps("192.168.1.50")[0].bus
    sunspec = Found(40000, (Model(1, 40004, 66),), ("A\nB", "", "", ""))
    text = paste(
        [
            Finding(serial, 2, "ok", "Ac\nme"),
            Finding(other, 3, "input register 0 holds 7"),
            Finding(serial, 5, "ok"),
            Finding(tcp, 2, "ok", "", sunspec),
        ]
    )
    document = tomllib.loads(text)
    buses = {}
    for raw in document["bus"]:
        bus, mistakes = read(RtuBus if raw["kind"] == "modbus-rtu" else TcpBus, raw)
        assert bus is not None, mistakes
        buses[bus.name] = bus
    assert len(buses) == 3
    assert buses["rs485-2"].parity == "E"  # type: ignore[union-attr]
    assert buses["modbus-3"].host == "192.168.1.50"  # type: ignore[union-attr]
    where = {raw["name"]: raw["bus"] for raw in document["device"]}
    assert where == {"unit-2": "rs485", "unit-5": "rs485", "unit-3-2": "rs485-2", "unit-2-3": "modbus-3"}
    for raw in document["device"][:3]:
        device, mistakes = read(ModbusDevice, raw)
        assert device is not None, mistakes
    assert [device["points"][0]["register"] for device in document["device"][:3]] == ["holding", "holding", "input"]
    assert document["device"][3]["profile"] == "sunspec"
    assert paste([]) == ""


@pytest.mark.parametrize(("models", "profile"), [((1, 103, 160), "sunspec"), ((1, 113), "sunspec-float")])
def test_a_sunspec_device_pastes_as_the_profile_that_fits_its_models(models: tuple[int, ...], profile: str) -> None:
    found = Found(40000, tuple(Model(number, 40004, 66) for number in models), ())
    (device,) = tomllib.loads(paste([Finding(host_steps("h")[0].bus, 1, "ok", "", found)]))["device"]
    assert device["profile"] == profile


def test_ascii_is_tried_with_seven_data_bits_where_it_is_asked_for(tmp_path: Path) -> None:
    with Slave(tmp_path, units=(3,), framing=ASCII) as slave:
        result = asyncio.run(scanned(port_steps(str(slave.path), [(9600, "N")], (1, 3), 0.3, ascii_=True)))
    assert [(finding.bus.kind, finding.unit) for finding in result.findings] == [("modbus-ascii", 3)]
    (bus,) = tomllib.loads(paste(result.findings))["bus"]
    assert (bus["kind"], bus["data_bits"]) == ("modbus-ascii", 7)
