"""What a benchmark prints: one line for each figure, with its aim, its verdict and what stands beside it.

A figure that *counts* something (readings lost, readings twice, bytes) does not depend on the load of the
machine: `finish` exits with 1 when one of those misses its aim. A time that misses its aim is marked, and no more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn


class Figure(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    aim: str = ""
    """`<= 5`, `>= 12000`; empty: none."""
    floor: str = ""
    """What stands beside it: the same without a gateway in this run, or how the figure came about."""
    counted: bool = False
    """The same on every machine, however busy."""

    @property
    def short(self) -> bool:
        if not self.aim:
            return False
        relation, bound = self.aim.split()
        return not (self.value <= float(bound) if relation == "<=" else self.value >= float(bound))


def show(figures: Sequence[Figure]) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    width = max([66, *(len(figure.what) + 1 for figure in figures)])
    lines = [f"{'':{width}}{'measured':>10}{'aim':>12}       beside it, in the same run"]
    for figure in figures:
        aim = figure.aim.replace("<=", "≤").replace(">=", "≥")
        mark = "short" if figure.short else "ok" if figure.aim else ""
        lines.append(f"{figure.what:{width}}{number(figure.value):>10}{aim:>12} {mark:5} {figure.floor}".rstrip())
    return "\n".join(lines)


def finish(figures: Sequence[Figure], as_json: bool, failed: bool = False) -> NoReturn:
    """Prints and ends the program."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps([{**figure._asdict(), "short": figure.short} for figure in figures], indent=1))
    else:
        print(show(figures))
    sys.exit(failed or any(figure.counted and figure.short for figure in figures))


def doing(what: str) -> None:
    """One line for who waits: on a terminal, where it overwrites itself."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what} …", end="", file=sys.stderr, flush=True)
