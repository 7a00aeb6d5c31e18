"""Random schedules and random replies: a short run of each campaign, and with `--long` the whole of it."""

from __future__ import annotations

import pytest

from . import fuzz, pty_schedules, schedules


def test_in_no_random_schedule_a_value_is_another_address_units_or_requests() -> None:
    failed, seen = schedules.campaign(0, 6000)
    assert failed == []
    assert [path for path in schedules.PATHS if not seen[path]] == []
    assert seen["collided"] == 0


def test_random_replies_let_nothing_escape_invent_nothing_and_stay_in_their_bounds() -> None:
    failed, seen = fuzz.campaign(0, 30_000)
    assert failed == []
    assert [kind for kind in fuzz.KINDS if not seen[kind]] == []


def test_over_a_pseudo_terminal_no_value_is_anothers_either() -> None:
    failed, seen = pty_schedules.campaign(0, 300)
    assert failed == []
    assert [path for path in pty_schedules.PATHS if not seen[path]] == []


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_in_none_of_a_million_schedules_a_value_is_another_address_units_or_requests() -> None:
    failed, seen = schedules.campaign(0, 1_000_000)
    assert failed == []
    assert seen["collided"] == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_random_replies() -> None:
    failed, _ = fuzz.campaign(0, 1_000_000)
    assert failed == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_schedules_over_a_pseudo_terminal() -> None:
    failed, _ = pty_schedules.campaign(0, 10_000)
    assert failed == []
