"""Pure: streams as the event loop knows them: what is in memory, what the disk holds, what is acked.

A record in memory is *fresh*: neither on disk nor acked. Commit and ack both end that; an acked one is then *kept*
for a while, in case the sink loses it. Fresh records are the newest of their stream, but for gaps that were put in
later: a commit takes all of them, so that a hole below a committed number means "was acked".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.buffer.gaps import gap_body
from gateway.buffer.ledger import Home
from gateway.buffer.ring import Entry
from gateway.buffer.schema import SEQ_MASK, Disk
from gateway.model import GapReason, Lane, Record, RecordKind
from gateway.protocol.messages import GapBody, StreamOffer

SINKS_KNOWN: Final = 16
"""Of one stream."""
SOMEBODY: Final = "?"
"""Stands for sinks that are forgotten: any of them may have acked anything."""
RECORD_OVERHEAD: Final = 400
"""Bytes that a record in memory costs beside its body, roughly."""


class Settling:
    """One call of `append`: who is told once all of its records are safe."""

    __slots__ = ("_call", "left")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.left = 1  # the call itself, until all of its rows are placed

    def done(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._call()


class Flight:
    """A ring entry that holds one record or several."""

    __slots__ = ("entry", "left")

    def __init__(self, entry: Entry, left: int) -> None:
        self.entry = entry
        self.left = left


class Held:
    """A fresh record."""

    __slots__ = ("at_ms", "born_s", "flight", "grounded", "home", "record", "settlings", "utc_ms", "writing")

    def __init__(self, record: Record, at_ms: int, utc_ms: int | None, born_s: float) -> None:
        self.record = record
        self.at_ms = at_ms
        self.utc_ms = utc_ms
        self.born_s = born_s
        self.flight: Flight | None = None
        """None: the ring has no room for it (or there is no ring), so it is committed before it is sent."""
        self.grounded: Sequence[Entry] = ()
        """ROWS in the ring that are in this record; there was no room for the record itself."""
        self.home: Home | None = None
        self.settlings: tuple[Settling, ...] = ()
        self.writing = False
        """The store is at it."""

    @property
    def bytes(self) -> int:
        return len(self.record.body) + RECORD_OVERHEAD

    def evictable(self, in_flight: int) -> bool:
        """Whether it may be given up when memory is full: not in flight, not being written, not promised."""
        return (
            self.record.kind is RecordKind.BATCH
            and self.record.seq > in_flight
            and not self.writing
            and not self.settlings
            and self.home is None
        )


class Stream:
    """One ordered run of records."""

    def __init__(self, name: str, lane: Lane, boot: str, *, sealed: bool = False) -> None:
        self.name = name
        self.lane = lane
        self.boot = boot
        self.sealed = sealed
        self.ours = False
        """This process opened it."""
        self.next = 1
        self.mark = 0
        """Acked up to here by any sink, and not lost by it since."""
        self.acked = 0
        """Acked up to here by any sink at any time."""
        self.marks: dict[str, int] = {}
        """By sink; of a stream that an earlier process opened, they may be too low."""
        self.marks_on_disk: dict[str, int] = {}
        self.ackers: dict[str, Entry | None] = {}
        """Sinks that have acked something, as a later process will find them: in the ring, or (None) on disk."""
        self.inherited: frozenset[str] = frozenset()
        """Sinks that had acked something when this process began: what was missing then, they have."""
        self.confirmed = 0
        """Grows from one stream to the next whenever a sink says that it has all of it."""
        self.held = 0
        """In flight up to here."""
        self.fetching = 0
        """So many are reading it."""
        self.sent = 0
        """Handed out up to here: what lies below keeps its body."""
        self.fresh: dict[int, Held] = {}
        """By number, in order."""
        self.kept: dict[int, Record] = {}
        self.pins: dict[int, Home] = {}
        """Rows on disk whose origins are not forgotten."""
        self.unpinned = 0
        """The highest number of a row on disk whose origins are forgotten."""
        self.proved_on_disk = 0
        self.disk: Disk | None = None

    def insert(self, held: Held) -> None:
        """Adds a fresh record, wherever its number belongs."""
        seq = held.record.seq
        self.next = max(self.next, held.record.upto + 1)
        if self.fresh and seq < next(reversed(self.fresh)):
            self.fresh[seq] = held
            self.fresh = dict(sorted(self.fresh.items()))
        else:
            self.fresh[seq] = held

    def set_disk(self, disk: Disk | None) -> None:
        self.disk = disk if disk is not None and disk.rows else None
        if self.disk is not None:
            self.next = max(self.next, self.disk.last + 1)

    @property
    def pinned(self) -> int:
        """Up to here nothing may be given up: it is in flight, or about to be."""
        return SEQ_MASK if self.fetching else self.held

    @property
    def waiting_on_disk(self) -> int:
        """Records on disk that no sink has acked."""
        disk = self.disk
        return 0 if disk is None else min(disk.rows, max(0, disk.last - self.mark))

    @property
    def waiting(self) -> int:
        return len(self.fresh) + self.waiting_on_disk

    @property
    def marks_due(self) -> bool:
        """Whether the marks on disk must follow. Of a stream that one sink alone has acked, the holes tell the mark."""
        marks, stored = self.marks, self.marks_on_disk
        return marks.keys() != stored.keys() or (len(marks) > 1 and marks != stored)

    @property
    def proved(self) -> int:
        """Up to here no message can come again, though rows on disk still name it.

        What the ring held too is fresh: its messages moved there from the row, and come back with the next commit."""
        fresh = (seq for seq, held in self.fresh.items() if held.home is not None and held.home.left)
        return min([self.unpinned, *(seq - 1 for seq in (*self.pins, *fresh))])

    @property
    def proved_due(self) -> bool:
        return self.unpinned > self.proved_on_disk and self.proved > self.proved_on_disk

    def meet(self, sink: str) -> None:
        """A sink acks something here. Servers that call themselves by a new name each time fill no memory."""
        if sink not in self.marks and len(self.marks) >= SINKS_KNOWN:
            self.marks = {SOMEBODY: 0}
            self.inherited = frozenset()

    def stored_elsewhere(self, sink: str, first: int) -> int:
        """Up to here another sink has whatever is missing from `first` on; below `first`: it is not known to."""
        if first <= self.marks.get(sink, 0) or (first == 1 and self.inherited & {sink, SOMEBODY}):
            return 0  # it had it, and went back; to the others this may have been a gap that said so
        known = self.inherited and not self.inherited & {sink, SOMEBODY}
        if known and first > self.marks.get(sink, 0):
            return SEQ_MASK  # a hole that was found was acked, and not by this one
        return max((mark for other, mark in self.marks.items() if other != sink), default=0)

    @property
    def empty(self) -> bool:
        return not self.fresh and not self.kept and self.disk is None

    def in_memory(self, seq: int, *, grounded: bool) -> tuple[dict[int, Record], int]:
        """Records in memory from `seq` on, and the number before which all may be handed out; see `end`."""
        end = self.end(grounded=grounded)
        records: dict[int, Record] = {}
        if seq <= self.acked:  # what is kept is acked, and there may be thousands of them
            records = {number: record for number, record in self.kept.items() if record.upto >= seq}
        for number, held in self.fresh.items():
            if number >= end:
                break
            if held.record.upto >= seq:
                records[number] = held.record
        return records, end

    def end(self, *, grounded: bool) -> int:
        """The number before which all may be handed out: records that are not in the ring end it, unless `grounded`,
        because a crash would take their identity."""
        if not grounded:
            for number, held in self.fresh.items():
                if held.flight is None:
                    return number
        return self.next

    def grounded_at(self, seq: int) -> bool:
        """Whether the first fresh record from `seq` on must be committed before it is handed out."""
        first = next((held for held in self.fresh.values() if held.record.upto >= seq), None)
        return first is not None and first.flight is None

    def growing_gap(self, held: Held) -> GapBody | None:
        """A gap that may still grow: of ours, for want of memory, and nobody has seen it yet."""
        seen = not self.ours or held.record.seq <= self.sent
        if held.record.kind is not RecordKind.GAP or seen or held.writing or held.settlings:
            return None
        body = gap_body(held.record.body)
        return body if body is not None and body.reason is GapReason.OVERFLOW and body.readings is not None else None

    def offer(self, *, grounded: bool) -> StreamOffer:
        first = end = self.end(grounded=grounded)
        if self.fresh:
            first = min(end, next(iter(self.fresh)))
        if self.disk is not None and self.disk.last > self.mark:
            first = min(first, max(self.disk.first, self.mark + 1))
        return StreamOffer(self.name, self.lane, first, end, self.sealed)


class Kept:
    """Acked records that stay in memory, by bytes: the oldest ack goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._order: deque[tuple[Stream, int, int]] = deque()
        self.bytes = 0

    def add(self, stream: Stream, record: Record) -> None:
        size = len(record.body) + RECORD_OVERHEAD
        stream.kept[record.seq] = record
        self._order.append((stream, record.seq, size))
        self.bytes += size
        while self.bytes > self._limit_bytes:
            old, seq, size = self._order.popleft()
            old.kept.pop(seq, None)
            self.bytes -= size
