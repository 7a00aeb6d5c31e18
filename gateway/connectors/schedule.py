"""Pure: what a polled bus does next, and which of its devices rest.

Invariants:
- A job is due on a grid: origin + k × interval, by multiplication, so it never drifts. A grid point that passed while
  the bus was busy is counted in `skipped` and not made up for: there is never a backlog.
- The first run of every job is at once; after that the origins of jobs are spread over their intervals, so twenty
  meters of one interval do not fire together.
- Of all jobs that are due the one latest in proportion to its interval goes first. A job that ran is not late, so every
  other one comes before it again: nothing starves.
- Commands go before polls, but after `COMMANDS_IN_A_ROW` of them an overdue poll has its turn.
- A device that failed `FAILURES_TO_REST` times in a row is offline: its jobs are answered without asking the bus, but
  for one probe after 30 s, 60 s, … 5 min. The first success ends that, and everything of the device is due at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

from gateway.model import DeviceState

COMMANDS_IN_A_ROW = 4
FAILURES_TO_REST = 3
FIRST_PROBE_S = 30.0
LAST_PROBE_S = 300.0
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 lie evenly, however many there are

W = TypeVar("W")


class Turn(Enum):
    """What to do with a job."""

    READ = auto()
    PROBE = auto()
    """Read it to see whether its device is back."""
    OFFLINE = auto()
    """Its time has come and its device rests: say so, ask nothing."""


class Job(Generic[W]):
    """Something done every `interval` seconds for one device."""

    def __init__(self, device: str, interval: float, work: W, cost: float = 0.0) -> None:
        self.device = device
        self.interval = interval
        self.work = work
        self.cost = cost
        self.due = 0.0
        self.origin = 0.0
        self.not_before = 0.0
        self.tries = 0
        """How often it was tried again for this due time."""

    def lateness(self, now: float) -> float:
        return (now - self.due) / self.interval


class Next(NamedTuple, Generic[W]):
    turn: Turn
    job: Job[W]


class _Breaker:
    def __init__(self) -> None:
        self.state = DeviceState.WAITING
        self.failures = 0
        self.probe_at = 0.0
        self.probe_after = FIRST_PROBE_S


class Schedule(Generic[W]):
    """See the module."""

    def __init__(self, jobs: Sequence[Job[W]], now: float) -> None:
        self.jobs = list(jobs)
        self.skipped = 0
        self._commands_in_row = 0
        self._breakers = {job.device: _Breaker() for job in jobs}
        for number, job in enumerate(self.jobs):
            job.due = now
            job.origin = now + job.interval * (number * _GOLDEN % 1.0)

    def pick(self, now: float, free_at: Callable[[str], float]) -> Next[W] | None:
        """What to do now; `free_at(device)` is when its device may be asked. None: nothing, see `next_at`."""
        best: Next[W] | None = None
        for job in self.jobs:
            breaker = self._breakers[job.device]
            if breaker.state is DeviceState.OFFLINE:
                if job.due <= now:
                    return Next(Turn.OFFLINE, job)
                if breaker.probe_at <= now and free_at(job.device) <= now:
                    self._commands_in_row = 0
                    return Next(Turn.PROBE, self._cheapest(job.device))
            elif max(job.due, job.not_before) <= now and (best is None or job.lateness(now) > best.job.lateness(now)):
                best = Next(Turn.READ, job) if free_at(job.device) <= now else best
        if best:
            self._commands_in_row = 0
        return best

    def next_at(self, free_at: Callable[[str], float]) -> float:
        """When `pick` may have something; infinity without jobs."""
        moment = float("inf")
        for job in self.jobs:
            breaker = self._breakers[job.device]
            if breaker.state is DeviceState.OFFLINE:
                moment = min(moment, job.due, max(breaker.probe_at, free_at(job.device)))
            else:
                moment = min(moment, max(job.due, job.not_before, free_at(job.device)))
        return moment

    def command_may_go(self, now: float, free_at: Callable[[str], float]) -> bool:
        """True when a waiting command comes before the polls; call it only to send one."""
        if self._commands_in_row >= COMMANDS_IN_A_ROW and self.next_at(free_at) <= now:
            return False
        self._commands_in_row += 1
        return True

    def advance(self, job: Job[W], now: float) -> None:
        """This due time is dealt with: on to the next one on the grid after now."""
        point = int((now - job.origin) // job.interval) + 1
        due = job.origin + point * job.interval
        if due <= now:  # the quotient was rounded
            due = job.origin + (point + 1) * job.interval
        self.skipped += max(0, round((due - job.due) / job.interval) - 1)
        job.due, job.not_before, job.tries = due, 0.0, 0

    def again(self, job: Job[W], at: float) -> None:
        """Still due, to be tried again from `at` on."""
        job.tries += 1
        job.not_before = at

    def expedite(self, job: Job[W], now: float) -> None:
        """Due at once, for once; the grid stays."""
        job.due = min(job.due, now)

    def replace(self, job: Job[W], others: Sequence[Job[W]]) -> None:
        """Splits a job; its parts take over its grid and are due when it was."""
        at = self.jobs.index(job)
        for each in others:
            each.due, each.origin = job.due, job.origin
        self.jobs[at : at + 1] = others

    def succeeded(self, device: str, now: float) -> bool:
        """The device answered. True when that is news: then everything of a device that rested is due."""
        breaker = self._breakers[device]
        was, breaker.state = breaker.state, DeviceState.ONLINE
        breaker.failures, breaker.probe_after = 0, FIRST_PROBE_S
        if was is DeviceState.OFFLINE:
            for job in self.jobs:
                if job.device == device:
                    self.expedite(job, now)
        return was is not DeviceState.ONLINE

    def failed(self, device: str, now: float) -> bool:
        """The device did not answer. True when its state is news."""
        breaker = self._breakers[device]
        was = breaker.state
        breaker.failures += 1
        if was is DeviceState.OFFLINE:
            breaker.probe_after = min(2 * breaker.probe_after, LAST_PROBE_S)
        if breaker.failures >= FAILURES_TO_REST:
            breaker.state = DeviceState.OFFLINE
            breaker.probe_at = now + breaker.probe_after
        else:
            breaker.state = DeviceState.FAILING
        return breaker.state is not was

    def failures(self, device: str) -> int:
        """In a row."""
        return self._breakers[device].failures

    def state(self, device: str) -> DeviceState:
        return self._breakers[device].state

    def all_offline(self) -> bool:
        return all(breaker.state is DeviceState.OFFLINE for breaker in self._breakers.values())

    def _cheapest(self, device: str) -> Job[W]:
        return min((job for job in self.jobs if job.device == device), key=lambda job: job.cost)
