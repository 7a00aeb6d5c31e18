"""What is known of the clocks of boots, and stamps that are put right by it.

A clock record tells how to stamp the batches of its boot that came before it without a trusted clock; those that come
after it (a backlog behind the live stream) are right from the start. A boot may have millions of readings, so the
table `correction` says what is still to be done, at most one row for a boot: every commit does one slice, whole
batches with their strips, and notes in the same transaction how far it came. A stop in between loses nothing.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from gateway.model import ClockState, Trust

SLICE: Final = 10_000
"""Readings put right in one transaction: about 40 ms."""
BATCH: Final = 20
"""What a batch costs beside its readings, in readings."""

_OWN: Final = "trust IN ('synced', 'holdover')"
_TOLD: Final = "trust = 'server'"


def used(db: sqlite3.Connection, gateway: str, sent: ClockState) -> ClockState:
    """What to stamp a batch with that was sent with this."""
    if sent.trust.own:
        return sent
    known = _newest(db, gateway, sent.boot, _OWN)
    if known is None and sent.trust is Trust.UNSYNCED:
        known = _newest(db, gateway, sent.boot, _TOLD)
    return known or sent


def _newest(db: sqlite3.Connection, gateway: str, boot: str, whose: str) -> ClockState | None:
    """The newest record of a boot; `whose` is, word for word, what one of the indexes is limited to."""
    found = db.execute(
        f"SELECT offset_ms, error_ms, trust FROM clock WHERE gateway = ? AND boot = ? AND {whose}"
        " ORDER BY id DESC LIMIT 1",
        (gateway, boot),
    ).fetchone()
    return None if found is None else ClockState(boot, found[0], found[1], Trust(found[2]))


def store(
    db: sqlite3.Connection, gateway: str, clock: ClockState, stream: int, seq: int, next_id: int, now_ms: int
) -> None:
    """A clock record; readings before `next_id` may have to be put right by it.

    The first one of a gateway's own clock settles them for good; whatever comes later finds nothing to put right.
    """
    settled = _newest(db, gateway, clock.boot, _OWN) is not None
    number = db.execute(
        "INSERT INTO clock (gateway, boot, offset_ms, error_ms, trust, stream, seq, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (gateway, clock.boot, clock.offset_ms, clock.error_ms, clock.trust.value, stream, seq, now_ms),
    ).lastrowid
    if settled or clock.trust is Trust.UNSYNCED:
        return
    db.execute(
        "DELETE FROM correction WHERE (SELECT gateway = ? AND boot = ? FROM clock WHERE id = correction.clock)",
        (gateway, clock.boot),
    )
    db.execute("INSERT INTO correction VALUES (?, ?, 0, 0)", (number, next_id))


def proceed(db: sqlite3.Connection) -> bool:
    """Inside a transaction: does one slice of what is to be done. True: there is more."""
    room = SLICE
    while room > 0:
        work = db.execute(
            "SELECT w.clock, w.before, w.stream, w.seq, c.gateway, c.boot, c.offset_ms, c.error_ms, c.trust"
            " FROM correction w JOIN clock c ON c.id = w.clock ORDER BY w.clock LIMIT 1"
        ).fetchone()
        if work is None:
            return False
        room -= _correct(db, room, *work)
    return True


def _correct(
    db: sqlite3.Connection,
    room: int,
    number: int,
    before: int,
    stream: int,
    seq: int,
    gateway: str,
    boot: str,
    offset_ms: int,
    error_ms: int,
    trust: str,
) -> int:
    """The next batches of this boot, as many as there is room for: what they cost."""
    found = db.execute(
        "SELECT stream, seq, first, readings, offset_ms FROM batch WHERE gateway = ? AND boot = ?"
        " AND trust IN ('unsynced', 'server') AND (stream, seq) > (?, ?) AND first + readings <= ?"
        " ORDER BY stream, seq LIMIT ?",
        (gateway, boot, stream, seq, before, room // BATCH + 1),
    ).fetchall()
    cost: int = 0
    for stream, seq, first, readings, wrong_ms in found:
        ids = (offset_ms - wrong_ms, first, first + readings)
        db.execute("UPDATE reading SET ts_ms = ts_ms + ? WHERE id >= ? AND id < ? AND form & 4 = 0", ids)
        db.execute(
            "UPDATE strip SET from_ms = from_ms + ?1, to_ms = to_ms + ?1 WHERE first >= ?2 AND first < ?3"
            " AND stamped = 0",
            ids,
        )
        db.execute(
            "UPDATE batch SET offset_ms = ?, error_ms = ?, trust = ? WHERE stream = ? AND seq = ?",
            (offset_ms, error_ms, trust, stream, seq),
        )
        cost += BATCH + readings
        if cost >= room:
            db.execute("UPDATE correction SET stream = ?, seq = ? WHERE clock = ?", (stream, seq, number))
            return cost
    db.execute("DELETE FROM correction WHERE clock = ?", (number,))
    return cost + BATCH
