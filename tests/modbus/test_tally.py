"""What is counted of a bus and its units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.modbus.latency import ENOUGH, Latency
from gateway.connectors.modbus.tally import Account, BusyTime


@given(st.lists(st.floats(0.0002, 50), min_size=ENOUGH, max_size=400), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_at_most_a_fifth_too_high_and_never_too_low(seconds: list[float], share: float) -> None:
    latency = Latency()
    for each in seconds:
        latency.add(each)
    true = sorted(seconds)[-(-int(share * 1000 * len(seconds)) // 1000) - 1]
    within = latency.within(share)
    assert within is not None
    assert true <= within * 1.000001 <= true * 1.2 * 1.00001


def test_few_answers_say_nothing_and_odd_ones_do_no_harm() -> None:
    latency = Latency()
    for each in (-0.001, 0.0, 1e9):  # a clock that is read too early, and a day in the debugger
        latency.add(each)
    assert latency.within(0.5) is None
    for _ in range(ENOUGH):
        latency.add(-0.001)
    assert latency.within(0.5) == 0.0001


def test_what_was_long_ago_fades() -> None:
    latency = Latency()
    for _ in range(30_000):
        latency.add(1.0)
    for _ in range(70_000):
        latency.add(0.001)
    within = latency.within(0.99)
    assert within is not None
    assert within < 0.0015


def test_a_short_timeout_is_told_once() -> None:
    account = Account()
    told = [account.answered(0.3, 0.5) for _ in range(1000)]
    assert [n for n, each in enumerate(told, start=1) if each is not None] == [ENOUGH]
    assert not any(Account().answered(0.2, 0.5) for _ in range(1000))


def test_the_busy_share_is_that_of_the_last_minute_at_most() -> None:
    busy = BusyTime(0.0)
    assert busy.share(0.0) == 0.0
    for second in range(600):
        busy.spent(second, second + 0.25)
        if second > 2:
            assert abs(busy.share(second + 1) - 0.25) < 0.05
    for second in range(600, 661):
        busy.spent(second, second + 0.75)
    assert abs(busy.share(661.0) - 0.75) < 0.05
    assert busy.share(100_000.0) < 0.001
