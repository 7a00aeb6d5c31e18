"""Counters: what is doubted is marked, once, and nothing is altered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from normalise.test_normaliser import NS, play, sample

from gateway.model import Status, Value
from gateway.normalise.counter import Counter
from gateway.normalise.normaliser import Normaliser
from gateway.points import Point
from gateway.settings import read

MINUTE_NS = 60 * NS


def doubted(values: list[int | float], max_rate: float | None = None, every_ns: int = MINUTE_NS) -> list[int | float]:
    counter = Counter(max_rate)
    return [value for n, value in enumerate(values) if counter.jumps(value, n * every_ns)]


@pytest.mark.parametrize(
    ("name", "values", "max_rate", "marked"),
    [
        ("it counts", [10, 10, 11, 15, 15], 25, []),
        ("one value of another register, from below", [100, 101, 3, 102, 103], None, [3]),
        ("one from above", [100, 101, 9113, 102, 103], 25, [9113]),
        ("one from above that nothing forbids", [100, 101, 9113, 102, 103], None, [102]),
        ("reset", [100, 101, 0, 0, 1, 2], None, [0]),
        ("rolled over", [65534, 65535, 2, 3], 25, [2]),
        ("another meter in its place", [100, 5000, 5001, 5002], 25, [5000]),
        ("two misreads, unlike", [100, 7, 3, 101, 102], None, [7, 3]),
        ("two misreads, alike", [100, 9000, 9000, 101, 102], 25, [9000, 101]),
        ("a step of a coarse counter", [100, 100, 101, 101, 102], 5, []),
        ("a step that is too large for an hour", [100, 100, 106], 5, [106]),
    ],
)
def test_the_doubtful_value_is_marked_and_no_other(
    name: str, values: list[int | float], max_rate: float | None, marked: list[int | float]
) -> None:
    assert doubted(values, max_rate) == marked


def test_what_was_not_seen_for_days_may_have_grown_for_days() -> None:
    assert doubted([0, 24 * 25], 25, 24 * 3600 * NS) == []
    assert doubted([0, 24 * 25 + 1], 25, 24 * 3600 * NS) == [24 * 25 + 1]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30), st.floats(0, 1e9))
def test_a_counter_that_counts_is_never_marked_and_a_reset_once(grows: list[float], start: float) -> None:
    total, values = start, []
    for each in grows:
        total += each
        values.append(total)
    assert doubted(values) == []
    assert len(doubted([*values, *[each / 2 - 1 for each in values]])) <= 1


def test_the_reading_carries_the_value_as_it_came_and_the_mark() -> None:
    subject = Normaliser({"d": [Point(name="e", monotonic=True, max_rate=25, scale=0.1), Point(name="u")]})
    raw: list[Value | None] = [1000, 1001, 5, None, 1002]
    events = [sample(60.0 * n, e=value, u=n, status=None) for n, value in enumerate(raw)]
    readings = [(value, status) for _, point, value, status in play(subject, list(events)) if point == "e"]
    assert readings == [
        (100.0, Status.GOOD),
        (100.1, Status.GOOD),
        (0.5, Status.COUNTER_JUMP),
        (None, Status.SENSOR_FAULT),
        (100.2, Status.GOOD),
    ]


def test_what_the_source_says_of_a_value_is_not_overwritten() -> None:
    subject = Normaliser({"d": [Point(name="e", monotonic=True)]})
    events = [sample(0.0, e=10), sample(60.0, e=1, status=Status.RETAINED), sample(120.0, e=2)]
    assert [status for *_, status in play(subject, list(events))] == [Status.GOOD, Status.RETAINED, Status.GOOD]


def test_a_rate_without_a_counter_is_a_mistake() -> None:
    _, mistakes = read(Point, {"name": "e", "max_rate": 5})
    assert "monotonic = true" in mistakes[0].message
