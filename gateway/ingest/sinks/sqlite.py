"""The store in one SQLite file. Synchronous: one thread enters it (`Committer`).

What holds: the rows of a batch and the mark of its stream change in one transaction, and the comparison with the mark
is made inside it. WAL with synchronous=FULL: when `commit` returns, a power cut cannot take it back. When it raises,
nothing of the group was promised, and the next call tries again on a fresh connection. What that finds is on disk: a
commit whose sync failed may be in the log all the same, and is there for good, or is not there at all.

Readings of a boot whose clock was not trusted are put right in the transaction that takes the boot's clock record, and
those that come after it (a backlog behind the live stream) are right from the start.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.disk import renew_log
from gateway.errors import DecodeError, StoreError
from gateway.ingest.live import Seed
from gateway.ingest.sinks.rows import Rows, rows, value_of
from gateway.ingest.sinks.series import SeriesNumbers
from gateway.model import ClockState, GapReason, Lane, RecordKind, Status, Trust
from gateway.protocol.batch import Body
from gateway.protocol.entry import Entry
from gateway.protocol.marks import Mark
from gateway.protocol.messages import MAX_OPEN_COMMANDS, GapBody, Hello, ResultMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

FILE = "ingest.db"
_SEALED_IN_HELLO = 32

_encode = msgspec.json.Encoder().encode


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


class SqliteSink:
    """Opens, and creates or migrates, the file in `folder`. Raises StoreError.

    `alone`: this process is the only one that has the folder (`server.take`). Others only look.
    """

    def __init__(self, folder: Path, *, alone: bool = True) -> None:
        self.path = folder / FILE
        self._alone = alone
        self._doubtful = True
        """The log may hold what is not on disk: somebody left it behind, or a sync failed."""
        self._db: sqlite3.Connection | None = None
        self._codes: dict[Status, int] = {}
        self._next_id = 1
        self.sink_id = ""
        with self._mapped():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.open()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    # ── connection ───────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """The seam: foreign errors become StoreError, and the connection they came from is given up."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                self._doubtful = True
            self._give_up()
            raise StoreError(f"{self.path}: {error}") from error

    def _give_up(self) -> None:
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error as error:
                log.debug("closing a failed connection: %s", error)
            self._db = None

    def open(self) -> sqlite3.Connection:
        """The connection, made anew after a failure."""
        if self._db is not None:
            return self._db
        if self._alone and self._doubtful:
            renew_log(self.path)
            self._doubtful = False
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        self.path.chmod(0o600)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 4000",  # 16 MiB: fewer checkpoints, each page written once for many commits
            "journal_size_limit = 67108864",
            "cache_size = -65536",
            "temp_store = MEMORY",
        ):
            db.execute(f"PRAGMA {pragma}")
        self._migrate(db)
        self._load(db)

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Numbered files, forward only, each in its own transaction."""
        folder = resources.files("gateway.ingest.sinks") / "migrations"
        steps = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(steps):
            raise StoreError(f"{self.path} was written by a newer version (schema {version})")
        for number, name in enumerate(steps[version:], start=version + 1):
            text = (folder / name).read_text(encoding="utf-8")
            db.executescript(f"BEGIN IMMEDIATE; {text}; PRAGMA user_version = {number}; COMMIT")
        if version == 0:
            db.execute(
                "INSERT INTO sink SELECT ?, ?, 0 WHERE NOT EXISTS (SELECT 1 FROM sink)", (secrets.token_hex(16), 0)
            )

    def _load(self, db: sqlite3.Connection) -> None:
        for status in Status:
            number = 0 if status is Status.GOOD else None
            db.execute("INSERT OR IGNORE INTO status (id, name) VALUES (?, ?)", (number, status.value))
        names = dict(db.execute("SELECT name, id FROM status"))
        self._codes = {status: names[status.value] for status in Status}
        (self.sink_id,) = db.execute("SELECT id FROM sink").fetchone()
        (last,) = db.execute("SELECT max(id) FROM reading").fetchone()
        self._next_id = (last or 0) + 1
        self._series = SeriesNumbers(db)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits at the end; on any error nothing is changed. Raises StoreError."""
        with self._mapped():
            db = self.open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Raises StoreError."""
        with self._mapped():
            return self.open().execute(sql, parameters).fetchall()

    def probe(self, now_ms: int) -> None:
        """Does the disk take writes? Raises StoreError."""
        with self.transaction() as db:
            db.execute("UPDATE sink SET probed_ms = ?", (now_ms,))

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def marks(self, gateway: str, streams: Iterable[str]) -> dict[str, Mark]:
        """What is stored of each of these streams. Raises StoreError."""
        sql = "SELECT mark, lane, state = 'ended' FROM stream WHERE gateway = ? AND name = ?"
        found = {}
        for stream in streams:
            known = self.query(sql, (gateway, stream))
            found[stream] = Mark(known[0][0], Lane(known[0][1]), bool(known[0][2])) if known else Mark()
        return found

    def hello(self, gateway: str, hello: Hello, now_ms: int) -> tuple[dict[str, Mark], tuple[str, ...]]:
        """Notes who is there; returns the marks of the offered streams and the commands without a result.

        Streams of an earlier process that are not offered any more and never ended, ended uncleanly. A gateway that
        offers as many sealed streams as fit may hold more of them than it names, so nothing is concluded then.
        """
        offered = [offer.stream for offer in hello.streams]
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO gateway (name, added_ms) VALUES (?, ?)", (gateway, now_ms))
            if sum(offer.sealed for offer in hello.streams) < _SEALED_IN_HELLO:
                for number, name in db.execute(
                    "SELECT id, name FROM stream WHERE gateway = ? AND state = 'open' AND process != ?",
                    (gateway, hello.process),
                ).fetchall():
                    if name not in offered:
                        db.execute("UPDATE stream SET state = 'unclean' WHERE id = ?", (number,))
            db.executemany(
                "UPDATE stream SET process = ? WHERE gateway = ? AND name = ?",
                [(hello.process, gateway, name) for name in offered],
            )
            db.execute(
                "UPDATE gateway SET process = ?, software = ?, hello_ms = ?, devices = ?, writable = ? WHERE name = ?",
                (
                    hello.process,
                    hello.software,
                    now_ms,
                    _encode(hello.devices).decode(),
                    _encode(hello.writable).decode(),
                    gateway,
                ),
            )
        open_commands = self.query(
            "SELECT id FROM command c WHERE gateway = ? AND sent_ms IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM result r WHERE r.gateway = c.gateway AND r.command = c.id)"
            " ORDER BY issued_ms DESC LIMIT ?",
            (gateway, MAX_OPEN_COMMANDS),
        )
        return self.marks(gateway, offered), tuple(row[0] for row in open_commands)

    # ── for people ───────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self, limit: int = 20_000) -> list[Seed]:
        """The newest acquisition of each point. Raises StoreError."""
        found = self.query(
            "SELECT s.gateway, s.device, s.point, s.unit, r.value, r.form, q.name, r.ts_ms FROM series s"
            " JOIN reading r ON r.id ="
            " (SELECT id FROM reading WHERE series = s.id ORDER BY ts_ms DESC, id DESC LIMIT 1)"
            " JOIN status q ON q.id = r.status ORDER BY s.id LIMIT ?",
            (limit,),
        )
        return [
            Seed(gateway, device, point, unit, value_of(value, form), status, ts_ms)
            for gateway, device, point, unit, value, form, status, ts_ms in found
        ]

    def gaps(self) -> list[tuple[str, int, int, bool]]:
        """Gateways that lost something: how many gaps, readings lost, were there more? Raises StoreError."""
        return [
            (gateway, count, int(lost), bool(unknown))
            for gateway, count, lost, unknown in self.query(
                "SELECT s.gateway, count(*), total(g.readings), count(*) > count(g.readings) FROM gap g"
                " JOIN stream s ON s.id = g.stream WHERE g.reason != ? GROUP BY s.gateway",
                (GapReason.STORED_ELSEWHERE.value,),
            )
        ]

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    def commit(self, entries: Sequence[Entry], results: Sequence[StoredResult], now_ms: int) -> list[Verdict]:
        """One group, one transaction. One verdict for each entry. Raises StoreError: then nothing is stored."""
        with self._mapped():
            self.open()  # after a failure it may hold more than was known
        group = _Group(self._series, self._codes, self._next_id, now_ms)
        try:
            with self.transaction() as db:
                verdicts = [group.apply(db, entry) for entry in entries]
                group.finish(db)
                for gateway, result in results:
                    _store_result(db, gateway, result, now_ms)
        except BaseException:
            self._series.rolled_back()
            raise
        self._series.committed()
        self._next_id = group.next_id
        return verdicts


class _Group:
    """One transaction under construction."""

    def __init__(
        self,
        series: SeriesNumbers,
        codes: dict[Status, int],
        next_id: int,
        now_ms: int,
    ) -> None:
        self.next_id = next_id
        self._series = series
        self._codes = codes
        self._now_ms = now_ms
        self._streams: dict[tuple[str, str], _StreamRow] = {}
        self._changed: set[tuple[str, str]] = set()
        self._rows: Rows = []
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
            log.warning("%s: number %d of stream %s cannot be used: %s", entry.gateway, first, entry.stream, poison)
            db.execute(
                "INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?)",
                (stream.id, first, entry.kind.name.lower(), poison, entry.raw, self._now_ms),
            )
        stream.mark = entry.last
        stream.state = "ended" if entry.kind is RecordKind.END else "open"
        self._changed.add((entry.gateway, entry.stream))
        return Verdict(stream.mark, True, offset_ms)

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
                self._store_clock(db, entry, entry.body, stream)
            case None:
                pass  # the end of a stream is its state
        return None

    def _store_batch(self, db: sqlite3.Connection, entry: Entry, body: Body, stream: int) -> int:
        clock = body.clock
        if not clock.trust.own:
            known = db.execute(
                "SELECT offset_ms, error_ms, trust FROM clock WHERE gateway = ? AND boot = ? AND trust != 'unsynced'"
                " AND (trust != 'server' OR ?) ORDER BY trust != 'server' DESC, id DESC LIMIT 1",
                (entry.gateway, clock.boot, clock.trust is Trust.UNSYNCED),
            ).fetchone()
            if known is not None:
                clock = ClockState(clock.boot, known[0], known[1], Trust(known[2]))

        def series(device: str, point: str, unit: str) -> int:
            return self._series.number(db, (entry.gateway, device, point, unit))

        made = rows(body, clock.offset_ms, self.next_id, series, self._codes)
        self._rows += made
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

    def _store_clock(self, db: sqlite3.Connection, entry: Entry, clock: ClockState, stream: int) -> None:
        self._write_rows(db)
        db.execute(
            "INSERT INTO clock (gateway, boot, offset_ms, error_ms, trust, stream, seq, received_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.gateway,
                clock.boot,
                clock.offset_ms,
                clock.error_ms,
                clock.trust.value,
                stream,
                entry.seq,
                self._now_ms,
            ),
        )
        known = "SELECT 1 FROM clock WHERE gateway = ? AND boot = ? AND trust NOT IN ('unsynced', 'server')"
        if not clock.trust.own and (
            clock.trust is Trust.UNSYNCED or db.execute(known, (entry.gateway, clock.boot)).fetchone()
        ):
            return  # an earlier process of this boot knew better than any server
        wrong = db.execute(
            "SELECT first, readings, offset_ms FROM batch"
            " WHERE gateway = ? AND boot = ? AND trust IN ('unsynced', 'server')",
            (entry.gateway, clock.boot),
        ).fetchall()
        for first, readings, offset_ms in wrong:
            # form 4: the device's own stamp stays
            db.execute(
                "UPDATE reading SET ts_ms = ts_ms + ? WHERE id >= ? AND id < ? AND form & 4 = 0",
                (clock.offset_ms - offset_ms, first, first + readings),
            )
        db.execute(
            "UPDATE batch SET offset_ms = ?, error_ms = ?, trust = ?"
            " WHERE gateway = ? AND boot = ? AND trust IN ('unsynced', 'server')",
            (clock.offset_ms, clock.error_ms, clock.trust.value, entry.gateway, clock.boot),
        )

    def _write_rows(self, db: sqlite3.Connection) -> None:
        if self._batches:
            db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?)", self._rows)
            db.executemany("INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._batches)
            self._rows, self._batches = [], []

    def finish(self, db: sqlite3.Connection) -> None:
        self._write_rows(db)
        changed = [self._streams[key] for key in self._changed]
        db.executemany(
            "UPDATE stream SET mark = ?, state = ?, last_ms = ? WHERE id = ?",
            [(stream.mark, stream.state, self._now_ms, stream.id) for stream in changed],
        )


def _store_result(db: sqlite3.Connection, gateway: str, result: ResultMessage, now_ms: int) -> None:
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
