"""What viewers are shown: newest by acquisition, rates over the last seconds, bounded trails."""

from __future__ import annotations

from gateway.ingest.live import TRAIL, LiveState, Seed, shown
from gateway.ingest.terminal import bars, utc
from gateway.model import ClockState, GapReason, Trust
from gateway.protocol.messages import GapBody
from ingest.cloud import SYNCED, UNSYNCED, body, entry, gap

S = "1" * 32


def state(*values: tuple[int, float]) -> LiveState:
    live = LiveState()
    for at_ms, value in values:
        live.stored(entry(S, 1, body([value], at_ms=at_ms)), SYNCED.offset_ms, 0)
    return live


def test_a_late_backlog_never_moves_a_value_back() -> None:
    live = state((2000, 5.0), (1000, 4.0))
    [(view, trail)] = live.series()
    assert (view.text, trail) == ("5.0", [5.0])


def test_a_viewer_hears_only_what_changed_since() -> None:
    live = state((1000, 1.0))
    seen = live.version
    assert live.changed(seen) == []
    live.stored(entry(S, 2, body([2.0], at_ms=2000)), SYNCED.offset_ms, 0)
    assert [view.text for view in live.changed(seen)] == ["2.0"]
    assert len(live.changed(-1)) == 1


def test_trails_are_bounded() -> None:
    live = state(*((i, float(i)) for i in range(TRAIL * 2)))
    [(_, trail)] = live.series()
    assert trail == [float(i) for i in range(TRAIL, TRAIL * 2)]


def test_rates_forget_what_is_old_and_lag_needs_a_trusted_clock() -> None:
    live = LiveState()
    now = SYNCED.offset_ms + 1000
    live.stored(entry(S, 1, body([1, 2], at_ms=900)), SYNCED.offset_ms, now)
    [view] = live.gateways_at(now)
    assert (view.rate, view.lag_ms, view.readings) == (2 / 5, 100, 2)
    assert live.gateways_at(now + 6000)[0].rate == 0
    other = LiveState()
    other.stored(entry(S, 1, body([1], clock=UNSYNCED)), 0, now)
    assert other.gateways_at(now)[0].lag_ms is None
    assert other.gateways_at(now)[0].trust == "unsynced"
    other.stored(entry(S, 2, ClockState("b", 0, 1, Trust.SYNCED)), None, now)
    assert other.gateways_at(now)[0].trust == "synced"


def test_gaps_count_what_is_lost_and_say_when_nobody_knows() -> None:
    live = LiveState()
    live.stored(entry(S, 1, gap(7)), None, 0)
    live.stored(entry(S, 2, GapBody(GapReason.STORED_ELSEWHERE, 100)), None, 0)
    [view] = live.gateways_at(0)
    assert (view.gaps, view.lost, view.lost_unknown) == (1, 7, False)
    live.stored(entry(S, 3, gap(None)), None, 0)
    assert (view.gaps, view.lost, view.lost_unknown) == (2, 7, True)


def test_what_the_store_knows_at_the_start_is_shown_and_overtaken() -> None:
    live = LiveState()
    live.seed([Seed("g1", "meter", "p0", "V", 1, "good", SYNCED.offset_ms)])
    assert list(live.gateways) == ["g1"]
    live.stored(entry(S, 1, body([2], at_ms=1)), SYNCED.offset_ms, 0)
    assert live.series()[0][0].text == "2"


def test_values_are_shown_exactly() -> None:
    values = [None, True, 2**64 - 1, 1.5, "on"]
    assert [shown(value)[0] for value in values] == ["", "true", "18446744073709551615", "1.5", "on"]
    assert [shown(value)[1] for value in values] == [None, 1.0, float(2**64 - 1), 1.5, None]


def test_a_terminal_draws_trails_and_times() -> None:
    assert bars([0.0, None, 1.0]) == "▁ █"
    assert bars([3.0, 3.0]) == "▁▁"
    assert bars([None]) == ""
    assert utc(0) == "1970-01-01 00:00:00"
    assert utc(2**60) == f"{2**60} ms"
