"""How fast the store takes batches, beside the floor: the same rows through a bare `executemany`.

    python tests/benchmarks/ingest_sqlite.py [FOLDER]

Both write WAL with synchronous=FULL into the folder (default: a new one beside this checkout, so that it is a real
disk), with the same table and the same index. What the store adds: decoding, the mark, batch rows, series ids.
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
from gateway.protocol.server import Entry

STREAM = "1" * 32
CLOCK = ClockState("b" * 32, 1_700_000_000_000, 5, Trust.SYNCED)
READINGS = 200_000


def bodies(per_batch: int) -> list[bytes]:
    """20 devices of 5 points; one row of each device after the other."""
    shapes = [Shape(f"meter-{i}", ("u", "i", "p", "e", "on"), ("V", "A", "W", "Wh", "")) for i in range(20)]
    made, at = [], 0
    for number in range(READINGS // per_batch):
        rows = []
        for _ in range(per_batch // 5):
            at += 1
            rows.append(
                Row(shapes[at % 20], at * 50, (230 + number % 7 / 10, 1.25, 287.5, 10**9 + number, at % 2 == 0))
            )
        made.append(batch.encode(rows, CLOCK))
    return made


def measured(label: str, work: Callable[[], None]) -> None:
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(f"{label:<58} {READINGS / took:>10,.0f} readings/s {used / READINGS * 1e5:>7.2f} CPU-s per 100k")


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
        "CREATE INDEX reading_by_time ON reading (series, ts_ms);"
    )
    for i in range(0, len(rows), per_commit):
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)", rows[i : i + per_commit])
        db.execute("COMMIT")
    db.close()


def in_a_folder(label: str, work: Callable[[Path], None]) -> None:
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
    try:
        measured(label, lambda: work(folder))
    finally:
        shutil.rmtree(folder)


def compare(per_batch: int, group: int) -> None:
    made = bodies(per_batch)
    rows: list[tuple[object, ...]] = []
    series: dict[tuple[str, str], int] = {}
    for i, each in enumerate(reading for raw in made for reading in batch.readings(batch.decode(raw))):
        number = series.setdefault((each.device, each.point), len(series) + 1)
        rows.append((i + 1, number, each.utc_ms, each.value, 0, 0))
    what = f"{per_batch} readings a batch, {group} batches a commit"
    in_a_folder(f"store: {what}", lambda folder: store(folder, made, group))
    in_a_folder(f"floor: {what}", lambda folder: floor(folder, rows, per_batch * group))


def main() -> None:
    for per_batch, group in ((25, 32), (100, 1), (100, 32), (100, 256), (1000, 32)):
        compare(per_batch, group)


if __name__ == "__main__":
    main()
