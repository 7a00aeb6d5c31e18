"""The proof: what the machines gave away, against what the cloud side stored. It asks neither for its opinion.

Machines number what they give away; the sink's file is opened and the numbers are counted. Holds when every number is
there exactly once, or its loss was declared as a gap.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.demo.plant import Counter


class Tally(NamedTuple):
    """One machine; all three count readings, so that gaps can be compared with them."""

    device: str
    produced: int
    stored: int
    twice: int


class Proof(NamedTuple):
    """All machines together."""

    tallies: tuple[Tally, ...]
    declared: int
    """Readings that gaps declare as given up."""

    @property
    def missing(self) -> int:
        return sum(tally.produced - tally.stored for tally in self.tallies)

    @property
    def twice(self) -> int:
        return sum(tally.twice for tally in self.tallies)

    @property
    def holds(self) -> bool:
        return self.twice == 0 and self.missing == self.declared

    def sentence(self) -> str:
        produced = sum(tally.produced for tally in self.tallies)
        stored = sum(tally.stored for tally in self.tallies)
        equation = f"produced {produced} = stored {stored} + declared gaps {self.declared}, {self.twice} twice"
        return equation if self.holds else f"{equation.replace(' = ', ' ≠ ')}: {self.missing} are missing"


def take(database: Path, counters: Sequence[Counter]) -> Proof:
    """Reads the sink's file, which may be in use."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        tallies = []
        for counter in counters:
            rows, different = db.execute(
                "SELECT count(value), count(DISTINCT value) FROM readings WHERE device = ? AND point = ?",
                (counter.device, counter.point),
            ).fetchone()
            width = counter.readings
            tallies.append(
                Tally(counter.device, counter.produced() * width, different * width, (rows - different) * width)
            )
        (declared,) = db.execute(
            "SELECT coalesce(sum(readings), 0) FROM gap WHERE reason != 'stored_elsewhere'"
        ).fetchone()
    finally:
        db.close()
    return Proof(tuple(tallies), declared)
