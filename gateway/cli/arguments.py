"""Pure: what the commands' arguments have in common; what does not fit ends in one line that says what would."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/gateway/config.toml")


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def between(low: int, high: int) -> Callable[[str], int]:
    """A whole number within these bounds."""

    def whole(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return whole


def count(number: int, one: str, many: str = "") -> str:
    """`1 device`, `2 devices`, `1,024 devices`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
