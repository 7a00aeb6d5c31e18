"""Pure: what became of each command. Executed at most once, and always a result.

    receive ──▶ JOURNALLED ──start──▶ STARTED ──finish──▶ DONE ──ack──▶ ACKED ──30 days──▶ forgotten
                    └─────────────finish──────────────────▲  ▲◀──asked again──┘

Every step is decided here, then put on disk by the caller, then acted on; so a crash falls between two steps:

- STARTED is on disk before the device is touched. Found at a start, it is *interrupted*: whether it took effect is not
  known, and it is never started again.
- JOURNALLED found at a start never touched its device: *unavailable*, and never started either.
- DONE is on disk before it is offered, so a result that was sent is never contradicted after a crash.

A command's id is looked up before anything else: one that is known gives its stored outcome, whatever it says now. Ids
that the server asks for and nobody knows get an answer too, after a grace in which they may still arrive, and from
then on that answer is their outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from gateway.model import Command, Outcome, Result

KEEP_MS = 30 * 86_400_000
"""Results are remembered this long, so that a command that is sent twice is carried out once."""
KEEP_ENTRIES = 20_000
"""Bound on memory: about 500 bytes each, 10 MB. Beyond it the oldest go before their time."""
GRACE_S = 10.0
"""A server lists a command as open and sends it a moment later: only then is it unknown."""


class Step(StrEnum):
    JOURNALLED = "journalled"
    STARTED = "started"
    DONE = "done"
    ACKED = "acked"


_NEXT: dict[Step, tuple[Step, ...]] = {
    Step.JOURNALLED: (Step.STARTED, Step.DONE),
    Step.STARTED: (Step.DONE,),
    Step.DONE: (Step.ACKED,),
    Step.ACKED: (Step.DONE,),
}


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One command as it stands on disk."""

    id: str
    step: Step
    device: str = ""
    point: str = ""
    source: str = ""
    result: Result | None = None
    utc_ms: int | None = None
    """When it was received; None when the clock was not trusted."""
    local: bool = False
    """Asked for on this machine: its caller has the result, and no server is to be told."""


class Journal:
    """All commands that are remembered. Methods return what must be written to disk before going on."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._offered: dict[str, None] = {}
        """Results to be delivered, oldest first (a dict, for its order)."""
        self._asked: dict[str, float] = {}
        """Ids that nobody knows → when their grace is over."""

    def recover(self, entries: Iterable[Entry], utc_ms: int | None) -> list[Entry]:
        """What the disk holds at a start, oldest first: commands that a dead process left unfinished end here."""
        restored = {entry.id: entry for entry in entries}
        self._entries = {**restored, **{id: entry for id, entry in self._entries.items() if id not in restored}}
        changed = []
        for entry in restored.values():
            if entry.step is Step.DONE:
                self.offer(entry.id)
            if entry.step is Step.STARTED:
                why = "the gateway stopped while this was carried out; whether it took effect is not known"
                changed.append(self.finish(Result(entry.id, Outcome.INTERRUPTED, why, utc_ms=utc_ms)))
            elif entry.step is Step.JOURNALLED:
                why = "the gateway stopped before this was begun"
                changed.append(self.finish(Result(entry.id, Outcome.UNAVAILABLE, why, utc_ms=utc_ms)))
        return changed

    def receive(self, command: Command, utc_ms: int | None, local: bool = False) -> Entry | None:
        """None: this id is known. Its result is offered again when it has one, and comes when it has none yet."""
        if command.id in self._entries:
            self.again(command.id)
            return None
        self._asked.pop(command.id, None)
        entry = Entry(
            command.id, Step.JOURNALLED, command.device, command.point, command.source, utc_ms=utc_ms, local=local
        )
        self._entries[command.id] = entry
        return entry

    def start(self, id: str) -> Entry:
        """Write it down, then touch the device."""
        return self._move(id, Step.STARTED)

    def finish(self, result: Result) -> Entry:
        """Write it down, then `offer` it."""
        return self._move(result.id, Step.DONE, result)

    def offer(self, id: str) -> None:
        """The end of this command is on disk: its result may be sent."""
        if self._entries[id].local:
            self._move(id, Step.ACKED)
        else:
            self._offered[id] = None

    def again(self, id: str) -> None:
        """The server does not have this result, although it may have acked it (it restored a backup)."""
        if self._entries[id].step is Step.ACKED and not self._entries[id].local:
            # not written to disk: at worst it is asked for again after a crash
            self._move(id, Step.DONE)
            self.offer(id)

    def ack(self, id: str) -> Entry | None:
        """The server has stored this result. None: nothing changes."""
        if id not in self._offered:
            return None
        del self._offered[id]
        return self._move(id, Step.ACKED)

    def missing(self, ids: Sequence[str], now: float) -> None:
        """The server waits for results of these."""
        for id in ids:
            if id in self._entries:
                self.again(id)
            else:
                self._asked.setdefault(id, now + GRACE_S)

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min(self._asked.values(), default=None)

    def tick(self, now: float, utc_ms: int | None) -> list[Entry]:
        """Ids that did not arrive within their grace: they end as unknown. To be written down, then offered."""
        late = [id for id, until in self._asked.items() if until <= now]
        ended = []
        for id in late:
            del self._asked[id]
            result = Result(id, Outcome.UNKNOWN, "unknown id: never received here, and not carried out", None, utc_ms)
            entry = Entry(id, Step.DONE, result=result, utc_ms=utc_ms)
            self._entries[id] = entry
            ended.append(entry)
        return ended

    def results(self) -> tuple[Result, ...]:
        """What is offered, oldest first."""
        return tuple(result for id in self._offered if (result := self._entries[id].result) is not None)

    def get(self, id: str) -> Entry | None:
        return self._entries.get(id)

    def __len__(self) -> int:
        return len(self._entries)

    def forget(self, utc_ms: int | None) -> list[str]:
        """Ids to delete from disk: acked ones past their time (only a trusted clock can tell), and what
        is beyond the bound, oldest first, whether a server has asked for it or not."""
        too_many = len(self._entries) - KEEP_ENTRIES
        gone: list[str] = []
        for id, entry in self._entries.items():
            old = utc_ms is not None and entry.utc_ms is not None and utc_ms - entry.utc_ms > KEEP_MS
            if (old and entry.step is Step.ACKED) or (len(gone) < too_many and entry.result is not None):
                gone.append(id)
        for id in gone:
            del self._entries[id]
            self._offered.pop(id, None)
        return gone

    def _move(self, id: str, step: Step, result: Result | None = None) -> Entry:
        entry = self._entries[id]
        assert step in _NEXT[entry.step], f"{id}: {entry.step} → {step}"
        self._entries[id] = entry = msgspec.structs.replace(entry, step=step, result=result or entry.result)
        return entry
