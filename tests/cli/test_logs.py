"""What came over a wire is shown in the log and never obeyed."""

from __future__ import annotations

import logging

import pytest

from gateway.logs import _ForJournal, _ForPeople


@pytest.mark.parametrize("formatter", [_ForJournal(), _ForPeople()])
@pytest.mark.parametrize(
    ("text", "argument", "expected"),
    [
        ("%s says so", "plain ü °C", "plain ü °C says so"),
        ("%s says so", "a\x1b[2Jb\r\n<0>forged", r"a\x1b[2Jb\r\n<0>forged says so"),
        ("%s", ValueError("first\x07\nsecond"), "first\\x07\nsecond"),
        ("%d", 3, "3"),
    ],
)
def test_control_characters_of_others_are_shown(
    formatter: logging.Formatter, text: str, argument: object, expected: str
) -> None:
    record = logging.LogRecord("gateway.x", logging.INFO, "f", 1, text, (argument,), None)
    assert formatter.format(record).endswith(expected)
