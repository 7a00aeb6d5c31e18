"""Takes commands from the uplink and from this machine, carries each out at most once, and owes each a result.

The journal says what happens to a command; here it happens: entry to disk, then the device, then the result to disk,
then the offer. Commands of one device keep their order, devices do not wait for one another. A command that cannot be
written down is not carried out. When too many wait, the next is rejected as busy.

Cancelling `run` leaves commands where they are: what was started is reported as interrupted at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.clock import Clock
from gateway.commands.journal import Entry, Journal
from gateway.commands.limits import Targets, permitted
from gateway.commands.report import Report
from gateway.commands.store import Store
from gateway.errors import CommandError, StoreError
from gateway.model import Command, Json, Outcome, Result, Value, Write

log = logging.getLogger(__name__)

Execute = Callable[[Write], Awaitable[Value | None]]
"""Writes one point; raises CommandError."""

WAITING_LIMIT = 256
"""Commands not yet finished, over all devices."""
LANE_LIMIT = 32
"""Of them, for one device: a dead device does not use up the room of the others."""
UNSAVED_LIMIT = 4 * WAITING_LIMIT
"""Entries that wait for the disk. Beyond it a new command is not taken over at all: the server asks again."""
NAME_LIMIT = 200
"""Characters of a name that is not ours: it goes to the journal and into the log."""
REASON_LIMIT = 500
EXECUTE_TIMEOUT_S = 30.0
REOPEN_S = 30.0
HOUSEKEEPING_S = 3600.0


class Router:
    """One for the whole gateway: `open`, then `run`. All methods are called on the event loop."""

    def __init__(
        self,
        store: Store,
        targets: Targets,
        execute: Execute,
        clock: Clock,
        execute_timeout_s: float = EXECUTE_TIMEOUT_S,
        new_id: Callable[[], str] = lambda: f"local-{secrets.token_hex(8)}",
    ) -> None:
        self._store = store
        self._targets = targets
        self._execute = execute
        self._clock = clock
        self._execute_timeout_s = execute_timeout_s
        self._new_id = new_id
        self._journal = Journal()
        self._opened = False
        self._tasks: asyncio.TaskGroup | None = None
        self._lanes: dict[str, list[asyncio.Event]] = {}
        """Device → one event for each of its unfinished commands, set when it ends, in order."""
        self._unsaved: list[tuple[Entry, Callable[[bool], None]]] = []
        self._to_save = asyncio.Event()
        self._disk_failures = 0
        self._asked = asyncio.Event()
        self._callers: dict[str, asyncio.Future[Result]] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self._report = Report()
        self._wake: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Reads the journal. A disk that fails is retried by `run`; until then commands are unavailable."""
        try:
            ended = self._journal.recover(await self._store.load(), self._utc_ms())
            if ended:
                await self._store.save(ended)
        except StoreError as error:
            self._disk_failed(error)
            return
        self._disk_works()
        self._opened = True
        for entry in ended:
            self._report.ended(entry, self._clock.monotonic())
            self._journal.offer(entry.id)
        self._wake()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._write_entries(), name="commands: disk")
                tasks.create_task(self._answer_unknown(), name="commands: unknown ids")
                tasks.create_task(self._keep_house(), name="commands: retention")
        finally:
            self._tasks = None
            for id, caller in self._callers.items():
                if not caller.done():
                    caller.set_result(Result(id, Outcome.INTERRUPTED, "the gateway is stopping"))

    async def close(self) -> None:
        """After `run` has ended; waits for what the disk is doing."""
        try:
            await self._store.close()
        except StoreError as error:
            log.warning("%s", error)

    # ── what the uplink sees (Commands in uplink/ports.py) ───────────────────────────────────────────────────────

    def receive(self, command: Command) -> None:
        """Takes a command over; its result comes through `results`. A known id only offers its result again."""
        self._take(command)

    def missing(self, open_ids: Sequence[str]) -> None:
        """The server still waits for results of these: known ones are offered again, unknown ones answered."""
        self._journal.missing(open_ids, self._clock.monotonic())
        self._asked.set()
        self._wake()

    def results(self) -> Sequence[Result]:
        """Results that no `result_ack` has come for, oldest first."""
        return self._journal.results()

    def acked(self, command_id: str) -> None:
        """The server has stored this result."""
        entry = self._journal.ack(command_id)
        if entry is not None:
            self._save(entry, lambda _: None)

    def listen(self, wake: Callable[[], None]) -> None:
        """`wake` is called when `results` has more. One listener."""
        self._wake = wake

    # ── what this machine sees ───────────────────────────────────────────────────────────────────────────────────

    async def submit(self, write: Write, source: str) -> Result:
        """Carries out a write that was asked for on this machine, by the same rules. Cancelling does not stop it."""
        now = self._clock.monotonic()
        id = self._new_id()
        command = Command(id, write.device, "write", write.point, write.value, now + self._execute_timeout_s, source)
        caller: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._callers[id] = caller
        self._take(command, write.verify, local=True)
        try:
            return await caller
        finally:
            del self._callers[id]

    def writable(self) -> dict[str, list[str]]:
        """Device → points that accept a write."""
        found = {
            device: [name for name, point in points.items() if point.write is not None]
            for device, points in self._targets.items()
        }
        return {device: names for device, names in found.items() if names}

    def status(self) -> dict[str, Json]:
        return {
            "waiting": {device: len(lane) for device, lane in self._lanes.items()},
            "unacked": len(self._journal.results()),
            "remembered": len(self._journal),
            "outcomes": {str(outcome): count for outcome, count in self._outcomes.items()},
            "disk_failures": self._disk_failures,
        }

    # ── one command ──────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, command: Command, verify: bool = False, local: bool = False) -> None:
        if len(self._unsaved) >= UNSAVED_LIMIT:
            why = "busy: the disk does not keep up"
            self._report.not_taken(command.id, why, self._clock.monotonic())
            self._answer(Result(command.id, Outcome.REJECTED, why))
            return
        command = _bounded(command)
        entry = self._journal.receive(command, self._utc_ms(), local)
        if entry is None:
            self._wake()
            return
        try:
            write = self._accept(command, verify)
        except CommandError as error:
            self._end(self._journal.finish(self._result(command.id, error.outcome, str(error))))
            return
        assert self._tasks is not None, "checked by _accept"
        lane = self._lanes.setdefault(command.device, [])
        before, mine = lane[-1] if lane else None, asyncio.Event()
        lane.append(mine)
        self._tasks.create_task(self._carry_out(command, write, entry, before, mine), name=f"command {command.id}")

    def _accept(self, command: Command, verify: bool) -> Write:
        """Raises CommandError: it ends before it begins."""
        if self._tasks is None:
            raise CommandError(Outcome.UNAVAILABLE, "the gateway is starting or stopping")
        if not self._opened:
            raise CommandError(Outcome.UNAVAILABLE, "the command journal cannot be opened, so nothing is carried out")
        if command.op != "write":
            raise CommandError(Outcome.UNSUPPORTED, f'no operation "{command.op}"; known: write')
        if command.value is None:
            raise CommandError(Outcome.REJECTED, "there is no value to write")
        write = permitted(Write(command.device, command.point, command.value, verify), self._targets)
        waiting = sum(map(len, self._lanes.values()))
        if waiting >= WAITING_LIMIT or len(self._lanes.get(command.device, ())) >= LANE_LIMIT:
            raise CommandError(Outcome.REJECTED, "busy: too many commands wait")
        return write

    async def _carry_out(
        self, command: Command, write: Write, entry: Entry, before: asyncio.Event | None, mine: asyncio.Event
    ) -> None:
        try:
            written = await self._saved(entry)
            if before is not None:
                await before.wait()  # bounded: the one before is under the same timeouts
            if written and command.expires_at <= self._clock.monotonic():
                result = self._result(command.id, Outcome.EXPIRED, "its time to live was over before it was begun")
            elif written and await self._saved(self._journal.start(command.id)):
                result = await self._on_device(command.id, write)
            else:
                why = "it could not be written to disk, so it was not carried out"
                result = self._result(command.id, Outcome.UNAVAILABLE, why)
            self._end(self._journal.finish(result))
        finally:
            mine.set()
            lane = self._lanes[command.device]
            lane.remove(mine)
            if not lane:
                del self._lanes[command.device]

    async def _on_device(self, id: str, write: Write) -> Result:
        try:
            async with asyncio.timeout(self._execute_timeout_s):
                value = await self._execute(write)
        except CommandError as error:
            return self._result(id, error.outcome, str(error), error.value)
        except TimeoutError:
            why = f"no answer within {self._execute_timeout_s:g} s: it may or may not have acted"
            return self._result(id, Outcome.UNKNOWN, why)
        except Exception as error:  # a connector's bug becomes this command's result and nothing more
            log.exception("command %s: writing %s of %s failed unexpectedly", id, write.point, write.device)
            return self._result(id, Outcome.FAILED, f"{type(error).__name__}: {error}")
        return self._result(id, Outcome.OK, "", value)

    def _result(self, id: str, outcome: Outcome, reason: str, value: Value | None = None) -> Result:
        return Result(id, outcome, reason[:REASON_LIMIT], value, self._utc_ms())

    def _end(self, entry: Entry) -> None:
        """Writes the end of a command down, then tells who asked. When the disk fails they are told all the same."""

        assert entry.result is not None, "it has ended"
        result: Result = entry.result

        def tell(_written: bool) -> None:
            self._journal.offer(entry.id)
            self._answer(result)
            self._wake()

        self._outcomes[result.outcome] += 1
        self._report.ended(entry, self._clock.monotonic())
        self._save(entry, tell)

    def _answer(self, result: Result) -> None:
        """To the caller on this machine, when it is one and still waits."""
        caller = self._callers.get(result.id)
        if caller is not None and not caller.done():
            caller.set_result(result)

    # ── disk ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, entry: Entry, then: Callable[[bool], None]) -> None:
        """`then(True)` when it is on disk, `then(False)` when the disk does not take it; in the order of the calls."""
        if self._opened and self._tasks is not None:
            self._unsaved.append((entry, then))
            self._to_save.set()
        else:
            then(False)

    async def _saved(self, entry: Entry) -> bool:
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._save(entry, lambda good: None if written.done() else written.set_result(good))
        return await written

    async def _write_entries(self) -> None:
        """Everything that waits goes in one transaction: one fsync for all of it."""
        while True:
            await self._to_save.wait()
            self._to_save.clear()
            batch, self._unsaved = self._unsaved, []
            try:
                await self._store.save([entry for entry, _ in batch])
            except StoreError as error:
                self._disk_failed(error)
                good = False
            else:
                self._disk_works()
                good = True
            for _, then in batch:
                then(good)

    def _disk_failed(self, error: StoreError) -> None:
        self._disk_failures += 1
        if self._disk_failures == 1:
            log.warning("the command journal fails, commands are not carried out: %s", error)

    def _disk_works(self) -> None:
        if self._disk_failures:
            log.info("the command journal works again after %d failures", self._disk_failures)
        self._disk_failures = 0

    # ── now and then ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer_unknown(self) -> None:
        while True:
            deadline = self._journal.deadline() if self._opened else None
            wait_s = None if deadline is None else max(0.0, deadline - self._clock.monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    await self._asked.wait()
            except TimeoutError:
                for entry in self._journal.tick(self._clock.monotonic(), self._utc_ms()):
                    self._end(entry)
            self._asked.clear()

    async def _keep_house(self) -> None:
        while True:
            if not self._opened:
                await asyncio.sleep(REOPEN_S)
                await self.open()
                self._asked.set()
                continue
            gone = self._journal.forget(self._utc_ms())
            if gone:
                try:
                    await self._store.forget(gone)
                except StoreError as error:
                    self._disk_failed(error)
            await asyncio.sleep(HOUSEKEEPING_S)

    def _utc_ms(self) -> int | None:
        """None when nothing is known of UTC."""
        state = self._clock.state()
        return self._clock.boot_ns() // 1_000_000 + state.offset_ms if state.trust.own else None


def _bounded(command: Command) -> Command:
    """Names that are too long are nobody's; a few characters of them are enough to say so."""
    names = {name: getattr(command, name) for name in ("device", "op", "point")}
    long = {name: f"{text[:NAME_LIMIT]}…" for name, text in names.items() if len(text) > NAME_LIMIT}
    return msgspec.structs.replace(command, **long) if long else command
