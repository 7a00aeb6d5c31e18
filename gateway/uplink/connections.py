"""Pure: the words of the state machine, and what it knows of each connection and of each endpoint."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import NamedTuple

from gateway.uplink.backoff import Backoff


class State(Enum):
    """Of one connection."""

    CONNECTING = "connecting"
    STANDBY = "standby"
    ACTIVE = "active"
    SUSPECT = "suspect"
    RETIRING = "retiring"


class Spending(IntEnum):
    """What the data budget of an endpoint still allows."""

    WITHIN = 0
    RESERVE = 1
    """Only alarms and results of commands."""
    OVER = 2
    """Nothing: no connection either."""


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


class Connection:
    """One attempt and what became of it."""

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


class Standing:
    """What came of one endpoint so far."""

    def __init__(self, random: Callable[[], float], metered: bool) -> None:
        self.backoff = Backoff(random)
        self.metered = metered
        self.spending = Spending.WITHIN
        self.not_before = 0.0
        self.failed_at = 0.0
        """0: it worked when it was last tried."""
        self.resting = False
        self.reason = ""
        self.version = b""
        """The credentials it refused."""
        self.files = b""
        """The credentials that lie there now."""
        self.evicted_at: float | None = None


class EndpointState(NamedTuple):
    """For status: what is being done about an endpoint."""

    states: tuple[State, ...]
    reason: str
    not_before: float
    resting: bool
    spending: Spending
