"""One transaction under construction: entries in, rows out, a verdict for each.

Whether an entry is stored is decided by the mark of its stream inside the transaction. What cannot be used is kept as
it came, a dead letter, and counts as stored: it never blocks its lane.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from typing import Any, Final, NamedTuple

import msgspec

from gateway.errors import DecodeError
from gateway.ingest.sinks import clocks
from gateway.ingest.sinks.rows import Numbered, Row, Strip, rows
from gateway.ingest.sinks.shapes import ShapeNumbers
from gateway.ingest.sinks.statuses import StatusNumbers
from gateway.model import ClockState, RecordKind
from gateway.protocol.batch import Body
from gateway.protocol.entry import Entry
from gateway.protocol.messages import GapBody, ResultMessage

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_ERROR_LENGTH: Final = 500
"""Characters of what is wrong: it may quote names, and those are of any length."""


class Verdict(NamedTuple):
    """What became of one entry."""

    mark: int
    """Of its stream, in the transaction that has just been committed."""
    stored: bool = False
    """By this commit; else it was there already, or a number before it is missing."""
    offset_ms: int | None = None
    """By which its readings were stamped, where it has any."""


class StoredResult(NamedTuple):
    gateway: str
    result: ResultMessage


class _StreamRow:
    __slots__ = ("id", "mark", "state")

    def __init__(self, number: int, mark: int, state: str) -> None:
        self.id, self.mark, self.state = number, mark, state


class Group:
    """Made for one transaction; `finish` before that is committed."""

    def __init__(
        self,
        shapes: ShapeNumbers,
        statuses: StatusNumbers,
        next_id: int,
        now_ms: int,
        dead_letters: Counter[str],
    ) -> None:
        """`dead_letters` counts them by gateway, over all groups: of a flood the log tells the 1st, 10th, 100th."""
        self.next_id = next_id
        self._shapes = shapes
        self._statuses = statuses
        self._now_ms = now_ms
        self._streams: dict[tuple[str, str], _StreamRow] = {}
        self._changed: set[tuple[str, str]] = set()
        self._dead_letters = dead_letters
        self._rows: list[Row] = []
        self._strips: list[Strip] = []
        self._batches: list[tuple[Any, ...]] = []

    def apply(self, db: sqlite3.Connection, entry: Entry) -> Verdict:
        """The rule of the mark: the number after it is stored, a smaller one is already stored, a larger one not."""
        stream = self._stream(db, entry)
        if entry.seq > stream.mark + 1 or entry.last <= stream.mark:
            return Verdict(stream.mark)
        first = stream.mark + 1
        offset_ms = None
        poison = entry.poison
        if not poison:
            try:
                offset_ms = self._store(db, entry, stream.id, first)
            except DecodeError as error:
                poison = str(error)
        if poison:
            self._bury(db, entry, stream.id, first, poison[:_ERROR_LENGTH])
        stream.mark = entry.last
        stream.state = "ended" if entry.kind is RecordKind.END else "open"
        self._changed.add((entry.gateway, entry.stream))
        return Verdict(stream.mark, True, offset_ms)

    def _bury(self, db: sqlite3.Connection, entry: Entry, stream: int, first: int, poison: str) -> None:
        db.execute(
            "INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?)",
            (stream, first, entry.kind.name.lower(), poison, entry.raw, self._now_ms),
        )
        self._dead_letters[entry.gateway] += 1
        count = self._dead_letters[entry.gateway]
        if str(count).strip("0") == "1":
            where = (entry.gateway, first, entry.stream)
            log.warning("%s: number %d of stream %s cannot be used (%d so far): %s", *where, count, poison)

    def _stream(self, db: sqlite3.Connection, entry: Entry) -> _StreamRow:
        key = (entry.gateway, entry.stream)
        known = self._streams.get(key)
        if known is None:
            found = db.execute("SELECT id, mark, state FROM stream WHERE gateway = ? AND name = ?", key).fetchone()
            if found is None:
                cursor = db.execute(
                    "INSERT INTO stream (gateway, name, lane, mark, process, first_ms, last_ms)"
                    " VALUES (?, ?, ?, 0, coalesce((SELECT process FROM gateway WHERE name = ?), ''), ?, ?)",
                    (*key, entry.lane.value, entry.gateway, self._now_ms, self._now_ms),
                )
                found = (cursor.lastrowid, 0, "open")
            known = self._streams[key] = _StreamRow(*found)
        return known

    def _store(self, db: sqlite3.Connection, entry: Entry, stream: int, first: int) -> int | None:
        match entry.body:
            case Body():
                return self._store_batch(db, entry, entry.body, stream)
            case GapBody():
                lost = entry.body.readings if first == entry.seq else None
                db.execute(
                    "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        stream,
                        first,
                        entry.last,
                        entry.body.reason.value,
                        lost,
                        entry.body.device,
                        entry.body.since_utc_ms,
                        entry.body.until_utc_ms,
                        self._now_ms,
                    ),
                )
            case ClockState():
                clocks.store(db, entry.gateway, entry.body, stream, entry.seq, self.next_id, self._now_ms)
            case None:
                pass  # the end of a stream is its state
        return None

    def _store_batch(self, db: sqlite3.Connection, entry: Entry, body: Body, stream: int) -> int:
        clock = clocks.used(db, entry.gateway, body.clock)

        def numbered(device: str, points: tuple[str, ...], units: tuple[str, ...]) -> Numbered:
            return self._shapes.numbered(db, entry.gateway, device, points, units)

        made, strips = rows(body, clock.offset_ms, self.next_id, numbered, self._statuses)
        self._rows += made
        self._strips += strips
        self._batches.append(
            (
                stream,
                entry.seq,
                self.next_id,
                len(made),
                entry.gateway,
                clock.boot,
                clock.offset_ms,
                clock.error_ms,
                clock.trust.value,
                body.clock.trust.value,
                self._now_ms,
            )
        )
        self.next_id += len(made)
        return clock.offset_ms

    def finish(self, db: sqlite3.Connection) -> None:
        db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)", self._rows)
        db.executemany("INSERT INTO strip VALUES (?, ?, ?, ?, ?, ?)", self._strips)
        db.executemany("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._batches)
        changed = [self._streams[key] for key in self._changed]
        db.executemany(
            "UPDATE stream SET mark = ?, state = ?, last_ms = ? WHERE id = ?",
            [(stream.mark, stream.state, self._now_ms, stream.id) for stream in changed],
        )


def store_result(db: sqlite3.Connection, gateway: str, result: ResultMessage, now_ms: int) -> None:
    """Once: the first one stands, a repetition changes nothing."""
    db.execute(
        "INSERT OR IGNORE INTO result VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            result.id,
            gateway,
            result.outcome.value,
            result.reason,
            _encode(result.value).decode(),
            result.utc_ms,
            now_ms,
        ),
    )
