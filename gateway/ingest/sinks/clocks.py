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

SLICE_READINGS: Final = 10_000
"""Put right in one transaction: about 20 ms."""
_SLICE_BATCHES: Final = 1_000


def used(db: sqlite3.Connection, gateway: str, sent: ClockState) -> ClockState:
    """What to stamp a batch with that was sent with this."""
    if sent.trust.own:
        return sent
    known = db.execute(
        "SELECT offset_ms, error_ms, trust FROM clock WHERE gateway = ? AND boot = ? AND trust != 'unsynced'"
        " AND (trust != 'server' OR ?) ORDER BY trust != 'server' DESC, id DESC LIMIT 1",
        (gateway, sent.boot, sent.trust is Trust.UNSYNCED),
    ).fetchone()
    return sent if known is None else ClockState(sent.boot, known[0], known[1], Trust(known[2]))


def store(
    db: sqlite3.Connection, gateway: str, clock: ClockState, stream: int, seq: int, next_id: int, now_ms: int
) -> None:
    """A clock record; readings before `next_id` may have to be put right by it."""
    number = db.execute(
        "INSERT INTO clock (gateway, boot, offset_ms, error_ms, trust, stream, seq, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (gateway, clock.boot, clock.offset_ms, clock.error_ms, clock.trust.value, stream, seq, now_ms),
    ).lastrowid
    known = "SELECT 1 FROM clock WHERE gateway = ? AND boot = ? AND trust NOT IN ('unsynced', 'server')"
    if not clock.trust.own and (clock.trust is Trust.UNSYNCED or db.execute(known, (gateway, clock.boot)).fetchone()):
        return  # an earlier process of this boot knew better than any server
    db.execute(
        "DELETE FROM correction WHERE clock IN (SELECT id FROM clock WHERE gateway = ? AND boot = ?)",
        (gateway, clock.boot),
    )
    db.execute("INSERT INTO correction VALUES (?, ?, 0, 0)", (number, next_id))


def proceed(db: sqlite3.Connection) -> bool:
    """Inside a transaction: does one slice of what is to be done. True: there is more."""
    room = SLICE_READINGS
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
    """The next batches of this boot, about as many as there is room for: readings."""
    found = db.execute(
        "SELECT stream, seq, first, readings, offset_ms FROM batch WHERE gateway = ? AND boot = ?"
        " AND trust IN ('unsynced', 'server') AND (stream, seq) > (?, ?) AND first + readings <= ?"
        " ORDER BY stream, seq LIMIT ?",
        (gateway, boot, stream, seq, before, _SLICE_BATCHES),
    ).fetchall()
    taken = 0
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
        taken += readings
        if taken >= room:
            break
    else:
        if len(found) < _SLICE_BATCHES:
            db.execute("DELETE FROM correction WHERE clock = ?", (number,))
            return taken
    db.execute("UPDATE correction SET stream = ?, seq = ? WHERE clock = ?", (stream, seq, number))
    return max(taken, 1)
