"""The words of the configuration, and the sample that users start from."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.modbus import config
from gateway.connectors.modbus.config import ModbusDevice, ModbusPoint, RtuBus, TcpBus, check, explain, gap_s, reads
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.modbus.planner import Table
from gateway.settings import fields, read, tables

FOLDER = Path(config.__file__).parent


def point(**words: Any) -> ModbusPoint:
    found, mistakes = read(ModbusPoint, {"name": "p", "address": 0, **words})
    assert found is not None, mistakes
    return found


def complaints(**words: Any) -> str:
    _, mistakes = read(ModbusPoint, {"name": "p", "address": 0, **words})
    return "; ".join(f"{'.'.join(map(str, m.path))}: {m.message}" for m in mistakes)


def a_device(**words: Any) -> ModbusDevice:
    found, mistakes = read(ModbusDevice, {"name": "d", "bus": "b", "points": [{"name": "p", "address": 0}], **words})
    assert found is not None, mistakes
    return found


def rtu(**words: Any) -> RtuBus:
    bus, mistakes = read(RtuBus, {"name": "b", "kind": "modbus-rtu", "port": "/dev/serial/by-id/x", **words})
    assert bus is not None, mistakes
    return bus


def loaded(text: str) -> tuple[dict[str, RtuBus | TcpBus], list[ModbusDevice]]:
    document = tomllib.loads(text)
    buses: dict[str, RtuBus | TcpBus] = {}
    for raw in document["bus"]:
        table: type[RtuBus | TcpBus] = RtuBus if raw["kind"] == "modbus-rtu" else TcpBus
        bus, mistakes = read(table, raw)
        assert bus is not None, mistakes
        buses[bus.name] = bus
    devices = []
    for raw in document["device"]:
        device, mistakes = read(ModbusDevice, raw)
        assert device is not None, mistakes
        devices.append(device)
    return buses, devices


def test_the_sample_is_a_valid_configuration_without_warnings() -> None:
    buses, devices = loaded((FOLDER / "sample.toml").read_text())
    for bus in buses.values():
        mine = [device for device in devices if device.bus == bus.name]
        assert mine
        assert check(bus, mine) == []
        assert explain(bus, mine)


def test_every_example_of_the_readme_is_valid() -> None:
    examples = re.findall(r"```toml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        loaded(example)


def test_the_readme_explains_every_key() -> None:
    text = (FOLDER / "README.md").read_text()
    for top in (RtuBus, TcpBus, ModbusDevice, ModbusPoint):
        for table in tables(top):
            for field in fields(table):
                assert re.search(rf"`[^`\n]*\b{field.name}\b[^`\n]*`", text), f"{table.__name__}.{field.name}"


def test_the_kinds_are_found_by_their_entry_points_and_load_their_connector() -> None:
    found = {entry.name: entry.load() for entry in entry_points(group="gateway.connectors") if "modbus" in entry.name}
    assert sorted(found) == ["modbus-rtu", "modbus-rtu-over-tcp", "modbus-tcp"]
    for name, kind in found.items():
        assert kind.name == name
        assert kind.load() is ModbusConnector


@pytest.mark.parametrize(
    ("words", "table", "address"),
    [
        ({"address": 0}, Table.HOLDING, 0),
        ({"address": 40, "register": "input"}, Table.INPUT, 40),
        ({"address": "40001"}, Table.HOLDING, 0),
        ({"address": "40013", "register": "holding"}, Table.HOLDING, 12),
        ({"address": "30010"}, Table.INPUT, 9),
        ({"address": "10001"}, Table.DISCRETE, 0),
        ({"address": "00017"}, Table.COIL, 16),
        ({"address": "465536"}, Table.HOLDING, 65535),
        ({"address": 5, "input_type": "coil"}, Table.COIL, 5),
    ],
)
def test_an_address_is_a_number_from_zero_or_a_quoted_reference_from_one(
    words: dict[str, Any], table: Table, address: int
) -> None:
    assert point(**words).place() == (table, address)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"address": "7"}, "no reference"),
        ({"address": "20001"}, "no reference"),
        ({"address": "40000"}, "no reference"),
        ({"address": "465537"}, "no reference"),
        ({"address": "40001", "register": "input"}, "reference to holding"),
        ({"address": 65536}, "out of bounds"),
        ({"address": 65535, "type": "uint32"}, "ends behind the last register"),
        ({"type": "float33"}, "unknown type"),
        ({"type": "uint24"}, "whole registers"),
        ({"type": "string"}, "needs `length`"),
        ({"type": "bit"}, "needs `bit`"),
        ({"type": "float32", "byte_order": "ABDC"}, "unknown byte order"),
        ({"type": "float32", "byte_order": "BA"}, "BADC or DCBA"),
        ({"register": "coil", "type": "uint16"}, "one bit"),
        ({"register": "input", "write": {}}, "cannot be written"),
        ({"register": "discrete", "write": {}}, "cannot be written"),
        ({"type": "bit", "bit": 1, "write": {}}, "shares its register"),
        ({"type": "int8", "write": {}}, "shares its register"),
        ({"write": {"fc": 5}}, "does not write a holding"),
        ({"register": "coil", "write": {"fc": 16}}, "does not write a coil"),
        ({"type": "float32", "write": {"fc": 6}}, "function 6 writes one"),
        ({"registr": "coil"}, "did you mean `register`"),
        ({"unit": "V", "convert": "Cel"}, "Cel"),
        ({"scale": 0}, "scale 0"),
        ({"min": 2, "max": 1}, "larger than max"),
        ({"type": "int16", "invalid": [0x1_0000]}, "65536 can never be read as int16"),
        ({"type": "uint16", "invalid": [-999, -40000]}, "-40000 can never be read as uint16"),
        ({"invalid": ["n/a"]}, "can never be read"),
        ({"invalid": [0.5]}, "can never be read"),
    ],
)
def test_a_point_that_cannot_be_is_refused_with_its_reason(words: dict[str, Any], said: str) -> None:
    assert said in complaints(**words)


def test_byte_order_is_inherited_from_device_and_bus() -> None:
    device = a_device(
        points=[
            {"name": "a", "address": 0, "type": "float32"},
            {"name": "b", "address": 2, "type": "float32", "swap": "none"},
        ]
    )
    bus = rtu(byte_order="CDAB")
    orders = {item.key.point.name: item.key.word.order.value for _, r in reads(bus, device) for item in r.items}
    assert orders == {"a": "CDAB", "b": "ABCD"}
    own = a_device(byte_order="BA", points=[{"name": "a", "address": 0, "type": "float32"}])
    assert reads(bus, own)[0][1].items[0].key.word.order.value == "BADC"


def test_devices_take_the_words_of_other_programs() -> None:
    assert a_device(slave_id=9).unit_id == 9
    assert a_device(slave=9).unit_id == 9
    _, mistakes = read(ModbusDevice, {"name": "d", "bus": "b"})
    assert "without points" in mistakes[0].message
    _, mistakes = read(ModbusDevice, {"name": "d", "bus": "b", "points": [{"name": "p", "address": 0}] * 2})
    assert "a second point `p`" in mistakes[0].message


def test_modbus_rtu_has_eight_data_bits() -> None:
    _, mistakes = read(RtuBus, {"name": "b", "kind": "modbus-rtu", "port": "/dev/x", "data_bits": 7})
    assert mistakes[0].path == ("data_bits",)


def test_the_pause_is_the_longest_of_framing_bus_and_device() -> None:
    assert gap_s(rtu(baud_rate=1200, delay_between_requests=0)) == pytest.approx(3.5 * 10 / 1200)
    assert gap_s(rtu(baud_rate=115200, delay_between_requests=0)) == 0.00175
    assert gap_s(rtu(), a_device(delay_between_requests="50ms")) == 0.05


def test_warnings_name_what_will_go_wrong() -> None:
    busy = [a_device(name=f"d{n}", interval="20ms", slave=n) for n in (1, 2)]
    text = "\n".join(check(rtu(baud_rate=1200, port="/dev/ttyUSB0"), busy))
    for part in ("of its time", "if all 2 devices are silent", "/dev/serial/by-id"):
        assert part in text
    same = "\n".join(check(rtu(), [a_device(name="a"), a_device(name="b")]))
    assert "b/p reads the same holding 0 of unit 1 as a/p" in same
    manual = "\n".join(check(rtu(), [a_device(slave=250, points=[{"name": "p", "address": 40013}])]))
    assert 'write address = "40013"' in manual
    assert "unit 250 cannot answer on a serial line" in manual
    assert "mini-UART" in "\n".join(check(rtu(port="/dev/ttyS0"), []))


def test_the_plan_is_explained_request_by_request() -> None:
    buses, devices = loaded((FOLDER / "sample.toml").read_text())
    lines = explain(buses["rs485a"], [device for device in devices if device.bus == "rs485a"])
    assert lines[0].startswith("meter-1 (unit 7) every 10s: input 0…7, 8 registers, about ")
    assert lines[0].endswith("ms: voltage, current")
    assert lines[-1].startswith("bus rs485a: ")
