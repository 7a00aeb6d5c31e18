"""When a unit that ended is built again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.supervisor.policy import (
    FAULT_WINDOW_S,
    FAULTS,
    LONGEST_WAIT_S,
    REST_S,
    STABLE_S,
    RestartPolicy,
    Wait,
)


def worst() -> float:
    return 1.0


def test_the_wait_doubles_from_a_second_to_a_minute_and_stays_there() -> None:
    policy = RestartPolicy(worst)
    assert [policy.link_lost(0.0).seconds for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_unit_that_ran_for_a_minute_starts_with_a_short_wait_again() -> None:
    policy = RestartPolicy(worst)
    for _ in range(9):
        policy.link_lost(0.0)
    policy.started(100.0)
    assert policy.link_lost(100.0 + STABLE_S - 0.1).seconds == LONGEST_WAIT_S
    policy.started(200.0)
    assert policy.link_lost(200.0 + STABLE_S).seconds == 1.0


def test_the_fifth_fault_in_ten_minutes_is_a_rest_and_counting_begins_anew() -> None:
    policy = RestartPolicy(worst)
    assert not any(policy.fault(float(i)).rest for i in range(FAULTS - 1))
    assert policy.fault(FAULT_WINDOW_S) == Wait(REST_S, rest=True)
    assert not any(policy.fault(FAULT_WINDOW_S + i).rest for i in range(FAULTS - 1))


def test_faults_that_are_far_apart_never_make_a_rest() -> None:
    policy = RestartPolicy(worst)
    assert not any(policy.fault(i * FAULT_WINDOW_S / (FAULTS - 1) * 1.01).rest for i in range(50))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["link", "fault"]), st.floats(0, 1000), st.floats(0, 1)), max_size=40))
def test_a_lost_link_never_makes_a_rest_and_no_wait_is_longer_than_its_bound(
    ends: list[tuple[str, float, float]],
) -> None:
    now, part = 0.0, 0.0
    policy = RestartPolicy(lambda: part)
    for end, ran_s, part in ends:
        policy.started(now)
        now += ran_s
        wait = policy.link_lost(now) if end == "link" else policy.fault(now)
        assert wait.seconds <= (REST_S if wait.rest else LONGEST_WAIT_S * part)
        assert not (wait.rest and end == "link")
        now += wait.seconds
