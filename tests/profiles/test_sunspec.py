"""A SunSpec device is read wherever its models lie: walked through over a real pseudo-terminal."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import msgspec
import pytest

from gateway.connectors import schedule
from gateway.connectors.base import Tools
from gateway.connectors.modbus.config import ModbusPoint
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.model import DeviceState, Status
from tests.modbus.bench import NoLedger
from tests.modbus.slave import Slave

from .test_devices import bench_of, device_of, heard, told

NAN16, NAN_SF = 0xFFFF, 0x8000


def text(value: str, registers: int) -> list[int]:
    data = value.encode().ljust(2 * registers, b"\0")
    return [*struct.unpack(f">{registers}H", data)]


def s16(value: int) -> int:
    return value & 0xFFFF


def u32(value: int) -> list[int]:
    return [value >> 16, value & 0xFFFF]


def f32(value: float) -> list[int]:
    return [*struct.unpack(">2H", struct.pack(">f", value))]


# The layouts are those of the standard, written down here once more, register for register.

COMMON = [*text("Example", 16), *text("Inverter 3", 16), *text("", 8), *text("1.2.3", 8), *text("SN-77", 16), 1, 0]
INVERTER = [
    125, 41, 42, NAN16, s16(-1),  # A, AphA … AphC, A_SF: 12.5 A
    4001, 4002, 4003, 2301, 2302, 2303, s16(-1),  # PPV…, PhV…, V_SF
    s16(-321), 1,  # W, W_SF: -3210 W
    5001, s16(-2),  # Hz
    3300, 0, s16(-150), 0, s16(-985), s16(-1),  # VA, VAr, PF
    *u32(1_234_567), 1,  # WH, WH_SF: 12345670 Wh
    88, s16(-1), 612, 0, s16(-330), 1,  # DCA, DCV, DCW
    s16(415), s16(-8), NAN_SF, NAN_SF, s16(-1),  # temperatures
    4, 77, *u32(5), *u32(0), *u32(0), *u32(0), *u32(0), *u32(0),  # St, StVnd, events
]  # fmt: skip
INVERTER_FLOAT = [
    *f32(12.5), *f32(4.1), *f32(4.2), *f32(float("nan")), *f32(400.1), *f32(400.2), *f32(400.3),
    *f32(230.1), *f32(230.2), *f32(230.3), *f32(-3210), *f32(50.01), *f32(3300), *f32(-150), *f32(-98.5),
    *f32(12345670), *f32(8.8), *f32(612), *f32(-3300), *f32(41.5), *f32(-0.8), *f32(float("nan")),
    *f32(float("nan")), 4, 77, *u32(5), *u32(0), *u32(0), *u32(0), *u32(0), *u32(0),
]  # fmt: skip


def mppt(modules: int) -> list[int]:
    block = [s16(-2), s16(-1), 0, 0, *u32(0), modules, 0]
    for n in range(1, modules + 1):
        block += [
            n,
            *text(f"String {n}", 8),
            500 + n,
            3800 + n,
            1900 + n,
            *u32(90_000 + n),
            *u32(0),
            s16(-n),
            4,
            *u32(0),
        ]
    return block


METER = [
    s16(-55), s16(-10), s16(-20), s16(-25), s16(-1),
    2300, 2301, 2302, 2303, 3990, 3991, 3992, 3993, s16(-1),
    4999, s16(-2), s16(-900), s16(-300), s16(-300), s16(-300), 0,
    1000, 333, 333, 334, 0, 10, 3, 3, 4, 0, 990, 991, 992, 993, s16(-3),
    *u32(7_000), *u32(0), *u32(0), *u32(0), *u32(8_000), *u32(0), *u32(0), *u32(0), 1,
    *[0] * 50,
]  # fmt: skip

Models = list[tuple[int, list[int]]]


def image(base: int, models: Models) -> dict[int, int]:
    registers = [0x5375, 0x6E53]
    for number, block in models:
        registers += [number, len(block), *block]
    registers += [0xFFFF, 0]
    return {base + at: word for at, word in enumerate(registers)}


def loaded(slave: Slave, unit: int, base: int, models: Models, refused: bool = True) -> None:
    """A device with nothing but these; what is behind and elsewhere it refuses, or holds as zeros."""
    there = image(base, models)
    slave.registers |= {(unit, address): word for address, word in there.items()}
    if refused:
        slave.holes = set(range(65536)) - set(there)


INT_MODELS: Models = [(1, COMMON), (103, INVERTER), (64_001, [9] * 7), (160, mppt(2)), (203, METER)]
SEEN = {
    "manufacturer": ("Example", ""),
    "model": ("Inverter 3", ""),
    "version": ("1.2.3", ""),
    "serial_number": ("SN-77", ""),
    "current": (12.5, "A"),
    "current_l2": (4.2, "A"),
    "voltage_l31": (400.3, "V"),
    "voltage_l3": (230.3, "V"),
    "power": (-3210, "W"),
    "frequency": (50.01, "Hz"),
    "apparent_power": (3300, "VA"),
    "reactive_power": (-150, "var"),
    "power_factor": (-98.5, "%"),
    "energy_total": (12_345_670, "Wh"),
    "dc_current": (8.8, "A"),
    "dc_voltage": (612, "V"),
    "dc_power": (-3300, "W"),
    "temperature_cabinet": (41.5, "Cel"),
    "temperature_heatsink": (-0.8, "Cel"),
    "state": ("mppt", ""),
    "vendor_state": (77, ""),
    "events": (5, ""),
    "mppt_1_dc_current": (5.01, "A"),
    "mppt_2_dc_voltage": (380.2, "V"),
    "mppt_2_dc_power": (1902, "W"),
    "mppt_2_dc_energy": (90_002, "Wh"),
    "mppt_2_dc_temperature": (-2, "Cel"),
    "meter_current": (-5.5, "A"),
    "meter_voltage_l2": (230.2, "V"),
    "meter_voltage_ll": (399.0, "V"),
    "meter_frequency": (49.99, "Hz"),
    "meter_power": (-900, "W"),
    "meter_power_l3": (-300, "W"),
    "meter_power_factor": (0.99, "%"),
    "meter_energy_export": (70_000, "Wh"),
    "meter_energy_import": (80_000, "Wh"),
}


@pytest.mark.parametrize("base", [40_000, 50_000, 0])
def test_every_value_is_found_wherever_the_models_begin(tmp_path: Path, base: int) -> None:
    device = device_of("sunspec")

    async def scenario(slave: Slave) -> None:
        loaded(slave, device.unit_id, base, INT_MODELS)
        bench = bench_of(slave, device)
        guessed = bench.connector.status()["load"]
        found = await heard(bench, device, 57)
        # what is not there is no load
        assert 0 < bench.connector.status()["load"] < guessed
        assert {name: found[name][:2] for name in SEEN} == SEEN
        assert all(found[name][2] is Status.GOOD for name in SEEN)
        # not implemented is bad, not a number
        assert found["current_l3"][2] is Status.SENSOR_FAULT
        # what the device has no model for is no point of it
        assert not any(name.startswith(("mppt_3", "mppt_4", "storage_", "rated_")) for name in found)

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_floats_have_a_profile_of_their_own(tmp_path: Path) -> None:
    device = device_of("sunspec-float")

    async def scenario(slave: Slave) -> None:
        loaded(slave, device.unit_id, 40_000, [(1, COMMON), (113, INVERTER_FLOAT)])
        found = await heard(bench_of(slave, device), device, 28)
        whole = {name: said for name, said in SEEN.items() if not name.startswith(("mppt", "meter"))}
        assert {name: found[name][:2] for name in whole} == whole
        assert found["current_l3"][2] is Status.SENSOR_FAULT

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_two_devices_of_one_profile_with_their_models_in_another_order(tmp_path: Path) -> None:
    first = device_of("sunspec")
    only = tuple(point for point in first.points if point.name in ("power", "meter_power"))
    first = msgspec.structs.replace(first, name="a", unit_id=1, points=only)
    second = msgspec.structs.replace(first, name="b", unit_id=2)

    async def scenario(slave: Slave) -> None:
        loaded(slave, 1, 40_000, INT_MODELS, refused=False)
        turned = [*INVERTER]
        turned[12] = 5  # W
        loaded(slave, 2, 0, [(1, COMMON), (203, METER), (101, turned)], refused=False)
        bench = bench_of(slave, first)
        bench.connector = type(bench.connector)(bench.bus, [first, second], bench.connector._tools)
        async with bench.running():
            await bench.until(lambda: bool(bench.values("b", "power") and bench.values("a", "power")))
        assert (bench.values("a", "power")[0], bench.values("b", "power")[0]) == (-3210, 50)
        assert bench.values("b", "meter_power")[0] == -900

    with Slave(tmp_path, units=(1, 2)) as slave:
        asyncio.run(scenario(slave))


def test_a_walk_goes_on_where_silence_interrupted_it(tmp_path: Path) -> None:
    device = msgspec.structs.replace(device_of("sunspec"), interval=0.2)
    device = msgspec.structs.replace(device, points=tuple(each for each in device.points if each.name == "power"))

    async def scenario(slave: Slave) -> None:
        loaded(slave, 1, 40_000, INT_MODELS)
        slave.corrupt = lambda number: number in (1, 2, 4)
        bench = bench_of(slave, device)
        async with bench.running():
            await bench.until(lambda: bool(bench.values("device", "power")))
        assert bench.values("device", "power")[0] == -3210
        assert Status.CONFIG not in bench.statuses("device", "power")

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_models_are_looked_for_again_when_a_device_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other firmware they may be elsewhere: what is read at the old place would be a value, and wrong."""
    monkeypatch.setattr(schedule, "FIRST_PROBE_S", 0.5)
    device = msgspec.structs.replace(device_of("sunspec"), interval=0.1)
    kept = tuple(each for each in device.points if each.name in ("power", "mppt_1_dc_current"))
    device = msgspec.structs.replace(device, points=kept)
    other = msgspec.structs.replace(device, name="other", unit_id=2, points=(ModbusPoint(name="x", address=0),))

    async def scenario(slave: Slave) -> None:
        loaded(slave, 1, 40_000, INT_MODELS, refused=False)
        bench = bench_of(slave, device)
        tools = Tools(bench.clock, NoLedger(), lambda _: None, bench._report)
        bench.connector = ModbusConnector(bench.bus, [device, other], tools)
        async with bench.running():
            await bench.until(lambda: bool(bench.values("device", "mppt_1_dc_current")))
            slave.units = {2}
            await bench.until(lambda: ("device", DeviceState.OFFLINE) in [each[:2] for each in bench.reports])
            before = len(bench.samples)
            slave.registers = {key: word for key, word in slave.registers.items() if key[0] == 2}
            loaded(slave, 1, 40_000, [(1, COMMON), (64_001, [9] * 30), *INT_MODELS[1:]], refused=False)
            slave.units = {1, 2}
            bench.samples[:before] = []
            await bench.until(lambda: len(bench.values("device", "mppt_1_dc_current")) > 2)
        assert set(bench.values("device", "power")) == {-3210}
        assert set(bench.values("device", "mppt_1_dc_current")) == {5.01}

    with Slave(tmp_path, units=(1, 2)) as slave:
        asyncio.run(scenario(slave))


