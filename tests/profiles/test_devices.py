"""Every profile that ships, read from a simulated device through the real connector.

`cases/NAME.txt` holds the registers of a device as they travel, packed without the gateway's help, and what a person
shall see. Registers that are not listed hold their own address: a point that is read one register
beside its place is another number.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from gateway.config.library import Library
from gateway.config.trial import NAME, trial
from gateway.connectors.base import Tools
from gateway.connectors.modbus.config import ModbusDevice
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.registry import Registry
from gateway.model import ClockState, Sample, Status, Trust, Value, Write
from gateway.normalise.normaliser import Normaliser
from tests.modbus.bench import Bench, NoLedger, rtu
from tests.modbus.slave import Slave

CASES = Path(__file__).parent / "cases"
LIBRARY = Library()
WALKED = {"sunspec", "sunspec-float"}
CLOCK = ClockState("0" * 32, 0, -1, Trust.UNSYNCED)


class Line(NamedTuple):
    """What one point shall say, and where it lies."""

    point: str
    value: Value
    unit: str
    table: str
    address: int
    words: tuple[int, ...]


def case(name: str) -> list[Line]:
    lines = []
    for text in (CASES / f"{name}.txt").read_text().splitlines()[1:]:
        point, value, unit, place, words = (part.strip() for part in text.split("|"))
        table, address = place.split()
        said: Value = msgspec.json.decode(value, type=bool | int | float | str)
        lines.append(Line(point, said, unit, table, int(address), tuple(int(word, 16) for word in words.split())))
    return lines


def device_of(name: str) -> ModbusDevice:
    profile = LIBRARY.find(name)
    assert profile is not None
    registry = Registry()
    report = trial(profile, registry.kind(profile.head.kinds[0]), registry)
    assert report.config is not None, report.mistakes
    device: ModbusDevice = report.config.buses[0].devices[0]
    return msgspec.structs.replace(device, delay_between_requests=None)


def bench_of(slave: Slave, device: ModbusDevice) -> Bench:
    bench = Bench(rtu(slave.path), [])
    tools = Tools(bench.clock, NoLedger(), lambda _: None, bench._report)
    bench.connector = ModbusConnector(bench.bus, [device], tools)
    return bench


def told(device: ModbusDevice, samples: list[Sample]) -> dict[str, tuple[Value | None, str, Status]]:
    """Point → what leaves for the buffer: value, unit, status."""
    normaliser = Normaliser({device.name: device.points})
    found: dict[str, tuple[Value | None, str, Status]] = {}
    for sample in samples:
        for row in normaliser.rows(sample, CLOCK):
            status = row.status or (Status.GOOD,) * len(row.values)
            units = row.shape.units
            found |= {
                point: (value, unit, each)
                for point, value, unit, each in zip(row.shape.points, row.values, units, status, strict=True)
            }
    return found


async def heard(bench: Bench, device: ModbusDevice, points: int) -> dict[str, tuple[Value | None, str, Status]]:
    async with bench.running():
        await bench.until(lambda: sum(len(sample.points) for sample in bench.samples) >= points, 30)
    return told(device, bench.samples)


@pytest.mark.parametrize("name", [name for name in LIBRARY.names() if name not in WALKED])
def test_every_point_of_a_profile_reads_what_the_device_holds(tmp_path: Path, name: str) -> None:
    device, lines = device_of(name), case(name)
    assert {line.point for line in lines} == {point.name for point in device.points}

    async def scenario(slave: Slave) -> None:
        for line in lines:
            if line.table == "coil":
                slave.coils[device.unit_id, line.address] = bool(line.words[0])
                continue
            for at, word in enumerate(line.words):
                slave.registers[device.unit_id, line.address + at] = word
        found = await heard(bench_of(slave, device), device, len(lines))
        assert found == {line.point: (line.value, line.unit, Status.GOOD) for line in lines}

    with Slave(tmp_path, units=(device.unit_id,)) as slave:
        asyncio.run(scenario(slave))


ANCHORS = [
    # the seller's description (first source of the profile): values word by word
    ("xy-md02", "temperature", "input", 1, (0x0131,), 30.5),
    ("xy-md02", "temperature", "input", 1, (0xFF33,), -20.5),
    ("xy-md02", "humidity", "input", 2, (0x0222,), 54.6),
    # ESPHome, components/pzemac, one answer: 01 04 14 08 D1 00 6C 00 00 00 F4 00 00 00 26 00 00 01 F4 00 64 00 00 51 34
    ("pzem-004t", "voltage", "input", 0, (0x08D1,), 225.7),
    ("pzem-004t", "current", "input", 1, (0x006C, 0), 0.108),
    ("pzem-004t", "power", "input", 3, (0x00F4, 0), 24.4),
    ("pzem-004t", "energy_import", "input", 5, (0x0026, 0), 38),
    ("pzem-004t", "frequency", "input", 7, (0x01F4,), 50.0),
    ("pzem-004t", "power_factor", "input", 8, (0x0064,), 1.0),
    # wiki.marcluerssen.de, Projects:Modbus Meter, after B+G e-tech's SDM630Register.pdf: 01 04 04 43 66 33 34 1B 38
    ("eastron-sdm630", "voltage_l1", "input", 0, (0x4366, 0x3334), 230.2),
]


@pytest.mark.parametrize(("name", "point", "table", "address", "words", "value"), ANCHORS)
def test_what_the_documents_quote_is_read_as_they_say(
    tmp_path: Path, name: str, point: str, table: str, address: int, words: tuple[int, ...], value: float
) -> None:
    device = device_of(name)
    device = msgspec.structs.replace(device, points=tuple(each for each in device.points if each.name == point))

    async def scenario(slave: Slave) -> None:
        slave.registers |= {(device.unit_id, address + at): word for at, word in enumerate(words)}
        found = await heard(bench_of(slave, device), device, 1)
        assert found[point][0] == pytest.approx(value, rel=1e-6)
        assert found[point][2] is Status.GOOD
        (frame,) = {frame for _, frame in slave.requests}
        assert frame[1] == (4 if table == "input" else 3)

    with Slave(tmp_path, units=(device.unit_id,)) as slave:
        asyncio.run(scenario(slave))


LIMITS = [
    # registers in one request, as the makers' documents have them
    ("carlo-gavazzi-em24", 11),
    ("carlo-gavazzi-em340", 50),
    ("eastron-sdm120", 80),
    ("eastron-sdm230", 80),
    ("eastron-sdm630", 80),
    ("eastron-sdm72d-m", 60),
    ("eastron-sdm72d-m-v2", 60),
]


@pytest.mark.parametrize(("name", "most"), LIMITS)
def test_no_request_is_longer_than_the_maker_allows_even_if_gaps_are_bridged(
    tmp_path: Path, name: str, most: int
) -> None:
    device = msgspec.structs.replace(device_of(name), max_gap=100)

    async def scenario(slave: Slave) -> None:
        await heard(bench_of(slave, device), device, len(device.points))
        assert {frame[1] for _, frame in slave.requests} == {4}
        assert max(int.from_bytes(frame[4:6]) for _, frame in slave.requests) <= most

    with Slave(tmp_path, units=(device.unit_id,)) as slave:
        asyncio.run(scenario(slave))


def test_a_relay_is_switched(tmp_path: Path) -> None:
    device = device_of("waveshare-relay-8")

    async def scenario(slave: Slave) -> None:
        slave.coils = {(1, n): False for n in range(8)}
        bench = bench_of(slave, device)
        async with bench.running():
            await bench.until(lambda: bool(bench.values(NAME, "relay_1")))
            await bench.connector.execute(Write(NAME, "relay_1", True))
        # the maker's own example: 01 05 00 00 FF 00 8C 3A
        assert bytes.fromhex("01050000FF008C3A") in [frame for _, frame in slave.requests]
        assert slave.coils[1, 0] is True

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))
