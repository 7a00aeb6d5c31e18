"""What a point of the configuration may not say, and what it means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.model import Status, Value
from gateway.normalise.judge import Judge
from gateway.points import Point
from gateway.settings import read


@pytest.mark.parametrize(
    ("keys", "place", "says"),
    [
        ({"scale": 0}, "scale", "every value the same"),
        ({"min": 5, "max": 4}, "min", "larger than max"),
        ({"min_interval": "10s", "max_interval": "5s"}, "min_interval", "longer than max_interval"),
        ({"unit": "degF", "convert": "celcius"}, "convert", "nearest known one is `celsius`"),
        ({"unit": "degF", "convert": "kWh"}, "convert", "it can become Cel, K"),
        ({"convert": "Celcius"}, "convert", "unknown unit"),
    ],
)
def test_a_mistake_is_found_before_the_gateway_runs(keys: dict[str, Any], place: str, says: str) -> None:
    point, mistakes = read(Point, {"name": "p", **keys})
    assert point is None
    assert [m.path for m in mistakes] == [(place,)]
    assert says in mistakes[0].message


def test_a_point_that_converts_what_its_source_names_is_fine() -> None:
    assert read(Point, {"name": "p", "convert": "°C", "unit": ""})[1] == []
    assert read(Point, {"name": "p", "convert": "°C", "unit": "°F", "scale": 0.1})[1] == []


STEPS = [1.0, 0.1, 0.01, 0.001, -0.5, 2.5, 10, 1 / 3]


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(STEPS),
    st.sampled_from([0.0, -40, 0.5, 273.15]),
    st.sampled_from([("", ""), ("degF", "Cel"), ("Cel", "K"), ("Wh", "kWh")]),
)
@settings(deadline=None)
def test_what_a_reading_says_can_be_written_and_is_the_same_raw_value(
    raw: int, scale: float, offset: float, units: tuple[str, str]
) -> None:
    point = Point(name="p", scale=scale, offset=offset, unit=units[0], convert=units[1])
    said, status = Judge(point)(raw, Status.GOOD)
    assert said is not None
    assert status is Status.GOOD
    assert point.value_of(raw) == said
    assert point.raw_of(said) == pytest.approx(raw, rel=1e-13, abs=1e-6)
    if not units[0]:
        assert point.raw_of(said) == raw


def test_integers_stay_exact_to_sixty_four_bits_both_ways() -> None:
    tens = Point(name="p", scale=10, offset=3)
    for raw in (2**63 - 1, -(2**63), 2**60 + 1):
        assert Point(name="p").raw_of(raw) == raw
        assert tens.raw_of(10 * raw + 3) == raw
        assert tens.value_of(raw) == 10 * raw + 3


def test_a_tenth_is_a_tenth() -> None:
    assert Point(name="p", scale=0.1).raw_of(1.1) == 11
    assert Point(name="p", scale=0.1).raw_of(21.55) == 215.5


@pytest.mark.parametrize(
    ("enum", "said", "raw"),
    [
        ({"0": "off", "1": "on"}, "on", 1),
        ({"0x10": "heat"}, "heat", 16),
        ({"1.5": "eco"}, "eco", 1.5),
        ({"true": "open", "false": "shut"}, "shut", False),
        ({"AUTO": "automatic"}, "automatic", "AUTO"),
        ({"0": "off", "1": "on"}, 1, 1),
    ],
)
def test_a_state_is_written_by_its_name_and_read_as_the_normaliser_reads_it(
    enum: dict[str, str], said: Value, raw: Value
) -> None:
    point = Point(name="p", enum=enum, scale=0.1)  # states are not counted
    assert (point.raw_of(said), type(point.raw_of(said))) == (raw, type(raw))
    assert point.value_of(raw) == Judge(point)(raw, Status.GOOD)[0]


@pytest.mark.parametrize(
    ("keys", "said", "why"),
    [
        ({"enum": {"1": "on"}}, "off", "'off' is not one of on"),
        ({}, float("nan"), "not a number"),
        ({"convert": "Cel"}, 20, "unknown unit"),
    ],
)
def test_what_means_nothing_is_not_written(keys: dict[str, Any], said: Value, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Point(name="p", **keys).raw_of(said)


def test_the_unit_of_the_device_itself_counts_where_the_configuration_names_none() -> None:
    assert Point(name="p", convert="Cel").raw_of(20, "degF") == 68
    assert Point(name="p", convert="Cel").value_of(68, "degF") == 20
