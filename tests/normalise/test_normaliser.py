"""From samples to rows: what is news, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import DecodeError
from gateway.model import ClockState, Lane, Origin, Row, Sample, Status, Trust, Value
from gateway.normalise.normaliser import Normaliser
from gateway.points import Point

CLOCK = ClockState("b" * 32, 1_750_000_000_000, 1, Trust.SYNCED)
NS = 1_000_000_000
GOOD, TIMEOUT, CRC = Status.GOOD, Status.COMM_TIMEOUT, Status.CRC
ORIGIN = Origin(b"s" * 8, 7, b"f" * 16)


def normaliser(*points: Point, device: str = "d", **options: Any) -> Normaliser:
    return Normaliser({device: points}, **options)


def sample(at_s: float, *, device: str = "d", status: Any = None, **values: Any) -> Sample:
    said = None
    if status is not None:
        said = tuple(status) if isinstance(status, list) else (status,) * len(values)
    return Sample(device, tuple(values), tuple(values.values()), round(at_s * NS), said)


def told(rows: list[Row]) -> list[tuple[float, str, Value | None, Status]]:
    """(second, point, value, status) of every reading."""
    return [
        (row.at_ms / 1000, point, row.values[i], row.status[i] if row.status else GOOD)
        for row in rows
        for i, point in enumerate(row.shape.points)
    ]


def play(subject: Normaliser, events: list[Sample | float]) -> list[tuple[float, str, Value | None, Status]]:
    """Samples in, and a tick at every number of seconds."""
    rows: list[Row] = []
    for event in events:
        rows += subject.rows(event, CLOCK) if isinstance(event, Sample) else subject.tick(round(event * NS))
    return told(rows)


def test_good_values_go_through_as_they_are_under_one_shared_shape() -> None:
    subject = normaliser(Point(name="u", unit="V"), Point(name="i"))
    first = Sample("d", ("u", "i", "extra"), (230.1, 2**64 - 1, True), 5 * NS, units=("mV", "A", "°C"), origin=ORIGIN)
    second = Sample("d", ("u", "i", "extra"), (230.2, 4, False), 6 * NS, units=("mV", "A", "°C"))
    (a,), (b,) = subject.rows(first, CLOCK), subject.rows(second, CLOCK)
    assert a.values is first.values
    assert a.shape is b.shape
    assert a.shape.units == ("V", "A", "Cel")
    assert (a.at_ms, a.status, a.origin, b.origin) == (5000, None, ORIGIN, None)


def test_bad_quality_is_told_once_then_slowly_and_recovery_at_once() -> None:
    subject = normaliser(Point(name="p", deadband=100), bad_heartbeat_s=60)
    polls: list[Sample | float] = [sample(0, p=1.0)]
    polls += [sample(i, p=None, status=TIMEOUT) for i in range(1, 131)]
    polls += [sample(131, p=None, status=CRC), sample(132, p=None, status=CRC), sample(133, p=1.5), sample(134, p=1.6)]
    assert play(subject, polls) == [
        (0, "p", 1.0, GOOD),
        (1, "p", None, TIMEOUT),
        (61, "p", None, TIMEOUT),
        (121, "p", None, TIMEOUT),
        (131, "p", None, CRC),
        (133, "p", 1.5, GOOD),
    ]


def test_one_bad_point_does_not_silence_its_neighbours_nor_the_other_way_round() -> None:
    subject = normaliser(Point(name="a"), Point(name="b"))
    assert play(
        subject,
        [
            sample(0, a=1, b=2),
            sample(1, a=None, b=3, status=[TIMEOUT, GOOD]),
            sample(2, a=None, b=3, status=[TIMEOUT, GOOD]),
            sample(3, a=1, b=3),
            sample(4, a=1, b=3),
        ],
    ) == [
        (0, "a", 1, GOOD),
        (0, "b", 2, GOOD),
        (1, "a", None, TIMEOUT),
        (1, "b", 3, GOOD),
        (2, "b", 3, GOOD),
        (3, "a", 1, GOOD),
        (3, "b", 3, GOOD),
        (4, "a", 1, GOOD),
        (4, "b", 3, GOOD),
    ]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 10**400, "\ud800"])
def test_a_value_that_is_none_never_becomes_a_number(bad: Any) -> None:
    for point in (Point(name="p"), Point(name="p", scale=2, offset=5, min=0)):
        (reading,) = play(normaliser(point), [sample(0, p=bad)])
        assert reading[2] is None
        assert reading[3] in (Status.SENSOR_FAULT, Status.DECODE)


def test_a_deadband_lets_only_larger_changes_through_measured_from_what_was_told() -> None:
    values = [21.5, 21.6, 21.4, 21.61, 21.7, 21.71, 21.72, 21.82]
    subject = normaliser(Point(name="p", deadband=0.1))
    assert [r[2] for r in play(subject, [sample(i, p=v) for i, v in enumerate(values)])] == [21.5, 21.61, 21.72]
    assert subject.suppressed == 5


def test_a_deadband_of_zero_tells_changes_only_of_states_too() -> None:
    subject = normaliser(Point(name="p", deadband=0, enum={"0": "off", "1": "on"}), Point(name="n", deadband=0))
    events: list[Sample | float] = [sample(i, p=v, n=2**63 + v) for i, v in enumerate([0, 0, 1, 1, 0])]
    assert [(r[0], r[2]) for r in play(subject, events)] == [
        (0, "off"),
        (0, 2**63),
        (2, "on"),
        (2, 2**63 + 1),
        (4, "off"),
        (4, 2**63),
    ]


def test_max_interval_tells_a_value_within_its_deadband_now_and_then() -> None:
    subject = normaliser(Point(name="p", deadband=5, max_interval=10))
    assert [r[0] for r in play(subject, [sample(i, p=1.0) for i in range(25)])] == [0, 10, 20]


def test_min_interval_holds_the_last_change_back_and_does_not_lose_it() -> None:
    subject = normaliser(Point(name="p", min_interval=10))
    assert play(subject, [sample(0, p=1), sample(1, p=2), sample(2.5, p=3)]) == [(0, "p", 1, GOOD)]
    assert subject.deadline() == 10 * NS
    assert play(subject, [9.9]) == []
    assert play(subject, [10.2]) == [(2.5, "p", 3, GOOD)]
    assert subject.deadline() is None
    assert play(subject, [sample(11, p=4), sample(20.2, p=5)]) == [(20.2, "p", 5, GOOD)]
    assert play(subject, [100.0]) == []


def test_a_change_that_went_back_before_its_turn_is_no_news() -> None:
    subject = normaliser(Point(name="p", min_interval=10, deadband=0))
    assert play(subject, [sample(0, p=1), sample(1, p=2), sample(2, p=1), 10.0]) == [(0, "p", 1, GOOD)]


def test_trouble_and_its_end_do_not_wait_for_min_interval() -> None:
    subject = normaliser(Point(name="p", min_interval=10))
    events = [sample(0, p=1), sample(1, p=2), sample(2, p=None), sample(3, p=4), sample(4, p=5), 12.0, 13.0]
    assert [(r[0], r[2]) for r in play(subject, events)] == [(0, 1), (2, None), (3, 4), (4, 5)]


def test_silence_becomes_stale_once_at_the_instant_it_was_too_long_and_then_slowly() -> None:
    subject = normaliser(Point(name="a", expire_after=30, unit="V"), Point(name="b", expire_after=30), Point(name="c"))
    assert play(subject, [sample(0, a=1, b=2, c=3)])[2] == (0, "c", 3, GOOD)
    assert subject.deadline() == 30 * NS
    assert play(subject, [sample(20, a=1, b=2, c=3)])
    assert subject.tick(30 * NS) == []
    assert subject.deadline() == 50 * NS
    (row,) = subject.tick(55 * NS)
    assert (row.at_ms, row.shape.points, row.shape.units, row.values) == (50_000, ("a", "b"), ("V", ""), (None, None))
    assert row.status == (Status.STALE, Status.STALE)
    assert subject.tick(100 * NS) == []
    assert [r[0] for r in told(subject.tick(115 * NS))] == [115, 115]
    assert play(subject, [sample(120, a=1, b=2, c=3)]) == [(120, p, v, GOOD) for p, v in (("a", 1), ("b", 2), ("c", 3))]
    assert play(subject, [149.0]) == []
    assert [r[0] for r in play(subject, [151.0])] == [150, 150]


def test_intervals_of_zero_ask_for_nothing_and_hang_nothing() -> None:
    subject = normaliser(
        Point(name="p", expire_after=0, min_interval=0), Point(name="q", expire_after=1), bad_heartbeat_s=0
    )
    assert play(subject, [sample(0, p=1), sample(0.1, p=2)]) == [(0, "p", 1, GOOD), (0.1, "p", 2, GOOD)]
    assert subject.deadline() is None
    assert play(subject, [sample(1, q=1), 2.0, 2.5, 3.0]) == [
        (1, "q", 1, GOOD),
        (2, "q", None, Status.STALE),
        (3, "q", None, Status.STALE),
    ]


def test_a_configured_point_that_never_came_is_stale_too_and_a_rule_is_no_device() -> None:
    points = [Point(name="p", expire_after=30, unit="V"), Point(name="q")]
    subject = Normaliser({"d": points, "{device}": points}, start_ns=5 * NS)
    assert subject.deadline() == 35 * NS
    (row,) = subject.tick(40 * NS)
    assert (row.shape.device, row.shape.points, row.shape.units, row.at_ms) == ("d", ("p",), ("V",), 35_000)


def test_alarm_points_travel_in_their_own_lane_first_with_the_same_instant_and_origin() -> None:
    subject = normaliser(Point(name="t"), Point(name="smoke", lane=Lane.ALARM), Point(name="h"))
    alarm, live = subject.rows(Sample("d", ("t", "smoke", "h"), (20, True, 50), 3 * NS, origin=ORIGIN), CLOCK)
    assert (alarm.shape.lane, alarm.shape.points, alarm.values) == (Lane.ALARM, ("smoke",), (True,))
    assert (live.shape.lane, live.shape.points, live.values) == (Lane.LIVE, ("t", "h"), (20, 50))
    assert alarm.at_ms == live.at_ms == 3000
    assert alarm.origin == live.origin == ORIGIN


def test_a_device_of_alarms_alone_takes_the_short_way_too() -> None:
    subject = normaliser(Point(name="smoke", lane=Lane.ALARM))
    (row,) = subject.rows(sample(0, smoke=True), CLOCK)
    assert row.shape.lane is Lane.ALARM


def test_one_rule_serves_many_devices_and_each_has_its_own_memory() -> None:
    subject = normaliser(Point(name="p", deadband=1, unit="V"), device="{device}")
    samples = [
        Sample(device, ("p", "auto"), (1.0, 2.0), 0, rule="{device}", units=("", "lux")) for device in ("a", "b", "a")
    ]
    rows = [row for each in samples for row in subject.rows(each, CLOCK)]
    assert [(row.shape.device, row.shape.points, row.shape.units) for row in rows] == [
        ("a", ("p", "auto"), ("V", "lx")),
        ("b", ("p", "auto"), ("V", "lx")),
        ("a", ("auto",), ("lx",)),
    ]


def test_the_same_points_have_the_same_shape_however_they_came_together() -> None:
    subject = normaliser(Point(name="a"), Point(name="b", deadband=1), Point(name="c", min_interval=10))
    (whole,) = subject.rows(sample(0, a=1, b=1, c=1), CLOCK)
    (alone,) = subject.rows(sample(1, a=1), CLOCK)
    (rest,) = subject.rows(sample(2, a=1, b=1, c=1), CLOCK)
    (held,) = subject.tick(10 * NS)
    subject.rows(sample(11, c=5), CLOCK)
    assert len(whole.values) == 3
    assert alone.shape is rest.shape
    assert subject.tick(20 * NS)[0].shape is held.shape


def test_a_stamp_of_the_device_is_kept_when_it_can_be_believed() -> None:
    subject = normaliser(Point(name="p"))
    now_ms = CLOCK.offset_ms + 1000
    stamped = [Sample("d", ("p",), (1,), NS, source_ms=ms) for ms in (now_ms - 5000, 0, now_ms + 3_600_000)]
    assert [subject.rows(each, CLOCK)[0].source_ms for each in stamped] == [now_ms - 5000, None, None]


@pytest.mark.parametrize(
    "broken",
    [
        Sample("d", ("a", "b"), (1,), 0),
        Sample("d", ("a",), (1, 2), 0),
        Sample("d", ("a",), (1,), 0, status=()),
        Sample("d", ("a",), (1,), 0, status=(GOOD, GOOD)),
        Sample("d", ("a",), (1,), 0, units=()),
        Sample("d", ("a", "a"), (1, 2), 0),
        Sample("d", (), (), 0),
        Sample("d", ("\ud800",), (1,), 0),
        Sample("d", ("a",), (1,), 0, units=("\ud800",)),
    ],
)
def test_a_sample_that_contradicts_itself_is_refused_and_leaves_nothing_behind(broken: Sample) -> None:
    subject = normaliser(Point(name="a"))
    for _ in range(2):
        with pytest.raises(DecodeError):
            subject.rows(broken, CLOCK)
    assert play(subject, [sample(1, a=1)]) == [(1, "a", 1, GOOD)]


def test_memory_is_bounded_for_devices_that_no_configuration_names() -> None:
    points = [Point(name="p", deadband=1, expire_after=1e6)]
    subject = Normaliser({"d": points, "{x}": points}, pairs=100)
    subject.rows(sample(0, p=1.0), CLOCK)
    for i in range(5000):
        subject.rows(Sample(f"auto-{i}", ("p",), (None,), i * NS, rule="{x}"), CLOCK)
    assert len(subject._plans) <= 102
    assert len(subject._homes) <= 103
    assert len(subject._expiries) <= 103
    assert len(subject._shapes) <= 102
    assert subject.forgotten >= 4800
    assert play(subject, [sample(6000, p=1.0)]) == [], "a configured point is never forgotten"
    assert play(subject, [Sample("auto-0", ("p",), (1.0,), 6000 * NS, rule="{x}")]) == [(6000, "p", 1.0, GOOD)]


def test_what_is_forgotten_is_no_trouble_any_more() -> None:
    subject = Normaliser({}, pairs=95)
    for i in range(200):
        for name in ("p", "q", "r"):
            subject.rows(Sample(f"auto-{i}", (name,), (None,), i * NS), CLOCK)
    counted = {name: (home.troubled, len(home.cells)) for name, home in subject._homes.items()}
    assert all(troubled == cells for troubled, cells in counted.values())
    assert any(cells in (1, 2) for _, cells in counted.values()), "a device of which a part was forgotten"


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────

POINTS = st.builds(
    Point,
    name=st.just("p"),
    scale=st.sampled_from([1.0, 0.1]),
    invalid=st.sampled_from([(), (99,)]),
    max=st.none() | st.just(50.0),
    deadband=st.none() | st.sampled_from([0.0, 2.0]),
    min_interval=st.none() | st.just(5.0),
    max_interval=st.none() | st.just(30.0),
    expire_after=st.none() | st.just(40.0),
)
VALUES = st.sampled_from([None, float("nan"), 0, 1, 2, 3, 60, 99, True, "open"])
STEPS = st.lists(st.tuples(st.sampled_from([0.5, 1, 7, 45, 100]), st.none() | VALUES.map(lambda v: (v,))), max_size=40)


def history(point: Point, steps: list[Any]) -> tuple[list[tuple[float, Any]], list[tuple[float, str, Any, Status]]]:
    """A life of one point: what came, and what was told. A step is (seconds later, value or a mere tick)."""
    subject, now, came, out = normaliser(point), 0.0, [], []
    for pause, event in steps:
        now += pause
        if event is not None:
            came.append((now, event[0]))
            out += play(subject, [sample(now, p=event[0])])
        else:
            out += play(subject, [now])
    while (due := subject.deadline()) is not None and due <= (now + 200) * NS:
        out += told(subject.tick(due))
    return came, out


@given(POINTS, STEPS)
def test_every_value_that_is_told_came_at_that_instant_and_in_that_order(point: Point, steps: list[Any]) -> None:
    came, out = history(point, steps)
    raw_at = dict(came)
    for at, _, value, status in out:
        if status is Status.STALE:
            assert value is None
        elif value is None:
            assert raw_at[at] in (None, 99) or raw_at[at] != raw_at[at] or raw_at[at] == "open"
        else:
            raw = raw_at[at]
            assert value == (raw if isinstance(raw, bool | str) or point.scale == 1 else raw / 10)
    times = [reading[0] for reading in out]
    assert times == sorted(times)


@given(POINTS, STEPS)
def test_in_the_end_the_sink_knows_what_the_last_sample_said(point: Point, steps: list[Any]) -> None:
    came, out = history(point, steps)
    if not came:
        assert out == []
        return
    at, raw = came[-1]
    last = out[-1]
    if point.expire_after is not None:
        assert last[3] is Status.STALE
        last = next((r for r in reversed(out) if r[3] is not Status.STALE), last)
    expected = play(
        normaliser(Point(name="p", scale=point.scale, invalid=point.invalid, max=point.max)), [sample(at, p=raw)]
    )[0]
    assert last[3] is expected[3]
    if isinstance(expected[2], int | float) and not isinstance(expected[2], bool) and point.deadband and last[0] != at:
        assert abs(last[2] - expected[2]) <= point.deadband + 1e-9  # type: ignore[operator]
    else:
        assert last[2] == expected[2]


@given(POINTS, STEPS)
def test_a_plain_point_and_one_with_an_unused_limit_say_the_same(point: Point, steps: list[Any]) -> None:
    """The short way and the long way are one way."""
    plain = history(Point(name="p", expire_after=point.expire_after), steps)
    judged = history(Point(name="p", expire_after=point.expire_after, invalid=(-12345,)), steps)
    assert plain[1] == judged[1]


TRIO = (
    Point(name="plain", expire_after=20),
    Point(name="alarm", lane=Lane.ALARM, invalid=(3,)),
    Point(name="thin", deadband=1, min_interval=5, max_interval=60),
)
FRAMES = st.dictionaries(st.sampled_from([p.name for p in TRIO]), st.sampled_from([None, 0, 1, 3, 9]), min_size=1)


@given(st.lists(st.tuples(st.sampled_from([0.5, 3, 30]), st.none() | FRAMES), max_size=40))
def test_points_of_one_device_do_not_disturb_each_other(steps: list[tuple[float, dict[str, Any] | None]]) -> None:
    """Together, in any combination of partial frames, each says what it says alone."""
    together, alone = normaliser(*TRIO), {point.name: normaliser(point) for point in TRIO}
    now = 0.0
    for pause, frame in steps:
        now += pause
        if frame is None:
            out = play(together, [now])
            expected = [r for each in alone.values() for r in play(each, [now])]
        else:
            out = play(together, [sample(now, **frame)])
            expected = [r for name, value in frame.items() for r in play(alone[name], [sample(now, **{name: value})])]
        assert sorted(map(str, out)) == sorted(map(str, expected))


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=6), st.booleans())
def test_sixty_four_bit_integers_stay_exact(values: list[int], judged: bool) -> None:
    points = [Point(name=f"p{i}", max=2e19 if judged else None) for i in range(len(values))]
    (row,) = normaliser(*points).rows(sample(0, **{f"p{i}": v for i, v in enumerate(values)}), CLOCK)
    assert row.values == tuple(values)
    assert all(type(value) is int for value in row.values)
