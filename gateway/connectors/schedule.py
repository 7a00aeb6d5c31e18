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
- While one device lives, the probes of all others together take no more than `PROBE_SHARE` of the time.

What waits for its time lies in a heap, what is due in one heap for each interval, where the latest is the one that was
due first: a thousand jobs cost a turn no more than ten, on an overloaded bus too.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from gateway.model import DeviceState

COMMANDS_IN_A_ROW = 4
FAILURES_TO_REST = 3
FIRST_PROBE_S = 30.0
LAST_PROBE_S = 300.0
PROBE_SHARE = 0.05
_STALE_MAX = 64
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
        self.ticket = 0
        """Of its one valid entry in the heaps; others are left over."""

    def lateness(self, now: float) -> float:
        return (now - self.due) / self.interval


_Entry = tuple[float, int, Job[W]]
"""When, ticket, job: two of them never compare jobs."""


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
        self._states = Counter({DeviceState.WAITING: len(self._breakers)})
        self._of: dict[str, list[Job[W]]] = {device: [] for device in self._breakers}
        self._tickets = 0
        self._later: list[_Entry[W]] = []
        self._due: dict[float, list[_Entry[W]]] = {}
        """By interval."""
        self._resting: deque[tuple[int, Job[W]]] = deque()
        """Due, of devices that are offline."""
        self._probes: list[tuple[float, str]] = []
        self._probed_at = 0.0
        self._probes_from = now
        for number, job in enumerate(self.jobs):
            job.due = now
            job.origin = now + job.interval * (number * _GOLDEN % 1.0)
            self._of[job.device].append(job)
            self._file(job)

    def pick(self, now: float, free_at: Callable[[str], float]) -> Next[W] | None:
        """What to do now; `free_at(device)` is when its device may be asked. None: nothing, see `next_at`."""
        self._come(now)
        while self._resting:
            ticket, resting = self._resting[0]
            if ticket == resting.ticket:
                return Next(Turn.OFFLINE, resting)
            self._resting.popleft()
        ready = [job for heap in self._due.values() if (job := self._first(heap, now, free_at)) is not None]
        best = max(ready, key=lambda job: job.lateness(now), default=None)
        if self._probes_from <= now or self.all_offline():
            device = self._probe(now, free_at)
            if device is not None:
                self._commands_in_row = 0
                self._probed_at = now
                return Next(Turn.PROBE, min(self._of[device], key=lambda job: job.cost))
        if best is None:
            return None
        self._commands_in_row = 0
        return Next(Turn.READ, best)

    def next_at(self, free_at: Callable[[str], float]) -> float:
        """When `pick` may have something; infinity without jobs."""
        moment = min((job.due for ticket, job in self._resting if ticket == job.ticket), default=float("inf"))
        for _, ticket, job in chain.from_iterable(self._due.values()):
            if ticket == job.ticket:
                moment = min(moment, free_at(job.device))
        while self._later and self._later[0][1] != self._later[0][2].ticket:
            heapq.heappop(self._later)
        if self._later:
            moment = min(moment, self._later[0][0])
        if self._probes:
            bound = self._probes[0][0] if self.all_offline() else self._probes_from
            moment = min(moment, max(self._probes[0][0], bound))
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
        self._file(job)

    def again(self, job: Job[W], at: float) -> None:
        """Still due, to be tried again from `at` on."""
        job.tries += 1
        job.not_before = at
        self._file(job)

    def expedite(self, job: Job[W], now: float) -> None:
        """Due at once, for once; the grid stays."""
        job.due = min(job.due, now)
        self._file(job)

    def replace(self, job: Job[W], others: Sequence[Job[W]]) -> None:
        """Splits a job; its parts take over its grid and are due when it was."""
        for jobs in (self.jobs, self._of[job.device]):
            at = jobs.index(job)
            jobs[at : at + 1] = others
        job.ticket = 0
        for each in others:
            each.due, each.origin = job.due, job.origin
            self._file(each)

    def succeeded(self, device: str, now: float) -> bool:
        """The device answered. True when that is news: then everything of a device that rested is due."""
        breaker = self._breakers[device]
        was = breaker.state
        breaker.failures, breaker.probe_after = 0, FIRST_PROBE_S
        self._enter(breaker, DeviceState.ONLINE)
        if was is DeviceState.OFFLINE:
            for job in self._of[device]:
                self.expedite(job, now)
        return was is not DeviceState.ONLINE

    def failed(self, device: str, now: float) -> bool:
        """The device did not answer. True when its state is news."""
        breaker = self._breakers[device]
        was = breaker.state
        breaker.failures += 1
        if was is DeviceState.OFFLINE:
            breaker.probe_after = min(2 * breaker.probe_after, LAST_PROBE_S)
            self._probes_from = now + (now - self._probed_at) * (1 / PROBE_SHARE - 1)
        if breaker.failures >= FAILURES_TO_REST:
            self._enter(breaker, DeviceState.OFFLINE)
            self._probe_at(device, now + breaker.probe_after)
            for job in self._of[device] if breaker.state is not was else ():
                self._file(job)
        else:
            self._enter(breaker, DeviceState.FAILING)
        return breaker.state is not was

    def failures(self, device: str) -> int:
        """In a row."""
        return self._breakers[device].failures

    def state(self, device: str) -> DeviceState:
        return self._breakers[device].state

    def all_offline(self) -> bool:
        """There are devices, and none lives."""
        return 0 < len(self._breakers) == self._states[DeviceState.OFFLINE]

    def _enter(self, breaker: _Breaker, state: DeviceState) -> None:
        self._states[breaker.state] -= 1
        self._states[state] += 1
        breaker.state = state

    def _file(self, job: Job[W]) -> None:
        """Puts a job where its time is; its entry elsewhere no longer counts."""
        self._tickets += 1
        job.ticket = self._tickets
        heapq.heappush(self._later, (max(job.due, job.not_before), job.ticket, job))
        if len(self._later) > 2 * len(self.jobs) + _STALE_MAX:
            self._later = [entry for entry in self._later if entry[1] == entry[2].ticket]
            heapq.heapify(self._later)

    def _come(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, ticket, job = heapq.heappop(self._later)
            if ticket != job.ticket:
                continue
            if self._breakers[job.device].state is DeviceState.OFFLINE:
                self._resting.append((ticket, job))
            else:
                heapq.heappush(self._due.setdefault(job.interval, []), (job.due, ticket, job))

    @staticmethod
    def _first(heap: list[_Entry[W]], now: float, free_at: Callable[[str], float]) -> Job[W] | None:
        """Which of one interval has waited longest, of those whose device may be asked; few may not."""
        passed = []
        found = None
        while heap and found is None:
            _, ticket, job = heap[0]
            if ticket != job.ticket:
                heapq.heappop(heap)
            elif free_at(job.device) <= now:
                found = job
            else:
                passed.append(heapq.heappop(heap))
        for entry in passed:
            heapq.heappush(heap, entry)
        return found

    def _probe_at(self, device: str, at: float) -> None:
        self._breakers[device].probe_at = at
        heapq.heappush(self._probes, (at, device))

    def _probe(self, now: float, free_at: Callable[[str], float]) -> str | None:
        """The device whose turn it is to be tried."""
        while self._probes and self._probes[0][0] <= now:
            at, device = self._probes[0]
            breaker = self._breakers[device]
            if breaker.state is DeviceState.OFFLINE and breaker.probe_at == at:
                if free_at(device) <= now:
                    return device
                self._probe_at(device, free_at(device))
            heapq.heappop(self._probes)
        return None
