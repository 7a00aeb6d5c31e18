"""The words of the configuration, and the sample that users start from."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import check_text
from gateway.connectors.modbus import config
from gateway.connectors.modbus.config import ModbusDevice, ModbusPoint, RtuBus, TcpBus, gap_s
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.modbus.forecast import explained, reads, warnings
from gateway.connectors.modbus.planner import Table
from gateway.connectors.registry import Registry
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
        assert warnings(bus, mine) == []
        assert explained(bus, mine)


def test_every_example_of_the_readme_is_valid() -> None:
    examples = re.findall(r"```toml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert examples
    bus = '\n[[bus]]\nname = "rs485a"\nkind = "modbus-rtu"\nport = "/dev/serial/by-id/usb-x"\n'
    for example in examples:
        report = check_text(example + ("" if "[[bus]]" in example else bus), "README.md", {}, Registry())
        assert [str(mistake) for mistake in report.mistakes] == []


def test_the_readme_explains_every_key() -> None:
    text = (FOLDER / "README.md").read_text()
    for top in (RtuBus, TcpBus, ModbusDevice, ModbusPoint):
        for table in tables(top):
            for field in fields(table):
                assert re.search(rf"`[^`\n]*\b{field.name}\b[^`\n]*`", text), f"{table.__name__}.{field.name}"


def test_the_kinds_are_found_by_their_entry_points_and_load_their_connector() -> None:
    found = {entry.name: entry.load() for entry in entry_points(group="gateway.connectors") if "modbus" in entry.name}
    assert sorted(found) == [
        "modbus-ascii", "modbus-ascii-over-tcp", "modbus-rtu", "modbus-rtu-over-tcp", "modbus-tcp",
    ]  # fmt: skip
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
        ({"type": "bits", "bit": 3}, "needs `bits`"),
        ({"type": "float32", "mask": 1}, "goes with an integer"),
        ({"mask": 0x1_0000}, "nothing of mask"),
        ({"shift": 1}, "goes with `mask`"),
        ({"mask": 0xFF, "write": {}}, "shares its register"),
        ({"type": "bits", "bit": 0, "bits": 4, "invalid": [16]}, "16 can never be read"),
        ({"type": "bcd16", "invalid": [0xFFFF]}, "65535 can never be read as bcd16"),
        ({"scale_register": "30001"}, "reference to input"),
        ({"type": "float32", "scale_register": 4}, "only an integer"),
        ({"register": "coil", "scale_register": 4}, "only an integer"),
        ({"scale_register": 4, "write": {}}, "would change with scale_register"),
        ({"type": "uint24"}, "whole registers; uint32 with mask = 0xffffff"),
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
        ({"type": "float32", "write": {"fc": 22}}, "function 22 writes one"),
        ({"type": "uint32", "mask": 0xFF, "write": {"fc": 22}}, "function 22 writes one"),
        ({"type": "uint32", "mask": 0xFF, "write": {}}, "`fc = 22` changes its bits alone"),
        ({"register": "coil", "write": {"fc": 22}}, "does not write a coil"),
        ({"type": "string", "length": 250, "write": {}}, "function 16 writes at most 123 registers"),
        ({"type": "string", "length": 244, "write": {"fc": 23}}, "function 23 writes at most 121 registers"),
        ({"mask": 0xF0, "scale_register": 1, "write": {"fc": 22}}, "would change with scale_register"),
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
    text = "\n".join(warnings(rtu(baud_rate=1200, port="/dev/ttyUSB0"), busy))
    for part in ("of its time", "if all 2 devices are silent", "/dev/serial/by-id"):
        assert part in text
    same = "\n".join(warnings(rtu(), [a_device(name="a"), a_device(name="b")]))
    assert "b/p reads the same holding 0 of unit 1 as a/p" in same
    many = [{"name": f"p{n}", "address": n} for n in range(20)]
    (forgotten,) = warnings(rtu(), [a_device(name="a", points=many), a_device(name="b", points=many)])
    assert forgotten == "b reads 20 values of unit 1 that a reads already; is its unit_id right?"
    other = [a_device(name="a"), a_device(name="b", points=[{"name": "q", "address": 7}])]
    assert warnings(rtu(), other) == ["b is unit 1, as a is: right only if both are parts of one device"]
    manual = "\n".join(warnings(rtu(), [a_device(slave=250, points=[{"name": "p", "address": 40013}])]))
    assert 'write address = "40013"' in manual
    assert "unit 250 cannot answer on a serial line" in manual
    assert "mini-UART" in "\n".join(warnings(rtu(port="/dev/ttyS0"), []))


WIDE = ["uint16", "int32", "float64"]
METER = [
    *({"name": f"v{n}", "register": "input", "address": 2 * n, "type": "float32"} for n in range(18)),
    {"name": "energy", "register": "input", "address": 72, "type": "float32", "interval": "60s"},
    {"name": "on", "register": "coil", "address": 3},
]


def test_the_plan_is_explained_request_by_request() -> None:
    buses, devices = loaded((FOLDER / "sample.toml").read_text())
    assert explained(buses["rs485a"], [device for device in devices if device.bus == "rs485a"]) == [
        "meter-1 (unit 7)",
        "  every 10s  input 0…7    8 registers  85 ms  0.9%  voltage, current",
        "  every 1m   input 72…73  2 registers  73 ms  0.1%  energy",
        "heating (unit 9)",
        "  every 30s  holding 40    1 register  31 ms  0.1%  setpoint",
        "  every 1s   holding 12    1 register  31 ms  3.1%  alarm",
        "  every 30s  coil 3             1 bit  30 ms  0.1%  pump",
        "4.2% of its time at 9600 8N1; everything once: 5 requests, 6 values, 249 ms",
    ]


def test_thirty_two_equal_meters_are_explained_once() -> None:
    meters = [a_device(name=f"meter-{n:02}", unit_id=n, points=METER) for n in (*range(1, 31), 33, 34)]
    odd = a_device(name="odd", unit_id=40)
    assert explained(rtu(baud_rate=19200), [*meters, odd]) == [
        "meter-01 … meter-34 (32 devices, units 1–30, 33–34)",
        "  every 10s  input 0…35   36 registers  54 ms   17%  v0, v1, v2, 15 more",
        "  every 1m   input 72…73   2 registers  19 ms  1.0%  energy",
        "  every 10s  coil 3              1 bit  17 ms  5.5%  on",
        "odd (unit 40)",
        "  every 10s  holding 0      1 register  18 ms  0.2%  p",
        "24% of its time at 19200 8N1; everything once: 97 requests, 641 values, 2.9 s",
    ]
    of_two = explained(rtu(), [a_device(name=name, unit_id=n) for n, name in enumerate(("a", "b"), start=1)])
    assert of_two[0] == "a, b (2 devices, units 1–2)"


def test_on_tcp_the_load_is_what_the_answers_take() -> None:
    bus, _ = read(TcpBus, {"name": "b", "kind": "modbus-tcp", "host": "h"})
    assert bus is not None
    busy = [a_device(name=f"d{n}", unit_id=n, interval="1s") for n in range(250)]
    assert explained(bus, busy)[-1].startswith("125% of its time if each answer takes 5 ms; everything once: 250 req")
    assert warnings(bus, busy)[0] == (
        "bus b is asked for 125% of its time if each answer takes 5 ms; "
        "read less, or less often (intervals 1.4 times as long would do)"
    )


def test_addresses_may_count_from_one() -> None:
    device = a_device(
        address_base=1,
        points=[
            {"name": "a", "address": 1, "scale_register": 5},
            {"name": "b", "address": "40001"},
            {"name": "c", "address": 65535},
        ],
    )
    bus = rtu()
    spots = [item.key for _, each in reads(bus, device) for item in each.items]
    assert {spot.point.name: (spot.address, spot.scale_at) for spot in spots} == {
        "a": (0, 4),
        "b": (0, None),
        "c": (65534, None),
    }


def test_a_forbidden_register_is_never_read_not_even_to_bridge_it() -> None:
    points = [{"name": f"p{n}", "address": n} for n in (0, 3, 6)]

    def planned(**words: Any) -> list[str]:
        return [str(each) for _, each in reads(rtu(), a_device(points=points, **words))]

    assert planned() == ["holding 0…6"]
    assert planned(forbidden=[{"first": 4}]) == ["holding 0…3", "holding 6"]
    assert planned(forbidden=[{"first": 1, "last": 2}, {"first": 7, "last": 99}]) == ["holding 0", "holding 3…6"]
    assert planned(forbidden=[{"first": "40005"}]) == ["holding 0…3", "holding 6"]
    assert planned(forbidden=[{"first": 4, "register": "input"}]) == ["holding 0…6"]
    assert planned(forbidden=[{"first": "30005"}]) == ["holding 0…6"]


def test_a_value_is_read_with_its_scale_factor_and_never_without() -> None:
    far = {"name": "w", "address": 10, "type": "int16", "scale_register": 60}
    other = {"name": "a", "address": 0, "type": "int16"}
    (_, only) = reads(rtu(), a_device(points=[far, other], max_gap=0))[1]
    assert str(only) == "holding 10…60"
    (_, both) = reads(rtu(), a_device(points=[far, {"name": "i", "address": 30}], max_gap=0))[0]
    assert [item.key.point.name for item in both.items] == ["w", "i"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"address_base": 1}, "with address_base = 1 the first address is 1"),
        ({"max_read": 8, "points": [{"name": "p", "address": 0, "type": "string", "length": 20}]}, "10 registers of 8"),
        (
            {"points": [{"name": "p", "address": 0, "type": "int16", "scale_register": 125}]},
            "p is larger with its scale register than one request: 126 registers of 125",
        ),
        ({"forbidden": [{"first": 0}]}, "p cannot be read without a forbidden register: 0 to 0"),
        (
            {
                "forbidden": [{"first": 3, "last": 5}],
                "points": [{"name": "p", "address": 0, "type": "int16", "scale_register": 9}],
            },
            "p cannot be read without a forbidden register: 3 to 5",
        ),
        ({"forbidden": [{"first": 5, "last": 3}]}, "the last one, 3, lies before the first, 5"),
        ({"forbidden": [{"first": "40001", "register": "input"}]}, "reference to holding"),
        (
            {"address_base": 1, "forbidden": [{"first": 0}], "points": [{"name": "p", "address": 1}]},
            "first address is 1",
        ),
    ],
)
def test_a_device_that_cannot_be_read_so_is_refused_with_its_reason(words: dict[str, Any], said: str) -> None:
    raw = {"name": "d", "bus": "b", "points": [{"name": "p", "address": 0}], **words}
    _, mistakes = read(ModbusDevice, raw)
    assert said in "; ".join(mistake.message for mistake in mistakes)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_every_point_is_read_whole_with_its_scale_within_the_devices_limits(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([0, 1]))
    address = st.integers(base, 150)
    points = []
    for number in range(data.draw(st.integers(1, 12))):
        points.append({"name": f"p{number}", "address": data.draw(address), "type": data.draw(st.sampled_from(WIDE))})
        if points[-1]["type"] != "float64" and data.draw(st.booleans()):
            points[-1]["scale_register"] = max(base, points[-1]["address"] + data.draw(st.integers(-20, 20)))
    forbidden = [{"first": first} for first in data.draw(st.lists(address, max_size=3))]
    limits = {"max_read": data.draw(st.integers(1, 125)), "max_gap": data.draw(st.integers(0, 125))}
    raw = {"name": "d", "bus": "b", "points": points, "forbidden": forbidden, "address_base": base, **limits}
    device, mistakes = read(ModbusDevice, raw)
    if device is None:
        assert all("larger" in each.message or "forbidden" in each.message for each in mistakes)
        return
    planned = [each for _, each in reads(rtu(), device)]
    for point in points:
        (holder,) = [each for each in planned if any(item.key.point.name == point["name"] for item in each.items)]
        registers = range(holder.address, holder.address + holder.quantity)
        width = {"uint16": 1, "int32": 2, "float64": 4}[point["type"]]
        needed = [point["address"] - base + n for n in range(width)]
        needed += [point["scale_register"] - base] if "scale_register" in point else []
        assert set(needed) <= set(registers)
    for each in planned:
        assert 1 <= each.quantity <= device.max_read
        assert each.address >= 0
        assert not {word["first"] - base for word in forbidden} & set(range(each.address, each.address + each.quantity))


def test_function_22_makes_bits_writable_and_23_any_registers() -> None:
    for words in (
        {"type": "bit", "bit": 1},
        {"type": "bits", "bit": 1, "bits": 3},
        {"type": "int8"},
        {"type": "uint16", "mask": 0x0FF0},
        {"type": "uint16"},
    ):
        assert point(**words, write={"fc": 22}).write is not None
    assert point(type="float64", write={"fc": 23}).write is not None


def test_an_ascii_line_may_have_seven_bits_and_needs_no_silence() -> None:
    ascii_bus = rtu(kind="modbus-ascii", data_bits=7, parity="E", delay_between_requests=0)
    assert ascii_bus.character_s == pytest.approx(10 / 9600)
    assert gap_s(ascii_bus) == 0.0


def test_unit_0_of_a_line_is_everybody_and_is_never_read() -> None:
    everybody = a_device(unit_id=0, points=[{"name": "p", "address": 0, "write": {}}, {"name": "q", "address": 1}])
    assert reads(rtu(), everybody) == []
    assert "it is written and never read (q)" in "\n".join(warnings(rtu(), [everybody]))
    tcp, _ = read(TcpBus, {"name": "b", "kind": "modbus-tcp", "host": "h"})
    assert tcp is not None
    assert reads(tcp, everybody) != []
    assert "everybody" not in "\n".join(warnings(tcp, [everybody]))


def test_the_medium_of_a_bus_is_its_port_or_its_host() -> None:
    tcp, _ = read(TcpBus, {"name": "b", "kind": "modbus-tcp", "host": "Inverter.LAN"})
    assert tcp is not None
    assert tcp.medium() == ("host", "inverter.lan:502")
    assert rtu(port="/dev/ttyAMA0").medium() == ("port", "/dev/ttyAMA0")
