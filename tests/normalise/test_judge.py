"""What a raw value of one point is worth."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Quality, Status
from gateway.normalise.judge import Judge
from gateway.points import Point

NAN, INF = math.nan, math.inf


def point(**keys: Any) -> Point:
    return Point(name="p", **keys)


JUDGEMENTS: list[tuple[dict[str, Any], Any, Any, Status]] = [
    ({}, 21.5, 21.5, Status.GOOD),
    ({}, True, True, Status.GOOD),
    ({}, "open", "open", Status.GOOD),
    ({}, 2**64 - 1, 2**64 - 1, Status.GOOD),
    ({}, -(2**63), -(2**63), Status.GOOD),
    ({}, 2**64, float(2**64), Status.GOOD),
    ({}, 10**400, None, Status.SENSOR_FAULT),
    ({}, None, None, Status.SENSOR_FAULT),
    ({}, NAN, None, Status.SENSOR_FAULT),
    ({}, INF, None, Status.SENSOR_FAULT),
    ({}, "\ud800", None, Status.DECODE),
    ({}, [1], None, Status.DECODE),
    # a sentinel is a raw value: it is compared before scaling
    ({"invalid": (0x8000,), "scale": 0.1}, 0x8000, None, Status.SENSOR_FAULT),
    ({"invalid": (3276.8,), "scale": 0.1}, 0x8000, 3276.8, Status.GOOD),
    ({"invalid": (-127,)}, -127.0, None, Status.SENSOR_FAULT),
    ({"invalid": ("--",)}, "--", None, Status.SENSOR_FAULT),
    ({"invalid": (2**64,)}, 2**64, None, Status.SENSOR_FAULT),
    ({"invalid": (1,)}, [1], None, Status.DECODE),
    ({"invalid": (1,)}, True, True, Status.GOOD),
    ({"invalid": (0,)}, False, False, Status.GOOD),
    # scale, conversion, rounding
    ({"scale": 0.1}, 217, 21.7, Status.GOOD),
    ({"scale": 10, "offset": 3}, 2**53 + 1, (2**53 + 1) * 10 + 3, Status.GOOD),
    ({"scale": 1000}, 2**63, float(2**63 * 1000), Status.GOOD),
    ({"scale": 1e300}, 1e300, None, Status.SENSOR_FAULT),
    ({"scale": 1e300}, 2**63, None, Status.SENSOR_FAULT),
    ({"unit": "degF", "convert": "Cel", "digits": 1}, 70, 21.1, Status.GOOD),
    ({"digits": 1}, -0.04, 0.0, Status.GOOD),
    ({"digits": 1}, 12345, 12345, Status.GOOD),
    ({"scale": 0.1}, True, True, Status.GOOD),
    ({"scale": 0.1}, "error", None, Status.DECODE),
    ({"unit": "furlongs", "convert": "m"}, 3, None, Status.CONFIG),
    # limits judge the finished value and keep it
    ({"scale": 0.1, "min": 0, "max": 50}, 501, 50.1, Status.OUT_OF_RANGE),
    ({"min": 0}, -1, -1, Status.OUT_OF_RANGE),
    ({"min": 0, "max": 50}, 50, 50, Status.GOOD),
    # states
    ({"enum": {"0": "off", "1": "on"}}, 1, "on", Status.GOOD),
    ({"enum": {"0": "off", "1": "on"}}, False, "off", Status.GOOD),
    ({"enum": {"0": "off", "1": "on"}}, 1.0, "on", Status.GOOD),
    ({"enum": {"0": "off", "1": "on"}}, "1", "on", Status.GOOD),
    ({"enum": {"true": "open"}}, True, "open", Status.GOOD),
    ({"enum": {"0x10": "hex"}}, 16, "hex", Status.GOOD),
    ({"enum": {"0.5": "half"}}, 0.5, "half", Status.GOOD),
    ({"enum": {"CLOSED": "shut"}}, "CLOSED", "shut", Status.GOOD),
    ({"enum": {"0": "off"}}, 7, "7", Status.OUT_OF_RANGE),
    ({"enum": {"0": "off"}}, True, "true", Status.OUT_OF_RANGE),
    ({"enum": {"0": "off"}, "invalid": (255,)}, 255, None, Status.SENSOR_FAULT),
    # a deadband of 0 is for states too
    ({"deadband": 0}, "open", "open", Status.GOOD),
]


@pytest.mark.parametrize(("keys", "raw", "value", "status"), JUDGEMENTS)
def test_the_table_of_judgements(keys: dict[str, Any], raw: Any, value: Any, status: Status) -> None:
    result, why = Judge(point(**keys))(raw, Status.GOOD)
    assert (result, why) == (value, status)
    assert repr(result) == repr(value)


@pytest.mark.parametrize("status", [s for s in Status if s.quality is Quality.BAD])
def test_what_the_connector_calls_bad_has_no_value_whatever_it_sent(status: Status) -> None:
    assert Judge(point(scale=2))(0, status) == (None, status)


def test_what_the_connector_doubts_stays_doubted_for_its_reason() -> None:
    assert Judge(point(max=1))(5, Status.RETAINED) == (5, Status.RETAINED)
    assert Judge(point())(None, Status.RETAINED) == (None, Status.SENSOR_FAULT)


def test_the_unit_of_the_configuration_wins_and_spellings_become_symbols() -> None:
    assert Judge(None, "°C").unit == "Cel"
    assert Judge(point(unit="K"), "°C").unit == "K"
    assert Judge(point(convert="Cel"), "°F").unit == "Cel"
    assert Judge(point(convert="Cel"), "°F")(212, Status.GOOD) == (100.0, Status.GOOD)
    assert Judge(point(convert="Cel"), "")(212, Status.GOOD) == (None, Status.CONFIG)


RAW = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=4)
)
POINTS = st.builds(
    point,
    scale=st.sampled_from([1.0, 0.1, -2.0, 1e300]),
    offset=st.sampled_from([0.0, 0.5, -40.0]),
    digits=st.none() | st.integers(0, 3),
    min=st.none() | st.just(-5.0),
    invalid=st.just(()) | st.just((0, -1, "x")),
    enum=st.just({}) | st.just({"0": "off", "1": "on"}),
)


@given(POINTS, RAW, st.sampled_from(Status))
def test_bad_means_none_and_everything_else_can_be_encoded(point: Point, raw: Any, said: Status) -> None:
    value, status = Judge(point)(raw, said)
    assert (value is None) == (status.quality is Quality.BAD)
    if isinstance(value, int):
        assert -(2**63) <= value < 2**64
    assert msgspec.json.decode(msgspec.json.encode(value)) == value


@given(RAW)
def test_a_plain_judge_changes_nothing_that_can_travel(raw: Any) -> None:
    judge = Judge(None)
    assert judge.plain
    value, status = judge(raw, Status.GOOD)
    if status is Status.GOOD and not (isinstance(raw, int) and not -(2**63) <= raw < 2**64):
        assert value is raw
