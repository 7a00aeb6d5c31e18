"""What may be written, and what is told to who asked for something else."""

from __future__ import annotations

import pytest

from gateway.commands.limits import permitted
from gateway.errors import CommandError
from gateway.model import Outcome, Value, Write
from gateway.points import Point, WriteLimits

RANGE = WriteLimits(min=5, max=35)
STEP = WriteLimits(min=5, max=35, step=0.1)

ALLOWED: list[tuple[WriteLimits, Value]] = [
    (WriteLimits(), 1),
    (WriteLimits(), True),
    (WriteLimits(), "text"),
    (WriteLimits(), 2**63),
    (RANGE, 5),
    (RANGE, 35.0),
    (STEP, 5.3),
    (STEP, 34.9),
    (STEP, 20),
    (WriteLimits(step=0.5), -1.5),
    (WriteLimits(min=0.05, step=0.1), 0.35),
    (WriteLimits(values=(0, 100)), 100),
    (WriteLimits(values=(0, 100)), 100.0),
    (WriteLimits(values=("on", "off")), "on"),
    (WriteLimits(values=(True,)), True),
    (WriteLimits(values=(1, 7), max=5), 1),
]
REFUSED: list[tuple[WriteLimits, Value, str]] = [
    (RANGE, 4.999, "4.999 is below the smallest value allowed, 5"),
    (RANGE, 36, "36 is above the largest value allowed, 35"),
    (RANGE, True, "true is not a number"),
    (RANGE, "20", '"20" is not a number'),
    (RANGE, float("nan"), "nan is not a number that can be written"),
    (WriteLimits(), float("inf"), "inf is not a number that can be written"),
    (STEP, 5.35, "5.35 is not 5 + a multiple of 0.1"),
    (WriteLimits(values=(0, 100)), 50, "50 is not one of 0, 100"),
    (WriteLimits(values=(0, 1)), True, "true is not one of 0, 1"),
    (WriteLimits(values=(True,)), 1, "1 is not one of true"),
    (WriteLimits(values=("on", "off")), "On", '"On" is not one of "on", "off"'),
    (WriteLimits(values=(1, 7), max=5), 7, "7 is above the largest value allowed, 5"),
]


def asked(limits: WriteLimits | None, value: Value, verify: bool = False) -> Write:
    targets = {"oven": {"setpoint": Point(name="setpoint", write=limits)}}
    return permitted(Write("oven", "setpoint", value, verify), targets)


@pytest.mark.parametrize(("limits", "value"), ALLOWED)
def test_a_value_within_the_limits_is_written_as_it_is(limits: WriteLimits, value: Value) -> None:
    write = asked(limits, value)
    assert (write.value, type(write.value)) == (value, type(value))


@pytest.mark.parametrize(("limits", "value", "why"), REFUSED)
def test_a_value_outside_the_limits_is_rejected_with_the_limit_in_the_reason(
    limits: WriteLimits, value: Value, why: str
) -> None:
    with pytest.raises(CommandError) as caught:
        asked(limits, value)
    assert (caught.value.outcome, str(caught.value)) == (Outcome.REJECTED, why)


def test_a_point_without_limits_rejects_every_write() -> None:
    with pytest.raises(CommandError, match='point "setpoint" of "oven" is not writable'):
        asked(None, 5)


def test_an_unknown_device_or_point_is_rejected_with_the_nearest_known_one() -> None:
    targets = {"oven": {"setpoint": Point(name="setpoint", write=WriteLimits())}}
    with pytest.raises(CommandError, match='no device "ovn"; did you mean `oven`') as caught:
        permitted(Write("ovn", "setpoint", 1), targets)
    assert caught.value.outcome is Outcome.REJECTED
    with pytest.raises(CommandError, match='device "oven" has no point "setpiont"; did you mean `setpoint`'):
        permitted(Write("oven", "setpiont", 1), targets)


def test_verification_is_on_when_the_caller_or_the_point_wants_it() -> None:
    assert not asked(RANGE, 10).verify
    assert asked(RANGE, 10, verify=True).verify
    assert asked(WriteLimits(verify=True), 10).verify
