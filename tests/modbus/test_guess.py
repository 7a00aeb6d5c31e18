"""What a block of registers may mean."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codec.words import Family, Order, parse
from gateway.connectors.modbus.guess import Guess, explain, guess
from gateway.connectors.modbus.plausibility import Layout, chance, sense
from gateway.model import Value

from .grade import Grade, devices, grade, vendors
from .shuffled import Shuffled


def held(*numbers: tuple[str, Value], order: Order = Order.BIG, address: int = 0) -> dict[int, int]:
    data = b"".join(parse(name, order.value).encode(value) for name, value in numbers)
    return {address + at // 2: int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)}


def marked(found: Guess) -> list[tuple[int, str, Value | None]]:
    return [(mark.address, mark.layout.value, mark.values[-1]) for mark in found.marks]


PHASES = [("float32", each) for each in (230.1342, 229.87, 231.4, 5.123, 4.9123, 5.01)]


@pytest.mark.parametrize("order", Order)
def test_floats_of_a_meter_are_found_in_every_order(order: Order) -> None:
    found = guess([held(*PHASES, order=order, address=100)])
    assert found.order is order
    assert found.orders[0][1] > 0.99
    assert marked(found) == [(100 + 2 * n, "float32", value) for n, (_, value) in enumerate(PHASES)]
    assert all(mark.sure for mark in found.marks)
    assert explain(found.marks[0]) == "mains voltage?"


def test_floats_that_begin_at_an_odd_address_are_not_shifted_by_one() -> None:
    found = guess([held(("uint16", 3), *PHASES, ("uint16", 7), address=41)])
    assert [mark.address for mark in found.marks if mark.layout is Layout.FLOAT32] == list(range(42, 54, 2))


def test_scaled_whole_numbers_are_found_and_a_scale_is_offered_that_makes_sense() -> None:
    numbers = [("uint16", each) for each in (2301, 2298, 2310, 4998)]
    found = guess([held(*numbers)])
    assert marked(found) == [(at, name, value) for at, (name, value) in enumerate(numbers)]
    assert explain(found.marks[0]) == "× 0.1 = 230.1: mains voltage?"
    assert explain(found.marks[3]) == "× 0.01 = 49.98: mains frequency?"


def test_a_negative_number_makes_its_neighbours_signed() -> None:
    found = guess([held(*(("int16", each) for each in (-215, 231, -187, 244, 198)))])
    assert {mark.layout for mark in found.marks} == {Layout.INT16}


def test_a_number_does_not_reach_across_an_address_that_does_not_exist() -> None:
    registers = held(*PHASES)
    del registers[3]
    found = guess([registers])
    assert all(mark.address + mark.registers <= 3 or mark.address > 3 for mark in found.marks)
    assert [mark.address for mark in found.marks if mark.layout is Layout.FLOAT32] == [0, 4, 6, 8, 10]


def test_text_is_read_as_text() -> None:
    data = b"SOLARMETER X-200"
    registers = {at // 2: int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)}
    found = guess([registers | held(*PHASES, address=8)])
    text = found.marks[0]
    assert (text.address, text.registers, text.values) == (0, 8, ("SOLARMETER X-200",))
    assert text.word().family is Family.STRING
    assert found.marks[1].layout is Layout.FLOAT32


def test_zeros_and_random_words_are_not_marked() -> None:
    assert guess([dict.fromkeys(range(50), 0)]).marks == ()
    pick = random.Random(1)
    noise = guess([{at: pick.randrange(0x100, 0x10000) for at in range(200)}])
    assert len([mark for mark in noise.marks if mark.sure]) <= 2


def test_zeros_between_numbers_are_not_marked_and_shift_nothing() -> None:
    numbers = [("float32", each) for each in (231.2, 0.0, 0.0, 4.117, 5.23, 0.0)]
    found = guess([held(*numbers)])
    assert [mark.address for mark in found.marks] == [0, 6, 8]


def test_looking_again_tells_a_counter_from_two_integers() -> None:
    once = held(("uint32", 98_765))
    times = [held(("uint32", 98_765 + 7 * n)) for n in range(6)]
    before, after = guess([once]), guess(times)
    share = {len(looks): _share(looks) for looks in ([once], times)}
    assert share[6] > share[1]
    assert [(mark.layout, mark.values[-1]) for mark in after.marks] == [(Layout.UINT32, 98_800)]
    assert explain(after.marks[0]) == "only grows"
    assert before.marks == () or before.marks[0].share < after.marks[0].share


def _share(looks: list[dict[int, int]]) -> float:
    return sum(mark.share for mark in guess(looks).marks if mark.layout in (Layout.UINT32, Layout.INT32))


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 65535), max_size=40), st.integers(1, 3))
def test_whatever_is_read_marks_lie_side_by_side_and_shares_are_shares(block: dict[int, int], looks: int) -> None:
    found = guess([block] * looks)
    assert math.isclose(sum(share for _, share in found.orders), 1)
    end = -1
    for mark in found.marks:
        assert mark.address >= end
        end = mark.address + mark.registers
        assert all(each in block for each in range(mark.address, end))
        assert 0.5 < mark.share <= 1
        assert len(mark.values) == looks
        explain(mark)


def test_nothing_read_is_nothing_marked() -> None:
    assert guess([]).marks == guess([{}]).marks == ()


@pytest.mark.parametrize("layout", [each for each in Layout if each.registers == 1])
def test_the_chances_of_all_numbers_of_a_register_are_a_whole(layout: Layout) -> None:
    total = sum(2.0 ** chance(layout, (code,)) for code in range(65_536))
    assert total == pytest.approx(1, abs=0.12)


def test_a_number_like_the_one_before_it_is_likelier() -> None:
    for layout, codes in ((Layout.UINT16, (2301, 2298, 40)), (Layout.FLOAT32, (0x43661A00, 0x4365F000, 0x3F000000))):
        number, like, unlike = codes
        assert chance(layout, (number,), like) > chance(layout, (number,)) + 1
        assert chance(layout, (number,), unlike) < chance(layout, (number,))


@pytest.mark.parametrize(
    ("value", "good"), [(230.1, True), (0.0, True), (1e-41, False), (2e24, False), (math.nan, False), (-0.5, True)]
)
def test_floats_that_nobody_means_make_no_sense(value: float, good: bool) -> None:
    import struct

    assert sense(Layout.FLOAT32, int.from_bytes(struct.pack(">f", value), "big")) is good


def _good_enough(total: Grade) -> None:
    assert total.right / total.marks > 0.87, total
    assert total.right / total.points > 0.82, total
    assert total.sure_right / total.sure > 0.95, total
    assert total.orders_right / total.orders > 0.9, total


def test_devices_that_nobody_described_are_mostly_understood() -> None:
    _good_enough(devices(range(1000, 1030), looks=3))


def test_the_maps_of_vendors_are_mostly_understood() -> None:
    _good_enough(vendors(range(1), 1, "refused"))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_hundred_devices_that_nobody_described_are_mostly_understood() -> None:
    for looks in (1, 3, 10):
        total = devices(range(200), looks)
        print(f"\nlooked at {looks} times: {total}")
        _good_enough(total)


def test_a_device_is_graded_by_what_its_map_says() -> None:
    device = Shuffled(7)
    total = grade(device.points, guess([device.registers(2.0 * look) for look in range(3)]))
    assert (total.points, total.marks, total.right) == (26, 26, 26)
    assert grade(device.points, Guess(((Order.BIG, 1.0),), ())).right == 0
