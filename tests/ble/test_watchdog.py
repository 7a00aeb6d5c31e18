"""When the scan is started again."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble.watchdog import RESET_EVERY, RESTARTS, Advice, Remedy, Watchdog


def test_an_upset_restarts_at_once() -> None:
    dog = Watchdog(90.0)
    dog.started(0.0)
    assert dog.tick(1.0) is None
    dog.upset("bluetoothd restarted")
    assert dog.tick(1.0) == Advice(Remedy.RESTART, "bluetoothd restarted")
    assert dog.tick(1.0) is None


def test_silence_restarts_and_any_advertisement_holds_it_off() -> None:
    dog = Watchdog(90.0)
    dog.started(0.0)
    dog.heard(50.0)
    assert dog.deadline() == 140.0
    assert dog.tick(139.9) is None
    assert dog.tick(140.0) == Advice(Remedy.RESTART, "nothing heard for 90 s")


def test_after_the_first_restart_there_is_at_most_one_a_minute() -> None:
    dog = Watchdog(90.0)
    dog.started(0.0)
    dog.upset("first")
    assert dog.tick(10.0) == Advice(Remedy.RESTART, "first")
    dog.started(10.0)
    dog.upset("second")
    assert dog.tick(11.0) is None
    assert dog.deadline() == 70.0
    assert dog.tick(70.0) == Advice(Remedy.RESTART, "second")


def silence(dog: Watchdog, remedies: int) -> list[Remedy]:
    """What is done when nothing is heard for long."""
    done = []
    for _ in range(remedies):
        now = dog.deadline()
        advice = dog.tick(now)
        assert advice is not None
        done.append(advice.remedy)
        dog.started(now)
    return done


def test_silence_after_something_was_heard_climbs_the_ladder_and_goes_on_for_ever() -> None:
    dog = Watchdog(90.0)
    dog.started(0.0)
    dog.heard(1.0)
    assert silence(dog, RESTARTS + 1) == [*[Remedy.RESTART] * RESTARTS, Remedy.RESET]
    assert not dog.wedged
    assert silence(dog, RESET_EVERY) == [*[Remedy.RESTART] * (RESET_EVERY - 1), Remedy.RESET]
    assert dog.wedged
    dog.heard(dog.deadline() - 1)
    assert not dog.wedged
    assert silence(dog, 1) == [Remedy.RESTART]


def test_where_nothing_was_ever_heard_nothing_is_switched_off() -> None:
    dog = Watchdog(90.0)
    dog.started(0.0)
    assert set(silence(dog, 50)) == {Remedy.RESTART}
    assert not dog.wedged


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["heard", "upset", "tick", "started"]), st.floats(0, 40)), max_size=80))
def test_two_restarts_are_never_closer_than_the_spacing(steps: list[tuple[str, float]]) -> None:
    dog, now, restarts = Watchdog(20.0, 60.0), 0.0, []
    dog.started(now)
    for what, wait_s in steps:
        now += wait_s
        if what == "heard":
            dog.heard(now)
        elif what == "upset":
            dog.upset("upset")
        elif what == "started":
            dog.started(now)
        else:
            due = now >= dog.deadline()
            why = dog.tick(now)
            assert (why is not None) == due
            if why:
                restarts.append(now)
    assert all(later - earlier >= 60.0 for earlier, later in itertools.pairwise(restarts))
