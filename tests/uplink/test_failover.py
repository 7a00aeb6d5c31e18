"""The state machine, in a world where time is a number: endpoints are up or down as a function of time."""

from __future__ import annotations

import itertools
import random as randoms
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.uplink import reactions
from gateway.uplink.backoff import BREAKER_MAX_S, CEILING_S, Backoff
from gateway.uplink.config import Standby
from gateway.uplink.connections import Activate, Connect, Retire, Spending, State
from gateway.uplink.failover import (
    FAIL_BACK_JITTER_S,
    HEALTHY_S,
    HEDGE_EVERY_S,
    MAX_CONNECTIONS,
    MOVE_MAX_S,
    SPARE_JITTER_S,
    Failover,
)
from gateway.uplink.reactions import Kind, Reaction

LOST = Reaction(Kind.RETRY, "connection lost")


class World:
    """Endpoints answer within 50 ms, while they are up; a session on one that goes down fails at once."""

    def __init__(
        self,
        up: list[Callable[[float], bool]],
        *,
        standby: Standby = Standby.AUTO,
        metered: tuple[bool, ...] | None = None,
        random: Callable[[], float] = lambda: 0.5,
        refusal: Reaction = LOST,
        sinks: str = "",
        look_s: float = 1.0,
    ) -> None:
        self.up = up
        self.refusal = refusal
        self.sinks = sinks or "s" * len(up)
        self.machine = Failover(metered or (False,) * len(up), standby, random)
        self.now = 1000.0
        self.open: dict[int, int] = {}
        """Connection → endpoint."""
        self.opening: dict[int, tuple[float, int]] = {}
        self.retiring: set[int] = set()
        self.active: int | None = None
        self.attempts: list[tuple[float, int]] = []
        self.activations: list[tuple[float, int]] = []
        self.look_s = look_s
        """How often the sessions are looked after."""
        self.offline_s = 0.0
        self.perform(self.machine.tick(self.now))

    def perform(self, actions: list[Connect | Activate | Retire]) -> None:
        for action in actions:
            match action:
                case Connect(number, endpoint, _):
                    self.attempts.append((self.now, endpoint))
                    self.opening[number] = self.now + 0.05, endpoint
                case Activate(number):
                    self.active = number
                    self.activations.append((self.now, self.open[number]))
                case Retire(number, _):
                    self.retiring.add(number)
                    if self.active == number:
                        self.active = None
        alive = len(self.open) + len(self.opening)
        assert alive <= MAX_CONNECTIONS

    def run(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def run_until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Returns the seconds that it took."""
        began = self.now
        while not condition():
            times = [at for at, _ in self.opening.values()]
            deadline = self.machine.deadline(self.now)
            times += [deadline] if deadline is not None else []
            times += [self.now + self.look_s] if self.open else []
            if not times or min(times) > began + seconds:
                self.now = began + seconds
                break
            then = max(self.now, min(times))
            self.offline_s += then - self.now if self.serving is None else 0.0
            self.now = then
            self.step()
        return self.now - began

    def step(self) -> None:
        for number in list(self.retiring):
            self.retiring.discard(number)
            self.drop(number)
        for number, endpoint in list(self.open.items()):
            if not self.up[endpoint](self.now):
                self.drop(number)
        for number, (at, endpoint) in list(self.opening.items()):
            if at > self.now:
                continue
            del self.opening[number]
            if self.up[endpoint](self.now):
                self.open[number] = endpoint
                self.perform(self.machine.opened(number, self.sinks[endpoint], self.now))
            else:
                self.perform(self.machine.failed(number, self.refusal, b"v1", self.now))
        if self.active is not None:
            self.machine.acked(self.active, self.now)
        self.perform(self.machine.tick(self.now))

    def drop(self, number: int, reaction: Reaction = LOST) -> None:
        if self.open.pop(number, None) is not None:
            if self.active == number:
                self.active = None
            self.perform(self.machine.failed(number, reaction, b"v1", self.now))

    @property
    def serving(self) -> int | None:
        return self.open.get(self.active) if self.active is not None else None


def always(_: float) -> bool:
    return True


def never(_: float) -> bool:
    return False


def test_the_best_endpoint_serves_and_the_next_one_waits() -> None:
    world = World([always, always, always])
    world.run(10)
    assert world.serving == 0
    assert world.machine.state(1).states == (State.STANDBY,)
    assert world.machine.state(2).states == ()


@pytest.mark.parametrize(
    ("standby", "metered", "waits"),
    [
        (Standby.AUTO, (False, False), True),
        (Standby.AUTO, (False, True), False),
        (Standby.WARM, (True, True), True),
        (Standby.COLD, (False, False), False),
    ],
)
def test_a_standby_is_kept_as_configured(standby: Standby, metered: tuple[bool, bool], waits: bool) -> None:
    world = World([always, always], standby=standby, metered=metered)
    world.run(60)
    assert (world.machine.state(1).states == (State.STANDBY,)) is waits


def test_the_standby_takes_over_in_the_same_moment() -> None:
    world = World([lambda t: t < 1100, always])
    world.run(99)
    assert world.serving == 0
    world.run(2)
    assert world.activations[-1] == (pytest.approx(1100, abs=1.0), 1)


def test_a_primary_that_flaps_is_not_returned_to() -> None:
    """Up for four minutes, down for one: five healthy minutes never come."""
    world = World([lambda t: (t - 1000) % 300 >= 60, always])
    world.run(6 * 3600)
    assert world.serving == 1
    assert [endpoint for _, endpoint in world.activations] == [1]


def test_a_primary_that_is_well_again_is_returned_to_after_five_minutes_and_a_random_wait() -> None:
    world = World([lambda t: t >= 1600, always], random=lambda: 0.5)
    world.run(1500)
    assert [endpoint for _, endpoint in world.activations] == [1, 0]
    healthy_at = world.activations[1][0]
    assert 1600 + 300 + 150 <= healthy_at <= 1600 + 300 + 150 + BREAKER_MAX_S + CEILING_S
    assert world.machine.state(1).states == (State.STANDBY,), "and the other one waits again"


def test_it_returns_at_most_twice_an_hour() -> None:
    world = World([lambda t: (t - 1000) % 700 >= 20, always], random=lambda: 0.0)
    world.run(7200)
    returns = [at for at, endpoint in world.activations if endpoint == 0]
    for i in range(len(returns) - 2):
        assert returns[i + 2] - returns[i] > 3590
    assert returns


def test_without_a_standby_a_better_endpoint_is_still_found_again() -> None:
    world = World([lambda t: t >= 1100, always], standby=Standby.COLD, random=lambda: 0.0)
    world.run(1500)
    assert world.serving == 0
    assert world.machine.state(1).states == ()


@pytest.mark.parametrize(
    "refusal",
    [reactions.to_status(403, None), reactions.to_close(4403, ""), reactions.to_status(401, None)],
)
def test_an_endpoint_that_refuses_us_rests_for_a_quarter_of_an_hour(refusal: Reaction) -> None:
    world = World([never, always], refusal=refusal)
    world.run(3600)
    assert world.serving == 1
    assert 4 <= len([endpoint for _, endpoint in world.attempts if endpoint == 0]) <= 5
    assert world.machine.state(0).resting


def test_new_files_end_a_rest_once() -> None:
    world = World([never], refusal=reactions.to_status(401, None))
    world.run(10)
    assert len(world.attempts) == 1
    world.perform(world.machine.renewed(0, b"v1", world.now))
    assert len(world.attempts) == 1, "they are the same"
    world.perform(world.machine.renewed(0, b"v2", world.now))
    assert len(world.attempts) == 2
    world.perform(world.machine.renewed(0, b"v2", world.now))
    assert len(world.attempts) == 2


def test_a_clone_is_left_alone_for_a_minute_then_for_a_quarter_of_an_hour() -> None:
    world = World([never], refusal=reactions.to_close(4409, ""))
    world.run(3600)
    waits = [later - sooner for (sooner, _), (later, _) in zip(world.attempts, world.attempts[1:], strict=False)]
    assert waits[0] == pytest.approx(60, abs=1)
    assert waits[1] == pytest.approx(900, abs=1)


def test_the_only_endpoint_is_tried_at_least_every_minute_for_ever() -> None:
    world = World([never], random=lambda: 0.999)
    world.run(4 * 3600)
    waits = [later - sooner for (sooner, _), (later, _) in zip(world.attempts, world.attempts[1:], strict=False)]
    assert max(waits) <= CEILING_S + 1
    assert len(waits) < 300


def test_the_breaker_leaves_a_failing_endpoint_alone_while_another_serves() -> None:
    world = World([never, always], random=lambda: 0.0)
    world.run(4 * 3600)
    tries = [at for at, endpoint in world.attempts if endpoint == 0]
    assert len(tries) < 100, "back-off alone, with no luck, would have made thousands"
    assert tries[-1] - tries[-4] <= BREAKER_MAX_S * 2


def test_the_next_endpoint_is_tried_beside_one_that_hangs() -> None:
    machine = Failover((False, False), Standby.AUTO, lambda: 0.0)
    assert machine.tick(0.0) == [Connect(1, 0, False)]
    assert machine.deadline(0.0) == 1.0
    assert machine.tick(1.0) == [Connect(2, 1, False)]
    assert machine.opened(2, "s", 1.1) == [Activate(2)]
    assert machine.opened(1, "s", 1.2) == [], "the late one waits"
    assert machine.state(0).states == (State.STANDBY,)


def test_a_suspect_is_hedged_on_the_same_sink_at_once() -> None:
    world = World([always, always])
    world.run(10)
    assert world.active is not None
    assert world.machine.suspect(world.active, world.now) == [Activate(2)]


def test_a_suspect_is_not_hedged_on_another_sink_until_it_is_given_up() -> None:
    world = World([always, always], sinks="ns")
    world.run(10)
    first = world.active
    assert first is not None
    actions = world.machine.suspect(first, world.now)
    assert actions == [Connect(3, 0, True)], "perhaps it was only that connection"
    assert Activate(2) in world.machine.failed(first, LOST, b"", world.now)


def test_nothing_returns_to_a_better_endpoint_on_another_sink_while_a_suspect_is_open() -> None:
    machine = Failover((False, False, False), Standby.AUTO, lambda: 0.0)
    machine.tick(0.0)  # 1 to the first endpoint
    machine.opened(1, "a", 0.1)
    machine.tick(2.0)  # 2 to the second
    machine.opened(2, "b", 2.1)
    later = 2.1 + HEALTHY_S + FAIL_BACK_JITTER_S
    assert machine.suspect(1, later) == [Connect(3, 2, True)]
    assert machine.opened(3, "a", later + 0.1) == [Activate(3)], "the suspect's own sink, and not back at once"
    assert Activate(2) in machine.failed(1, LOST, b"", later + 3.0)


@pytest.mark.parametrize(("sinks", "after_s"), [("nn", 0.75), ("ns", 3.75)])
@pytest.mark.parametrize("random", [0.0, 0.5, 0.99])
def test_a_server_that_welcomes_and_never_acks_is_left_for_one_that_does(
    sinks: str, after_s: float, random: float
) -> None:
    """Whatever its place: after the time for an ack on the same sink, and when it is given up on another."""
    machine = Failover((False, False), Standby.AUTO, lambda: random)
    carries: dict[int, float] = {}
    suspects: dict[int, float] = {}
    opening: dict[int, tuple[int, float]] = {}
    actions, now, served = machine.tick(0.0), 0.0, None
    while served is None and now < 60:
        for action in actions:
            match action:
                case Connect(number, endpoint, _):
                    opening[number] = endpoint, now + 0.05
                case Activate(number):
                    carries[number] = now
                case Retire(number, _):
                    carries.pop(number, None)
        now += 0.05
        actions = machine.tick(now)
        for number, (endpoint, at) in list(opening.items()):
            if now >= at:
                actions += machine.opened(number, sinks[endpoint], now)
                opening[number] = endpoint, float("inf")
        for number, since in list(carries.items()):
            if opening[number][0] == 1:
                served = now
            elif now >= since + 0.7 and number not in suspects:
                suspects[number] = now
                actions += machine.suspect(number, now)
            elif now >= since + 3.7:
                del carries[number]
                actions += machine.failed(number, LOST, b"", now)
    assert served is not None
    assert served <= after_s + 0.2


def test_a_suspect_that_recovers_goes_on_when_nobody_took_over_and_waits_in_line_when_somebody_did() -> None:
    alone, pair = World([always]), World([always, always])
    for world in (alone, pair):
        world.run(10)
        assert world.active == 1
        world.perform(world.machine.suspect(1, world.now))
    assert Activate(1) in alone.machine.recovered(1, alone.now)
    assert alone.machine.state(0).states[0] is State.ACTIVE
    assert pair.machine.recovered(1, pair.now) == []
    assert pair.machine.state(0).states == (State.STANDBY,), "it is open and well: what is better to return to?"
    pair.run(HEALTHY_S + FAIL_BACK_JITTER_S)
    assert pair.activations[-1] == (pytest.approx(1010 + HEALTHY_S + FAIL_BACK_JITTER_S / 2, abs=1), 0)
    assert len(pair.attempts) == 3, "and nothing was opened for it, but a standby afterwards"


def test_a_suspect_is_run_away_from_once_a_minute_only() -> None:
    world = World([always, always])
    world.run(10)
    assert world.machine.suspect(1, world.now) == [Activate(2)]
    actions = world.machine.suspect(2, world.now + 0.7)
    assert actions == [Connect(3, 0, True)], "both are suspect: something is made ready"
    world.machine.failed(3, LOST, b"", world.now + 2)
    assert world.machine.recovered(1, world.now + 3) == [], "it may not yet"
    assert world.machine.tick(world.now + HEDGE_EVERY_S) == [Activate(1)]


def test_only_false_alarms_count_a_suspect_that_dies_was_run_away_from_with_reason() -> None:
    world = World([always, always])
    world.run(10)
    assert world.machine.suspect(1, world.now) == [Activate(2)]
    world.open.pop(1)
    world.perform(world.machine.failed(1, LOST, b"", world.now + 3))
    world.now += 3
    assert world.run_until(lambda: State.STANDBY in world.machine.state(0).states, 10) < 5
    spare = next(iter(world.open.keys() - {2}))
    assert world.machine.suspect(2, world.now) == [Activate(spare)], "the next fault, 8 s after the first"
    assert world.machine.recovered(2, world.now + 1) == [], "this one was a false alarm"
    assert world.machine.suspect(spare, world.now + 2)[:1] != [Activate(2)], "and counts"


def test_a_suspect_that_is_given_up_is_replaced_at_once_however_recent_the_last_switch() -> None:
    world = World([always, always])
    world.run(10)
    world.machine.suspect(1, world.now)
    world.machine.suspect(2, world.now + 0.7)
    world.machine.recovered(1, world.now + 3)
    assert Activate(1) in world.machine.failed(2, LOST, b"", world.now + 3.7)


def test_a_replaced_connection_whose_acks_are_overdue_again_is_no_standby() -> None:
    world = World([always, always])
    world.run(10)
    world.machine.suspect(1, world.now)
    world.machine.recovered(1, world.now)
    world.machine.suspect(1, world.now)
    actions = world.machine.failed(2, LOST, b"", world.now)
    assert Activate(1) not in actions


def test_a_session_that_never_lets_go_costs_one_of_four_connections_and_nothing_else() -> None:
    machine = Failover((False, False), Standby.AUTO, lambda: 0.0)
    machine.tick(0.0)
    machine.opened(1, "s", 0.1)
    machine.opened(2, "s", 0.2)
    machine.move(1, 60.0, 0.0, 1.0)
    assert machine.state(0).states == (State.RETIRING,)
    now, newest = 100.0, 2
    for _ in range(10):  # the other endpoint asks for a move again and again, and no session ends
        actions = machine.move(newest, 5.0, 0.0, now)
        actions += machine.tick(now + 10.0)
        for action in actions:
            if isinstance(action, Connect):
                machine.opened(action.connection, "s", now)
                newest = action.connection
        now += 100.0
    open_now = [state for index in (0, 1) for state in machine.state(index).states]
    assert len(open_now) <= MAX_CONNECTIONS
    assert open_now.count(State.ACTIVE) == 1


def test_a_move_for_longer_than_an_hour_is_for_an_hour() -> None:
    machine = Failover((False, False), Standby.COLD, lambda: 0.0)
    machine.tick(0.0)
    machine.opened(1, "s", 0.1)
    machine.move(1, 1e12, 1e12, 1.0)
    assert machine.state(0).not_before == 1.0 + MOVE_MAX_S


def test_a_standby_that_is_asked_to_move_goes_and_another_one_comes() -> None:
    world = World([always, always, always])
    world.run(10)
    world.perform(world.machine.move(2, 60.0, 0.0, world.now))
    assert world.machine.state(1).states == (State.RETIRING,)
    world.run(SPARE_JITTER_S + 1)
    assert world.machine.state(2).states == (State.STANDBY,)
    assert world.serving == 0


@pytest.mark.parametrize(("up_s", "down_s", "returns"), [(240, 60, 0), (600, 60, 30)])
def test_a_flapping_primary_is_returned_to_at_most_twice_in_any_hour(up_s: int, down_s: int, returns: int) -> None:
    """Four minutes up and one down: five healthy minutes never come. Ten up and one down: they do."""
    dice = randoms.Random(1)
    world = World([lambda t: (t - 1000) % (up_s + down_s) >= down_s, always], random=dice.random)
    world.run(48 * 3600)
    back = [at for at, endpoint in world.activations if endpoint == 0]
    assert all(later - sooner >= 3600 for sooner, later in zip(back, back[2:], strict=False))
    assert len(back) >= returns
    assert (len(back) == 0) == (returns == 0)
    assert world.offline_s < 60, "the standby carries whenever the primary is down"


def test_after_two_returns_it_holds_for_an_hour() -> None:
    world = World([lambda t: (t - 1000) % 660 >= 60, always], random=lambda: 0.0)
    world.run(24 * 3600)
    back = [at for at, endpoint in world.activations if endpoint == 0]
    waits = [later - sooner for sooner, later in itertools.pairwise(back)]
    assert waits[0] < 3600 <= waits[1]


@pytest.mark.parametrize("endpoints", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_after_a_day_without_any_endpoint_it_is_back_within_a_minute(endpoints: int, seed: int) -> None:
    dice = randoms.Random(seed)
    back_at = 1000.0 + 86_400 + dice.random() * 100
    world = World([lambda t: t >= back_at] * endpoints, random=dice.random)
    world.run(back_at - world.now)
    attempts = len(world.attempts)
    assert attempts < 86_400 / 20 * endpoints, "thirty seconds on average, and the beginning"
    took = world.run_until(lambda: world.serving is not None, CEILING_S + 1)
    assert took <= CEILING_S + 0.1


def test_an_endpoint_that_accepts_and_never_answers_does_not_keep_others_from_being_tried() -> None:
    """Its connections stay under way until their time is up; the others are tried beside them."""
    machine = Failover((False, False, False), Standby.AUTO, lambda: 0.5)
    under_way: dict[int, tuple[int, float]] = {}
    served, now, end = None, 0.0, 3.5
    while now < end and served is None:
        actions = machine.tick(now)
        for number, (endpoint, since) in list(under_way.items()):
            if endpoint == 2 and now >= since + 0.05:
                actions += machine.opened(number, "s", now)
                served = now
            elif now >= since + 3.0:
                del under_way[number]
                actions += machine.failed(number, LOST, b"", now)
        for action in actions:
            if isinstance(action, Connect):
                under_way[action.connection] = action.endpoint, now
        now += 0.05
    assert served == pytest.approx(2.05, abs=0.11), "one second after the other"


def test_a_fleet_that_loses_one_of_three_servers_comes_to_the_others_spread_over_the_jitter() -> None:
    """500 gateways; cold ones fall upon the survivors, warm ones only look for another standby."""
    for policy, spread_s in ((Standby.COLD, 0.1), (Standby.AUTO, SPARE_JITTER_S)):
        dice = randoms.Random(7)
        accepts: list[float] = []
        for i in range(500):
            order = [(i + k) % 3 for k in range(3)]  # every server is the first of a third
            ups = [(lambda t: t < 1010.0) if server == 0 else always for server in order]
            world = World(ups, standby=policy, random=dice.random)
            world.run(9.99)
            world.look_s = 0.01
            before = len(world.attempts)
            carried = order[world.serving or 0] == 0
            world.run(spread_s + 0.3)
            later = [at for at, endpoint in world.attempts[before:] if order[endpoint] != 0]
            assert world.serving is not None
            assert order[world.serving] != 0
            accepts += later
            if carried and policy is Standby.COLD:
                assert later
        assert len(accepts) >= 160
        window = spread_s / 10
        busiest = max(sum(1 for at in accepts if start <= at < start + window) for start in accepts)
        fair = len(accepts) / 10
        assert busiest <= 2.2 * fair, f"{busiest} in a tenth of the time, {fair:.0f} were fair"
        assert max(accepts) <= 1010.05 + spread_s


def test_an_endpoint_down_to_its_reserve_comes_last_and_is_left_at_once_for_one_that_works() -> None:
    world = World([always, lambda t: t >= 1100], metered=(True, False))
    world.run(50)
    world.perform(world.machine.spent(0, Spending.RESERVE, world.now))
    world.run(30)
    assert world.serving == 0, "there is no other"
    world.run(400)
    assert world.serving == 1
    assert world.machine.state(0).states == (), "a metered one is no standby"
    world.perform(world.machine.spent(0, Spending.WITHIN, world.now))
    world.run(1200)
    assert world.serving == 0, "a new day"


def test_an_endpoint_that_has_spent_all_is_left_and_not_tried_until_a_new_day() -> None:
    world = World([always], metered=(True,))
    world.run(50)
    world.perform(world.machine.spent(0, Spending.OVER, world.now))
    world.run(3600)
    assert world.serving is None
    assert len(world.attempts) == 1
    world.perform(world.machine.spent(0, Spending.WITHIN, world.now))
    world.run(1)
    assert world.serving == 0


def test_a_move_with_one_endpoint_opens_a_second_connection_before_it_leaves_the_first() -> None:
    machine = Failover((False,), Standby.AUTO, lambda: 0.5)
    machine.tick(0.0)
    machine.opened(1, "s", 0.1)
    assert machine.move(1, 60.0, 30.0, 1.0) == []
    assert machine.deadline(1.0) == 16.0
    assert machine.tick(16.0) == [Connect(2, 0, True)]
    assert machine.opened(2, "s", 16.1) == [Activate(2), Retire(1, "moving as asked")]


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.lists(st.floats(5, 900), min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from(list(Standby)),
    st.integers(0, 1 << 32),
)
def test_whatever_happens_something_serves_soon_after_anything_is_up(
    phases: list[list[float]], standby: Standby, seed: int
) -> None:
    def schedule(lengths: list[float]) -> Callable[[float], bool]:
        def up(now: float) -> bool:
            at, state = 1000.0, False
            for length in lengths:
                at += length
                if now < at:
                    return state
                state = not state
            return True

        return up

    world = World([schedule(each) for each in phases], standby=standby, random=randoms.Random(seed).random)
    world.run(6 * 900.0)
    world.run(CEILING_S + 2)
    assert world.serving is not None
    world.run(2 * 3600)
    assert world.serving == 0, "in the end the best endpoint serves"
    active = [s for i in range(len(phases)) for s in world.machine.state(i).states if s is State.ACTIVE]
    assert len(active) == 1


def test_backoff_doubles_under_full_jitter_and_only_proof_resets_it() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.failed(100.0 * i) for i in range(10)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.proved()
    assert backoff.failed(2000.0) == 0.5


def test_the_breaker_opens_longer_each_time_and_not_for_slow_failures() -> None:
    backoff = Backoff(lambda: 0.0)
    opened = []
    now = 0.0
    for _ in range(7):
        for _ in range(3):
            now += 10
            backoff.failed(now)
        opened.append(backoff.open_until - now)
    assert opened == [30, 60, 120, 240, 480, 600, 600]
    slow = Backoff(lambda: 0.0)
    for i in range(20):
        slow.failed(i * 31.0)
    assert slow.open_until == 0.0
