"""The schedule of a polled bus, turned by hand."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.schedule import COMMANDS_IN_A_ROW, Job, Schedule, Turn
from gateway.model import DeviceState

settings.register_profile("schedule", deadline=None)
settings.load_profile("schedule")


def free(_: str) -> float:
    return 0.0


def schedule(*intervals: float, device: str = "") -> Schedule[int]:
    return Schedule([Job(device or f"d{n}", interval, n) for n, interval in enumerate(intervals)], 0.0)


def test_due_times_stay_on_their_grid_for_ten_minutes_on_a_bus_that_is_four_times_too_slow() -> None:
    plan = schedule(0.05)
    job = plan.jobs[0]
    now, runs = 0.0, 0
    while now < 600:
        turn = plan.pick(now, free)
        if turn is None:
            now = plan.next_at(free)
            continue
        now += 0.2
        plan.advance(turn.job, now)
        runs += 1
        assert job.due > now
        ratio = (job.due - job.origin) / 0.05
        assert ratio == pytest.approx(round(ratio), abs=1e-6)
    assert runs + plan.skipped == pytest.approx(600 / 0.05, abs=3)
    assert 600 / 0.25 <= runs <= 600 / 0.2 + 1  # it waits for the next point of its grid, never longer


def test_everything_is_read_at_once_and_then_spread_over_the_interval() -> None:
    plan = schedule(*[10.0] * 20)
    first = []
    while (turn := plan.pick(0.0, free)) is not None:
        first.append(turn.job.work)
        plan.advance(turn.job, 0.0)
    assert sorted(first) == list(range(20))
    due = sorted(job.due for job in plan.jobs)
    assert max(after - before for before, after in itertools.pairwise(due)) < 1.0


@given(st.lists(st.sampled_from([0.1, 0.5, 1.0, 7.0]), min_size=1, max_size=12), st.floats(0.01, 0.5))
@settings(max_examples=50)
def test_nothing_starves_however_overloaded_the_bus_is(intervals: list[float], takes: float) -> None:
    plan = schedule(*intervals)
    now, last = 0.0, dict.fromkeys(range(len(intervals)), 0.0)
    round_s = takes * len(intervals)
    while now < 60:
        turn = plan.pick(now, free)
        if turn is None:
            now = plan.next_at(free)
            continue
        now += takes
        plan.advance(turn.job, now)
        last[turn.job.work] = now
        for number, interval in enumerate(intervals):
            # relative lateness: a job of a long interval may wait as many rounds longer
            assert now - last[number] <= 2 * interval + round_s * max(1.0, interval / min(intervals)) + takes


def test_the_latest_in_proportion_to_its_interval_goes_first() -> None:
    plan = schedule(10.0, 1.0)
    for job in plan.jobs:
        job.due = 0.0
    assert plan.pick(0.5, free).job.work == 1  # type: ignore[union-attr]
    plan.jobs[0].due = -20.0
    assert plan.pick(0.5, free).job.work == 0  # type: ignore[union-attr]


def test_a_device_that_may_not_be_asked_yet_is_passed_over() -> None:
    plan = schedule(100.0, 100.0)
    free_at = {"d0": 5.0, "d1": 0.0}
    assert plan.pick(0.0, free_at.__getitem__).job.device == "d1"  # type: ignore[union-attr]
    plan.advance(plan.jobs[1], 0.0)
    assert plan.pick(0.0, free_at.__getitem__) is None
    assert plan.next_at(free_at.__getitem__) == 5.0


def test_commands_go_first_but_an_overdue_poll_has_its_turn() -> None:
    plan = schedule(1.0)
    turns = []
    for _ in range(12):
        if plan.command_may_go(0.0, free):
            turns.append("command")
        else:
            turn = plan.pick(0.0, free)
            assert turn is not None
            turns.append("poll")
            turn.job.due = -1.0  # always overdue
    assert turns == (["command"] * COMMANDS_IN_A_ROW + ["poll"]) * 2 + ["command"] * 2
    plan.advance(plan.jobs[0], 0.0)
    assert all(plan.command_may_go(0.0, free) for _ in range(50))


def test_three_failures_rest_a_device_which_is_then_probed_ever_more_rarely() -> None:
    plan = Schedule([Job("d", 1.0, "large", cost=2.0), Job("d", 1.0, "small", cost=1.0), Job("e", 1.0, "e")], 0.0)
    assert [plan.failed("d", 0.0) for _ in range(3)] == [True, False, True]
    assert plan.state("d") is DeviceState.OFFLINE
    probes, now = [], 0.0
    while now < 1500:
        turn = plan.pick(now, free)
        if turn is None:
            now = plan.next_at(free)
            continue
        if turn.turn is Turn.PROBE:
            assert turn.job.work == "small"
            probes.append(now)
            plan.failed("d", now)
        else:
            assert turn.turn is (Turn.READ if turn.job.device == "e" else Turn.OFFLINE)
            plan.advance(turn.job, now)
    gaps = [after - before for before, after in zip([0.0, *probes], probes, strict=False)]
    assert gaps[:5] == pytest.approx([30, 60, 120, 240, 300])
    assert not plan.all_offline()


def test_the_first_success_makes_everything_of_the_device_due() -> None:
    plan = schedule(100.0, 100.0, device="d")
    for job in plan.jobs:
        plan.advance(job, 0.0)
    for _ in range(3):
        plan.failed("d", 0.0)
    assert plan.all_offline()
    assert plan.succeeded("d", 30.0) is True
    assert [job.due for job in plan.jobs] == [30.0, 30.0]
    assert plan.succeeded("d", 31.0) is False
    assert plan.failures("d") == 0


def test_a_retry_stays_due_and_waits_for_its_moment() -> None:
    plan = schedule(1.0)
    job = plan.jobs[0]
    plan.again(job, 0.2)
    assert plan.pick(0.1, free) is None
    assert plan.next_at(free) == 0.2
    assert plan.pick(0.2, free).job is job  # type: ignore[union-attr]
    plan.advance(job, 0.3)
    assert (job.tries, job.not_before) == (0, 0.0)


def test_the_parts_of_a_job_take_over_its_grid() -> None:
    plan = schedule(10.0, 1.0)
    whole = plan.jobs[0]
    parts = [Job("d0", 10.0, 7), Job("d0", 10.0, 8)]
    plan.replace(whole, parts)
    assert [job.work for job in plan.jobs] == [7, 8, 1]
    assert {(job.due, job.origin) for job in parts} == {(whole.due, whole.origin)}


def test_the_probes_of_sixty_dead_devices_leave_the_bus_to_the_one_that_lives() -> None:
    plan = Schedule([Job(f"dead{n}", 10.0, -1) for n in range(60)] + [Job("alive", 0.01, 1)], 0.0)
    for n in range(60):
        for _ in range(3):
            plan.failed(f"dead{n}", 0.0)
    now, probing, probed = 0.0, 0.0, set()
    while now < 3600:
        turn = plan.pick(now, free)
        if turn is None:
            now = plan.next_at(free)
        elif turn.turn is Turn.OFFLINE:
            plan.advance(turn.job, now)
        elif turn.turn is Turn.PROBE:
            now += 0.5
            probing += 0.5
            probed.add(turn.job.device)
            plan.failed(turn.job.device, now)
        else:
            now += 0.05  # five times as long as its interval: the bus is never idle
            plan.advance(turn.job, now)
    assert probing <= 0.05 * now + 0.5
    assert len(probed) == 60


def test_nobody_has_to_wait_for_a_probe_where_there_is_nothing_else_to_do() -> None:
    plan = schedule(*[100.0] * 4)
    for device in ("d0", "d1", "d2", "d3"):
        for _ in range(3):
            plan.failed(device, 0.0)
    for job in plan.jobs:
        plan.advance(job, 29.0)
    for n in range(4):
        turn = plan.pick(30.0 + n, free)
        assert turn is not None
        assert (turn.turn, turn.job.device) == (Turn.PROBE, f"d{n}")
        plan.failed(turn.job.device, 30.5 + n)


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_what_is_picked_is_what_looking_at_every_job_would_find(seed: int) -> None:
    dice = random.Random(seed)
    plan = Schedule([Job(f"d{dice.randrange(4)}", dice.choice([0.5, 1.0, 7.0]), n) for n in range(8)], 0.0)
    now = 0.0
    for _ in range(200):
        free_at = {f"d{n}": now + dice.choice([-1.0, 0.0, 0.3]) for n in range(4)}
        ready = [
            job.lateness(now)
            for job in plan.jobs
            if max(job.due, job.not_before) <= now and free_at[job.device] <= now
        ]  # fmt: skip
        turn = plan.pick(now, free_at.__getitem__)
        assert (turn.job.lateness(now) if turn else None) == max(ready, default=None)
        if turn is None:
            after = plan.next_at(free_at.__getitem__)
            assert after > now
            assert after == min(max(job.due, job.not_before, free_at[job.device]) for job in plan.jobs) or any(
                job.due <= now for job in plan.jobs
            )
            now = after
            continue
        now += dice.choice([0.0, 0.1, 2.0])
        does = dice.randrange(6)
        if does == 0 and turn.job.tries < 2:
            plan.again(turn.job, now + dice.choice([0.0, 0.4]))
        elif does == 1:
            plan.expedite(dice.choice(plan.jobs), now)
        elif does == 2 and len(plan.jobs) < 20:
            plan.replace(turn.job, [Job(turn.job.device, turn.job.interval, 0) for _ in range(2)])
        else:
            plan.advance(turn.job, now)


def test_a_job_that_is_hurried_ten_thousand_times_in_a_day_leaves_nothing_behind() -> None:
    plan = schedule(86_400.0, 10.0)
    for n in range(10_000):
        plan.expedite(plan.jobs[0], float(n))
        turn = plan.pick(float(n), free)
        assert turn is not None
        plan.advance(turn.job, float(n))
    assert len(plan._later) <= 100


@pytest.mark.parametrize("takes", [0.0001, 0.1], ids=["on an idle bus", "on an overloaded one"])
def test_a_turn_costs_no_more_with_two_thousand_jobs_than_with_fifty(takes: float) -> None:
    def seconds(count: int) -> float:
        plan = schedule(*[count / 100] * count)  # a hundred jobs each second, whatever there are
        now, turns, began = 0.0, 0, 0.0
        while turns < 6000 + count:
            if turns == count:  # all are due at first
                began = time.process_time()
            turn = plan.pick(now, free)
            if turn is None:
                now = plan.next_at(free)
                continue
            turns += 1
            now += takes
            plan.advance(turn.job, now)
        return time.process_time() - began

    few, many = seconds(50), seconds(2000)
    assert many < 5 * few + 0.2  # looking at every job takes forty times as long
