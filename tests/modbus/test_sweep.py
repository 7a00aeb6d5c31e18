"""Finding out which addresses exist, in few reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.modbus.sweep import Bite, Sweep


def swept(sweep: Sweep, gives: Callable[[Bite], bool]) -> int:
    """Runs it against a device whose registers hold their address; how many reads it took."""
    reads = 0
    while (bite := sweep.bite()) is not None:
        reads += 1
        assert reads < 100_000, "it never ends"
        if gives(bite):
            sweep.answered(list(range(bite.address, bite.address + bite.quantity)))
        else:
            sweep.refused()
    return reads


@given(st.sets(st.integers(0, 120)), st.integers(0, 20), st.integers(1, 110), st.sampled_from([1, 7, 64, 125]))
def test_every_address_is_found_or_missing_and_holds_its_own_value(
    there: set[int], address: int, count: int, most: int
) -> None:
    sweep = Sweep(address, count, most)
    swept(sweep, lambda bite: all(bite.address + n in there for n in range(bite.quantity)))
    asked = set(range(address, address + count))
    assert sweep.values == {each: each for each in asked & there}
    assert set(sweep.missing) == asked - there
    assert sweep.share == 1


def test_what_exists_is_read_in_large_bites_and_a_hole_costs_one_read_an_address() -> None:
    assert swept(Sweep(0, 1000, 125), lambda bite: True) == 8
    assert swept(Sweep(0, 1000, 125), lambda bite: bite.address + bite.quantity <= 300 or bite.address >= 350) < 100


def test_a_device_that_takes_short_reads_only_is_asked_too_much_once() -> None:
    sweep = Sweep(0, 640, 125)
    reads = swept(sweep, lambda bite: bite.quantity <= 20)
    assert len(sweep.values) == 640
    assert reads < 640 / 20 * 1.5 + 10


@pytest.mark.parametrize("width", [2, 4])
def test_a_device_that_gives_numbers_whole_or_not_at_all_is_read_all_the_same(width: int) -> None:
    there = range(100, 100 + 10 * width)

    def gives(bite: Bite) -> bool:
        whole = bite.address % width == 0 and bite.quantity % width == 0
        return whole and bite.address in there and bite.address + bite.quantity - 1 in there

    sweep = Sweep(96, 16 * width, 125)
    swept(sweep, gives)
    assert sweep.values == {each: each for each in there}


def test_once_a_register_came_alone_a_hole_is_not_asked_in_twos() -> None:
    asked: list[Bite] = []

    def gives(bite: Bite) -> bool:
        asked.append(bite)
        return bite.address + bite.quantity <= 10

    swept(Sweep(0, 30, 16), gives)
    hole = [bite for bite in asked if bite.address >= 11]
    assert [bite.quantity for bite in hole] == [1] * 19
