"""What is in the store is found, as a plain scan finds it, whatever came in which order; and without one."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StoreError
from gateway.ingest.sinks import clocks, shapes
from gateway.ingest.sinks.rows import SPAN_MS, value_of
from gateway.ingest.sinks.sqlite import FILE, SqliteSink, Stored
from gateway.model import ClockState, Status, Trust
from gateway.protocol import batch
from ingest.cloud import BOOT, SYNCED, UNSYNCED, body, cloud, entry, until

S = "1" * 32
_MEMORY = Path("/dev/shm")
"""No disk is needed to find things, and hundreds of stores are made."""
DEVICES = ("pump", "tank")
POINTS = ("a", "b", "c")
TOLD = ClockState(BOOT, 40_000, 900, Trust.SERVER)
AGAIN = ClockState(BOOT, 41_000, 900, Trust.SERVER)
SET = ClockState(BOOT, 90_000, 2, Trust.SYNCED)
LATER = ClockState(BOOT, 90_500, 2, Trust.HOLDOVER)
FOUR_BATCHES = 4 * (clocks.BATCH + 1)
"""A slice of four batches of one reading."""


@contextmanager
def store(folder: Path | None = None) -> Iterator[SqliteSink]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as own:
        sink = SqliteSink(folder or Path(own))
        try:
            yield sink
        finally:
            sink.close()


@st.composite
def groups(draw: st.DrawFn) -> batch.Group:
    """Any shape, also one that names a point twice; steps back and forth, now and then far; stamps of the device."""
    points = tuple(draw(st.lists(st.sampled_from(POINTS), max_size=3)))
    units = tuple(draw(st.sampled_from(("V", "mV"))) for _ in points)
    height = draw(st.sampled_from((1, 2, 3, 5, 0)))
    steps = st.sampled_from((0, 1, 100, -7, SPAN_MS - 100, SPAN_MS + 100, -2 * SPAN_MS))
    values = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(0, 1), st.text(max_size=3))
    column = st.lists(values, min_size=height, max_size=height)
    words = st.lists(st.sampled_from((Status.GOOD, Status.CRC)), min_size=height, max_size=height)
    own = st.lists(
        st.one_of(st.none(), st.sampled_from((0, 90_000, 95_000, 400_000))), min_size=height, max_size=height
    )
    return batch.Group(
        draw(st.sampled_from(DEVICES)),
        points,
        units,
        draw(st.lists(steps, min_size=height, max_size=height)),
        [draw(column) for _ in points],
        draw(st.one_of(st.none(), st.just([draw(st.one_of(st.none(), words)) for _ in points]))),
        draw(st.one_of(st.none(), own)),
    )


bodies = st.builds(
    batch.Body,
    st.sampled_from((UNSYNCED, UNSYNCED, AGAIN, SYNCED)),
    st.integers(0, 100_000),
    st.lists(groups(), max_size=3),
)
records = st.one_of(bodies, bodies, bodies, st.sampled_from((TOLD, SET, LATER, UNSYNCED)))
streams = st.tuples(st.lists(bodies, min_size=1, max_size=4), st.lists(records, max_size=5)).map(
    lambda two: [*two[0], *two[1]]
)


class Expected:
    """What the rules say, done at once instead of in slices."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, ClockState, batch.Body]] = []
        self._clocks: list[ClockState] = []

    def take(self, seq: int, record: batch.Body | ClockState) -> None:
        known = [each for each in self._clocks if each.trust is not Trust.UNSYNCED]
        own = [each for each in known if each.trust.own]
        if isinstance(record, batch.Body):
            clock = record.clock
            if not clock.trust.own:
                better = own or (known if clock.trust is Trust.UNSYNCED else [])
                clock = better[-1] if better else clock
            self._batches.append((seq, clock, record))
            return
        self._clocks.append(record)
        if record.trust.own or (record.trust is Trust.SERVER and not own):
            self._batches = [(seq, clock if clock.trust.own else record, each) for seq, clock, each in self._batches]

    def readings(self) -> Counter[tuple[Any, ...]]:
        """Batch, device, point, unit, value, status, time."""
        found: Counter[tuple[Any, ...]] = Counter()
        for seq, clock, decoded in self._batches:
            for row in batch.rows(decoded):
                ts_ms = row.at_ms + clock.offset_ms if row.source_ms is None else row.source_ms
                statuses = row.status or (Status.GOOD,) * len(row.values)
                where = zip(row.shape.points, row.shape.units, row.values, statuses, strict=True)
                for point, unit, value, status in where:
                    found[seq, row.shape.device, point, unit, repr(value), status.value, ts_ms] += 1
        return found


