"""How fast the store takes batches, beside the floor: the same rows through a bare `executemany`.

    python tests/benchmarks/ingest_sqlite.py [FOLDER]

Both write WAL with synchronous=FULL into the folder (default: a new one beside this checkout, so that it is a real
disk), into the same table. What the store adds: decoding, the mark, batch rows, strips and their index. A group is rows
of one device: `1 × 5` is one row of five points.
"""

from __future__ import annotations

import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway.ingest.sinks.sqlite import FILE, SqliteSink
from gateway.model import ClockState, Lane, RecordKind, Row, Shape, Trust
from gateway.protocol import batch
from gateway.protocol.entry import Entry

STREAM = "1" * 32
CLOCK = ClockState("b" * 32, 1_700_000_000_000, 5, Trust.SYNCED)
READINGS = 200_000


def bodies(groups: int, height: int, points: int) -> list[bytes]:
    """Of 40 devices, some in each batch."""
    names = tuple(f"p{i}" for i in range(points))
    shapes = [Shape(f"meter-{i}", names, ("V",) * points) for i in range(40)]
    made, at = [], 0
    for number in range(READINGS // (groups * height * points)):
        rows = []
        for k in range(groups):
            for _ in range(height):
                at += 50
                values = tuple(230 + (number + i) % 7 / 10 if i % 2 else 10**6 + number for i in range(points))
                rows.append(Row(shapes[(number * groups + k) % 40], at, values))
        made.append(batch.encode(rows, CLOCK))
    return made


def measured(label: str, work: Callable[[], int]) -> None:
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    size = work()
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(
        f"{label:<60} {READINGS / took:>10,.0f} readings/s {used / READINGS * 1e5:>7.2f} CPU-s per 100k"
        f" {size / READINGS:>7.1f} bytes"
    )


def store(folder: Path, made: list[bytes], group: int) -> None:
    sink = SqliteSink(folder)
    for i in range(0, len(made), group):
        entries = [
            Entry("g1", STREAM, Lane.LIVE, seq, seq, RecordKind.BATCH, raw, batch.decode(raw))
            for seq, raw in enumerate(made[i : i + group], start=i + 1)
        ]
        sink.commit(entries, [], 0)
    sink.close()


def floor(folder: Path, rows: list[tuple[object, ...]], per_commit: int) -> None:
    db = sqlite3.connect(folder / FILE, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000", "cache_size = -65536"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(
        "CREATE TABLE reading (id INTEGER PRIMARY KEY, series INTEGER NOT NULL, ts_ms INTEGER NOT NULL, value,"
        " form INTEGER NOT NULL, status INTEGER NOT NULL);"
    )
    for i in range(0, len(rows), per_commit):
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)", rows[i : i + per_commit])
        db.execute("COMMIT")
    db.close()


def in_a_folder(label: str, work: Callable[[Path], None]) -> None:
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
    try:
        measured(label, lambda: size(folder, work))
    finally:
        shutil.rmtree(folder)


def size(folder: Path, work: Callable[[Path], None]) -> int:
    """Of the file, when all is in it."""
    work(folder)
    return (folder / FILE).stat().st_size


def compare(groups: int, height: int, points: int, group: int) -> None:
    made = bodies(groups, height, points)
    rows: list[tuple[object, ...]] = []
    series: dict[tuple[str, str], int] = {}
    for i, each in enumerate(reading for raw in made for reading in batch.readings(batch.decode(raw))):
        number = series.setdefault((each.device, each.point), len(series) + 1)
        rows.append((i + 1, number, each.utc_ms, each.value, 0, 0))
    per_batch = groups * height * points
    what = f"{groups} groups of {height} × {points} a batch, {group} batches a commit"
    in_a_folder(f"store: {what}", lambda folder: store(folder, made, group))
    in_a_folder(f"floor: {what}", lambda folder: floor(folder, rows, per_batch * group))


def main() -> None:
    for groups, height, points, group in (
        (1, 1, 2, 256),
        (5, 1, 5, 32),
        (20, 1, 5, 1),
        (20, 1, 5, 32),
        (20, 1, 5, 256),
        (1, 1, 100, 32),
        (20, 10, 5, 32),
        (1, 6, 100, 4),
        (1, 6, 100, 17),
    ):
        compare(groups, height, points, group)


if __name__ == "__main__":
    main()
