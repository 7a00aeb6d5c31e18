"""What the clock can be trusted with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import ClockState, Trust
from gateway.normalise.timebase import FUTURE_MS, PAST_MS, Timebase, source_stamp

U, H, S, V = Trust.UNSYNCED, Trust.HOLDOVER, Trust.SYNCED, Trust.SERVER
BASE = 1_750_000_000_000
AT = 5_000_000


def clock(trust: Trust, offset_ms: int = BASE, error_ms: int | None = None) -> ClockState:
    return ClockState("b" * 32, offset_ms, (20 if trust is S else -1) if error_ms is None else error_ms, trust)


@pytest.mark.parametrize(
    ("age_ms", "trust", "believed"),
    [
        (0, S, True),
        (0, H, True),
        (0, U, False),
        (PAST_MS, S, True),
        (PAST_MS + 1, S, False),
        (-FUTURE_MS, S, True),
        (-FUTURE_MS - 1, S, False),
        (BASE + AT, S, False),  # a device whose clock starts at 1970
    ],
)
def test_a_device_stamp_counts_only_by_a_trusted_clock_and_in_its_window(
    age_ms: int, trust: Trust, believed: bool
) -> None:
    source_ms = BASE + AT - age_ms
    assert source_stamp(source_ms, AT, clock(trust)) == (source_ms if believed else None)


def test_no_stamp_stays_no_stamp() -> None:
    assert source_stamp(None, AT, clock(S)) is None


@pytest.mark.parametrize(
    ("what", "states", "due"),
    [
        ("boot without network, then NTP", [(U, 0), (U, 0), (S, BASE), (S, BASE)], [2]),
        ("synchronised at the start: an earlier process may have not been", [(S, BASE), (S, BASE)], [0]),
        ("never synchronised", [(U, 0), (U, BASE), (U, 5)], []),
        ("rounding and slewing", [(S, BASE), (S, BASE + 3), (S, BASE - 900), (S, BASE + 1000)], [0]),
        ("a step", [(S, BASE), (S, BASE + 1041), (S, BASE + 1041)], [0, 1]),
        ("a drift, compared with what was told", [(S, BASE + i * 300) for i in range(7)], [0, 4]),
        ("holdover that comes back the same", [(S, BASE), (H, BASE), (S, BASE + 10)], [0]),
        ("somebody sets the clock while nothing vouches for it", [(S, BASE), (H, BASE + 9e6), (H, BASE + 9e6)], [0]),
        ("and NTP sets it right", [(S, BASE), (H, BASE + 9e6), (S, BASE + 7), (S, BASE + 7)], [0, 2]),
        ("and NTP agrees with it", [(S, BASE), (H, BASE + 9e6), (S, BASE + 9e6)], [0, 2]),
        ("no NTP, but a server, then NTP", [(U, 0), (V, BASE), (V, BASE + 3), (S, BASE + 2), (S, BASE)], [1, 3]),
        ("two servers, narrowed down", [(V, BASE), (V, BASE + 900), (V, BASE - 1000)], [0]),
        ("a server that was wrong", [(V, BASE), (V, BASE + 3_600_000), (V, BASE + 3_600_000)], [0, 1]),
    ],
)  # fmt: skip
def test_the_table_of_clock_records(what: str, states: list[tuple[Trust, float]], due: list[int]) -> None:
    timebase = Timebase()
    recorded = [timebase.observe(clock(trust, int(offset))) for trust, offset in states]
    assert [i for i, state in enumerate(recorded) if state is not None] == due, what
    assert all(recorded[i] == clock(states[i][0], int(states[i][1])) for i in due)


def test_a_change_within_both_errors_is_no_news() -> None:
    timebase = Timebase()
    assert timebase.observe(clock(S, BASE, 3000)) is not None
    assert timebase.observe(clock(S, BASE + 4000, 1000)) is None
    assert timebase.observe(clock(S, BASE + 4001, 1000)) is not None


@given(st.lists(st.tuples(st.sampled_from(Trust), st.integers(BASE - 5000, BASE + 5000))))
def test_after_every_state_that_somebody_vouches_for_the_sink_knows_the_offset(states: list[tuple[Trust, int]]) -> None:
    timebase, told = Timebase(), None
    for trust, offset in states:
        due = timebase.observe(clock(trust, offset))
        told = due or told
        if trust in (S, V):
            assert told is not None
            assert abs(told.offset_ms - offset) <= 1000
        else:
            assert due is None
