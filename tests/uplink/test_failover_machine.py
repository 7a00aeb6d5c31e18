"""The state machine under every order of inputs: what its docstring promises holds after each of them."""

from __future__ import annotations

import random as randoms

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.uplink import reactions
from gateway.uplink.config import Standby
from gateway.uplink.connections import Activate, Connect, Retire, Spending
from gateway.uplink.failover import (
    EVICTED_AGAIN_S,
    FAIL_BACK_HOLD_S,
    HEALTHY_S,
    HEDGE_EVERY_S,
    MAX_CONNECTIONS,
    OTHER_ENDPOINT_JITTER_S,
    STAGGER_S,
    Failover,
)
from gateway.uplink.reactions import QUARTER_HOUR_S, Kind, Reaction

LOST = Reaction(Kind.RETRY, "connection lost")
REACTIONS = (
    LOST,
    reactions.to_close(1012, ""),
    reactions.to_close(1013, ""),
    reactions.to_close(4403, ""),
    reactions.to_close(4409, ""),
    reactions.to_status(401, None),
    reactions.to_status(429, 120.0),
)
CONNECTING, STANDBY, CARRYING, REPLACED, RETIRING = "connecting", "standby", "carrying", "replaced", "retiring"


class FailoverMachine(RuleBasedStateMachine):
    """Keeps its own account of every connection from nothing but inputs and actions."""

    @initialize(
        count=st.integers(1, 4),
        policy=st.sampled_from(list(Standby)),
        metered=st.lists(st.booleans(), min_size=4, max_size=4),
        sinks=st.lists(st.sampled_from("ab"), min_size=4, max_size=4),
        seed=st.integers(0, 1 << 32),
    )
    def begin(self, count: int, policy: Standby, metered: list[bool], sinks: list[str], seed: int) -> None:
        self.count = count
        self.sinks = sinks
        self.now = 1000.0
        self.machine = Failover(metered[:count], policy, randoms.Random(seed).random)
        self.role: dict[int, str] = {}
        self.suspect: set[int] = set()
        self.endpoint: dict[int, int] = {}
        self.welcomed_at: dict[int, float] = {}
        self.not_before = [0.0] * count
        self.evicted_at: list[float | None] = [None] * count
        self.spending = [Spending.WITHIN] * count
        self.hedges: list[float] = []
        """Since one that was run away from has died."""
        self.returns: list[float] = []
        self.lost_at = 0.0
        """When nothing carried any more."""
        self.perform(self.machine.tick(self.now))

    def perform(self, actions: list[Connect | Activate | Retire]) -> None:
        carried = self.carrying
        given_up: list[tuple[int, str]] = []
        for action in actions:
            match action:
                case Connect(number, endpoint, _):
                    assert number not in self.role
                    assert self.now >= self.not_before[endpoint], "before its time"
                    assert self.spending[endpoint] is not Spending.OVER
                    self.role[number], self.endpoint[number] = CONNECTING, endpoint
                case Activate(number):
                    assert self.role[number] in (STANDBY, CARRYING), "only what is open, and only once"
                    assert number not in self.suspect
                    before = self.carrying
                    if before is not None and before != number:
                        if before in self.suspect:
                            assert self.sinks[self.endpoint[before]] == self.sinks[self.endpoint[number]]
                            self.hedges.append(self.now)
                        self.role[before] = REPLACED
                    self.role[number] = CARRYING
                case Retire(number, reason):
                    assert self.role[number] in (STANDBY, CARRYING, REPLACED)
                    assert self.role[number] != CARRYING or "is spent" in reason, "make before break"
                    given_up.append((number, reason))
                    self.role[number] = RETIRING
                    self.suspect.discard(number)
        if ("back to a better endpoint") in [reason for _, reason in given_up]:
            new = self.carrying
            assert new is not None
            assert carried is not None
            assert self.endpoint[new] < self.endpoint[carried]
            assert self.now >= self.welcomed_at[new] + HEALTHY_S, "healthy for five minutes"
            self.returns.append(self.now)
        if carried is not None and self.carrying is None:
            self.lost_at = self.now

    @property
    def carrying(self) -> int | None:
        return next((number for number, role in self.role.items() if role == CARRYING), None)

    def pick(self, data: st.DataObject, *roles: str) -> int:
        return data.draw(st.sampled_from([number for number, role in self.role.items() if role in roles]))

    def some(self, *roles: str) -> bool:
        return any(role in roles for role in self.role.values())

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def wait_for_the_deadline(self) -> None:
        deadline = self.machine.deadline(self.now)
        if deadline is not None:
            assert deadline > self.now
            self.now = deadline
            self.perform(self.machine.tick(self.now))

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 3.7, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.machine.deadline(self.now)) is not None and deadline <= end:
            self.now = deadline
            self.perform(self.machine.tick(self.now))
        self.now = end

    @precondition(lambda self: self.some(CONNECTING))
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        number = self.pick(data, CONNECTING)
        self.role[number] = STANDBY
        self.welcomed_at[number] = self.now
        self.not_before[self.endpoint[number]] = 0.0
        self.perform(self.machine.opened(number, self.sinks[self.endpoint[number]], self.now))

    @precondition(lambda self: self.role)
    @rule(data=st.data(), reaction=st.sampled_from(REACTIONS))
    def fail(self, data: st.DataObject, reaction: Reaction) -> None:
        number = self.pick(data, CONNECTING, STANDBY, CARRYING, REPLACED, RETIRING)
        index, role = self.endpoint[number], self.role.pop(number)
        if number in self.suspect and role != CARRYING:
            self.hedges.clear()  # run away from with reason
        self.suspect.discard(number)
        if role == CARRYING:
            self.lost_at = self.now
        if role != RETIRING:
            wait_s = reaction.wait_s
            if reaction.kind is Kind.EVICTED:
                last, self.evicted_at[index] = self.evicted_at[index], self.now
                wait_s = QUARTER_HOUR_S if last is not None and self.now - last <= EVICTED_AGAIN_S else wait_s
            self.not_before[index] = self.now + wait_s
        self.perform(self.machine.failed(number, reaction, b"", self.now))

    @precondition(lambda self: self.some(CARRYING, REPLACED, STANDBY))
    @rule(data=st.data())
    def overdue(self, data: st.DataObject) -> None:
        number = self.pick(data, CARRYING, REPLACED, STANDBY)
        self.suspect.add(number)
        self.perform(self.machine.suspect(number, self.now))

    @precondition(lambda self: self.suspect)
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.suspect)))
        self.suspect.discard(number)
        if self.role[number] == REPLACED:
            self.role[number] = STANDBY
            self.welcomed_at[number] = self.now
        self.perform(self.machine.recovered(number, self.now))

    @precondition(lambda self: self.some(CARRYING))
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        self.machine.acked(self.pick(data, CARRYING), self.now)

    @precondition(lambda self: self.some(CARRYING, STANDBY))
    @rule(data=st.data(), deadline_s=st.sampled_from([5.0, 60.0, 1e9]), spread_s=st.sampled_from([0.0, 30.0]))
    def ask_to_move(self, data: st.DataObject, deadline_s: float, spread_s: float) -> None:
        number = self.pick(data, CARRYING, STANDBY)
        self.perform(self.machine.move(number, deadline_s, spread_s, self.now))

    @rule(data=st.data(), version=st.sampled_from([b"", b"1", b"2"]))
    def change_files(self, data: st.DataObject, version: bytes) -> None:
        index = data.draw(st.integers(0, self.count - 1))
        self.not_before[index] = 0.0  # new credentials end a rest
        self.perform(self.machine.renewed(index, version, self.now))

    @rule(data=st.data(), spending=st.sampled_from(list(Spending)))
    def spend(self, data: st.DataObject, spending: Spending) -> None:
        index = data.draw(st.integers(0, self.count - 1))
        self.spending[index] = spending
        self.perform(self.machine.spent(index, spending, self.now))

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def one_carries_at_most_and_both_sides_agree_which(self) -> None:
        if not hasattr(self, "machine"):
            return
        active = [n for index in range(self.count) for n in self.machine.state(index).states if n.value == "active"]
        carrying = [number for number, role in self.role.items() if role == CARRYING]
        assert len(carrying) <= 1
        assert len(active) == len([number for number in carrying if number not in self.suspect])

    @invariant()
    def four_connections_at_most(self) -> None:
        if hasattr(self, "machine"):
            assert len(self.role) <= MAX_CONNECTIONS
            assert sum(len(self.machine.state(index).states) for index in range(self.count)) == len(self.role)

    @invariant()
    def nothing_that_could_carry_waits_while_nothing_carries(self) -> None:
        if not hasattr(self, "machine") or self.carrying is not None:
            return
        doubted = {self.sinks[self.endpoint[number]] for number in self.suspect}
        for number, role in self.role.items():
            if role == STANDBY and number not in self.suspect:
                assert doubted - {self.sinks[self.endpoint[number]]}, "only a suspect on another sink is waited for"

    @invariant()
    def hedges_and_returns_are_rare(self) -> None:
        if not hasattr(self, "machine"):
            return
        hedges, returns = self.hedges[-2:], self.returns[-3:]
        assert len(hedges) < 2 or hedges[1] >= hedges[0] + HEDGE_EVERY_S
        assert len(returns) < 3 or returns[2] >= returns[0] + FAIL_BACK_HOLD_S

    @invariant()
    def a_second_look_changes_nothing(self) -> None:
        if hasattr(self, "machine"):
            assert self.machine.tick(self.now) == []

    @invariant()
    def it_never_waits_for_nothing(self) -> None:
        """With nothing carrying and room for an attempt, something is under way or has a time."""
        if not hasattr(self, "machine") or self.carrying is not None or len(self.role) == MAX_CONNECTIONS:
            return
        allowed = [i for i in range(self.count) if self.spending[i] is not Spending.OVER]
        if allowed and not self.some(CONNECTING):
            settled = self.now >= self.lost_at + max(STAGGER_S, OTHER_ENDPOINT_JITTER_S)
            assert not settled or self.machine.deadline(self.now) is not None or self.some(STANDBY)


FailoverMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestFailoverMachine = FailoverMachine.TestCase
