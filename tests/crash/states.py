"""Every state in which a power cut can leave the store, opened by the real store and held against its promises.

`python -m tests.crash.states SEED` runs a campaign over one recorded life of the store; `--only INDEX:HOW:NUMBER` looks
at one state again. The promises are in the log, between the writes: what a call was asked for, and what the store held
when it returned.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.buffer.config import BufferSettings
from gateway.buffer.schema import Stored
from gateway.buffer.store import Store, Work
from gateway.model import Lane, Record, RecordKind
from tests.crash.contents import Row, contents
from tests.crash.record import Disk, Event, Kind, Left, events

ROOT: Final = Path(__file__).parents[2]
_NEWCOMER: Final = Stored(Record("5c" * 16, Lane.LIVE, 1, RecordKind.BATCH, b"new", 1), 1, None)


class Violation(AssertionError):
    """A state that breaks a promise; says how to see it again."""


class Holds(NamedTuple):
    """What a store holds."""

    rows: frozenset[Row]
    unreported: bool
    """Something is missing, and no gap says so yet."""


def holds(found: Iterable[Sequence[Any]], unreported: bool = False) -> Holds:
    return Holds(frozenset((r[0], r[1], r[2], r[3], r[4]) for r in found), unreported)


# ── the promises ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Step(NamedTuple):
    """One call, from begin to end."""

    before: Holds
    perhaps: frozenset[Row]
    """Rows of calls that failed since: they may have reached the disk."""
    asked: Mapping[str, Any]
    after: Holds
    damaged: bool


def promises(log: Sequence[Event]) -> tuple[list[tuple[Holds, ...]], list[Step]]:
    """For each place of the log what may be found behind it (nothing: no promise), and each call.

    While a call is at work, that is what was before it or what is after it; once the file was damaged, what the
    rescue makes of it, however often that is cut short.
    """
    allowed: list[tuple[Holds, ...]] = []
    steps: list[Step] = []
    held = Holds(frozenset(), False)
    now: tuple[Holds, ...] = (held,)
    begun, asked, damaged_at, silent = 0, {}, None, False
    for index, event in enumerate(log):
        if event.kind is Kind.MARK:
            said = event.said
            match said["what"]:
                case "begin":
                    begun, asked = index, said
                case "done":
                    after = holds(said["holds"], said["unreported"])
                    since, found = (begun, (*now, after)) if damaged_at is None else (damaged_at, (after,))
                    allowed[since:] = [found] * (index - since)
                    steps.append(
                        Step(
                            held, frozenset().union(*(each.rows for each in now)), asked, after, damaged_at is not None
                        )
                    )
                    held, now, damaged_at = after, (after,), None
                case "failed":
                    # nothing was promised, either way: it may have reached the disk all the same
                    perhaps = held._replace(rows=held.rows | holds(asked.get("records", ())).rows)
                    now = (*now, perhaps)
                    allowed[begun:] = [now] * (index - begun)
                case "damaging":
                    silent = True
                case "damaged":
                    silent, damaged_at = False, index
        allowed.append(() if silent else now)
    return allowed, steps


def verify(steps: Sequence[Step]) -> None:
    """The calls themselves: nothing is gone that was not acked or reported, nothing is there that was never given."""
    bodies: dict[tuple[str, int], str] = {}
    for step in steps:
        marks = step.asked.get("marks", {})
        given = step.before.rows | holds(step.asked.get("records", ())).rows
        after = step.after.rows
        gaps = [row for row in after - given if row[3] == "GAP"]
        for row in given - after:
            covered = any(gap[0] == row[0] and gap[1] <= row[1] and row[2] <= gap[2] for gap in gaps)
            lost = step.damaged and step.after.unreported
            assert row[2] <= marks.get(row[0], 0) or covered or lost, f"{row} is gone after {step.asked['call']}"
        strange = {row for row in after - given - step.perhaps if row[3] != "GAP"}
        assert not strange, f"{strange} was never given to the store"
        for row in after:
            if row[3] == "BATCH":
                assert bodies.setdefault(row[:2], row[4]) == row[4], f"two bodies of {row[:2]}"
        for stream in {row[0] for row in after}:
            mine = sorted(row[1:3] for row in after if row[0] == stream)
            assert all(last < first for (_, last), (first, _) in itertools.pairwise(mine)), "records overlap"


# ── one state ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Place(NamedTuple):
    """Names one state of a campaign."""

    index: int
    how: Left
    number: int

    def __str__(self) -> str:
        return f"{self.index}:{self.how.value}:{self.number}"


def look(folder: Path, image: Mapping[str, bytes], allowed: Sequence[Holds]) -> None:
    """Opens an image with the real store. Raises Violation (AssertionError)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in image.items():
        (folder / name).write_bytes(content)
    store = Store(BufferSettings(), folder)
    try:
        damaged = store.open().damaged
        found = holds(contents(store), damaged)
        if found not in allowed:
            raise Violation(difference(found, allowed))
        assert store._db is not None
        (verdict,) = store._db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != b"ok":
            raise Violation(f"integrity_check: {verdict}")
        store.commit(Work(records=[_NEWCOMER], keep=frozenset({_NEWCOMER.record.stream})))
        (count,) = store._db.execute("SELECT count(*) FROM record").fetchone()
        if count != len(found.rows) + 1:
            raise Violation("a commit changes what was there")
    finally:
        store.close()


