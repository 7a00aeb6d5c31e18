"""The state machine, in a world where time is a number: endpoints are up or down as a function of time."""

from __future__ import annotations

import random as randoms
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.uplink import reactions
from gateway.uplink.backoff import BREAKER_MAX_S, CEILING_S, Backoff
from gateway.uplink.config import Standby
from gateway.uplink.failover import MAX_CONNECTIONS, Activate, Connect, Failover, Retire, State
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
        end = self.now + seconds
        while True:
            times = [at for at, _ in self.opening.values()]
            deadline = self.machine.deadline(self.now)
            times += [deadline] if deadline is not None else []
            times += [self.now + 1.0] if self.open else []  # look after the sessions once a second
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            self.step()

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


def test_a_suspect_that_recovers_goes_on_when_nobody_took_over_and_is_left_when_somebody_did() -> None:
    alone, pair = World([always]), World([always, always])
    for world in (alone, pair):
        world.run(10)
        assert world.active == 1
        world.machine.suspect(1, world.now)
    assert Activate(1) in alone.machine.recovered(1, alone.now)
    assert alone.machine.state(0).states[0] is State.ACTIVE
    assert [type(action) for action in pair.machine.recovered(1, pair.now)] == [Retire]


def test_a_suspect_that_recovers_carries_again_when_its_successor_is_suspect_too() -> None:
    world = World([always, always])
    world.run(10)
    assert world.machine.suspect(1, world.now) == [Activate(2)]
    world.machine.suspect(2, world.now)
    assert Activate(1) in world.machine.recovered(1, world.now), "it was told to pause"


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
