"""Who waits for an acknowledgement, and when the ledger may forget."""

from __future__ import annotations

from conftest import Store  # type: ignore[import-not-found]
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.connectors.mqtt.acks import Acks
from gateway.model import Origin

SESSION = b"session1"


def origin(number: int) -> Origin:
    return Origin(SESSION, number, number.to_bytes(16, "big"))


def test_an_origin_is_forgotten_by_the_answer_to_a_ping_after_its_acknowledgement_only() -> None:
    store = Store()
    acks = Acks(store, SESSION)
    acks.connected(resumed=False, now=0)
    store.known = {origin(1): True, origin(2): True}
    acks.emitted([origin(1), origin(2)], 0)
    assert acks.settled([origin(1)], 1) == [1]
    first = acks.asked(1)
    assert acks.settled([origin(2)], 1) == [2]
    first()
    assert set(store.known) == {origin(2)}
    acks.asked(2)()
    assert not store.known


def test_a_proof_of_the_old_message_does_not_forget_an_equal_one_with_the_same_number() -> None:
    store = Store()
    acks = Acks(store, SESSION)
    acks.connected(resumed=False, now=0)
    acks.emitted([origin(1)], 0)
    store.known[origin(1)] = True
    acks.settled([origin(1)], 0)
    proof = acks.asked(0)
    # the broker has the acknowledgement, and sends an equal message under the free number before it answers the ping
    acks.reused(origin(1))
    assert not store.known
    acks.emitted([origin(1)], 1)
    store.known[origin(1)] = False
    proof()
    assert set(store.known) == {origin(1)}


def test_a_session_that_the_broker_lost_is_forgotten_and_others_are_not() -> None:
    store = Store()
    other = Origin(b"session2", 1, bytes(16))
    store.known = {origin(1): False, other: False}
    Acks(store, SESSION).connected(resumed=False, now=0)
    assert set(store.known) == {other}


def test_what_did_not_come_again_is_forgotten_by_exclusion() -> None:
    store = Store()
    store.known = {origin(n): True for n in (1, 2, 3)}
    acks = Acks(store, SESSION)
    acks.connected(resumed=True, now=0)
    acks.hold(origin(2), 1)
    store.known[origin(2)] = False
    acks.asked(30)()
    assert len(store.known) == 3, "too early to be sure"
    assert not acks.exclusion_due(59)
    assert acks.exclusion_due(60)
    acks.asked(60)()
    assert set(store.known) == {origin(2)}
    assert not acks.exclusion_due(61)


def test_nothing_is_excluded_while_something_that_came_is_unread() -> None:
    store = Store()
    store.known = {origin(1): True}
    acks = Acks(store, SESSION)
    acks.connected(resumed=True, now=0)
    acks.unread(50)
    acks.asked(100)()
    assert not acks.exclusion_due(109)
    assert set(store.known) == {origin(1)}
    acks.asked(110)()
    assert not store.known
    acks.unread(120)
    assert not acks.exclusion_due(1000), "it was excluded once and for all"


def test_a_stall_is_time_without_progress_while_something_waits() -> None:
    acks = Acks(Store(), SESSION)
    acks.connected(resumed=False, now=0)
    assert acks.stalled_s(100) == 0
    acks.emitted([origin(1)], 100)
    acks.emitted([origin(2)], 104)
    assert acks.stalled_s(105) == 5
    acks.settled([origin(1)], 106)
    assert acks.stalled_s(107) == 1
    acks.settled([origin(2)], 108)
    assert acks.stalled_s(200) == 0


class Broker(RuleBasedStateMachine):
    """A model broker: whatever it may still send again must be in the ledger or have settled never."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.acks = Acks(self.store, SESSION)
        self.acks.connected(resumed=True, now=0)
        self.now = 0.0
        self.next = 1
        self.in_flight: dict[int, Origin] = {}
        """What the broker would send again."""
        self.line: list[object] = []
        """Packets under way to the broker: packet ids to acknowledge, or what to call at the answer."""

    @rule()
    def message(self) -> None:
        new = origin(self.next)
        self.next += 1
        self.in_flight[new.packet_id] = new
        self.acks.emitted([new], self.now)
        self.store.known[new] = False

    @precondition(lambda self: any(not done for done in self.store.known.values()))
    @rule(data=st.data())
    def stored(self, data: st.DataObject) -> None:
        waiting = [o for o, done in self.store.known.items() if not done]
        some = data.draw(st.lists(st.sampled_from(waiting), unique=True, min_size=1))
        for each in some:
            self.store.known[each] = True
        self.line += self.acks.settled(some, self.now)

    @rule(seconds=st.sampled_from([0.0, 1.0, 70.0]))
    def ping(self, seconds: float) -> None:
        self.now += seconds
        self.line.append(self.acks.asked(self.now))

    @precondition(lambda self: self.line)
    @rule()
    def the_broker_works_off_one_packet(self) -> None:
        packet = self.line.pop(0)
        if isinstance(packet, int):
            del self.in_flight[packet]
        else:
            packet()  # type: ignore[operator]

    @invariant()
    def what_can_come_again_is_known(self) -> None:
        assert set(self.in_flight.values()) <= set(self.store.known)

    def teardown(self) -> None:
        self.line.append(self.acks.asked(self.now))
        while self.line:
            self.the_broker_works_off_one_packet()
        assert set(self.store.known) == set(self.in_flight.values())


TestBroker = Broker.TestCase
TestBroker.settings = settings(deadline=None, max_examples=50, stateful_step_count=30)
