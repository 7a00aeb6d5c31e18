"""Pure: which endpoint carries the records, which one waits, and when the next attempt is made.

Endpoints are numbered in order of priority. A connection is one attempt and what became of it; it is known by a number
that is never used again:

    CONNECTING ─opened─▶ STANDBY ─Activate─▶ ACTIVE ─suspect─▶ SUSPECT ─▶ gone
         └──failed──▶ gone                     └──Retire──▶ RETIRING ─▶ gone

What holds after every input: at most one connection is ACTIVE; there is none only while none is open; at most four
connections exist, the server's limit; no attempt is made at an endpoint before its time.

* No active one: the best open standby takes over at once. Else endpoints are tried best first, the next one in
  parallel when one has not opened within a second.
* SUSPECT: a standby on the same sink takes over at once, and whichever ack comes first counts. One on another sink
  waits until the suspect is given up, because what both store exists twice.
* Better endpoints are returned to after five healthy minutes and a random wait, at most twice an hour.
* Make before break: the old connection is retired only when the new one is active. Renewed credentials are taken up in
  that way too: an open session that used others stays until one that uses these is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from gateway.uplink.backoff import Backoff
from gateway.uplink.config import Standby
from gateway.uplink.reactions import QUARTER_HOUR_S, Kind, Reaction

STAGGER_S: Final = 1.0
"""After this the next endpoint is tried as well."""
OTHER_ENDPOINT_JITTER_S: Final = 0.1
PROOF_S: Final = 60.0
"""A connection that had acks for this long has proved itself."""
HEALTHY_S: Final = 300.0
FAIL_BACK_JITTER_S: Final = 300.0
FAIL_BACKS: Final = 2
FAIL_BACK_WITHIN_S: Final = 3600.0
EVICTED_AGAIN_S: Final = 600.0
MAX_CONNECTIONS: Final = 4


class State(Enum):
    CONNECTING = "connecting"
    STANDBY = "standby"
    ACTIVE = "active"
    SUSPECT = "suspect"
    RETIRING = "retiring"


class Connect(NamedTuple):
    """Open a connection; answer with `opened` or `failed`. `standby`: say so in the hello."""

    connection: int
    endpoint: int
    standby: bool


class Activate(NamedTuple):
    """Send records here from now on (and nowhere else)."""

    connection: int


class Retire(NamedTuple):
    """Send nothing more, wait for the acks of what is in flight (a moment only), say bye and close."""

    connection: int
    reason: str


Action = Connect | Activate | Retire


class _Connection:
    __slots__ = ("acked_since", "endpoint", "number", "since", "sink", "standby", "state", "version")

    def __init__(self, number: int, endpoint: int, standby: bool, now: float) -> None:
        self.number = number
        self.endpoint = endpoint
        self.standby = standby
        self.state = State.CONNECTING
        self.sink = ""
        self.version = b""
        self.since = now
        self.acked_since: float | None = None


class _Endpoint:
    def __init__(self, random: Callable[[], float], metered: bool) -> None:
        self.backoff = Backoff(random)
        self.metered = metered
        self.not_before = 0.0
        self.failed_at = 0.0
        """0: it worked when it was last tried."""
        self.resting = False
        self.reason = ""
        self.version = b""
        """The credentials it refused."""
        self.files = b""
        """The credentials that lie there now."""
        self.token_tried = False
        self.evicted_at: float | None = None


class EndpointState(NamedTuple):
    """For status: what is being done about an endpoint."""

    states: tuple[State, ...]
    reason: str
    not_before: float
    resting: bool


class Failover:
    """The state machine. `random` gives numbers in [0, 1)."""

    def __init__(self, metered: Sequence[bool], standby: Standby, random: Callable[[], float]) -> None:
        self._endpoints = [_Endpoint(random, each) for each in metered]
        self._policy = standby
        self._random = random
        self._connections: dict[int, _Connection] = {}
        self._next_number = 1
        self._switch_at = 0.0
        """Not to fall upon another endpoint in the same moment as everybody else."""
        self._fail_backs: deque[float] = deque(maxlen=FAIL_BACKS)
        self._fail_back_at: dict[int, float] = {}
        """Connection → when it has been healthy for long enough."""
        self._move_at: dict[int, float] = {}
        """Connection that shall be left → when."""

    # ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> list[Action]:
        for connection in self._connections.values():
            long_open = connection.state is State.STANDBY and now - connection.since >= HEALTHY_S
            if long_open:
                self._endpoints[connection.endpoint].backoff.proved()
        return self._decide(now)

    def opened(self, number: int, sink: str, now: float, version: bytes = b"") -> list[Action]:
        """The welcome came. A connection that was not opened as a standby is active with it. `version` names the
        credentials that were used.
        """
        connection = self._connections[number]
        endpoint = self._endpoints[connection.endpoint]
        endpoint.reason, endpoint.resting, endpoint.token_tried = "", False, False
        endpoint.not_before = endpoint.failed_at = 0.0
        endpoint.files = connection.version = version
        connection.sink = sink
        connection.since = now
        actions: list[Action] = []
        if connection.standby or self._active() is not None:
            connection.state = State.STANDBY
            wait = HEALTHY_S + self._random() * FAIL_BACK_JITTER_S
            self._fail_back_at[number] = now + wait
        else:
            actions.append(self._activate(connection, now))
        return actions + self._decide(now)

    def acked(self, number: int, now: float) -> None:
        """An ack came; cheap."""
        connection = self._connections.get(number)
        if connection is None:
            return
        if connection.acked_since is None:
            connection.acked_since = now
        elif now - connection.acked_since >= PROOF_S:
            self._endpoints[connection.endpoint].backoff.proved()
            connection.acked_since = now

    def suspect(self, number: int, now: float) -> list[Action]:
        connection = self._connections[number]
        if connection.state is State.ACTIVE:
            connection.state = State.SUSPECT
        return self._decide(now)

    def recovered(self, number: int, now: float) -> list[Action]:
        connection = self._connections[number]
        if connection.state is not State.SUSPECT:
            return []
        if self._active() is None:  # what took over meanwhile may be suspect itself by now
            return [self._activate(connection, now), *self._decide(now)]
        return [self._retire(connection, "another session took over"), *self._decide(now)]

    def move(self, number: int, deadline_s: float, spread_s: float, now: float) -> list[Action]:
        """The server asks to go elsewhere."""
        connection = self._connections[number]
        if number not in self._move_at:
            self._move_at[number] = now + self._random() * min(spread_s, deadline_s)
            if len(self._endpoints) > 1:
                self._endpoints[connection.endpoint].not_before = now + deadline_s
        return self._decide(now)

    def failed(self, number: int, reaction: Reaction, version: bytes, now: float) -> list[Action]:
        """The connection could not be opened, or has ended. `version` names the credentials that were used."""
        connection = self._connections.pop(number)
        self._fail_back_at.pop(number, None)
        self._move_at.pop(number, None)
        if connection.state is not State.RETIRING:
            self._blame(self._endpoints[connection.endpoint], reaction, version, now)
            if connection.state in (State.ACTIVE, State.SUSPECT):
                self._switch_at = now + self._random() * OTHER_ENDPOINT_JITTER_S
        return self._decide(now)

    def _blame(self, endpoint: _Endpoint, reaction: Reaction, version: bytes, now: float) -> None:
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

    # ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        active = self._active()
        if active is None:
            active = self._take_over(actions, now)
        if active is None or active.number in self._move_at:
            active = self._leave(active, actions, now)
        if active is None:
            self._connect_any(actions, now)
            return actions
        self._renew(actions, now)
        self._fail_back(self._active() or active, actions, now)
        self._keep_standby(self._active() or active, actions, now)
        return actions

    def _take_over(self, actions: list[Action], now: float) -> _Connection | None:
        """The best open standby, where a suspect does not forbid it."""
        suspects = [c for c in self._connections.values() if c.state is State.SUSPECT]
        for standby in self._standbys():
            if all(suspect.sink == standby.sink for suspect in suspects):
                actions.append(self._activate(standby, now))
                return standby
        return None

    def _leave(self, active: _Connection | None, actions: list[Action], now: float) -> _Connection | None:
        """The server asked us to move: once its time has come, the next session to open takes over."""
        if active is None or now < self._move_at[active.number]:
            return active
        for standby in self._standbys():
            if standby.number not in self._move_at:
                actions.append(self._activate(standby, now))
                actions.append(self._retire(active, "moving as asked"))
                return standby
        if not any(c.state is State.CONNECTING for c in self._connections.values()):
            only = len(self._endpoints) == 1
            for index in self._available(now):
                if only or index != active.endpoint:
                    actions.append(self._connect(index, True, now))
                    break
        return active

    def _connect_any(self, actions: list[Action], now: float) -> None:
        """Nothing carries records: try the best that may be tried, and the next when that takes long."""
        connecting = [c for c in self._connections.values() if c.state is State.CONNECTING]
        if now < self._switch_at or any(now - c.since < STAGGER_S for c in connecting):
            return
        busy = {c.endpoint for c in connecting} | {c.endpoint for c in self._standbys()}
        suspects = {c.endpoint for c in self._connections.values() if c.state is State.SUSPECT}
        # best first; but none again before the others had their turn, and last what is suspect right now
        free = self._available(now, breaker=False)
        for index in sorted(free, key=lambda i: (i in suspects, self._endpoints[i].failed_at)):
            if index not in busy and len(self._connections) < MAX_CONNECTIONS:
                actions.append(self._connect(index, bool(suspects), now))
                return

    def _renew(self, actions: list[Action], now: float) -> None:
        """A session whose credentials were replaced gives its place to one with those that lie there now."""
        for old in [c for c in self._connections.values() if self._outdated(c)]:
            beside = [c for c in self._connections.values() if c.endpoint == old.endpoint and c is not old]
            may = old.endpoint in self._available(now) and len(self._connections) < MAX_CONNECTIONS
            fresh = next((c for c in beside if c.state is State.STANDBY and not self._outdated(c)), None)
            if fresh is not None:
                if old.state is State.ACTIVE:
                    actions.append(self._activate(fresh, now))
                else:  # it has been healthy for as long as the one before it
                    self._fail_back_at[fresh.number] = self._fail_back_at[old.number]
                actions.append(self._retire(old, "its credentials were renewed"))
            elif may and not any(c.state is State.CONNECTING for c in beside):
                actions.append(self._connect(old.endpoint, True, now))

    def _outdated(self, connection: _Connection) -> bool:
        serves = connection.state in (State.ACTIVE, State.STANDBY) and connection.number not in self._move_at
        return serves and connection.version != self._endpoints[connection.endpoint].files

    def _fail_back(self, active: _Connection, actions: list[Action], now: float) -> None:
        for standby in self._standbys():
            if standby.endpoint >= active.endpoint or now < self._fail_back_at[standby.number]:
                continue
            if len(self._fail_backs) == FAIL_BACKS and now - self._fail_backs[0] < FAIL_BACK_WITHIN_S:
                return
            self._fail_backs.append(now)
            actions.append(self._activate(standby, now))
            actions.append(self._retire(active, "back to a better endpoint"))
            return

    def _keep_standby(self, active: _Connection, actions: list[Action], now: float) -> None:
        """One open session beside the active one, on the best other endpoint; a worse one goes when a better opens."""
        standbys = self._standbys()
        for spare in standbys[1:]:
            actions.append(self._retire(spare, "a better standby is open"))
        best = standbys[0] if standbys else None
        if best is not None and not self._wanted(best.endpoint, active):
            actions.append(self._retire(best, "one is enough"))
        if any(c.state is State.CONNECTING for c in self._connections.values()):
            return
        taken = {c.endpoint for c in self._connections.values()}
        for index in self._available(now):
            if best is not None and index >= best.endpoint:
                return
            room = len(self._connections) < MAX_CONNECTIONS
            if index not in taken and room and self._wanted(index, active):
                actions.append(self._connect(index, True, now))
                return

    def _wanted(self, index: int, active: _Connection) -> bool:
        """As a standby: to fall upon, or to return to."""
        if index < active.endpoint or active.number in self._move_at:
            return True
        if index == active.endpoint:
            return False
        if self._policy is Standby.AUTO:
            return not self._endpoints[index].metered
        return self._policy is Standby.WARM

    # ── small steps ──────────────────────────────────────────────────────────────────────────────────────────────

    def _active(self) -> _Connection | None:
        return next((c for c in self._connections.values() if c.state is State.ACTIVE), None)

    def _standbys(self) -> list[_Connection]:
        """Best first."""
        found = [c for c in self._connections.values() if c.state is State.STANDBY]
        return sorted(found, key=lambda c: (c.endpoint, c.number))

    def _available(self, now: float, breaker: bool = True) -> list[int]:
        """Endpoints that may be tried now. The breaker counts only while something else serves."""
        return [
            index
            for index, endpoint in enumerate(self._endpoints)
            if endpoint.not_before <= now and (not breaker or endpoint.backoff.open_until <= now)
        ]

    def _connect(self, index: int, standby: bool, now: float) -> Connect:
        connection = _Connection(self._next_number, index, standby, now)
        self._next_number += 1
        self._connections[connection.number] = connection
        return Connect(connection.number, index, standby)

    def _activate(self, connection: _Connection, now: float) -> Activate:
        connection.state = State.ACTIVE
        connection.acked_since = None
        self._fail_back_at.pop(connection.number, None)
        return Activate(connection.number)

    def _retire(self, connection: _Connection, reason: str) -> Retire:
        connection.state = State.RETIRING
        self._fail_back_at.pop(connection.number, None)
        self._move_at.pop(connection.number, None)
        return Retire(connection.number, reason)

    # ── outside ──────────────────────────────────────────────────────────────────────────────────────────────────

    def deadline(self, now: float) -> float | None:
        """When to call `tick`; None: only an input can change anything."""
        times = [*self._fail_back_at.values(), *self._move_at.values(), self._switch_at]
        for endpoint in self._endpoints:
            times += [endpoint.not_before, endpoint.backoff.open_until]
        times += [c.since + STAGGER_S for c in self._connections.values() if c.state is State.CONNECTING]
        if len(self._fail_backs) == FAIL_BACKS:
            times.append(self._fail_backs[0] + FAIL_BACK_WITHIN_S)
        return min((time for time in times if time > now), default=None)

    def state(self, index: int) -> EndpointState:
        endpoint = self._endpoints[index]
        states = tuple(c.state for c in self._connections.values() if c.endpoint == index)
        return EndpointState(states, endpoint.reason, endpoint.not_before, endpoint.resting)
