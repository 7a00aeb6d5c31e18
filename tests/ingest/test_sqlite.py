"""The store against real SQLite: exact values, marks, clocks put right, full and broken disks, a killed process."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StoreError
from gateway.ingest import commands
from gateway.ingest.live import LiveState
from gateway.ingest.sinks.group import StoredResult
from gateway.ingest.sinks.rows import Numbered, rows, value_of
from gateway.ingest.sinks.sqlite import FILE, SqliteSink
from gateway.model import ClockState, GapReason, Lane, Outcome, Status, Trust
from gateway.protocol import batch, messages
from gateway.protocol.entry import Entry, entry_of
from gateway.protocol.marks import Mark
from gateway.protocol.messages import CommandMessage, GapBody, Hello, ResultMessage, StreamOffer
from ingest.cloud import BOOT, PROCESS, SYNCED, UNSYNCED, body, entry, gap, stream_id

S = "1" * 32


@pytest.fixture
def sink(tmp_path: Path) -> Any:
    made = SqliteSink(tmp_path)
    yield made
    made.close()


def stamps(sink: SqliteSink) -> list[int]:
    return [row[0] for row in sink.query("SELECT ts_ms FROM reading ORDER BY id")]


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(values, min_size=1, max_size=8))
def test_every_value_comes_back_as_the_one_that_was_sent(given_values: list[Any]) -> None:
    decoded = batch.decode(body(given_values))
    codes = {status: i for i, status in enumerate(Status)}
    made, _ = rows(decoded, 0, 1, lambda _d, points, _u: Numbered((1,), (1,) * len(points)), codes)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE reading (id, series, ts, value, form, status)")
    db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)", made)
    back = [value_of(value, form) for value, form in db.execute("SELECT value, form FROM reading ORDER BY id")]
    db.close()
    assert back == given_values
    assert [type(value) for value in back] == [type(value) for value in given_values]


@pytest.mark.parametrize(
    ("value", "shown", "kind"),
    [
        (2**64 - 1, "18446744073709551615", "integer"),
        (2**63, "9223372036854775808", "integer"),
        (2**63 - 1, 2**63 - 1, "integer"),
        (-(2**63), -(2**63), "integer"),
        (True, 1, "bool"),
        (1.0, 1.0, "real"),
        ("on", "on", "text"),
        (None, None, "null"),
    ],
)
def test_the_views_show_values_exactly(sink: SqliteSink, value: Any, shown: Any, kind: str) -> None:
    sink.commit([entry(S, 1, body([value]))], [], 0)
    assert sink.query("SELECT value, type FROM readings") == [(shown, kind)]
    assert sink.query("SELECT value, type, device, point, unit, status FROM latest") == [
        (shown, kind, "meter", "p0", "V", "good")
    ]


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1])
def test_what_does_not_fit_into_64_bits_is_a_dead_letter_and_counts_as_stored(sink: SqliteSink, value: int) -> None:
    good = entry(S, 2, body([1]))
    verdicts = sink.commit([entry(S, 1, body([value])), good], [], 0)
    assert [verdict.mark for verdict in verdicts] == [1, 2]
    [(seq, error, raw)] = sink.query("SELECT seq, error, body FROM dead_letter")
    assert (seq, raw) == (1, body([value]))
    assert "64 bits" in error
    assert sink.query("SELECT value FROM reading") == [(1,)]


def test_latest_is_the_newest_acquisition_not_the_newest_arrival(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body(["new"], at_ms=9000)), entry(S, 2, body(["old"], at_ms=1000))], [], 0)
    assert sink.query("SELECT value FROM latest") == [("new",)]
    assert [seed.value for seed in sink.latest()] == ["new"]


def test_quality_of_each_value_is_kept(sink: SqliteSink) -> None:
    group = batch.Group("d", ("a", "b"), ("V", ""), [0, 5], [[1, None], [2, 3]], [[Status.GOOD, Status.CRC], None])
    sink.commit([entry(S, 1, msgspec.json.encode(batch.Body(SYNCED, 0, [group])))], [], 0)
    assert sink.query("SELECT point, value, status FROM readings ORDER BY id") == [
        ("a", 1, "good"),
        ("a", None, "bad:crc"),
        ("b", 2, "good"),
        ("b", 3, "good"),
    ]


def quality(word: str, seq: int) -> Entry:
    """A batch of one value with this status."""
    text = msgspec.json.encode(
        batch.Body(SYNCED, 0, [batch.Group("d", ("a",), ("V",), [seq], [[seq]], [[Status(word)]])])
    )
    return entry(S, seq, text)


def test_a_status_that_nobody_knows_yet_is_kept_and_shown_as_it_is(sink: SqliteSink) -> None:
    """[D6b] In the tables, after a restart, and to viewers."""
    words = ["uncertain:of_tomorrow", "bad:of_tomorrow", "uncertain:of_tomorrow", "good"]
    live = LiveState()
    for seq, word in enumerate(words, start=1):
        made = quality(word, seq)
        sink.commit([made], [], 0)
        live.stored(made, SYNCED.offset_ms, 0)
        assert [view.status for view, _ in live.series()] == [word]
        assert [seed.status for seed in sink.latest()] == [word]
    assert sink.query("SELECT status FROM readings ORDER BY id") == [(word,) for word in words]
    assert sink.query("SELECT count(*) FROM dead_letter") == [(0,)]
    assert sink.query("SELECT count(*) FROM status") == [(len(Status) + 2,)], "each word once"
    sink.close()
    sink.commit([quality(words[0], 5)], [], 0)
    assert [seed.status for seed in sink.latest()] == [words[0]]


def test_words_that_gateways_made_up_fill_no_memory_when_the_store_is_opened(sink: SqliteSink) -> None:
    with sink.transaction() as db:
        db.executemany("INSERT INTO status (name) VALUES (?)", [(f"bad:word_{i}",) for i in range(30_000)])
    sink.close()
    tracemalloc.start()
    try:
        sink.open()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_flood_of_dead_letters_is_kept_and_told_a_few_times(
    sink: SqliteSink, caplog: pytest.LogCaptureFixture
) -> None:
    """With a word or two of what is wrong: it may quote names of any length."""
    long = msgspec.json.encode(batch.Body(SYNCED, 0, [batch.Group("d" * 90_000, ("a",), (), [0], [[1]])]))
    for seq in range(1, 31):
        sink.commit(
            [entry_of(messages.Batch(stream=S, lane=Lane.LIVE, seq=seq, body=msgspec.Raw(long)), "g1", seq, seq, 0)],
            [],
            0,
        )
    assert sink.query("SELECT count(*), max(length(error)), min(length(body)) FROM dead_letter") == [
        (30, 500, len(long))
    ]
    assert ["1 so far" in line or "10 so far" in line for line in caplog.messages] == [True, True]
    assert max(map(len, caplog.messages)) < 1000


# ── marks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_store_itself_refuses_what_does_not_continue_a_stream(sink: SqliteSink) -> None:
    assert sink.commit([entry(S, 2, body([2]))], [], 0) == [(0, False, None)]
    assert [v.mark for v in sink.commit([entry(S, 1, body([1])), entry(S, 1, body([1]))], [], 0)] == [1, 1]
    assert sink.query("SELECT count(*) FROM reading") == [(1,)]
    assert sink.marks("g1", [S, "2" * 32]) == {S: Mark(1, Lane.LIVE), "2" * 32: Mark()}


def test_streams_of_one_name_belong_to_their_gateways(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body(["a"])), entry(S, 1, body(["b"]), gateway="g2")], [], 0)
    assert sink.query("SELECT gateway, value FROM latest ORDER BY gateway") == [("g1", "a"), ("g2", "b")]


def test_a_gap_moves_the_mark_and_only_the_unknown_part_of_it_is_a_gap(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body([1])), entry(S, 2, gap(5), last=4)], [], 0)
    sink.commit([entry(S, 3, gap(9), last=8)], [], 0)
    assert sink.query("SELECT seq, last, readings FROM gap") == [(2, 4, 5), (5, 8, None)]
    assert sink.marks("g1", [S])[S].number == 8
    sink.commit([entry(S, 9, GapBody(GapReason.STORED_ELSEWHERE, 50))], [], 0)
    assert sink.gaps() == [("g1", 2, 5, True)]


def test_an_end_closes_a_stream(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body([1])), entry(S, 2, None)], [], 0)
    assert sink.marks("g1", [S])[S] == Mark(2, Lane.LIVE, True)


def hello(*offers: StreamOffer, process: str = PROCESS) -> Hello:
    return Hello(process=process, software="t", clock=SYNCED, streams=offers)


def test_a_stream_is_unclean_when_its_process_is_gone_and_nobody_offers_it(sink: SqliteSink) -> None:
    ended, kept, lost = (stream_id() for _ in range(3))
    sink.hello("g1", hello(*(StreamOffer(s, Lane.LIVE, 1, 1) for s in (ended, kept, lost))), 0)
    sink.commit([entry(s, 1, body([1])) for s in (ended, kept, lost)] + [entry(ended, 2, None)], [], 0)
    sink.hello("g1", hello(StreamOffer(kept, Lane.LIVE, 1, 2, sealed=True), process="d" * 32), 1)
    states = dict(sink.query("SELECT name, state FROM stream"))
    assert states == {ended: "ended", kept: "open", lost: "unclean"}


def test_nothing_is_called_unclean_while_a_gateway_cannot_name_all_it_holds(sink: SqliteSink) -> None:
    sink.hello("g1", hello(StreamOffer(S, Lane.LIVE, 1, 1)), 0)
    sink.commit([entry(S, 1, body([1]))], [], 0)
    many = [StreamOffer(stream_id(), Lane.LIVE, 1, 2, sealed=True) for _ in range(32)]
    sink.hello("g1", hello(*many, process="d" * 32), 1)
    assert sink.query("SELECT state FROM stream WHERE name = ?", (S,)) == [("open",)]


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clock_record_puts_the_stamps_of_its_boot_right_in_its_own_transaction(sink: SqliteSink) -> None:
    other = ClockState("c" * 32, 50, -1, Trust.UNSYNCED)
    sink.commit(
        [
            entry(S, 1, body([1], at_ms=10, clock=UNSYNCED)),
            entry(S, 2, body([2], at_ms=20)),
            entry(S, 3, body([3], at_ms=30, clock=other)),
            entry(S, 4, body([4], at_ms=40, clock=UNSYNCED, source_ms=777)),
            entry(S, 5, ClockState(BOOT, 9000, 2, Trust.SYNCED)),
        ],
        [],
        0,
    )
    assert stamps(sink) == [9010, SYNCED.offset_ms + 20, 80, 777]
    assert sink.query("SELECT seq, offset_ms, trust, sent_trust FROM batch ORDER BY seq") == [
        (1, 9000, "synced", "unsynced"),
        (2, SYNCED.offset_ms, "synced", "synced"),
        (3, 50, "unsynced", "unsynced"),
        (4, 9000, "synced", "unsynced"),
    ]


def test_a_backlog_that_arrives_after_its_clock_record_is_right_from_the_start(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, ClockState(BOOT, 9000, 2, Trust.SYNCED))], [], 0)
    [verdict] = sink.commit([entry("2" * 32, 1, body([1], at_ms=10, clock=UNSYNCED))], [], 0)
    assert verdict.offset_ms == 9000
    assert stamps(sink) == [9010]


def test_the_time_of_a_server_is_used_until_the_gateways_own_clock_is_set(sink: SqliteSink) -> None:
    told = ClockState(BOOT, 8000, 900, Trust.SERVER)
    sink.commit([entry(S, 1, body([1], at_ms=10, clock=UNSYNCED)), entry(S, 2, told)], [], 0)
    sink.commit([entry(S, 3, body([2], at_ms=20, clock=told))], [], 0)
    assert stamps(sink) == [8010, 8020]
    sink.commit([entry(S, 4, ClockState(BOOT, 9000, 2, Trust.SYNCED))], [], 0)
    assert stamps(sink) == [9010, 9020]
    late = [
        entry("2" * 32, 1, body([3], at_ms=30, clock=told)),
        entry("2" * 32, 2, body([4], at_ms=40, clock=UNSYNCED)),
    ]
    sink.commit(late, [], 0)
    assert stamps(sink) == [9010, 9020, 9030, 9040]


def test_no_server_unsettles_what_an_earlier_process_of_the_boot_knew(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, ClockState(BOOT, 9000, 2, Trust.SYNCED)), entry(S, 2, body([1], at_ms=10))], [], 0)
    sink.commit([entry(S, 3, ClockState(BOOT, 8000, 900, Trust.SERVER))], [], 0)
    sink.commit([entry(S, 4, body([2], at_ms=20, clock=UNSYNCED))], [], 0)
    assert stamps(sink) == [SYNCED.offset_ms + 10, 9020]


def test_the_clock_of_one_gateway_moves_nothing_of_another(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body([1], at_ms=10, clock=UNSYNCED), gateway="g2")], [], 0)
    sink.commit([entry(S, 1, ClockState(BOOT, 9000, 2, Trust.SYNCED))], [], 0)
    assert stamps(sink) == [10]


def test_a_clock_that_is_not_trusted_either_moves_nothing(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body([1], at_ms=10, clock=UNSYNCED)), entry(S, 2, UNSYNCED)], [], 0)
    assert stamps(sink) == [10]


# ── results and commands ─────────────────────────────────────────────────────────────────────────────────────────────


def command(number: str = "c1", ttl_ms: int = 1000) -> CommandMessage:
    return CommandMessage(id=number, device="d", op="write", point="p", value=2**64 - 1, ttl_ms=ttl_ms, sent_ms=0)


def test_a_result_is_stored_once_and_the_first_one_stands(sink: SqliteSink) -> None:
    commands.issue(sink, "g1", command(), 0)
    for outcome in (Outcome.OK, Outcome.FAILED):
        sink.commit([], [StoredResult("g1", ResultMessage(id="c1", outcome=outcome, value=5))], 0)
    [issued] = commands.recent(sink, 0)
    assert (issued.state, issued.result, issued.value) == ("ok", 5, 2**64 - 1)


def test_a_result_from_another_gateway_answers_nothing(sink: SqliteSink) -> None:
    commands.issue(sink, "g1", command(), 0)
    sink.commit([], [StoredResult("g2", ResultMessage(id="c1", outcome=Outcome.OK))], 0)
    assert commands.recent(sink, 0)[0].state == "queued"


def test_a_command_is_due_until_it_has_a_result_or_no_time_left(sink: SqliteSink) -> None:
    assert commands.issue(sink, "g1", command(), 0)
    assert not commands.issue(sink, "g1", command(ttl_ms=9), 0), "an id is issued once"
    assert sink.hello("g1", hello(), 0)[1] == ()
    assert [c.ttl_ms for c in commands.due(sink, "g1", 400)] == [600]
    assert [c.ttl_ms for c in commands.due(sink, "g1", 900)] == [100]
    assert commands.due(sink, "g1", 1000) == []
    assert sink.hello("g1", hello(), 1000)[1] == ("c1",), "expired or not: the gateway may know the result"
    sink.commit([], [StoredResult("g1", ResultMessage(id="c1", outcome=Outcome.OK))], 0)
    assert sink.hello("g1", hello(), 1000)[1] == ()


def test_a_command_that_never_left_expires_here(sink: SqliteSink) -> None:
    commands.issue(sink, "g1", command(), 0)
    assert [commands.recent(sink, now)[0].state for now in (0, 999, 1000)] == ["queued", "queued", "expired"]


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_marks_rows_and_the_sink_id_outlive_the_process(tmp_path: Path) -> None:
    one = SqliteSink(tmp_path)
    one.commit([entry(S, 1, body([1]))], [], 0)
    one.close()
    two = SqliteSink(tmp_path)
    assert two.sink_id == one.sink_id
    assert len(bytes.fromhex(two.sink_id)) == 16
    two.commit([entry(S, 1, body([9])), entry(S, 2, body([2]))], [], 0)
    assert two.query("SELECT value FROM reading ORDER BY id") == [(1,), (2,)]
    assert oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o600"
    two.close()


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    SqliteSink(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        SqliteSink(tmp_path)


def test_what_is_no_database_is_said_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 100)
    with pytest.raises(StoreError):
        SqliteSink(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b"something else" * 100


def test_a_full_disk_refuses_the_whole_group_and_takes_it_when_there_is_room_again(sink: SqliteSink) -> None:
    sink.commit([entry(S, 1, body([1]))], [], 0)
    db = sink.open()
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    big = entry(S, 3, body(["x" * 100_000], device="new"))
    with pytest.raises(StoreError, match="full"):
        sink.commit([entry(S, 2, body([2])), big], [], 0)
    # the limit belonged to the connection that failed; the next call opens another, as it does with a real disk
    assert sink.marks("g1", [S])[S].number == 1
    assert [v.mark for v in sink.commit([entry(S, 2, body([2])), big], [], 0)] == [2, 3]
    assert sink.query("SELECT count(*) FROM reading") == [(3,)]
    assert sink.query("SELECT count(*) FROM series") == [(2,)]


def test_a_file_that_was_damaged_is_refused_and_used_again_once_it_is_whole(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path)
    sink.commit([entry(S, 1, body([1]))], [], 0)
    sink.close()
    shutil.copy(tmp_path / FILE, tmp_path / "whole")
    (tmp_path / FILE).write_bytes(b"\x00" * 8192)
    with pytest.raises(StoreError):
        sink.commit([entry(S, 2, body([2]))], [], 0)
    shutil.copy(tmp_path / "whole", tmp_path / FILE)
    assert sink.commit([entry(S, 2, body([2]))], [], 0)[0].mark == 2
    sink.close()


def test_the_probe_notices_a_disk_that_takes_no_writes(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path)
    sink.probe(1)
    db = sink.open()
    db.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError):
        sink.probe(2)
    sink.probe(3)
    sink.close()


_CHILD = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from ingest.cloud import body, entry
from gateway.ingest.sinks.sqlite import SqliteSink
sink = SqliteSink(pathlib.Path(sys.argv[1]))
streams = ["%032x" % i for i in range(4)]
seq = max(mark.number for mark in sink.marks("g1", streams).values())
while True:
    group = [entry(s, n, body([n] * 20)) for n in range(seq + 1, seq + 6) for s in streams]
    sink.commit(group, [], 0)
    seq += 5
    print(seq, flush=True)
"""


def test_a_process_killed_in_the_middle_of_its_load_leaves_marks_and_rows_that_agree(tmp_path: Path) -> None:
    streams = [f"{i:032x}" for i in range(4)]
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(tmp_path), str(Path(__file__).parent.parent)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
        )
        assert child.stdout is not None
        acked = 0
        for _ in range(6):
            acked = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        rest = child.stdout.read().split()
        child.stdout.close()
        acked = int(rest[-1]) if rest else acked
        sink = SqliteSink(tmp_path)
        marks = {name: mark.number for name, mark in sink.marks("g1", streams).items()}
        assert all(mark >= acked for mark in marks.values()), "acked and gone"
        assert len(set(marks.values())) == 1, "half a group"
        mark = marks[streams[0]]
        assert sink.query("SELECT count(*), count(DISTINCT id) FROM reading") == [(mark * 80, mark * 80)]
        assert sink.query("SELECT count(*), min(seq), max(seq) FROM batch") == [(mark * 4, 1, mark)]
        assert sink.query("PRAGMA integrity_check") == [("ok",)]
        sink.close()
