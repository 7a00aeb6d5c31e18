"""The server's side of the protocol without any I/O: tables, and a machine that breaks everything at random."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.model import Lane, Outcome
from gateway.protocol.entry import Entry
from gateway.protocol.marks import MAX_STREAMS, Mark, Streams
from gateway.protocol.messages import (
    Ack,
    CommandMessage,
    Hello,
    Nack,
    Welcome,
    Window,
    decode_from_gateway,
)
from gateway.protocol.server import (
    Greet,
    Leave,
    LookUp,
    Promoted,
    Report,
    Send,
    ServerSession,
    Store,
    StoreResult,
)
from ingest.cloud import BOOT, PROCESS, body

S = "1" * 32
T = "2" * 32


def hello(*streams: str, standby: bool = False, process: str = PROCESS) -> Any:
    offers = [{"stream": s, "lane": "live", "first": 1, "next": 1} for s in streams]
    clock = {"boot": BOOT, "offset_ms": 0, "error_ms": -1, "trust": "unsynced"}
    return message(type="hello", process=process, software="t", clock=clock, streams=offers, standby=standby)


def message(**fields: Any) -> Any:
    return decode_from_gateway(json.dumps(fields))


def batch(seq: int, stream: str = S, lane: str = "live", content: Any = None) -> Any:
    content = json.loads(body([seq])) if content is None else content
    return message(type="batch", stream=stream, lane=lane, seq=seq, body=content)


def gap(seq: int, last: int, **fields: Any) -> Any:
    content = {"reason": "evicted", "readings": 9, **fields}
    return message(type="gap", stream=S, lane="live", seq=seq, last=last, body=content)


def welcomed(
    marks: dict[str, Mark] | None = None, streams: Streams | None = None, standby: bool = False
) -> ServerSession:
    session = ServerSession("g1", "s1", streams or Streams(), 0.0)
    session.receive(hello(S, standby=standby))
    session.welcome("c" * 32, marks or {}, (), 0, 0.0)
    return session


def stored(outputs: list[Any]) -> list[tuple[int, int]]:
    return [(o.entry.seq, o.entry.last) for o in outputs if isinstance(o, Store)]


def entries(outputs: list[Any]) -> list[Entry]:
    return [o.entry for o in outputs if isinstance(o, Store)]


def sent(outputs: list[Any]) -> list[Any]:
    return [o.message for o in outputs if isinstance(o, Send)]


# ── greeting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hello_is_looked_up_and_welcomed_with_the_committed_marks() -> None:
    session = ServerSession("g1", "s1", Streams(), 10.0, Window(4, 1000))
    assert session.deadline() == 15.0
    assert isinstance(session.receive(hello(S, T))[0], Greet)
    assert session.deadline() is None
    [welcome] = sent(session.welcome("c" * 32, {S: Mark(7, Lane.LIVE)}, ("cmd",), 1234, 11.5))
    assert isinstance(welcome, Welcome)
    assert welcome.marks == {S: 7}
    assert (welcome.sink, welcome.session, welcome.window) == ("c" * 32, "s1", Window(4, 1000))
    assert (welcome.mono_ms, welcome.utc_ms, welcome.open_commands) == (11500, 1234, ("cmd",))


def test_the_marks_in_memory_know_better_than_what_was_read_a_moment_ago() -> None:
    streams = Streams()
    first = welcomed({S: Mark(5, Lane.LIVE)}, streams)
    [entry] = entries(first.receive(batch(6)))
    streams.settle(entry, 6)
    second = ServerSession("g1", "s2", streams, 0.0)
    second.receive(hello(S))
    [welcome] = sent(second.welcome("c" * 32, {S: Mark(5, Lane.LIVE)}, (), 0, 0.0))
    assert welcome.marks == {S: 6}


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (batch(1), 1002),
        (message(type="stats", values={}), 1002),
        (message(type="bye"), 1002),
        (hello(process="no id"), 1002),
        (hello("NOT-HEX"), 1002),
        (hello(*[f"{i:032x}" for i in range(65)]), 1008),
    ],
)
def test_what_does_not_begin_with_a_proper_hello_is_closed(first: Any, code: int) -> None:
    session = ServerSession("g1", "s1", Streams(), 0.0)
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(first)
    assert caught.value.code == code


def test_a_second_hello_is_a_violation() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        welcomed().receive(hello(S))
    assert caught.value.code == 1002


def test_a_late_hello_is_closed_with_its_own_code_and_not_before_its_time() -> None:
    session = ServerSession("g1", "s1", Streams(), 10.0)
    session.tick(14.9)
    with pytest.raises(RemoteProtocolError) as caught:
        session.tick(15.0)
    assert caught.value.code == 4408


def test_nothing_is_taken_while_the_store_is_being_asked() -> None:
    session = ServerSession("g1", "s1", Streams(), 0.0)
    session.receive(hello(S))
    with pytest.raises(LocalProtocolError):
        session.receive(batch(1))


def test_a_standby_becomes_active_by_the_first_thing_it_sends_and_only_once() -> None:
    session = welcomed(standby=True)
    assert not session.active
    assert session.receive(message(type="stats", values={"x": 1})) == [
        Promoted(),
        Report(message(type="stats", values={"x": 1})),
    ]
    assert session.active
    assert not any(isinstance(o, Promoted) for o in session.receive(batch(1)))
    assert welcomed(standby=True).receive(message(type="bye", reason="x")) == [Leave("x")]


# ── the rule of the mark ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mark", "record", "expected"),
    [
        (0, batch(1), [(1, 1)]),
        (4, batch(5), [(5, 5)]),
        (4, batch(4), []),
        (4, batch(1), []),
        (4, batch(6), []),
        (4, gap(5, 9), [(5, 9)]),
        (4, gap(2, 9), [(5, 9)]),
        (4, gap(2, 5), [(5, 5)]),
        (4, gap(2, 4), []),
        (4, gap(6, 9), []),
        (0, gap(1, 1), [(1, 1)]),
    ],
)
def test_a_record_is_stored_only_from_the_mark_on(mark: int, record: Any, expected: list[tuple[int, int]]) -> None:
    session = welcomed({S: Mark(mark, Lane.LIVE)})
    assert stored(session.receive(record)) == expected


def test_a_gap_that_is_partly_stored_no_longer_knows_how_much_it_lost() -> None:
    [whole] = entries(welcomed({S: Mark(4)}).receive(gap(5, 9)))
    [part] = entries(welcomed({S: Mark(4)}).receive(gap(2, 9)))
    assert (whole.body.readings, part.body.readings) == (9, None)  # type: ignore[union-attr]


def test_one_nack_then_silence_until_the_expected_number_comes() -> None:
    session = welcomed({S: Mark(4)})
    assert sent(session.receive(batch(7))) == [Nack(stream=S, expected=5)]
    assert session.receive(batch(8)) == []
    assert session.receive(batch(9)) == []
    assert stored(session.receive(batch(5))) == [(5, 5)]
    assert sent(session.receive(batch(7))) == [Nack(stream=S, expected=6)]


def test_a_duplicate_ends_the_discarding_too() -> None:
    session = welcomed({S: Mark(4)})
    session.receive(batch(7))
    assert session.receive(batch(3)) == []
    assert sent(session.receive(batch(7))) == [Nack(stream=S, expected=5)]


def test_nothing_is_acked_before_it_is_committed() -> None:
    streams = Streams()
    session = welcomed({S: Mark(4)}, streams)
    [entry] = entries(session.receive(batch(5)))
    assert session.flush() == []
    streams.settle(entry, 5)
    assert sent(session.flush()) == [Ack(marks={S: 5})]
    assert session.flush() == []


def test_a_duplicate_of_what_is_stored_is_acked_again() -> None:
    session = welcomed({S: Mark(4)})
    assert session.receive(batch(4)) == []
    assert sent(session.flush()) == [Ack(marks={S: 4})]
    session.receive(batch(3))
    assert sent(session.flush()) == [Ack(marks={S: 4})]


def test_a_duplicate_of_what_waits_waits_for_the_same_commit() -> None:
    streams = Streams()
    one, two = welcomed({S: Mark(4)}, streams), welcomed({S: Mark(4)}, streams)
    [entry] = entries(one.receive(batch(5)))
    assert two.receive(batch(5)) == []
    assert two.flush() == []
    streams.settle(entry, 5)
    assert sent(two.flush()) == [Ack(marks={S: 5})]
    assert sent(one.flush()) == [Ack(marks={S: 5})]


def test_a_second_session_continues_behind_what_the_first_has_under_way() -> None:
    streams = Streams()
    one, two = welcomed({S: Mark(4)}, streams), welcomed({S: Mark(4)}, streams)
    one.receive(batch(5))
    assert stored(two.receive(batch(6))) == [(6, 6)]


def test_a_failed_group_gives_every_session_concerned_one_nack() -> None:
    streams = Streams()
    one, two, other = (welcomed({S: Mark(4)}, streams) for _ in range(3))
    group = entries(one.receive(batch(5))) + entries(one.receive(batch(6)))
    two.receive(batch(6))
    streams.failed(group)
    for session in (one, two):
        assert sent(session.flush()) == [Nack(stream=S, expected=5, reason="not stored")]
        assert session.flush() == []
        assert session.receive(batch(7)) == []
    assert other.flush() == []
    assert stored(one.receive(batch(5))) == [(5, 5)]


def test_what_was_handed_over_behind_a_failed_group_does_not_speak_for_the_next_attempt() -> None:
    streams = Streams()
    session = welcomed({S: Mark(4)}, streams)
    first = entries(session.receive(batch(5)))
    behind = entries(session.receive(batch(6)))
    streams.failed(first)
    session.flush()
    [again] = entries(session.receive(batch(5)))
    streams.settle(behind[0], 4)  # refused by the store, long after
    assert session.flush() == []
    streams.settle(again, 5)
    assert sent(session.flush()) == [Ack(marks={S: 5})]


def test_a_refusal_by_the_store_is_believed_even_when_its_mark_went_back() -> None:
    streams = Streams()
    session = welcomed({S: Mark(40)}, streams)
    [entry] = entries(session.receive(batch(41)))
    streams.settle(entry, 12)  # the store was restored from a copy
    assert sent(session.flush()) == [Nack(stream=S, expected=13, reason="not stored")]
    assert stored(session.receive(batch(13))) == [(13, 13)]


def test_a_stream_that_nobody_offered_is_looked_up_first() -> None:
    session = welcomed()
    assert session.receive(batch(50, T)) == [LookUp(T)]
    with pytest.raises(LocalProtocolError):
        session.receive(batch(51, T))
    assert stored(session.learned(T, Mark(49, Lane.LIVE))) == [(50, 50)]


def test_streams_at_rest_are_put_out_of_memory_and_found_again() -> None:
    streams = Streams()
    streams.learn({S: Mark(3)})
    for i in range(MAX_STREAMS + 10):
        streams.learn({f"{i:032x}": Mark(1)})
    assert S not in streams
    assert f"{MAX_STREAMS + 9:032x}" in streams


def test_a_stream_whose_group_failed_is_not_put_out_before_its_session_was_told() -> None:
    streams = Streams()
    session = welcomed({S: Mark(4)}, streams)
    streams.failed(entries(session.receive(batch(5))))
    for i in range(MAX_STREAMS + 10):
        streams.learn({f"{i:032x}": Mark(1)})
    assert sent(session.flush()) == [Nack(stream=S, expected=5, reason="not stored")], "no ack of what nobody has"


@pytest.mark.parametrize(
    "record",
    [
        {"stream": "x", "seq": 1},
        {"stream": S.upper().replace("1", "A"), "seq": 1},
        {"stream": S, "seq": 0},
        {"stream": S, "seq": -1},
        {"stream": S, "seq": 2**63},
        {"stream": S, "seq": 5, "last": 4},
    ],
)
def test_records_that_cannot_be_close_the_session(record: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        welcomed().receive(message(**{"type": "gap", "lane": "live", "last": record["seq"], "body": {}, **record}))
    assert caught.value.code == 1002


def test_another_lane_and_anything_after_the_end_break_the_sequence() -> None:
    session = welcomed({S: Mark(4, Lane.ALARM)})
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(batch(5))
    assert caught.value.code == 4410
    session = welcomed()
    session.receive(batch(1))
    session.receive(message(type="end", stream=S, lane="live", seq=2))
    assert session.receive(batch(1)) == []
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(batch(3))
    assert caught.value.code == 4410
    with pytest.raises(RemoteProtocolError):
        welcomed({S: Mark(2, Lane.LIVE, ended=True)}).receive(batch(3))


def test_an_end_that_was_not_stored_can_be_sent_again() -> None:
    streams = Streams()
    session = welcomed(streams=streams)
    end = message(type="end", stream=S, lane="live", seq=1)
    streams.failed(entries(session.receive(end)))
    session.flush()
    assert stored(session.receive(end)) == [(1, 1)]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"clock": {"boot": BOOT, "offset_ms": 2**62, "error_ms": 0, "trust": "synced"}, "base_ms": 0, "groups": []},
        {
            "clock": {"boot": BOOT, "offset_ms": 0, "error_ms": 0, "trust": "synced"},
            "base_ms": 0,
            "groups": [{"device": "d", "points": ["p"], "units": ["V"], "t": [0] * 4097, "v": [[1] * 4097]}],
        },
    ],
)
def test_poison_is_handed_to_the_store_as_what_it_is(content: Any) -> None:
    session = welcomed()
    [entry] = entries(session.receive(batch(1, content=content)))
    assert entry.body is None
    assert entry.poison
    assert json.loads(entry.raw) == content
    assert stored(session.receive(batch(2))) == [(2, 2)]


def test_gaps_and_clocks_can_be_poison_too() -> None:
    session = welcomed()
    [bad_gap] = entries(session.receive(gap(1, 3, reason="because")))
    [bad_clock] = entries(session.receive(message(type="clock", stream=S, lane="live", seq=4, body={"boot": 5})))
    assert bad_gap.poison
    assert (bad_gap.seq, bad_gap.last) == (1, 3)
    assert bad_clock.poison


def test_a_result_goes_to_the_store_and_is_acked_by_its_id() -> None:
    session = welcomed()
    [output] = session.receive(message(type="result", id="c", outcome="ok", utc_ms=2**61))
    assert isinstance(output, StoreResult)
    assert (output.result.outcome, output.result.utc_ms) == (Outcome.OK, None)
    assert [m.id for m in sent(session.result_stored("c"))] == ["c"]


def test_a_command_carries_the_clock_of_the_moment_it_is_sent() -> None:
    session = welcomed()
    [command] = sent(session.command(CommandMessage(id="c", device="d", op="write", ttl_ms=9, sent_ms=0), 12.345))
    assert (command.sent_ms, command.ttl_ms) == (12345, 9)
    with pytest.raises(LocalProtocolError):
        ServerSession("g1", "s", Streams(), 0.0).move(1, 1, "")


def test_the_same_window_again_says_nothing() -> None:
    session = welcomed()
    assert session.flow(Window()) == []
    assert [m.window for m in sent(session.flow(Window(0, 0)))] == [Window(0, 0)]
    assert session.flow(Window(0, 0)) == []


def test_a_window_that_changes_before_the_welcome_is_the_one_in_the_welcome() -> None:
    session = ServerSession("g1", "s1", Streams(), 0.0, Window(0, 1 << 20))
    session.receive(hello(S))
    assert session.flow(Window(8, 1 << 20)) == []
    [welcome] = sent(session.welcome("c" * 32, {}, (), 0, 0.0))
    assert welcome.window == Window(8, 1 << 20)
    assert session.flow(Window(8, 1 << 20)) == []


# ── everything at random, over the real store ────────────────────────────────────────────────────────────────────────


class Chaos(RuleBasedStateMachine):
    """Two sessions of one gateway over one SQLite file: records repeated, out of order, groups that fail, that are
    committed although nobody hears of it, a server that is started anew. What must hold: rows exactly once and in
    order, no mark ahead of its rows, no ack ahead of the store."""

    STREAMS = (S, T)
    COUNTS = st.sampled_from([1, 2, 4, 1000])

    @initialize()
    def start(self) -> None:
        # in memory: a flush that waits for a disk proves nothing here, and there are thousands
        self.folder = TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.sink = SqliteSink(Path(self.folder.name))
        self.begin()

    def begin(self) -> None:
        self.streams = Streams()
        self.sessions: list[ServerSession] = []
        self.waiting: list[Entry] = []
        self.nacked: dict[tuple[int, str], int] = {}
        for number in range(2):
            session = ServerSession("g1", f"s{number}", self.streams, 0.0)
            [greet] = session.receive(hello(*self.STREAMS))
            assert isinstance(greet, Greet)
            marks, commands = self.sink.hello("g1", greet.hello, 0)
            session.welcome(self.sink.sink_id, marks, commands, 0, 0.0)
            self.sessions.append(session)

    @rule(
        which=st.integers(0, 1),
        stream=st.sampled_from(STREAMS),
        ahead=st.sampled_from([0, 0, 0, 0, 0, -1, -2, -5, 1, 2]),
        width=st.sampled_from([0, 0, 0, 2, 4]),
    )
    def send(self, which: int, stream: str, ahead: int, width: int) -> None:
        """Mostly what comes next; sometimes an old one, sometimes one from ahead; sometimes a gap."""
        seq = max(1, self.streams.expected(stream) + ahead)
        if width:
            content = {"reason": "evicted", "readings": 3}
            record = message(type="gap", stream=stream, lane="live", seq=seq, last=seq + width, body=content)
        else:
            record = batch(seq, stream)
        outputs = self.sessions[which].receive(record)
        self.waiting += entries(outputs)
        self.check(which, outputs)

    @rule(which=st.integers(0, 1), stream=st.sampled_from(STREAMS), count=st.integers(2, 6))
    def send_a_run(self, which: int, stream: str, count: int) -> None:
        """In order, as a gateway does."""
        for _ in range(count):
            self.send(which=which, stream=stream, ahead=0, width=0)

    @precondition(lambda self: self.waiting)
    @rule(count=COUNTS)
    def commit(self, count: int) -> None:
        group = self.take(count)
        for entry, verdict in zip(group, self.sink.commit(group, [], 0), strict=True):
            self.streams.settle(entry, verdict.mark)
        self.flush()

    @precondition(lambda self: self.waiting)
    @rule(count=COUNTS)
    def fail(self, count: int) -> None:
        self.streams.failed(self.take(count))
        self.flush()

    @precondition(lambda self: self.waiting)
    @rule(count=COUNTS)
    def commit_and_hear_of_a_failure(self, count: int) -> None:
        """The disk took it, and reported an error all the same."""
        group = self.take(count)
        self.sink.commit(group, [], 0)
        self.streams.failed(group)
        self.flush()

    @rule(committed=st.booleans())
    def crash(self, committed: bool) -> None:
        """Between group and commit, or between commit and ack."""
        if committed and self.waiting:
            self.sink.commit(self.waiting, [], 0)
        self.sink.close()
        self.sink = SqliteSink(Path(self.folder.name))
        self.begin()

    def take(self, count: int) -> list[Entry]:
        """So many of those that wait, oldest first: what is left was handed over behind them."""
        group, self.waiting = self.waiting[:count], self.waiting[count:]
        return group

    def flush(self) -> None:
        for which, session in enumerate(self.sessions):
            self.check(which, session.flush())

    def check(self, which: int, outputs: list[Any]) -> None:
        marks = {name: mark.number for name, mark in self.sink.marks("g1", self.STREAMS).items()}
        for output in sent(outputs):
            if isinstance(output, Ack):
                for stream, mark in output.marks.items():
                    assert mark <= marks[stream], "an ack ahead of the store"
            if isinstance(output, Nack):
                assert output.expected >= 1

    @invariant()
    def rows_are_there_once_and_no_mark_is_ahead_of_them(self) -> None:
        db = sqlite3.connect(self.sink.path)
        try:
            for number, mark in db.execute("SELECT id, mark FROM stream").fetchall():
                covered: list[int] = [r[0] for r in db.execute("SELECT seq FROM batch WHERE stream = ?", (number,))]
                for seq, last in db.execute("SELECT seq, last FROM gap WHERE stream = ?", (number,)):
                    covered += range(seq, last + 1)
                assert sorted(covered) == list(range(1, mark + 1))
            values = db.execute(
                "SELECT b.stream, b.seq, r.value FROM batch b"
                " JOIN reading r ON r.id >= b.first AND r.id < b.first + b.readings"
            ).fetchall()
            assert all(seq == value for _, seq, value in values)
            assert len(values) == len(set(values)) == db.execute("SELECT count(*) FROM reading").fetchone()[0]
        finally:
            db.close()

    def teardown(self) -> None:
        """At the end everything that a gateway still holds can be delivered."""
        if hasattr(self, "sink"):
            self.commit_rest()
            self.sink.close()
            self.folder.cleanup()

    def commit_rest(self) -> None:
        while self.waiting:
            self.commit(count=1000)
        for stream in self.STREAMS:
            expected = self.streams.expected(stream)
            outputs = self.sessions[0].receive(batch(expected, stream))
            assert stored(outputs) == [(expected, expected)], "a stream that no longer moves"
            self.waiting += entries(outputs)
            self.commit(count=1000)
            assert self.sink.marks("g1", [stream])[stream].number >= expected


Chaos.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)
TestTheStoreKeepsItsPromises = Chaos.TestCase


def test_a_hello_of_a_restarted_gateway_shows_which_streams_ended_uncleanly(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path)
    session = ServerSession("g1", "s", Streams(), 0.0)
    first = hello(S)
    sink.hello("g1", first, 0)
    session.receive(first)
    session.welcome(sink.sink_id, {}, (), 0, 0.0)
    sink.commit(entries(session.receive(batch(1))), [], 0)
    second: Hello = hello(T, process="d" * 32)
    sink.hello("g1", second, 1)
    assert sink.query("SELECT state FROM stream WHERE name = ?", (S,)) == [("unclean",)]
    sink.close()
