"""Between what a person says and what a register holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codec.words import parse
from gateway.connectors.modbus.config import ModbusDevice, RtuBus, Spot, spot
from gateway.connectors.modbus.forecast import reads
from gateway.connectors.modbus.request import Function
from gateway.connectors.modbus.values import Block, alone, decoded, raw_of, read_request, write_request
from gateway.model import Status
from gateway.normalise.judge import Judge
from gateway.settings import read

settings.register_profile("values", deadline=None)
settings.load_profile("values")

BUS = RtuBus(name="b", kind="modbus-rtu", port="/dev/x")


def spots(*points: dict[str, Any], **words: Any) -> tuple[ModbusDevice, list[Spot]]:
    named = [{"name": f"p{n}", **point} for n, point in enumerate(points)]
    device, mistakes = read(ModbusDevice, {"name": "d", "bus": "b", "points": named, **words})
    assert device is not None, mistakes
    return device, [spot("", device, point) for point in device.points]


def one(**words: Any) -> Spot:
    return spots({"address": 0, **words})[1][0]


@given(
    st.sampled_from(["int16", "uint16", "int32", "uint32", "uint64"]),
    st.sampled_from([1.0, 0.1, 0.01, 0.001, 2.5, 1 / 3]),
    st.sampled_from([0.0, -40.0, 0.5]),
    st.data(),
)
def test_what_was_read_can_be_written_back_and_gives_the_same_register(
    name: str, scale: float, offset: float, data: st.DataObject
) -> None:
    target = one(type=name, scale=scale, offset=offset, write={})
    word = parse(name)
    limit = min(1 << 8 * word.size - 1, 10**9 if scale != 1.0 or offset else 1 << 63) - 1
    raw = data.draw(st.integers(-limit - 1 if name.startswith("int") else 0, limit))
    said = target.point.value_of(raw)
    assert said is not None
    assert raw_of(target, said) == raw


def test_integers_without_scale_are_exact_to_sixty_four_bits() -> None:
    target = one(type="uint64", write={})
    assert raw_of(target, 2**64 - 1) == 2**64 - 1
    assert write_request(1, target, 2**64 - 1).data == b"\xff" * 8


def test_a_write_undoes_the_conversion_that_a_reading_goes_through() -> None:
    target = one(type="int16", scale=0.1, unit="degF", convert="Cel", write={})
    assert target.point.value_of(680) == 20
    assert raw_of(target, 20) == 680


def test_a_value_between_two_steps_goes_to_the_nearest() -> None:
    assert raw_of(one(type="int16", scale=0.5, write={}), 20.7) == 41
    assert raw_of(one(type="float32", scale=0.5, write={}), 20.75) == 41.5


@pytest.mark.parametrize(("said", "raw"), [("on", 1), ("eco", 1.5), (0, 0), (True, 1)])
def test_a_state_may_be_said_by_its_name(said: str | int, raw: float) -> None:
    assert raw_of(one(type="float32", enum={"1": "on", "1.5": "eco"}, write={}), said) == raw


@pytest.mark.parametrize(
    ("words", "value", "why"),
    [
        ({"enum": {"1": "on"}}, "off", "not one of on"),
        ({}, "5", "not a number"),
        ({}, float("nan"), "not a number"),
        ({"register": "coil"}, 2, "neither true nor false"),
        ({"type": "bool"}, 0.5, "neither true nor false"),
        ({"scale": 0.01}, 1e308, "beyond what"),
        ({"type": "float32", "scale": 0.01}, -1e308, "beyond what"),
        ({}, 10**400, "beyond what"),
        ({"type": "float32", "enum": {"1": "on"}}, 10**400, "beyond what"),
    ],
)
def test_what_means_nothing_for_a_point_is_refused(words: dict[str, Any], value: float | str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        raw_of(one(write={}, **words), value)


@pytest.mark.parametrize(
    ("words", "raw", "function", "data"),
    [
        ({"type": "int16"}, -2, Function.WRITE_SINGLE_REGISTER, "fffe"),
        ({"type": "int16", "write": {"fc": 16}}, -2, Function.WRITE_MULTIPLE_REGISTERS, "fffe"),
        ({"type": "uint32"}, 1, Function.WRITE_MULTIPLE_REGISTERS, "00000001"),
        ({"type": "bool"}, True, Function.WRITE_SINGLE_REGISTER, "0001"),
        ({"type": "string", "length": 3}, "ab", Function.WRITE_MULTIPLE_REGISTERS, "61620000"),
        ({"register": "coil"}, True, Function.WRITE_SINGLE_COIL, "ff00"),
        ({"register": "coil"}, False, Function.WRITE_SINGLE_COIL, "0000"),
        ({"register": "coil", "write": {"fc": 15}}, True, Function.WRITE_MULTIPLE_COILS, "01"),
    ],
)
def test_each_type_is_written_by_its_function(words: dict[str, Any], raw: Any, function: Function, data: str) -> None:
    request = write_request(9, one(**{"write": {}, **words}), raw)
    assert (request.unit, request.function, request.data.hex()) == (9, function, data)


def test_a_merged_answer_gives_every_point_its_own_registers() -> None:
    device, _ = spots(
        {"address": 10, "type": "float32"},
        {"address": 12, "type": "bit", "bit": 0},
        {"address": 12, "type": "bit", "bit": 15},
        {"address": 14, "type": "string", "length": 3},
    )
    ((_, merged),) = reads(BUS, device)
    assert read_request(5, merged)[:4] == (5, Function.READ_HOLDING_REGISTERS, 10, 6)
    values, status = decoded(merged, bytes.fromhex("7fc000008000ffff61626300"))
    assert values == (None, False, True, "abc")
    assert status == (Status.SENSOR_FAULT, Status.GOOD, Status.GOOD, Status.GOOD)


def test_coils_are_counted_from_the_lowest_bit_of_the_first_byte() -> None:
    device, _ = spots(*[{"address": 20 + n, "register": "coil"} for n in range(10)])
    ((_, merged),) = reads(BUS, device)
    values, status = decoded(merged, b"\x05\x02")
    assert values == (True, False, True, False, False, False, False, False, False, True)
    assert status is None
    assert alone(spot("", device, device.points[9])).quantity == 1


@pytest.mark.parametrize(
    ("type", "order", "said", "data"),
    [
        ("int16", "", 0x8000, b"\x80\x00"),
        ("int16", "", -32768, b"\x80\x00"),
        ("int16", "", -32768.0, b"\x80\x00"),
        ("uint16", "", 0xFFFF, b"\xff\xff"),
        ("uint16", "", -1, b"\xff\xff"),
        ("int32", "CDAB", 0x8000_0000, b"\x00\x00\x80\x00"),
        ("int64", "", 0x8000_0000_0000_0000, b"\x80" + bytes(7)),
        ("int8", "", 0x80, b"\x00\x80"),
    ],
)
def test_a_sentinel_is_found_as_the_manual_writes_it_and_as_it_reads(
    type: str, order: str, said: float, data: bytes
) -> None:
    point = one(type=type, byte_order=order, invalid=[said]) if order else one(type=type, invalid=[said])
    judge = Judge(point.point)

    def finished(data: bytes) -> tuple[Any, Status]:
        values, statuses = decoded(alone(point), data)
        return judge(values[0], statuses[0] if statuses else Status.GOOD)

    assert finished(data) == (None, Status.SENSOR_FAULT)
    assert finished(bytes(len(data) - 1) + b"\x07")[1] is Status.GOOD


@given(st.integers(-(1 << 15), (1 << 16) - 1), st.integers(0, (1 << 16) - 1), st.sampled_from(["int16", "uint16"]))
def test_a_sentinel_hides_the_register_with_its_bits_and_no_other(said: int, register: int, type: str) -> None:
    point = one(type=type, invalid=[said])
    values, statuses = decoded(alone(point), register.to_bytes(2, "big"))
    _, status = Judge(point.point)(values[0], statuses[0] if statuses else Status.GOOD)
    assert (status is Status.SENSOR_FAULT) == (said & 0xFFFF == register)


def test_a_scale_factor_of_the_same_answer_is_applied_exactly() -> None:
    words = {"type": "int16", "scale_register": 3, "invalid": [0x8000, 100]}
    device, _ = spots({"address": 1, **words}, {"address": 2, **words, "type": "uint16"}, {"address": 9, **words})
    ((_, first),) = reads(BUS, device)
    assert (first.address, first.quantity) == (1, 9)

    def seen(*registers: int) -> tuple[Any, ...]:
        return decoded(first, b"".join((register & 0xFFFF).to_bytes(2, "big") for register in registers))[0]

    assert seen(2171, 65535, -1, 0, 0, 0, 0, 0, 7) == (217.1, 6553.5, 0.7)
    assert seen(2171, 3, 0, 0, 0, 0, 0, 0, 7) == (2171, 3, 7)
    assert seen(-3, 3, 4, 0, 0, 0, 0, 0, 7) == (-30000, 30000, 70000)
    # the sentinels are those of the register; 10 × 10 is not 100
    assert seen(0x8000, 0x8000, 0, 0, 0, 0, 0, 0, 100) == (None, None, None)
    assert seen(10, 10, 1, 0, 0, 0, 0, 0, 10) == (100, 100, 100)
    judge = Judge(device.points[0])
    assert judge(100, Status.GOOD) == (100, Status.GOOD)


@pytest.mark.parametrize("power", [0x8000, 0x7FFF, 11, -11 & 0xFFFF])
def test_a_value_without_a_scale_is_no_value(power: int) -> None:
    target = one(type="int16", scale_register=1)
    assert decoded(alone(target), b"\x00\x07" + power.to_bytes(2, "big")) == ((None,), (Status.SENSOR_FAULT,))


@given(st.binary(min_size=40, max_size=40), st.data())
def test_a_block_gives_each_point_what_reading_it_alone_gives(data: bytes, drawn: st.DataObject) -> None:
    types: list[dict[str, Any]] = [
        {"type": "uint16"}, {"type": "int16"}, {"type": "int32", "byte_order": "CDAB"}, {"type": "float32"},
        {"type": "uint64", "byte_order": "DCBA"}, {"type": "bcd32"}, {"type": "bits", "bit": 3, "bits": 9},
        {"type": "int32", "mask": 0x00FFFF00}, {"type": "string", "length": 5}, {"type": "int8"},
        {"type": "int16", "scale_register": 19}, {"type": "uint16", "invalid": [0]},
    ]  # fmt: skip
    chosen = drawn.draw(st.lists(st.tuples(st.sampled_from(types), st.integers(0, 16)), min_size=1, max_size=8))
    device, found = spots(*[{**words, "address": address} for words, address in chosen], max_gap=125)
    together: dict[str, Any] = {}
    for _, merged in reads(BUS, device):
        answer = data[2 * merged.address : 2 * (merged.address + merged.quantity)]
        together |= dict(zip(Block(merged).names, Block(merged).decode(answer)[0], strict=True))
    for spot_ in found:
        read_ = alone(spot_)
        part = data[2 * read_.address : 2 * (read_.address + read_.quantity)]
        assert together[spot_.point.name] == decoded(read_, part)[0][0]


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA", "ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA"])
@pytest.mark.parametrize(
    ("type", "invalid", "big_endian"),
    [
        ("int16", [0x8000], "8000"),
        ("uint16", [0xFFFF], "ffff"),
        ("int32", [0x8000_0000], "80000000"),
        ("uint32", [-1], "ffffffff"),
        ("int64", [0x8000_0000_0000_0000], "8000000000000000"),
        ("uint64", [0xFFFF_FFFF_FFFF_FFFF], "ffffffffffffffff"),
        ("float32", [], "7fc00000"),
        ("float32", [], "ff800000"),
        ("float32", [-999.9], "c479f99a"),
        ("float64", [], "7ff8000000000001"),
        ("bcd32", [], "ffffffff"),
    ],
)
def test_what_says_that_there_is_no_value_is_bad_in_every_byte_order(
    type: str, invalid: list[float], big_endian: str, order: str
) -> None:
    target = one(type=type, invalid=invalid, byte_order=order)
    data = bytes.fromhex(big_endian)
    (value,), status = decoded(alone(target), bytes(data[at] for at in target.word.order.places(len(data))))
    assert Judge(target.point)(value, status[0] if status else Status.GOOD) == (None, Status.SENSOR_FAULT)
