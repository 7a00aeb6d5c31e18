"""The gateway's side of a session, by itself. The numbers in brackets are those of the specification."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.errors import LocalProtocolError, RemoteProtocolError
from gateway.model import ClockState, Lane, Outcome, Record, RecordKind, Result, Trust
from gateway.protocol import outputs
from gateway.protocol.allowance import MAX_WINDOW
from gateway.protocol.client import ClientSession
from gateway.protocol.manifest import Manifest
from gateway.protocol.messages import (
    Ack,
    CommandMessage,
    Flow,
    Move,
    Nack,
    ResultAck,
    ServerError,
    StreamOffer,
    Welcome,
    Window,
)

A, B, C = "a" * 32, "b" * 32, "c" * 32
CLOCK = ClockState("0" * 32, 0, 1, Trust.SYNCED)


def offer(stream: str, next_: int, *, first: int = 1, lane: Lane = Lane.LIVE, sealed: bool = False) -> StreamOffer:
    return StreamOffer(stream, lane, first, next_, sealed)


def record(seq: int, *, stream: str = A, size: int = 10, lane: Lane = Lane.LIVE) -> Record:
    return Record(stream, lane, seq, RecordKind.BATCH, b'"' + b"1" * (size - 2) + b'"')


def frames(said: Iterable[outputs.Output]) -> list[dict[str, Any]]:
    return [json.loads(output.frame) for output in said if isinstance(output, outputs.Send)]


class Talk:
    """A session that has been welcomed and activated, with one open stream."""

    def __init__(
        self,
        *offers: StreamOffer,
        manifest: Manifest | None = None,
        standby: bool = False,
        sink: str = "s",
        marks: dict[str, int] | None = None,
        window: Window | None = None,
        rtt_s: float = 0.01,
        activate: bool = True,
        **welcome: Any,
    ) -> None:
        self.manifest = manifest or Manifest()
        self.now = 100.0
        self.session = ClientSession(self.manifest, "cloud", standby)
        self.offers = offers or (offer(A, 1),)
        self.first = self.session.hello("f" * 32, "test", CLOCK, self.offers, {}, self.now)
        self.now += rtt_s
        message = Welcome(sink=sink, session="1", marks=marks or {}, window=window or Window(), **welcome)
        self.welcomed = self.session.receive(message, self.now)
        self.activated = self.session.activate(self.now) if activate else []

    def offer(self, *offers: StreamOffer) -> outputs.Fetch | None:
        self.session.update(offers)
        return self.session.want()

    def give(self, *records: Record) -> list[outputs.Output]:
        fetch = self.session.want()
        assert fetch is not None
        return self.session.fetched(fetch, records, self.now)

    def send(self, upto: int, *, size: int = 10) -> list[dict[str, Any]]:
        """Records 1..upto of stream A, as far as the window goes."""
        self.session.update((offer(A, upto + 1),))
        sent: list[dict[str, Any]] = []
        while (fetch := self.session.want()) is not None:
            answer = self.session.fetched(fetch, [record(n, size=size) for n in range(fetch.seq, upto + 1)], self.now)
            sent += frames(answer)
        return sent


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hello_comes_first_and_nothing_before_the_welcome() -> None:
    """[S1, S3, M1]"""
    session = ClientSession(Manifest(), "cloud", False)
    sealed = [offer(f"{n:032x}", 5, sealed=True) for n in range(40)]
    said = frames(session.hello("f" * 32, "test", CLOCK, [offer(A, 1), *sealed], {"devices": {"d": {}}}, 0.0))
    assert [m["type"] for m in said] == ["hello"]
    assert len(said[0]["streams"]) == 33
    session.update([offer(A, 5)])
    assert session.want() is None
    assert session.results([Result("x", Outcome.OK)]) == []
    with pytest.raises(LocalProtocolError):
        session.hello("f" * 32, "test", CLOCK, [], {}, 0.0)


@pytest.mark.parametrize("message", [Ack(marks={A: 1}), Nack(stream=A, expected=1), Flow(window=Window()), Move()])
def test_anything_else_before_the_welcome_is_a_violation(message: Any) -> None:
    """[S2]"""
    session = ClientSession(Manifest(), "cloud", False)
    session.hello("f" * 32, "test", CLOCK, [offer(A, 1)], {}, 0.0)
    with pytest.raises(RemoteProtocolError) as error:
        session.receive(message, 0.1)
    assert error.value.code == 1002


def test_a_second_welcome_is_a_violation() -> None:
    """[S2]"""
    with pytest.raises(RemoteProtocolError):
        Talk().session.receive(Welcome(sink="s", session="1", marks={}), 101.0)


def test_a_welcome_that_does_not_come_ends_the_session_after_two_seconds() -> None:
    """[S2]"""
    session = ClientSession(Manifest(), "cloud", False)
    session.hello("f" * 32, "test", CLOCK, [], {}, 10.0)
    assert session.deadline() == 12.0
    assert session.tick(11.9) == []
    assert isinstance(session.tick(12.0)[0], outputs.Dead)


def test_the_servers_last_words_are_passed_on() -> None:
    """[S5]"""
    assert Talk().session.receive(ServerError(reason="why"), 101.0) == [outputs.Complaint("why")]


def test_a_standby_carries_nothing_until_it_is_promoted_and_says_so() -> None:
    """[P4]"""
    talk = Talk(standby=True, activate=False)
    assert frames(talk.first)[0]["standby"] is True
    assert talk.offer(offer(A, 5)) is None
    assert talk.session.stats({"x": 1}) == []
    assert frames(talk.session.activate(101.0)) == [{"type": "stats", "values": {}}]
    assert talk.offer(offer(A, 5)) is not None


def test_bye_is_the_last_word() -> None:
    """[S4]"""
    talk = Talk()
    assert frames(talk.session.bye("done")) == [{"type": "bye", "reason": "done"}]
    assert talk.offer(offer(A, 5)) is None
    assert talk.session.bye("again") == []
    assert talk.session.deadline() is None


# ── marks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sending_goes_on_after_the_mark() -> None:
    """[M2, M3]"""
    talk = Talk(offer(A, 10, first=3), marks={A: 6})
    assert outputs.Acked(A, 6) not in talk.welcomed, "this process never sent 6 of a stream that it opened"
    old = Talk(offer(A, 10, first=3, sealed=True), marks={A: 6})
    assert outputs.Acked(A, 6) in old.welcomed
    fetch = old.offer(offer(A, 10, first=3, sealed=True))
    assert fetch is not None
    assert (fetch.stream, fetch.seq) == (A, 7)


def test_a_stream_that_is_not_named_begins_with_its_first_number() -> None:
    """[M2c] What was freed before by another sink is not known here: it is filled, not left out."""
    talk = Talk(offer(A, 10, first=3, sealed=True), marks={})
    fetch = talk.offer(offer(A, 10, first=3, sealed=True))
    assert fetch is not None
    assert fetch.seq == 1
    assert talk.session.fetched(fetch, [record(3)], talk.now) == [outputs.Fill(A, Lane.LIVE, 1, 2)]


def test_a_mark_above_everything_sent_is_distrusted_for_own_streams_and_an_ack_for_older_ones() -> None:
    """[M4]"""
    talk = Talk(offer(A, 5), offer(B, 5, sealed=True), marks={A: 1, B: 9})
    assert outputs.Distrust(A) in talk.welcomed
    assert outputs.Acked(B, 4) in talk.welcomed
    assert talk.offer(offer(A, 5)) is None, "never used again"


def test_a_stream_that_is_distrusted_gives_back_the_window_that_it_filled() -> None:
    """[M4a] Nothing is in flight then, so no ack would ever make room."""
    talk = Talk(window=Window(10, 1000))
    assert len(talk.send(5, size=400)) == 2
    talk.session.receive(Ack(marks={A: 50}), talk.now)
    assert talk.offer(offer(B, 2)) is not None


def test_an_ack_above_everything_sent_is_distrusted() -> None:
    """[M4]"""
    talk = Talk()
    talk.send(2)
    assert outputs.Distrust(A) in talk.session.receive(Ack(marks={A: 3}), talk.now)
    assert talk.offer(offer(A, 9)) is None


def test_a_lower_mark_rewinds_and_what_is_not_held_becomes_a_gap() -> None:
    """[M3]"""
    first = Talk()
    first.send(8)
    first.session.receive(Ack(marks={A: 8}), first.now)
    again = Talk(offer(A, 9, first=9), manifest=first.manifest, marks={A: 3})
    fetch = again.offer(offer(A, 9, first=9))
    assert fetch is not None
    assert fetch.seq == 4
    assert again.session.fetched(fetch, [record(6)], again.now) == [outputs.Fill(A, Lane.LIVE, 4, 5)]
    gap = Record(A, Lane.LIVE, 4, RecordKind.GAP, b"{}", last=5)
    assert [(m["type"], m["seq"]) for m in frames(again.give(gap, record(6)))] == [("gap", 4), ("batch", 6)]


@pytest.mark.parametrize("looked", [True, False])
def test_what_a_restored_sink_lost_is_filled_although_other_streams_push_it_out_of_the_offers(looked: bool) -> None:
    """[M3] More than 32 sealed streams wait by now, or nothing of this one is held any more."""
    first = Talk()
    first.send(8)
    first.session.receive(Ack(marks={A: 8}), first.now)
    again = Talk(offer(A, 9, first=9, sealed=True), manifest=first.manifest, marks={A: 3})
    if looked:
        again.session.update([offer(A, 9, first=9, sealed=True)])
    assert A in again.session.streams
    assert again.offer(offer(B, 1)) is not None
    assert again.give() == [outputs.Fill(A, Lane.LIVE, 4, 8)]
    gap = Record(A, Lane.LIVE, 4, RecordKind.GAP, b"{}", last=8)
    assert [(m["type"], m["seq"]) for m in frames(again.give(gap))] == [("gap", 4)]
    again.session.receive(Ack(marks={A: 8}), again.now)
    assert again.offer(offer(B, 1)) is None
    assert A not in again.session.streams


def test_what_cannot_be_read_is_not_wanted_and_may_be_asked_for_again() -> None:
    talk = Talk(offer(A, 9, first=5, sealed=True), marks={A: 1})
    talk.offer(offer(A, 9, first=5, sealed=True))
    assert talk.give() == [outputs.Fill(A, Lane.LIVE, 2, 8)]
    assert talk.session.want(but={A}) is None  # the disk did not answer
    assert talk.give() == [outputs.Fill(A, Lane.LIVE, 2, 8)]


def test_what_the_buffer_knows_to_be_elsewhere_is_said_to_this_sink_alone() -> None:
    """[M3b] It goes into no record: another sink, or this one once it is restored, may not hear it."""
    talk = Talk(offer(A, 9, first=5, sealed=True))
    talk.offer(offer(A, 9, first=5, sealed=True))
    assert talk.give(record(5)) == [outputs.Fill(A, Lane.LIVE, 1, 4)]
    talk.session.filled(A, 3)
    [gap] = frames(talk.give(record(5)))
    assert (gap["type"], gap["seq"], gap["last"], gap["body"]["reason"]) == ("gap", 1, 3, "stored_elsewhere")
    assert talk.give(record(5)) == [outputs.Fill(A, Lane.LIVE, 4, 4)]


def test_a_restored_sink_is_not_told_that_another_has_what_that_one_was_told_it_has() -> None:
    """[M3b] Else nobody has it, and nobody says that it is lost."""
    first = Talk(sink="first")
    first.send(5)
    first.session.receive(Ack(marks={A: 5}), first.now)
    second = Talk(offer(A, 7, first=6, sealed=True), manifest=first.manifest, sink="second")
    second.offer(offer(A, 7, first=6, sealed=True))
    assert [m["body"]["reason"] for m in frames(second.give())] == ["stored_elsewhere"]
    second.session.receive(Ack(marks={A: 5}), second.now)
    again = Talk(offer(A, 7, first=6, sealed=True), manifest=first.manifest, sink="first", marks={A: 2})
    again.offer(offer(A, 7, first=6, sealed=True))
    assert again.give(record(6)) == [outputs.Fill(A, Lane.LIVE, 3, 5)]


def test_a_welcome_that_crossed_newer_acks_is_not_a_restored_sink() -> None:
    """[M3] Two sessions with one sink: the standby's welcome was written before the active one's last ack."""
    active = Talk()
    active.send(8)
    standby = ClientSession(active.manifest, "b", True)
    standby.hello("f" * 32, "test", CLOCK, [offer(A, 9)], {}, active.now)
    active.session.receive(Ack(marks={A: 8}), active.now)
    standby.receive(Welcome(sink="s", session="2", marks={A: 5}), active.now)
    standby.activate(active.now)
    standby.update([offer(A, 10, first=9)])
    fetch = standby.want()
    assert fetch is not None
    assert fetch.seq == 9


def test_a_hole_that_this_sink_itself_acked_is_skipped_without_a_gap() -> None:
    talk = Talk()
    talk.session.update([offer(A, 6)])
    fetch = talk.session.want()
    assert fetch is not None
    talk.manifest.sending(A, 4)
    talk.manifest.acked("s", A, 4)  # by way of another session
    assert [m["seq"] for m in frames(talk.session.fetched(fetch, [record(5)], talk.now))] == [5]


def test_a_hole_in_the_middle_is_filled_before_what_is_behind_it_is_sent() -> None:
    talk = Talk(offer(A, 9, first=2, sealed=True), marks={A: 1})
    talk.offer(offer(A, 9, first=2, sealed=True))
    assert [m["seq"] for m in frames(talk.give(record(2), record(5)))] == [2]
    assert talk.give(record(5)) == [outputs.Fill(A, Lane.LIVE, 3, 4)]


def test_a_buffer_that_does_not_fill_is_our_bug() -> None:
    talk = Talk(offer(A, 9, first=5, sealed=True), marks={A: 1})
    talk.offer(offer(A, 9, first=5, sealed=True))
    assert talk.give(record(5)) == [outputs.Fill(A, Lane.LIVE, 2, 4)]
    with pytest.raises(LocalProtocolError):
        talk.give(record(5))


def test_another_sink_gets_a_new_stream() -> None:
    """[M5]"""
    first = Talk()
    first.send(3)
    first.session.receive(Ack(marks={A: 2}), first.now)
    assert Talk(offer(A, 4), manifest=first.manifest, sink="s", marks={A: 2}).activated == []
    assert Talk(offer(A, 4), manifest=first.manifest, sink="other").activated == [outputs.Seal(Lane.LIVE)]


# ── acks and nacks ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_acks_are_cumulative_and_never_go_back() -> None:
    """[A2, A3]"""
    talk = Talk()
    talk.send(5)
    assert outputs.Acked(A, 4) in talk.session.receive(Ack(marks={A: 4}), talk.now)
    assert talk.session.in_flight[0] == 1
    assert talk.session.receive(Ack(marks={A: 2}), talk.now) == [], "lower than an earlier one"
    assert talk.session.in_flight[0] == 1
    assert talk.manifest.mark("s", A) == 4
    answer = talk.session.receive(Ack(marks={A: 5}), talk.now)
    assert outputs.Hold(A, 0) in answer


def test_an_ack_of_a_stream_that_nothing_is_held_of_is_ignored() -> None:
    """[A3b]"""
    talk = Talk()
    talk.send(2)
    before = talk.session.in_flight
    assert talk.session.receive(Ack(marks={C: 7}), talk.now) == []
    assert talk.session.in_flight == before
    assert talk.manifest.mark("s", C) is None


def test_what_is_in_flight_is_held() -> None:
    talk = Talk()
    talk.session.update([offer(A, 3)])
    assert talk.give(record(1), record(2))[0] == outputs.Hold(A, 2)


def test_a_nack_rewinds_once() -> None:
    """[A6]"""
    talk = Talk()
    talk.send(5)
    talk.session.receive(Ack(marks={A: 2}), talk.now)
    talk.session.receive(Nack(stream=A, expected=3), talk.now)
    assert talk.session.in_flight[0] == 0
    assert [m["seq"] for m in talk.send(5)] == [3, 4, 5]
    assert talk.send(5) == []


def test_a_nack_of_what_was_never_sent_is_a_violation() -> None:
    """[A7]"""
    talk = Talk()
    talk.send(5)
    for expected in (0, 6):
        with pytest.raises(RemoteProtocolError) as error:
            talk.session.receive(Nack(stream=A, expected=expected), talk.now)
        assert error.value.code == 1002


def test_the_third_nack_of_one_number_ends_the_session() -> None:
    """[A7]"""
    talk = Talk()
    for _ in range(2):
        talk.send(3)
        talk.session.receive(Nack(stream=A, expected=2), talk.now)
    talk.send(3)
    with pytest.raises(RemoteProtocolError) as error:
        talk.session.receive(Nack(stream=A, expected=2), talk.now)
    assert error.value.code == 4410


def test_nacks_of_many_numbers_end_the_session_too() -> None:
    """[A7d] Up and down without an ack, so that no number comes three times in a row."""
    talk = Talk()
    for expected in range(1, 16):
        talk.send(20)
        talk.session.receive(Nack(stream=A, expected=expected), talk.now)
    talk.send(20)
    with pytest.raises(RemoteProtocolError) as error:
        talk.session.receive(Nack(stream=A, expected=16), talk.now)
    assert error.value.code == 4410
    between = Talk()
    for expected in (1, 2, 1, 2):
        between.send(3)
        between.session.receive(Nack(stream=A, expected=expected), between.now)
    between.send(3)
    with pytest.raises(RemoteProtocolError):
        between.session.receive(Nack(stream=A, expected=1), between.now)


def test_acks_in_between_make_nacks_of_one_number_harmless() -> None:
    """[A7]"""
    talk = Talk()
    for n in range(1, 20):
        talk.send(n + 1)
        talk.session.receive(Ack(marks={A: n}), talk.now)
        talk.session.receive(Nack(stream=A, expected=n + 1), talk.now)


# ── window ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_records_stay_within_the_window() -> None:
    """[W1]"""
    talk = Talk(window=Window(4, 1 << 20))
    assert len(talk.send(10)) == 4
    talk.session.receive(Ack(marks={A: 3}), talk.now)
    assert [m["seq"] for m in talk.send(10)] == [5, 6, 7]


def test_bytes_stay_within_the_window_but_one_record_always_goes() -> None:
    """[W1]"""
    talk = Talk(window=Window(32, 1000))
    assert len(talk.send(10, size=400)) == 2
    large = Talk(window=Window(32, 1000))
    assert len(large.send(10, size=5000)) == 1


def test_a_window_of_nothing_is_a_pause_and_no_failure() -> None:
    """[W3]"""
    talk = Talk()
    talk.send(2)
    talk.session.receive(Flow(window=Window(0, 0)), talk.now)
    assert talk.send(9) == []
    assert not talk.session.idle(Lane.LIVE)
    assert talk.session.tick(talk.now + 10) == []
    talk.session.receive(Flow(window=Window()), talk.now)
    assert [m["seq"] for m in talk.send(4)] == [3, 4]


def test_a_pause_that_does_not_end_ends_the_session() -> None:
    """[W3c] However often the server repeats it, and whether or not anything waits."""
    talk = Talk()
    talk.session.receive(Flow(window=Window(0, 0)), talk.now)
    for second in range(60):
        said = talk.session.tick(talk.now + second)
        assert not any(isinstance(each, outputs.Dead) for each in said)
        talk.session.pong(talk.now + second)
        talk.session.receive(Flow(window=Window(0, 0)), talk.now + second)
    assert talk.session.deadline() == talk.now + 60
    assert talk.session.tick(talk.now + 60) == [outputs.Dead("the server has taken nothing for 60 s")]
    talk.session.receive(Flow(window=Window()), talk.now + 60)
    assert talk.session.tick(talk.now + 61) == []


def test_a_pause_ends_a_suspicion() -> None:
    """[W3b] A store that falls behind is late with its acks, and says why."""
    talk = Talk()
    talk.send(2)
    late = talk.session.deadline()
    assert late is not None
    assert talk.session.tick(late) == [outputs.Suspect()]
    assert talk.session.receive(Flow(window=Window(0, 0)), late + 1) == [outputs.Recovered()]
    assert talk.session.tick(late + 10) == []
    assert talk.session.receive(Flow(window=Window()), late + 10) == []
    assert talk.session.tick(late + 10.1) == []
    assert talk.session.tick(late + 15) == [outputs.Suspect()], "from here on it is late again"


def test_a_smaller_window_makes_the_gateway_wait() -> None:
    """[W3a] And a larger one is used at once: each replaces the one before."""
    talk = Talk(window=Window(8, 1 << 20))
    assert len(talk.send(20)) == 8
    talk.session.receive(Flow(window=Window(3, 1 << 20)), talk.now)
    assert talk.send(20) == []
    talk.session.receive(Ack(marks={A: 5}), talk.now)
    assert talk.send(20) == [], "three are in flight still"
    talk.session.receive(Ack(marks={A: 6}), talk.now)
    assert [m["seq"] for m in talk.send(20)] == [9]
    talk.session.receive(Flow(window=Window(5, 1 << 20)), talk.now)
    assert [m["seq"] for m in talk.send(20)] == [10, 11]


def test_a_window_without_end_is_used_up_to_a_bound() -> None:
    """What is in flight is kept in memory, whatever a server offers."""
    talk = Talk(window=Window(2**53, 2**53))
    for upto in range(1, 20):  # a fast path: what it carries is found out by doubling
        talk.send(upto)
        talk.session.receive(Ack(marks={A: upto}), talk.now)
    assert len(talk.send(5000)) == MAX_WINDOW.batches


def test_alarms_exceed_the_window_by_four_and_go_first() -> None:
    """[W2, M7]"""
    talk = Talk(offer(A, 1), offer(B, 1, lane=Lane.ALARM), window=Window(4, 1 << 20))
    talk.send(10)
    talk.session.update([offer(B, 9, lane=Lane.ALARM), offer(A, 11)])
    alarms = [record(n, stream=B, lane=Lane.ALARM) for n in range(1, 9)]
    assert [m["seq"] for m in frames(talk.give(*alarms))] == [1, 2, 3, 4]
    assert talk.session.want() is None


def test_sealed_streams_have_a_share_and_leave_one() -> None:
    """[M6]"""
    both = (offer(A, 100), offer(B, 100, sealed=True))
    talk = Talk(*both, window=Window(20, 1 << 20))
    sent = {A: 0, B: 0}
    while (fetch := talk.offer(*both)) is not None:
        records = [record(n, stream=fetch.stream) for n in range(fetch.seq, 100)]
        sent[fetch.stream] += len(frames(talk.session.fetched(fetch, records, talk.now)))
    assert sent == {A: 16, B: 4}
    alone = Talk(*both, window=Window(20, 1 << 20))
    old = (offer(A, 1), both[1])
    while (fetch := alone.offer(*old)) is not None:
        alone.session.fetched(fetch, [record(n, stream=B) for n in range(fetch.seq, 100)], alone.now)
    assert alone.session.in_flight[0] == 16
    assert alone.session.idle(Lane.LIVE), "what is new goes at once"


def test_an_answer_that_a_nack_overtook_is_dropped() -> None:
    talk = Talk()
    talk.send(4)
    talk.session.update([offer(A, 9)])
    fetch = talk.session.want()
    assert fetch is not None
    talk.session.receive(Nack(stream=A, expected=2), talk.now)
    assert talk.session.fetched(fetch, [record(5)], talk.now) == []
    wanted = talk.session.want()
    assert wanted is not None
    assert wanted.seq == 2


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rtt_s", "timeout_s"), [(0.01, 0.7), (0.5, 1.6), (1.9, 5.0)])
def test_the_ack_timeout_follows_the_path_within_bounds(rtt_s: float, timeout_s: float) -> None:
    """[T1] srtt + 4·rttvar + budget, where the first sample r gives r + 4·r/2."""
    talk = Talk(rtt_s=rtt_s)
    assert talk.session.ack_timeout_s == pytest.approx(timeout_s)
    talk.send(1)
    assert talk.session.deadline() == pytest.approx(talk.now + timeout_s)


def test_overdue_acks_make_a_suspect_then_a_dead_session() -> None:
    talk = Talk()
    talk.send(2)
    assert talk.session.tick(talk.now + 0.69) == []
    assert talk.session.tick(talk.now + 0.7) == [outputs.Suspect()]
    assert talk.session.tick(talk.now + 0.71) == []
    assert isinstance(talk.session.tick(talk.now + 3.7)[0], outputs.Dead)


def test_a_suspect_whose_acks_come_after_all_recovers() -> None:
    talk = Talk()
    talk.send(2)
    talk.session.tick(talk.now + 0.7)
    assert outputs.Recovered() in talk.session.receive(Ack(marks={A: 1}), talk.now + 1)
    assert talk.session.deadline() == pytest.approx(talk.now + 1 + talk.session.ack_timeout_s)


def test_an_idle_session_pings_and_dies_without_a_pong() -> None:
    """[C8]"""
    for standby, after_s in ((False, 20), (True, 45)):
        talk = Talk(standby=standby, activate=not standby)
        assert talk.session.deadline() == pytest.approx(talk.now + after_s)
        assert talk.session.tick(talk.now + after_s) == [outputs.Ping()]
        assert isinstance(talk.session.tick(talk.now + after_s + 5)[0], outputs.Dead)
        talk.session.pong(talk.now + after_s + 1)
        assert talk.session.deadline() == pytest.approx(talk.now + after_s + 1 + after_s)


def test_records_sent_twice_measure_nothing() -> None:
    """[T1]"""
    talk = Talk()
    talk.send(2)
    talk.session.receive(Nack(stream=A, expected=1), talk.now)
    before = talk.session.srtt_s
    talk.send(2)
    talk.session.receive(Ack(marks={A: 2}), talk.now + 0.5)
    assert talk.session.srtt_s == before


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_command_that_sat_in_a_buffer_is_as_old_as_it_is() -> None:
    """[K3]"""
    talk = Talk(mono_ms=5_000)  # the server's 5.000 is our 100.01

    def expires(sent_ms: int, now: float) -> float:
        message = CommandMessage(id="c", device="d", op="write", ttl_ms=1000, sent_ms=sent_ms, point="p", value=1)
        (output,) = talk.session.receive(message, now)
        assert isinstance(output, outputs.Execute)
        assert output.command.source == "cloud"
        return output.command.expires_at

    assert expires(6_000, 101.01) == pytest.approx(102.01)
    assert expires(7_000, 132.01) == pytest.approx(103.01), "thirty seconds in a socket: long expired"
    assert expires(8_000, 103.00) == pytest.approx(104.00), "a faster one makes the offset smaller"


def test_a_server_that_floods_with_commands_is_left() -> None:
    """[K7]"""
    talk = Talk()

    def flood(count: int, now: float) -> None:
        for i in range(count):
            talk.session.receive(CommandMessage(id=str(i), device="d", op="write", ttl_ms=1000, sent_ms=0), now)

    flood(1024, 200.0)
    flood(20, 201.0)
    with pytest.raises(RemoteProtocolError) as caught:
        flood(1, 201.0)
    assert caught.value.code == 1008


def test_results_are_sent_once_a_session_and_open_commands_are_passed_on() -> None:
    """[K4, K5]"""
    talk = Talk(open_commands=("x", "y"))
    assert outputs.Missing(("x", "y")) in talk.welcomed
    result = Result("x", Outcome.OK, value=1)
    assert [m["id"] for m in frames(talk.session.results([result]))] == ["x"]
    assert talk.session.results([result]) == []
    assert talk.session.receive(ResultAck(id="x"), talk.now) == [outputs.ResultStored("x")]
    assert [m["id"] for m in frames(Talk().session.results([result]))] == ["x"]


def test_an_id_that_is_too_long_is_rejected_and_never_carried_out() -> None:
    """[K1c] It closes nothing: the server would send it again, and the session would never last."""
    talk = Talk()
    for size, carried_out in ((128, True), (129, False)):
        message = CommandMessage(id="x" * size, device="d", op="write", ttl_ms=1000, sent_ms=0, point="p", value=1)
        answer = talk.session.receive(message, talk.now)
        assert any(isinstance(output, outputs.Execute) for output in answer) is carried_out
    assert [(m["type"], m["id"], m["outcome"]) for m in frames(answer)] == [("result", "x" * 129, "rejected")]


def test_a_move_is_passed_on_in_seconds() -> None:
    """[B1]"""
    move = Move(deadline_ms=60_000, spread_ms=5_000, reason="deploy")
    assert Talk().session.receive(move, 101.0) == [outputs.MoveAsked(60.0, 5.0, "deploy")]
