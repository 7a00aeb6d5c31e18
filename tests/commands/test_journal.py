"""The journal of commands: at most once, and always a result, wherever the process dies."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.commands.journal import GRACE_S, KEEP_ENTRIES, KEEP_MS, Entry, Journal, Step
from gateway.model import Command, Outcome, Result

UTC = 1_750_000_000_000


def command(id: str) -> Command:
    return Command(id, "pump", "write", "speed", 5)


def done(journal: Journal, id: str, outcome: Outcome = Outcome.OK) -> None:
    assert journal.receive(command(id), UTC) is not None
    journal.start(id)
    journal.finish(Result(id, outcome))
    journal.offer(id)


def test_a_result_is_offered_until_it_is_acked_and_never_before_it_is_on_disk() -> None:
    journal = Journal()
    assert journal.receive(command("a"), UTC) == Entry("a", Step.JOURNALLED, "pump", "speed", utc_ms=UTC)
    assert journal.start("a").step is Step.STARTED
    assert journal.finish(Result("a", Outcome.OK)).step is Step.DONE
    assert journal.results() == ()
    journal.offer("a")
    assert journal.results() == (Result("a", Outcome.OK),)
    entry = journal.ack("a")
    assert entry is not None
    assert entry.step is Step.ACKED
    assert journal.results() == ()
    assert journal.ack("a") is None
    assert journal.ack("never heard of") is None


def test_a_command_that_comes_twice_is_taken_once_and_its_result_offered_again() -> None:
    journal = Journal()
    done(journal, "a")
    journal.ack("a")
    assert journal.receive(command("a"), UTC) is None
    assert journal.results() == (Result("a", Outcome.OK),)


def test_what_was_started_before_a_crash_is_interrupted_and_what_was_not_is_unavailable() -> None:
    journal = Journal()
    entries = [
        Entry("s", Step.STARTED),
        Entry("j", Step.JOURNALLED),
        Entry("d", Step.DONE, result=Result("d", Outcome.OK)),
    ]
    changed = journal.recover(entries, UTC)
    assert [(each.id, each.step, each.result and each.result.outcome) for each in changed] == [
        ("s", Step.DONE, Outcome.INTERRUPTED),
        ("j", Step.DONE, Outcome.UNAVAILABLE),
    ]
    for each in changed:
        journal.offer(each.id)
    assert [each.id for each in journal.results()] == ["d", "s", "j"]
    assert journal.receive(command("s"), UTC) is None


def test_an_id_that_nobody_knows_is_answered_after_its_grace_and_never_carried_out_then() -> None:
    journal = Journal()
    journal.missing(["a", "b"], 100.0)
    assert journal.deadline() == 100.0 + GRACE_S
    assert journal.receive(command("b"), UTC) is not None
    assert journal.tick(100.0 + GRACE_S - 1, UTC) == []
    (entry,) = journal.tick(100.0 + GRACE_S, UTC)
    assert entry.result is not None
    assert (entry.id, entry.result.outcome) == ("a", Outcome.UNKNOWN)
    assert journal.receive(command("a"), UTC) is None
    assert journal.deadline() is None


def test_a_local_command_is_remembered_and_never_offered() -> None:
    journal = Journal()
    journal.receive(command("a"), UTC, local=True)
    journal.start("a")
    entry = journal.finish(Result("a", Outcome.OK))
    journal.offer("a")
    assert journal.results() == ()
    journal.missing(["a"], 0.0)
    assert journal.results() == ()
    again = Journal()
    again.recover([entry], UTC)
    assert again.results() == ()


def test_acked_results_are_forgotten_after_thirty_days_of_a_trusted_clock_and_others_never() -> None:
    journal = Journal()
    done(journal, "acked")
    journal.ack("acked")
    done(journal, "waits")
    assert journal.forget(None) == []
    assert journal.forget(UTC + KEEP_MS) == []
    assert journal.forget(UTC + KEEP_MS + 1) == ["acked"]
    assert journal.get("acked") is None
    assert journal.get("waits") is not None


def test_memory_is_bounded_and_what_is_under_way_is_never_forgotten() -> None:
    journal = Journal()
    journal.receive(command("under way"), UTC)
    for i in range(KEEP_ENTRIES + 5):
        done(journal, f"{i}")
    assert journal.forget(UTC) == [f"{i}" for i in range(6)]
    assert journal.get("under way") is not None
    assert len(journal) == KEEP_ENTRIES
    assert journal.results()[0].id == "6"


class Crash(Exception):
    """The process dies here."""


ids = st.sampled_from(["a", "b", "c"])
crashes = st.sampled_from(["no", "no", "no", "before", "after"])


class CrashingGateway(RuleBasedStateMachine):
    """Drives the journal the way the router does, dying before or after any write to disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, Entry] = {}
        self.executed: dict[str, int] = {}
        self.received: set[str] = set()
        self.sent: dict[str, Outcome] = {}
        self.now = 0.0
        self.begin()

    def begin(self) -> None:
        self.journal = Journal()
        for entry in self.journal.recover(list(self.disk.values()), UTC):
            self.disk[entry.id] = entry
            self.journal.offer(entry.id)

    def save(self, entry: Entry | None, crash: str) -> bool:
        """False: the process died and a new one has begun."""
        if entry is not None and crash != "before":
            self.disk[entry.id] = entry
        if crash != "no":
            self.begin()
        return crash == "no"

    @rule(id=ids, crash=crashes)
    def a_command_comes(self, id: str, crash: str) -> None:
        entry = self.journal.receive(command(id), UTC)
        if entry is None:
            return
        if self.save(entry, crash):
            self.received.add(id)

    @rule(id=ids, crash=crashes, crash_in_execution=st.booleans(), crash_at_end=crashes)
    def its_turn_comes(self, id: str, crash: str, crash_in_execution: bool, crash_at_end: str) -> None:
        entry = self.journal.get(id)
        if entry is None or entry.step is not Step.JOURNALLED:
            return
        if not self.save(self.journal.start(id), crash):
            return
        self.executed[id] = self.executed.get(id, 0) + 1
        if crash_in_execution:
            self.begin()
            return
        if self.save(self.journal.finish(Result(id, Outcome.OK)), crash_at_end):
            self.journal.offer(id)

    @rule(crash=crashes)
    def the_server_takes_the_oldest_result(self, crash: str) -> None:
        for result in self.journal.results()[:1]:
            assert self.sent.setdefault(result.id, result.outcome) is result.outcome, "a sent result is contradicted"
            self.save(self.journal.ack(result.id), crash)

    @rule(asked=st.lists(ids))
    def the_server_asks(self, asked: list[str]) -> None:
        self.journal.missing(asked, self.now)

    @rule(crash=crashes)
    def time_passes(self, crash: str) -> None:
        self.now += GRACE_S
        for entry in self.journal.tick(self.now, UTC):
            if not self.save(entry, crash):
                return
            self.journal.offer(entry.id)

    @invariant()
    def nothing_is_carried_out_twice(self) -> None:
        assert all(count == 1 for count in self.executed.values())

    def teardown(self) -> None:
        self.begin()
        for id in self.received:
            entry = self.journal.get(id)
            assert entry is not None
            assert entry.result is not None, "a command was taken over and has no result"
            self.journal.again(id)
            assert id in [result.id for result in self.journal.results()]


TestCrashingGateway = CrashingGateway.TestCase
TestCrashingGateway.settings = settings(deadline=None, max_examples=80, stateful_step_count=25)
