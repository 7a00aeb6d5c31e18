"""A campaign, or a part of one: `python -m tests.conservation --from 0 --count 100000`.

Prints every failing seed, and at the end (or when it is interrupted) how often each fault and each path of the protocol
occurred. Exits 1 when a seed failed or a path was never walked.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from tests.conservation.schedule import run
from tests.conservation.taps import PATHS, Taps


def campaign(first: int, count: int, *, stop_after: int = 20, every: int = 10_000) -> tuple[list[int], Counter[str]]:
    """Seeds that failed, and what was seen."""
    failed: list[int] = []
    seen: Counter[str] = Counter()
    begun = time.process_time()
    with Taps().on() as taps:
        for seed in range(first, first + count):
            try:
                seen += run(seed, taps)
            except KeyboardInterrupt:
                break
            except Exception as error:
                failed.append(seed)
                leaf = _leaf(error)
                print(f"CONSERVATION_SEED={seed}: {type(leaf).__name__}: {str(leaf)[:600]}", flush=True)
                if not isinstance(leaf, AssertionError):
                    traceback.print_tb(leaf.__traceback__)
                if len(failed) >= stop_after:
                    break
            seen["schedules"] += 1
            if every and (seed + 1 - first) % every == 0:
                ms = (time.process_time() - begun) / (seed + 1 - first) * 1000
                print(f"{seed + 1 - first} schedules, {len(failed)} failed, {ms:.1f} ms each", flush=True)
    return failed, seen


def _leaf(error: BaseException) -> BaseException:
    """What went wrong first, beneath all groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conservation")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=100_000, help="number of schedules")
    parser.add_argument("--stop-after", type=int, default=20, help="failures after which it ends")
    options = parser.parse_args()
    logging.getLogger("gateway").setLevel(logging.CRITICAL)
    begun = time.process_time()
    failed, seen = campaign(options.first, options.count, stop_after=options.stop_after)
    for path, times in sorted(seen.items()):
        print(f"{times:10} {path}")
    never = [path for path in PATHS if not seen[path]]
    spent_s = time.process_time() - begun
    done = seen["schedules"]
    print(f"{done} schedules from seed {options.first}: {len(failed)} failed, {spent_s:.0f} s of one core")
    print(f"never walked: {', '.join(never) or 'none'}")
    return 1 if failed or never else 0


if __name__ == "__main__":
    sys.exit(main())
