"""Finding what is on a bus, and getting it as configuration."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.connectors.modbus.config import ModbusDevice, RtuBus, TcpBus
from gateway.connectors.modbus.scan import (
    Finding,
    PortFound,
    Progress,
    _links,
    host_candidates,
    paste,
    port_candidates,
    scan,
    serial_ports,
)
from gateway.errors import LinkError
from gateway.settings import read

from .slave import Slave


def test_units_are_found_whether_they_answer_or_refuse_and_nothing_is_written(tmp_path: Path) -> None:
    seen: list[Progress] = []

    async def scenario(slave: Slave) -> list[Finding]:
        candidates = port_candidates(str(slave.path), [(9600, "N"), (19200, "E")], timeout_s=0.08)
        return await scan(candidates, SystemClock(), seen.append, units=range(1, 8))

    with Slave(tmp_path, units=(2, 5)) as slave:
        slave.holes = {0}
        slave.registers[5, 0] = 99
        found = asyncio.run(scenario(slave))
        assert {frame[1] for _, frame in slave.requests} == {3}
    assert [finding.unit for finding in found] == [2, 5]
    assert "illegal data address" in found[0].answer
    assert {finding.bus.baud_rate for finding in found if isinstance(finding.bus, RtuBus)} == {9600}
    assert seen[0] == Progress(0, 14, "9600 8N1, unit 1", 0)
    assert seen[-1] == Progress(14, 14, "done", 2)
    assert [each.done for each in seen] == sorted(each.done for each in seen)


def test_the_next_setting_is_tried_when_one_finds_nobody(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        candidates = port_candidates(str(slave.path), [(9600, "N"), (19200, "E")], timeout_s=0.02)
        assert await scan(candidates, SystemClock(), lambda _: None, units=(1, 2)) == []
        assert len(slave.requests) == 4

    with Slave(tmp_path, units=()) as slave:
        asyncio.run(scenario(slave))


def test_a_gateway_that_reaches_nobody_is_not_taken_for_247_units_and_one_that_hangs_up_is_asked_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(12):
            unit = head[6]
            if unit == 2:
                break  # this one hangs up
            body = b"\x03\x02\x00\x2a" if unit == 3 else b"\x83\x0b"
            writer.write(head[:4] + (1 + len(body)).to_bytes(2, "big") + bytes([unit]) + body)
        writer.close()

    async def scenario() -> list[Finding]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            candidates = host_candidates("127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=2)
            return await scan(candidates, SystemClock(), lambda _: None, units=range(1, 5))

    found = asyncio.run(scenario())
    assert [(finding.unit, finding.answer) for finding in found] == [(3, "register 0 holds 42")]


def test_a_port_that_is_not_there_ends_the_scan_with_its_reason(tmp_path: Path) -> None:
    candidates = port_candidates(str(tmp_path / "nothing"))
    with pytest.raises(LinkError, match="nothing"):
        asyncio.run(scan(candidates, SystemClock(), lambda _: None))


def test_findings_paste_into_the_configuration() -> None:
    serial, other = port_candidates("/dev/serial/by-id/x", [(9600, "N"), (19200, "E")])
    (tcp,) = host_candidates("192.168.1.50")
    text = paste([Finding(serial, 2, "ok"), Finding(other, 3, "ok"), Finding(serial, 5, "ok"), Finding(tcp, 1, "ok")])
    document = tomllib.loads(text)
    buses = {}
    for raw in document["bus"]:
        bus, mistakes = read(RtuBus if raw["kind"] == "modbus-rtu" else TcpBus, raw)
        assert bus is not None, mistakes
        buses[bus.name] = bus
    assert len(buses) == 3
    assert buses["rs485-2"].parity == "E"  # type: ignore[union-attr]
    assert buses["modbus-3"].host == "192.168.1.50"  # type: ignore[union-attr]
    where = {}
    for raw in document["device"]:
        device, mistakes = read(ModbusDevice, raw)
        assert device is not None, mistakes
        where[device.unit_id] = device.bus
    assert where == {2: "rs485", 5: "rs485", 3: "rs485-2", 1: "modbus-3"}
    names = [raw["name"] for raw in document["device"]]
    assert len(set(names)) == len(names)
    assert paste([]) == ""


def test_ports_are_listed_with_their_lasting_names(tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "by-id" / "usb-FTDI").symlink_to("/dev/null")
    assert _links(tmp_path / "by-id") == {"/dev/null": str(tmp_path / "by-id" / "usb-FTDI")}
    assert _links(tmp_path / "by-path") == {}
    for port in serial_ports(tmp_path):
        assert port.device.startswith("/dev/")
    twin = PortFound("/dev/ttyUSB0", "CH340", "/by-id/a", "/by-path/b", "has a twin")
    assert twin.best == "/by-path/b"
    assert twin._replace(note="").best == "/by-id/a"
    assert twin._replace(by_id="", by_path="").best == "/dev/ttyUSB0"