def difference(found: Holds, allowed: Sequence[Holds]) -> str:
    nearest = min(allowed, key=lambda each: len(each.rows ^ found.rows))
    return (
        f"missing {sorted(nearest.rows - found.rows)[:3]}, unexpected {sorted(found.rows - nearest.rows)[:3]}, "
        f"{'damage' if found.unreported else 'no damage'} to report"
    )


# ── a campaign ───────────────────────────────────────────────────────────────────────────────────────────────────────


def states(log: Sequence[Event], seed: int, wanted: int) -> Iterator[tuple[Place, dict[str, bytes]]]:
    """About `wanted` states, spread over the whole log: behind each call, with all, nothing or some of what was not
    synced. With few wanted, calls other than writes come first: between two writes there is only one more write."""
    disk = Disk({}, random.Random(seed))
    weights = [1.0 if event.kind is Kind.WRITE else 0.0 if event.kind is Kind.MARK else 6.0 for event in log]
    share = wanted / sum(weights)
    dice = random.Random(seed)
    owed = 0.0
    for index, event in enumerate(log):
        disk.do(event)
        owed += weights[index] * share
        count = int(owed)
        owed -= count
        for number in range(count):
            how = dice.choice((Left.ALL, Left.NONE)) if number == 0 else Left.SOME
            if number == 0 and dice.random() < 0.4:
                how = Left.SOME
            place = Place(index, how, number)
            yield place, disk.left(how, random.Random(f"{seed} {place}"))


def record(shim: Path, below: Path, log: Path, *arguments: str, **environment: str) -> None:
    """Runs the workload under the recorder; its log is appended to."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.workload", str(below), *arguments],
        env={**os.environ, "LD_PRELOAD": str(shim), "DISK_BELOW": str(below), "DISK_LOG": str(log), **environment},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def build(folder: Path) -> Path:
    """The recorder, compiled."""
    shim = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", shim, source, "-ldl", "-lpthread"], check=True)
    return shim


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """A folder on tmpfs where there is one: images are written by the thousand."""
    ram = Path("/dev/shm")
    where = tempfile.mkdtemp(prefix="crash-", dir=ram if os.access(ram, os.W_OK) else None)
    try:
        yield Path(where)
    finally:
        shutil.rmtree(where)


def campaign(
    seed: int, wanted: int, scale: int, only: str = "", stop: bool = True, chapters: Sequence[str] = ("live",)
) -> tuple[int, int, list[str]]:
    """Records one life and looks at its states. Returns how many calls, how many states, and what was violated."""
    with memory() as folder:
        shim = build(folder)
        for chapter in chapters:  # each is a process
            faults = folder / "faults"
            record(shim, folder / "life", folder / "log", str(seed), str(scale), chapter, DISK_FAULTS=str(faults))
        log = list(events((folder / "log").read_bytes()))
        allowed, steps = promises(log)
        verify(steps)
        looked, violations = 0, []
        for place, image in states(log, seed, wanted):
            if not allowed[place.index] or (only and str(place) != only):
                continue
            looked += 1
            try:
                look(folder / "image", image, allowed[place.index])
            except Exception as error:
                violations.append(f"seed {seed} state {place} ({log[place.index].kind.name}): {error!r}")
                if stop:
                    break
        return len(log), looked, violations


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.states")
    parser.add_argument("seed", type=int)
    parser.add_argument("--states", type=int, default=100_000, help="about so many [%(default)s]")
    parser.add_argument(
        "--scale", type=int, default=8, help="divides all sizes; 1: those of a real store [%(default)s]"
    )
    parser.add_argument("--chapters", nargs="+", default=["live"], help="processes: live, stumble, die, go-on")
    parser.add_argument("--only", default="", metavar="INDEX:HOW:NUMBER", help="one state, of the same --states")
    parser.add_argument("--all", action="store_true", help="go on after a violation")
    given = parser.parse_args()
    begun = time.monotonic()
    calls, looked, violations = campaign(
        given.seed, given.states, given.scale, given.only, not given.all, given.chapters
    )
    print(f"{looked} states of {calls} calls, {time.monotonic() - begun:.0f} s, {len(violations)} violations")
    print(*violations[:50], sep="\n")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