@pytest.mark.parametrize("models", [None, [(1, COMMON), (103, INVERTER)]], ids=["no SunSpec", "none of its models"])
def test_a_device_without_any_of_its_points_is_bad_by_configuration_and_not_asked_again_at_once(
    tmp_path: Path, models: Models | None
) -> None:
    device = msgspec.structs.replace(device_of("sunspec"), interval=0.05)
    device = msgspec.structs.replace(device, points=tuple(each for each in device.points if "storage" in each.name))

    async def scenario(slave: Slave) -> None:
        if models is not None:
            loaded(slave, 1, 40_000, models)
        bench = bench_of(slave, device)
        async with bench.running():
            await bench.until(lambda: len(bench.statuses("device", "storage_soc")) > 5)
            asked = len(slave.requests)
            await bench.until(lambda: len(bench.statuses("device", "storage_soc")) > 10)
            assert len(slave.requests) == asked
        assert set(bench.statuses("device", "storage_soc")) == {Status.CONFIG}
        assert told(device, bench.samples)["storage_soc"][2] is Status.CONFIG
        assert bench.connector.status()["devices"]["device"]["refused"]

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_that_it_has_none_of_them_is_told_when_the_walk_ends(tmp_path: Path) -> None:
    device = msgspec.structs.replace(device_of("sunspec"), interval=60.0)
    device = msgspec.structs.replace(device, points=tuple(each for each in device.points if "storage" in each.name))

    async def scenario(slave: Slave) -> None:
        loaded(slave, 1, 40_000, [(1, COMMON)])
        bench = bench_of(slave, device)
        async with bench.running():
            await bench.until(lambda: bench.statuses("device", "storage_soc") == [Status.CONFIG], 10)

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))


def test_a_point_in_a_model_is_a_holding_register_with_a_plain_address() -> None:
    from gateway.settings import read

    for wrong in ({"address": "40001"}, {"address": 2, "register": "input"}):
        _, mistakes = read(ModbusPoint, {"name": "x", "model": [103], **wrong})
        assert [mistake.path for mistake in mistakes] == [("address",)]
