"""Pure: which endpoint carries the records, which one waits, and when the next attempt is made.

Endpoints are numbered in order of priority. A connection is one attempt and what became of it; it is known by a number
that is never used again:

    CONNECTING ─opened─▶ STANDBY ─Activate─▶ ACTIVE ─suspect─▶ SUSPECT ─▶ gone
         └──failed──▶ gone    ▲                └──Retire──▶ RETIRING ─▶ gone
                              └─────── recovered, and another one carries ────┘

What holds after every input: at most one connection carries records, ACTIVE or, while its acks are overdue and nothing
takes over, SUSPECT; there is none only while none is open; at most four connections exist, the server's limit; no
attempt is made at an endpoint before its time.

* None carries: the best open standby takes over at once. Else endpoints are tried best first, the next one in parallel
  when one has not opened within a second.
* SUSPECT: a standby on the same sink takes over at once, and whichever ack comes first counts; but after a false alarm
  not again within a minute, so that a server that is slow is not run away from again and again. One on another sink
  waits until the suspect is given up, because what both store exists twice.
* Better endpoints are returned to after five healthy minutes and a random wait; after the second time within an hour
  not for another hour.
* Make before break: the old connection is retired only when the new one is active. Renewed credentials are taken up in
  that way too: an open session that used others stays until one that uses these is open.
* An endpoint whose data budget is down to its reserve comes after all others; one that has spent it all is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.uplink.config import Standby
from gateway.uplink.connections import (
    Action,
    Activate,
    Connect,
    Connection,
    EndpointState,
    Retire,
    Spending,
    Standing,
    State,
)
from gateway.uplink.reactions import QUARTER_HOUR_S, Kind, Reaction

STAGGER_S: Final = 1.0
"""After this the next endpoint is tried as well."""
OTHER_ENDPOINT_JITTER_S: Final = 0.1
SPARE_JITTER_S: Final = 2.0
"""A lost standby is not urgent, and everybody else has lost his in the same moment."""
HEDGE_EVERY_S: Final = 60.0
PROOF_S: Final = 60.0
"""A connection that had acks for this long has proved itself."""
HEALTHY_S: Final = 300.0
FAIL_BACK_JITTER_S: Final = 300.0
FAIL_BACK_HOLD_S: Final = 3600.0
"""After the second return within this time there is none for this time."""
MOVE_MAX_S: Final = 3600.0
"""A server that wants us away for longer may say so again."""
EVICTED_AGAIN_S: Final = 600.0
MAX_CONNECTIONS: Final = 4


class Failover:
    """The state machine. `random` gives numbers in [0, 1)."""

    def __init__(self, metered: Sequence[bool], standby: Standby, random: Callable[[], float]) -> None:
        self._endpoints = [Standing(random, each) for each in metered]
        self._policy = standby
        self._random = random
        self._connections: dict[int, Connection] = {}
        self._next_number = 1
        self._carrying: int | None = None
        self._switch_at = 0.0
        """Not to fall upon another endpoint in the same moment as everybody else."""
        self._spare_at = 0.0
        self._hedge_at = 0.0
        """Not before, unless what was run away from last has proved to be dead."""
        self._fail_back_at: dict[int, float] = {}
        """Connection → when it has been healthy for long enough."""
        self._failed_back_at: float | None = None
        self._hold_until = 0.0
        self._move_at: dict[int, float] = {}
        """Connection that shall be left → when."""

    # ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> list[Action]:
        for standby in self._standbys():
            if now >= standby.since + HEALTHY_S:
                self._endpoints[standby.endpoint].backoff.proved()
        return self._decide(now)

    def opened(self, number: int, sink: str, now: float, version: bytes = b"") -> list[Action]:
        """The welcome came. A connection that was not opened as a standby is active with it, if none is. `version`
        names the credentials that were used.
        """
        connection = self._connections[number]
        endpoint = self._endpoints[connection.endpoint]
        endpoint.reason, endpoint.resting = "", False
        endpoint.not_before = endpoint.failed_at = 0.0
        endpoint.files = connection.version = version
        connection.sink = sink
        self._wait_in_line(connection, now)
        actions: list[Action] = []
        if not connection.standby and self._carrier() is None and endpoint.spending is not Spending.OVER:
            actions.append(self._activate(connection))
        return actions + self._decide(now)

    def acked(self, number: int, now: float) -> None:
        """An ack came; cheap."""
        connection = self._connections.get(number)
        if connection is None or connection.state is State.SUSPECT:
            return  # of a suspect nothing is decided before it has recovered
        if connection.acked_since is None:
            connection.acked_since = now
        elif now >= connection.acked_since + PROOF_S:
            self._endpoints[connection.endpoint].backoff.proved()
            connection.acked_since = now

    def suspect(self, number: int, now: float) -> list[Action]:
        """Acks are overdue; also those of a connection that has been replaced, which is then no standby."""
        connection = self._connections[number]
        if connection.state in (State.ACTIVE, State.STANDBY):
            connection.state = State.SUSPECT
            self._fail_back_at.pop(number, None)
        return self._decide(now)

    def recovered(self, number: int, now: float) -> list[Action]:
        """Acks came after all: it goes on, or waits in line when another one has taken over."""
        connection = self._connections[number]
        if connection.state is not State.SUSPECT:
            return []
        if number == self._carrying:
            return [self._activate(connection), *self._decide(now)]
        self._wait_in_line(connection, now)
        return self._decide(now)

    def move(self, number: int, deadline_s: float, spread_s: float, now: float) -> list[Action]:
        """The server asks to go elsewhere."""
        connection = self._connections[number]
        if number not in self._move_at and connection.state is not State.RETIRING:
            deadline_s = min(deadline_s, MOVE_MAX_S)
            self._move_at[number] = now + self._random() * min(spread_s, deadline_s)
            if len(self._endpoints) > 1:
                endpoint = self._endpoints[connection.endpoint]
                endpoint.not_before = max(endpoint.not_before, now + deadline_s)
        return self._decide(now)

    def failed(self, number: int, reaction: Reaction, version: bytes, now: float) -> list[Action]:
        """The connection could not be opened, or has ended. `version` names the credentials that were used."""
        connection = self._connections.pop(number)
        self._fail_back_at.pop(number, None)
        self._move_at.pop(number, None)
        if connection.state is State.SUSPECT and number != self._carrying:
            self._hedge_at = now  # it was no false alarm
        if connection.state is not State.RETIRING:
            self._blame(self._endpoints[connection.endpoint], reaction, version, now)
            if connection.state is not State.CONNECTING:
                self._spare_at = now + self._random() * SPARE_JITTER_S
        if number == self._carrying:
            self._carrying = None
            self._switch_at = now + self._random() * OTHER_ENDPOINT_JITTER_S
        return self._decide(now)

    def _blame(self, endpoint: Standing, reaction: Reaction, version: bytes, now: float) -> None:
        wait_s = reaction.wait_s + self._random() * reaction.spread_s
        endpoint.reason = reaction.reason
        endpoint.version = version
        endpoint.failed_at = now
        endpoint.resting = reaction.kind in (Kind.REST, Kind.TOKEN, Kind.EVICTED)
        match reaction.kind:
            case Kind.RETRY:
                wait_s = max(wait_s, endpoint.backoff.failed(now))
            case Kind.EVICTED:
                again = endpoint.evicted_at is not None and now - endpoint.evicted_at <= EVICTED_AGAIN_S
                wait_s = QUARTER_HOUR_S if again else wait_s
                endpoint.evicted_at = now
            case Kind.REST | Kind.TOKEN:
                pass
        endpoint.not_before = now + wait_s

    def renewed(self, index: int, version: bytes, now: float) -> list[Action]:
        """What the files of this endpoint are now: one that rests because it was refused is tried again, once; a
        session that used others is replaced.
        """
        endpoint = self._endpoints[index]
        known, endpoint.files = endpoint.files, version
        if endpoint.resting and endpoint.version and version != endpoint.version:
            endpoint.version = version
            endpoint.not_before = now
        elif version == known:
            return []
        return self._decide(now)

    def spent(self, index: int, spending: Spending, now: float) -> list[Action]:
        """What the data budget of this endpoint allows from now on."""
        if self._endpoints[index].spending is spending:
            return []
        self._endpoints[index].spending = spending
        return self._decide(now)

    # ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        self._leave_what_is_spent(actions)
        carrier = self._take_over(actions, now)
        if carrier is None or carrier.state is State.SUSPECT:
            self._connect_any(actions, now)
            return actions
        carrier = self._leave(carrier, actions, now)
        self._renew(actions, now)
        carrier = self._fail_back(self._carrier() or carrier, actions, now)
        self._keep_standby(carrier, actions, now)
        return actions

    def _leave_what_is_spent(self, actions: list[Action]) -> None:
        for connection in list(self._connections.values()):
            spent = self._endpoints[connection.endpoint].spending is Spending.OVER
            if spent and connection.state not in (State.CONNECTING, State.RETIRING):
                actions.append(self._retire(connection, "the data budget of the day is spent"))

    def _take_over(self, actions: list[Action], now: float) -> Connection | None:
        """What carries the records; the best open standby where nothing does, or what does is suspect."""
        carrier = self._carrier()
        if carrier is not None and (carrier.state is State.ACTIVE or now < self._hedge_at):
            return carrier
        suspects = [c for c in self._connections.values() if c.state is State.SUSPECT]
        for standby in self._standbys():
            if all(suspect.sink == standby.sink for suspect in suspects):
                if carrier is not None:
                    self._hedge_at = now + HEDGE_EVERY_S
                    self._spare_at = now + self._random() * SPARE_JITTER_S
                actions.append(self._activate(standby))
                return standby
        return carrier

    def _leave(self, active: Connection, actions: list[Action], now: float) -> Connection:
        """Who was asked to move goes: a standby when its time has come, the active one for the next session to open."""
        due = [number for number, at in self._move_at.items() if now >= at]
        for standby in self._standbys():
            if standby.number in due:
                actions.append(self._retire(standby, "moving as asked"))
        if active.number not in due:
            return active
        for standby in self._standbys():
            if standby.number not in self._move_at:
                actions.append(self._activate(standby))
                actions.append(self._retire(active, "moving as asked"))
                return standby
        if not self._connecting() and self._room():
            only = len(self._endpoints) == 1
            for index in self._ranked(self._available(now)):
                if only or index != active.endpoint:
                    actions.append(self._connect(index, True, now))
                    break
        return active

    def _connect_any(self, actions: list[Action], now: float) -> None:
        """Nothing carries records, or not well: try the best that may be tried, and the next when that takes long."""
        connecting = self._connecting()
        if now < self._switch_at or any(now < c.since + STAGGER_S for c in connecting) or not self._room():
            return
        suspects = {c.endpoint for c in self._connections.values() if c.state is State.SUSPECT}
        carrier = self._carrier()
        if carrier is not None and any(standby.sink == carrier.sink for standby in self._standbys()):
            return  # it takes over as soon as it may
        waiting = {c.endpoint for c in self._standbys()}
        busy = {c.endpoint for c in connecting} | waiting
        if waiting - suspects:
            # perhaps it was only that connection; but not where this one never had an ack
            busy |= {c.endpoint for c in self._connections.values() if c.state is State.SUSPECT and not c.acked_since}
        # best first; but none again before the others had their turn, and last what is suspect right now
        free = [index for index in self._available(now, breaker=False) if index not in busy]
        turn = [(i in suspects, self._endpoints[i].spending, self._endpoints[i].failed_at, i) for i in free]
        if turn:
            actions.append(self._connect(min(turn)[-1], bool(suspects), now))

    def _renew(self, actions: list[Action], now: float) -> None:
        """A session whose credentials were replaced gives its place to one with those that lie there now."""
        for old in [c for c in self._connections.values() if self._outdated(c)]:
            beside = [c for c in self._connections.values() if c.endpoint == old.endpoint and c is not old]
            may = old.endpoint in self._available(now) and self._room()
            fresh = next((c for c in beside if c.state is State.STANDBY and not self._outdated(c)), None)
            if fresh is not None:
                if old.state is State.ACTIVE:
                    actions.append(self._activate(fresh))
                else:  # it has been healthy for as long as the one before it
                    self._fail_back_at[fresh.number] = self._fail_back_at[old.number]
                actions.append(self._retire(old, "its credentials were renewed"))
            elif may and not any(c.state is State.CONNECTING for c in beside):
                actions.append(self._connect(old.endpoint, True, now))

    def _outdated(self, connection: Connection) -> bool:
        serves = connection.state in (State.ACTIVE, State.STANDBY) and connection.number not in self._move_at
        return serves and connection.version != self._endpoints[connection.endpoint].files

    def _fail_back(self, active: Connection, actions: list[Action], now: float) -> Connection:
        for standby in self._standbys():
            if self._rank(standby.endpoint) >= self._rank(active.endpoint) or standby.number in self._move_at:
                continue
            if any(c.state is State.SUSPECT and c.sink != standby.sink for c in self._connections.values()):
                continue  # what a suspect has in flight would exist in both; it is given up soon
            if self._endpoints[standby.endpoint].spending < self._endpoints[active.endpoint].spending:
                reason = "its data budget is down to the reserve"
            elif now < self._fail_back_at[standby.number] or now < self._hold_until:
                continue
            else:
                reason = "back to a better endpoint"
                if self._failed_back_at is not None and now < self._failed_back_at + FAIL_BACK_HOLD_S:
                    self._hold_until = now + FAIL_BACK_HOLD_S
                self._failed_back_at = now
            actions.append(self._activate(standby))
            actions.append(self._retire(active, reason))
            return standby
        return active

    def _keep_standby(self, active: Connection, actions: list[Action], now: float) -> None:
        """One open session beside the active one, on the best other endpoint; a worse one goes when a better opens."""
        standbys = self._standbys()
        for spare in standbys[1:]:
            actions.append(self._retire(spare, "a better standby is open"))
        best = standbys[0] if standbys else None
        if best is not None and not self._wanted(best.endpoint, active):
            actions.append(self._retire(best, "one is enough"))
            best = None
        if now < self._spare_at or self._connecting() or not self._room():
            return
        taken = {c.endpoint for c in self._connections.values()}
        for index in self._ranked(self._available(now)):
            if best is not None and self._rank(index) >= self._rank(best.endpoint):
                return
            if index not in taken and self._wanted(index, active):
                actions.append(self._connect(index, True, now))
                return

    def _wanted(self, index: int, active: Connection) -> bool:
        """As a standby: to fall upon, or to return to."""
        if self._rank(index) < self._rank(active.endpoint) or active.number in self._move_at:
            return True
        if index == active.endpoint:
            return False
        if self._policy is Standby.AUTO:
            return not self._endpoints[index].metered
        return self._policy is Standby.WARM

    # ── small steps ──────────────────────────────────────────────────────────────────────────────────────────────

    def _carrier(self) -> Connection | None:
        return None if self._carrying is None else self._connections[self._carrying]

    def _standbys(self) -> list[Connection]:
        """Best first; what shall be left comes last."""
        found = [c for c in self._connections.values() if c.state is State.STANDBY]
        return sorted(found, key=lambda c: (c.number in self._move_at, self._rank(c.endpoint), c.number))

    def _connecting(self) -> list[Connection]:
        return [c for c in self._connections.values() if c.state is State.CONNECTING]

    def _room(self) -> bool:
        return len(self._connections) < MAX_CONNECTIONS

    def _rank(self, index: int) -> tuple[Spending, int]:
        return self._endpoints[index].spending, index

    def _ranked(self, indices: Iterable[int]) -> list[int]:
        return sorted(indices, key=self._rank)

    def _available(self, now: float, breaker: bool = True) -> list[int]:
        """Endpoints that may be tried now. The breaker counts only while something else serves."""
        return [
            index
            for index, endpoint in enumerate(self._endpoints)
            if endpoint.not_before <= now
            and endpoint.spending is not Spending.OVER
            and (not breaker or endpoint.backoff.open_until <= now)
        ]

    def _connect(self, index: int, standby: bool, now: float) -> Connect:
        connection = Connection(self._next_number, index, standby, now)
        self._next_number += 1
        self._connections[connection.number] = connection
        return Connect(connection.number, index, standby)

    def _wait_in_line(self, connection: Connection, now: float) -> None:
        connection.state = State.STANDBY
        connection.since = now
        self._fail_back_at[connection.number] = now + HEALTHY_S + self._random() * FAIL_BACK_JITTER_S

    def _activate(self, connection: Connection) -> Activate:
        connection.state = State.ACTIVE
        connection.acked_since = None
        self._carrying = connection.number
        self._fail_back_at.pop(connection.number, None)
        return Activate(connection.number)

    def _retire(self, connection: Connection, reason: str) -> Retire:
        connection.state = State.RETIRING
        self._fail_back_at.pop(connection.number, None)
        self._move_at.pop(connection.number, None)
        if connection.number == self._carrying:
            self._carrying = None
        return Retire(connection.number, reason)

    # ── outside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def deadline(self, now: float) -> float | None:
        """When to call `tick`; None: only an input can change anything."""
        times = [*self._fail_back_at.values(), *self._move_at.values()]
        times += [self._switch_at, self._spare_at, self._hedge_at, self._hold_until]
        for endpoint in self._endpoints:
            times += [endpoint.not_before, endpoint.backoff.open_until]
        times += [c.since + STAGGER_S for c in self._connecting()]
        return min((time for time in times if time > now), default=None)

    def state(self, index: int) -> EndpointState:
        endpoint = self._endpoints[index]
        states = tuple(c.state for c in self._connections.values() if c.endpoint == index)
        return EndpointState(states, endpoint.reason, endpoint.not_before, endpoint.resting, endpoint.spending)