def readings(sink: SqliteSink) -> Counter[tuple[Any, ...]]:
    found = sink.query(
        "SELECT b.seq, s.device, s.point, s.unit, r.value, r.form, q.name, r.ts_ms FROM batch b"
        " JOIN reading r ON r.id >= b.first AND r.id < b.first + b.readings"
        " JOIN series s ON s.id = r.series JOIN status q ON q.id = r.status"
    )
    return Counter((*row[:4], repr(value_of(row[4], row[5])), *row[6:]) for row in found)


def scanned(sink: SqliteSink, gateway: str, device: str, point: str) -> list[Stored]:
    """Every reading of the point, from the bare table."""
    found = sink.query(
        "SELECT r.id, r.ts_ms, r.value, r.form, s.unit, q.name FROM reading r JOIN series s ON s.id = +r.series"
        " JOIN status q ON q.id = r.status WHERE s.gateway = ? AND s.device = ? AND s.point = ?",
        (gateway, device, point),
    )
    every = [Stored(number, ts, value_of(value, form), unit, status) for number, ts, value, form, unit, status in found]
    return sorted(every, key=lambda each: (each.ts_ms, each.id))


def whole(sink: SqliteSink) -> None:
    """Every reading is in one strip, at the place of its series; what a strip says of itself is so."""
    counted = sink.query("SELECT count(*), count(DISTINCT id) FROM reading")
    found = sink.query(
        "SELECT t.first, t.rows, t.from_ms, t.to_ms, t.stamped, x.series, r.series, r.ts_ms, r.form >> 2, r.id"
        " FROM strip t JOIN shape_series x ON x.shape = t.shape"
        " JOIN reading r ON r.id BETWEEN t.first + x.position * t.rows AND t.first + (x.position + 1) * t.rows - 1"
    )
    assert counted == [(len(found), len({each[-1] for each in found}))]
    stamps: dict[int, list[int]] = {}
    for first, _, _, _, stamped, place, series, ts_ms, own, _ in found:
        assert (stamped, place) == (own, series)
        stamps.setdefault(first, []).append(ts_ms)
    for first, _, from_ms, to_ms, *_ in found:
        assert (min(stamps[first]), max(stamps[first])) == (from_ms, to_ms)
        assert to_ms - from_ms <= SPAN_MS
    assert {first for (first,) in sink.query("SELECT first FROM strip")} == set(stamps)


