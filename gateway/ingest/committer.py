"""Group commit across all connections: what arrives while a group is on its way to the disk is the next group.

A quiet server therefore waits for nothing, and a busy one makes its groups as large as its disk is slow. Gateways take
turns: one that sends as much as it can does not make the others wait. One thread enters the store; everything else
that needs the store is a `call` in that thread. What a clock record left to be put right goes a slice at a time with
the groups, or with groups of nothing while there are none; a stop does not wait for it.

When a commit fails, nothing of the group is acked: `failed` is told, and the next group tries again. The first failure
is logged and so is the recovery; what lies between is counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from gateway.errors import StoreError
from gateway.ingest.sinks.group import StoredResult, Verdict
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.protocol.batch import Body
from gateway.protocol.entry import Entry

log = logging.getLogger(__name__)

MAX_GROUP = 512
"""Entries in one transaction."""
MAX_GROUP_READINGS = 10_000
"""The same in readings: 20 to 50 ms of inserting on one core, which bounds the time to an ack."""

P = ParamSpec("P")
T = TypeVar("T")


class Settled(Protocol):
    """Who hears how it ended. Called on the event loop."""

    def committed(
        self, entries: Sequence[Entry], verdicts: Sequence[Verdict], results: Sequence[StoredResult]
    ) -> None: ...

    def failed(self, entries: Sequence[Entry], error: StoreError) -> None:
        """`Committer.failures` says how often in a row."""


class Owner(Protocol):
    """Who handed entries over."""

    def settled(self, mine: int) -> None:
        """So many of its entries have been answered, after `committed` or `failed`."""

    def result_stored(self, command_id: str) -> None: ...


class Committer:
    """Owns the thread of the store. `run` returns after `close`, when everything handed over is answered."""

    def __init__(self, sink: SqliteSink, utc_ms: Callable[[], int], settled: Settled) -> None:
        self.sink = sink
        self.failures = 0
        """Groups in a row that could not be committed; 0: all is well."""
        self._utc_ms = utc_ms
        self._settled = settled
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest-store")
        self._queues: dict[str, deque[tuple[Entry, Owner]]] = {}
        """By gateway, whose turn it is first. Within a gateway the order stays, over all its sessions."""
        self._waiting = 0
        self._results: list[tuple[StoredResult, Owner]] = []
        self._wake = asyncio.Event()
        if sink.behind:
            self._wake.set()
        self._closing = False

    def store(self, entry: Entry, owner: Owner) -> None:
        """Bounded by the callers: each connection has a bounded number of entries under way."""
        self._queues.setdefault(entry.gateway, deque()).append((entry, owner))
        self._waiting += 1
        self._wake.set()

    def store_result(self, result: StoredResult, owner: Owner) -> None:
        self._results.append((result, owner))
        self._wake.set()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs in the thread of the store, behind what is there already. Raises StoreError and what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))

    @property
    def waiting(self) -> int:
        """Entries that are not in a transaction yet."""
        return self._waiting

    def close(self) -> None:
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        try:
            while not self._closing or self._queues or self._results:
                await self._wake.wait()
                self._wake.clear()
                while self._queues or self._results or (self.sink.behind and not self.failures and not self._closing):
                    group = self._take()
                    results, self._results = self._results, []
                    if await self._commit([entry for entry, _ in group], [result for result, _ in results]):
                        for result, owner in results:
                            owner.result_stored(result.result.id)
                    elif self.failures == 1:
                        self._results = results + self._results  # later ones come again: sessions are closed then
                    for owner, mine in Counter(owner for _, owner in group).items():
                        owner.settled(mine)
        finally:
            self._thread.shutdown(wait=True)

    def _take(self) -> list[tuple[Entry, Owner]]:
        """The next group: one entry of each gateway in turn."""
        group: list[tuple[Entry, Owner]] = []
        readings = 0
        while self._queues and len(group) < MAX_GROUP and readings < MAX_GROUP_READINGS:
            gateway = next(iter(self._queues))
            queue = self._queues.pop(gateway)
            group.append(queue.popleft())
            readings += _readings(group[-1][0])
            if queue:
                self._queues[gateway] = queue
        self._waiting -= len(group)
        return group

    async def _commit(self, entries: list[Entry], results: list[StoredResult]) -> bool:
        try:
            verdicts = await self.call(self.sink.commit, entries, results, self._utc_ms())
        except StoreError as error:
            self._failed(error)
            self._settled.failed(entries, error)
            return False
        self._succeeded()
        self._settled.committed(entries, verdicts, results)
        return True

    async def probe(self) -> bool:
        """Does the store take writes? Asks the disk only while it is failing."""
        if not self.failures:
            return True
        try:
            await self.call(self.sink.probe, self._utc_ms())
        except StoreError as error:
            self._failed(error)
            return False
        self._succeeded()
        if self.sink.behind:
            self._wake.set()
        return True

    def _failed(self, error: StoreError) -> None:
        self.failures += 1
        if self.failures == 1:
            log.error("nothing is stored and nothing acked, gateways keep their data: %s", error)

    def _succeeded(self) -> None:
        if self.failures:
            log.info("the store takes data again after %d failures", self.failures)
            self.failures = 0


def _readings(entry: Entry) -> int:
    return sum(len(group.t) * len(group.points) for group in entry.body.groups) if isinstance(entry.body, Body) else 0
