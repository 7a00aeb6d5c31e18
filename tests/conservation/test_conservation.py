"""Nothing is lost, nothing comes twice, whatever happens to whom: delivered + reported = promised (`oracle.py`).

Each schedule is a seed. `CONSERVATION_SEED=… pytest tests/conservation` repeats one. `--long` runs 100,000, or the part
that `CONSERVATION_FROM` and `CONSERVATION_COUNT` name; `python -m tests.conservation` does the same and prints more.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.conservation.__main__ import campaign
from tests.conservation.taps import PATHS

SHORT = 360
LONG = 100_000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("gateway")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def hold(first: int, count: int) -> Counter[str]:
    failed, seen = campaign(first, count)
    assert not failed, f"CONSERVATION_SEED={failed[0]} repeats the first of {len(failed)} failures; they are above"
    return seen


@pytest.mark.parametrize("part", range(6))
def test_what_was_promised_is_delivered_or_reported(part: int) -> None:
    chosen = os.environ.get("CONSERVATION_SEED")
    if chosen is not None:
        hold(int(chosen), 1)
    else:
        hold(1 + part * SHORT // 6, SHORT // 6)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_what_was_promised_is_delivered_or_reported_a_hundred_thousand_times_and_every_path_is_walked() -> None:
    first = int(os.environ.get("CONSERVATION_FROM", "0"))
    seen = hold(first, int(os.environ.get("CONSERVATION_COUNT", LONG)))
    for path, times in sorted(seen.items()):
        print(f"{times:10} {path}")
    assert [path for path in PATHS if not seen[path]] == []