def agrees(sink: SqliteSink, dice: random.Random) -> None:
    whole(sink)
    newest = []
    for where in sink.query("SELECT DISTINCT gateway, device, point FROM series"):
        every = scanned(sink, *where)
        ends = [each.ts_ms + dice.choice((-1, 0, 0, 1)) for each in dice.sample(every, min(2, len(every)))] or [0]
        from_ms, to_ms, limit = min(ends), max(ends), dice.choice((1, 3, 1000))
        expected = [each for each in every if from_ms <= each.ts_ms <= to_ms][:limit]
        found = sink.history(*where, from_ms, to_ms, limit)
        assert found == expected
        assert [type(each.value) for each in found] == [type(each.value) for each in expected]
        seen = sink.query(
            "SELECT id, ts_ms, unit, status FROM readings WHERE gateway = ? AND device = ? AND point = ?"
            " ORDER BY ts_ms, id",
            where,
        )
        assert seen == [(each.id, each.ts_ms, each.unit, each.status) for each in every]
        for unit in {each.unit for each in every}:
            newest += [(*where, unit, each.id) for each in every if each.unit == unit][-1:]
    assert sorted(sink.query("SELECT gateway, device, point, unit, id FROM latest")) == sorted(newest)
    assert [row[0] for row in sink.query("SELECT id FROM readings ORDER BY id")] == [
        row[0] for row in sink.query("SELECT id FROM reading ORDER BY id")
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(streams, st.integers(1, 4), st.randoms(use_true_random=False))
def test_every_range_of_time_is_found_as_a_plain_scan_finds_it(
    content: list[batch.Body | ClockState], at_once: int, dice: random.Random
) -> None:
    """Backlogs, strips over one another, stamps back and forth, stamps of devices, changing shapes and units."""
    with pytest.MonkeyPatch.context() as patch, store() as sink:
        patch.setattr(clocks, "SLICE", 1)
        patch.setattr(shapes, "_SHAPES", 2)
        expected = Expected()
        entries = [
            entry(S, seq, msgspec.json.encode(record) if isinstance(record, batch.Body) else record)
            for seq, record in enumerate(content, start=1)
        ]
        for i in range(0, len(entries), at_once):
            sink.commit(entries[i : i + at_once], [], 0)
            agrees(sink, dice)
        assert sink.query("SELECT count(*) FROM dead_letter") == [(0,)]
        while sink.behind:
            sink.commit([], [], 0)
        agrees(sink, dice)
        for seq, record in enumerate(content, start=1):
            expected.take(seq, record)
        assert readings(sink) == expected.readings()


def test_the_numbers_of_a_transaction_that_failed_are_forgotten_with_it() -> None:
    with store() as sink:
        with pytest.raises(AttributeError):
            sink.commit([entry(S, 1, body([1])), None], [], 0)  # type: ignore[list-item]
        sink.commit([entry(S, 1, body([1]))], [], 0)
        whole(sink)
        assert sink.query("SELECT value FROM latest") == [(1,)]


def test_a_device_that_tells_only_what_changed_is_found_by_few_shapes() -> None:
    """Any choice of its points may come: there would be as many shapes as messages, and each would be looked at."""
    dice = random.Random(3)
    points = [f"p{i}" for i in range(15)]
    with store() as sink:
        for seq in range(1, 301):
            told = tuple(sorted(dice.sample(points, dice.randint(1, 6))))
            group = batch.Group("plc", told, ("V",) * len(told), [seq, 1], [[seq, seq] for _ in told])
            sink.commit([entry(S, seq, msgspec.json.encode(batch.Body(SYNCED, 0, [group])))], [], 0)
        [(most,)] = sink.query("SELECT max(n) FROM (SELECT count(*) AS n FROM shape_series GROUP BY series)")
        assert most <= shapes._SHAPES + 1, "and the one of the series alone"
        agrees(sink, dice)


# ── plans: what a person asks is found, not searched for ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("curious", [False, True])
@pytest.mark.parametrize(
    ("sql", "led_by"),
    [
        ("readings WHERE device = 'd' AND point = 'p'", "SEARCH s"),
        ("readings WHERE gateway = 'g1' AND device = 'd' AND point = 'p' ORDER BY ts_ms", "SEARCH s"),
        ("readings WHERE device = 'd' AND point = 'p' AND ts_ms BETWEEN 1 AND 2", "SEARCH s"),
        ("readings WHERE id > 1000 ORDER BY id", "SEARCH r"),
        ("readings ORDER BY id DESC LIMIT 10", "SCAN r"),
        ("latest WHERE device = 'd'", "SEARCH s"),
    ],
)
def test_a_person_with_the_file_gets_an_answer_without_a_look_at_every_reading(
    tmp_path: Path, sql: str, led_by: str, curious: bool
) -> None:
    """Nor after an `ANALYZE` while there was little in it, once the server has been started again."""
    with store(tmp_path) as sink:
        sink.commit([entry(S, 1, body([1]))], [], 0)
    if curious:
        db = sqlite3.connect(tmp_path / FILE)
        db.execute("ANALYZE")
        db.close()
        with store(tmp_path):
            pass
    db = sqlite3.connect(tmp_path / FILE)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {sql}")]
    db.close()
    assert plan[0].startswith(led_by)
    assert not any(line.startswith("SCAN") for line in plan[1:])
    assert not any("rowid>?)" in line for line in plan if "id >" not in sql), "a range has two ends"


def test_to_open_a_store_writes_nothing(tmp_path: Path) -> None:
    """So it can be read on a disk that is full."""
    with store(tmp_path):
        pass
    db = sqlite3.connect(tmp_path / FILE)
    before = db.execute("PRAGMA data_version").fetchall()
    with store(tmp_path):
        assert db.execute("PRAGMA data_version").fetchall() == before
    db.close()


def test_a_range_of_time_in_a_long_series_is_found_by_its_strips(tmp_path: Path) -> None:
    with store(tmp_path) as sink:
        sink.commit([entry(S, seq, body([seq], at_ms=seq * 1000)) for seq in range(1, 50)], [], 0)
        at = SYNCED.offset_ms
        where = "device = 'meter' AND point = 'p0' AND ts_ms BETWEEN ? AND ? AND strip_ms BETWEEN ? AND ? + 600000"
        ends = (at + 5000, at + 7000)
        assert sink.query(f"SELECT value FROM readings WHERE {where}", ends * 2) == [(5,), (6,), (7,)]
        assert [each.value for each in sink.history("g1", "meter", "p0", *ends)] == [5, 6, 7]
    db = sqlite3.connect(tmp_path / FILE)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM readings WHERE {where}", ends * 2)]
    db.close()
    assert any("strip_by_time (shape=? AND to_ms>? AND to_ms<?)" in line for line in plan)


# ── clocks, in slices ────────────────────────────────────────────────────────────────────────────────────────────────


def offsets(sink: SqliteSink) -> list[Any]:
    """Of each batch: as it says, and as its reading has it."""
    return sink.query(
        "SELECT b.offset_ms, r.ts_ms - b.seq FROM batch b JOIN reading r ON r.id = b.first ORDER BY b.seq"
    )


def test_a_long_boot_is_put_right_in_slices_that_outlive_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    with store(tmp_path) as sink:
        sink.commit([entry(S, seq, body([seq], at_ms=seq, clock=UNSYNCED)) for seq in range(1, 11)], [], 0)
        sink.commit([entry(S, 11, SET)], [], 0)
        assert offsets(sink) == [(90_000, 90_000)] * 4 + [(0, 0)] * 6, "never a batch that says other than its readings"
        assert sink.behind
        sink.commit([entry(S, 12, body([12], at_ms=12, clock=UNSYNCED))], [], 0)
        assert offsets(sink) == [(90_000, 90_000)] * 8 + [(0, 0)] * 2 + [(90_000, 90_000)], "right from the start"
    with store(tmp_path) as sink:
        assert sink.behind
        sink.commit([], [], 0)
        assert offsets(sink) == [(90_000, 90_000)] * 11
        assert not sink.behind
        assert sink.query("SELECT * FROM correction") == []


def test_what_a_server_told_gives_way_in_the_middle_to_what_the_gateway_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    with store(tmp_path) as sink:
        sink.commit([entry(S, seq, body([seq], at_ms=seq, clock=UNSYNCED)) for seq in range(1, 11)], [], 0)
        sink.commit([entry(S, 11, TOLD)], [], 0)
        assert offsets(sink) == [(40_000, 40_000)] * 4 + [(0, 0)] * 6
        sink.commit([entry(S, 12, SET)], [], 0)
        assert sink.query("SELECT count(*) FROM correction") == [(1,)]
        while sink.behind:
            sink.commit([], [], 0)
        assert offsets(sink) == [(90_000, 90_000)] * 10


def test_of_two_times_that_a_gateway_knew_the_first_holds_for_what_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the store had come with it when it heard of the second."""
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    with store(tmp_path) as sink:
        sink.commit([entry(S, seq, body([seq], at_ms=seq, clock=UNSYNCED)) for seq in range(1, 11)], [], 0)
        sink.commit([entry(S, 11, SET)], [], 0)
        sink.commit([entry(S, 12, LATER), entry(S, 13, body([13], at_ms=13, clock=UNSYNCED))], [], 0)
        while sink.behind:
            sink.commit([], [], 0)
        assert offsets(sink) == [(90_000, 90_000)] * 10 + [(90_500, 90_500)]


def test_batches_with_little_in_them_make_no_long_transaction(tmp_path: Path) -> None:
    empty = msgspec.json.encode(batch.Body(UNSYNCED, 0, []))
    with store(tmp_path) as sink:
        sink.commit([entry(S, seq, empty) for seq in range(1, 1201)], [], 0)
        sink.commit([entry(S, 1201, SET)], [], 0)
        assert sink.behind
        [(done,)] = sink.query("SELECT count(*) FROM batch WHERE trust = 'synced'")
        assert done == clocks.SLICE // clocks.BATCH
        while sink.behind:
            sink.commit([], [], 0)
        assert sink.query("SELECT count(*) FROM batch WHERE trust = 'synced'") == [(1200,)]


def test_what_is_known_of_a_boot_is_found_at_once_however_often_it_was_told(tmp_path: Path) -> None:
    with store(tmp_path) as sink:
        sink.commit([entry(S, 1, TOLD)], [], 0)
        plans: list[str] = []
        db = sink.open()
        asked: list[str] = []
        db.set_trace_callback(asked.append)
        sink.commit([entry(S, 2, AGAIN), entry(S, 3, body([1], clock=UNSYNCED))], [], 0)
        db.set_trace_callback(None)
        for sql in asked:
            if "FROM clock" in sql:
                plans += [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert {plan for plan in plans if "clock USING INDEX" in plan} == {
            "SEARCH clock USING INDEX clock_own (gateway=? AND boot=?)",
            "SEARCH clock USING INDEX clock_told (gateway=? AND boot=?)",
        }
        assert not any("SCAN clock" in plan for plan in plans)


def left_behind(folder: Path) -> None:
    """The store of a server that stopped in the middle: ten batches, four put right."""
    with store(folder / "data") as sink:
        sink.commit([entry(S, seq, body([seq], at_ms=seq, clock=UNSYNCED)) for seq in range(1, 11)], [], 0)
        sink.commit([entry(S, 11, SET)], [], 0)
        assert sink.behind


def test_a_server_to_which_nobody_comes_puts_right_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    left_behind(tmp_path)

    async def main() -> None:
        async with cloud(tmp_path) as server:
            await until(lambda: not server.sink.behind)
            assert await server.committer.call(offsets, server.sink) == [(90_000, 90_000)] * 10

    asyncio.run(main())


def test_neither_a_stop_nor_a_disk_that_fails_waits_for_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    left_behind(tmp_path)

    def endless(_db: sqlite3.Connection) -> bool:
        return True

    def broken(_db: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    async def main() -> None:
        async with asyncio.timeout(20):
            monkeypatch.setattr(clocks, "proceed", endless)
            async with cloud(tmp_path):
                pass
            monkeypatch.setattr(clocks, "proceed", broken)
            async with cloud(tmp_path) as server:
                await until(lambda: server.committer.failures > 0)
                for _ in range(50):
                    await server.committer.call(lambda: None)
                assert server.committer.failures == 1, "the next group tries again, nothing before"

    asyncio.run(main())


def test_when_the_disk_takes_data_again_the_rest_is_put_right_though_nobody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "SLICE", FOUR_BATCHES)
    left_behind(tmp_path)
    proceed = clocks.proceed

    def broken(_db: sqlite3.Connection) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    async def main() -> None:
        async with asyncio.timeout(20):
            monkeypatch.setattr(clocks, "proceed", broken)
            async with cloud(tmp_path) as server:
                await until(lambda: server.committer.failures > 0)
                monkeypatch.setattr(clocks, "proceed", proceed)
                assert await server.committer.probe()
                await until(lambda: not server.sink.behind)

    asyncio.run(main())


# ── files of old ─────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(db: sqlite3.Connection) -> list[list[Any]]:
    columns = "id, gateway, device, point, ts_ms, utc, value, type, unit, status, clock"
    return [db.execute(f"SELECT {columns} FROM {view} ORDER BY id").fetchall() for view in ("readings", "latest")]


def test_a_file_of_the_second_version_shows_what_it_showed_and_goes_on(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.executescript((Path(__file__).parent / "version_2.sql").read_text())
    before = shown(db)
    db.close()
    assert len(before[0]) == 31
    with store(tmp_path) as sink:
        assert shown(sink.open()) == before
        agrees(sink, random.Random(1))
        assert [each.value for each in sink.history("g2", "tank", "u", SYNCED.offset_ms, SYNCED.offset_ms + 400)] == [
            41
        ]
        sink.commit([entry(S, 11, SET), entry(S, 12, body([61], at_ms=1300, device="pump"))], [], 0)
        agrees(sink, random.Random(2))
        moved = sink.query("SELECT id, ts_ms FROM reading WHERE id BETWEEN 14 AND 17")
        assert moved == [(14, 93_000), (15, 777), (16, 778), (17, 93_003)]
        assert [each.value for each in sink.history("g1", "pump", "u", 93_000, 93_002)] == [11]


def test_who_only_looks_leaves_a_file_of_old_to_the_server(tmp_path: Path) -> None:
    """One of the old version may be running on it: it goes on without strips, and nobody finds its readings."""
    db = sqlite3.connect(tmp_path / FILE)
    db.executescript((Path(__file__).parent / "version_2.sql").read_text())
    with pytest.raises(StoreError, match="older version"):
        SqliteSink(tmp_path, alone=False)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()
    SqliteSink(tmp_path).close()
    SqliteSink(tmp_path, alone=False).close()
