"""The store in one SQLite file. Synchronous: one thread enters it (`Committer`).

What holds: the rows of a batch and the mark of its stream change in one transaction, and the comparison with the mark
is made inside it. WAL with synchronous=FULL: when `commit` returns, a power cut cannot take it back. When it raises,
nothing of the group was promised, and the next call tries again on a fresh connection. What that finds is on disk: a
commit whose sync failed may be in the log all the same, and is there for good, or is not there at all.

Readings are found by strips (`rows`): an index entry for each group of a batch, not for each reading. What a commit
writes beside the readings themselves grows with the groups in it, however many series they hold.

People read the same file (`sqlite3 ingest.db`), while the server runs if they like. At once answer: the view `latest`;
`readings` in a range of ids; those of a device, or of one point, in a range of time, with
`ts_ms BETWEEN a AND b AND strip_ms BETWEEN a AND b + 600000`. With a device and a point alone its whole series is read;
a range of time without a device, or without `strip_ms`, reads everything that the rest of the question leaves.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.disk import renew_log
from gateway.errors import StoreError
from gateway.ingest.live import Seed
from gateway.ingest.sinks import clocks, statistics
from gateway.ingest.sinks.group import Group, StoredResult, Verdict, store_result
from gateway.ingest.sinks.rows import SPAN_MS, value_of
from gateway.ingest.sinks.shapes import ShapeNumbers
from gateway.ingest.sinks.statuses import StatusNumbers
from gateway.model import GapReason, Lane, Value
from gateway.protocol.entry import Entry
from gateway.protocol.marks import Mark
from gateway.protocol.messages import MAX_OPEN_COMMANDS, Hello

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

FILE = "ingest.db"
_SEALED_IN_HELLO = 32

_encode = msgspec.json.Encoder().encode


_HISTORY = (
    "SELECT r.id, r.ts_ms, r.value, r.form, s.unit, q.name FROM series s"
    " CROSS JOIN shape_series x ON x.series = s.id"
    " CROSS JOIN strip t ON t.shape = x.shape"
    " CROSS JOIN reading r ON r.id >= t.first + x.position * t.rows AND r.id < t.first + (x.position + 1) * t.rows"
    " JOIN status q ON q.id = r.status"
    " WHERE s.gateway = ? AND s.device = ? AND s.point = ? AND t.to_ms BETWEEN ? AND ? AND t.from_ms <= ?"
    " AND r.ts_ms BETWEEN ? AND ? ORDER BY r.ts_ms, r.id LIMIT ?"
)
"""The order of the joins is the plan: no statistics are needed for it."""


class Stored(NamedTuple):
    """One reading as it is in the store."""

    id: int
    """By arrival."""
    ts_ms: int
    value: Value | None
    unit: str
    status: str


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
        self._next_id = 1
        self._dead_letters: Counter[str] = Counter()
        self.sink_id = ""
        self.behind = False
        """Readings wait to be put right by a clock record: each `commit`, also one of nothing, does a part of it."""
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
        except (sqlite3.Error, UnicodeError, OSError) as error:  # a message about a damaged file may not be UTF-8
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
        ):
            db.execute(f"PRAGMA {pragma}")
        self._migrate(db)
        if self._alone:
            statistics.tell(db)
        self._load(db)

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Numbered files, forward only, each in its own transaction."""
        folder = resources.files("gateway.ingest.sinks") / "migrations"
        steps = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(steps):
            raise StoreError(f"{self.path} was written by a newer version (schema {version})")
        if version < len(steps) and not self._alone:  # a server of that version may be running on it
            raise StoreError(
                f"{self.path} is of an older version (schema {version}): the server renews it at its start"
            )
        if 0 < version < len(steps):
            log.info("%s: schema %d becomes %d, some seconds for each million readings", self.path, version, len(steps))
        for number, name in enumerate(steps[version:], start=version + 1):
            text = (folder / name).read_text(encoding="utf-8")
            db.executescript(f"BEGIN IMMEDIATE; {text}; PRAGMA user_version = {number}; COMMIT")
        if version == 0:
            db.execute(
                "INSERT INTO sink SELECT ?, ?, 0 WHERE NOT EXISTS (SELECT 1 FROM sink)", (secrets.token_hex(16), 0)
            )

    def _load(self, db: sqlite3.Connection) -> None:
        (self.sink_id,) = db.execute("SELECT id FROM sink").fetchone()
        (last,) = db.execute("SELECT max(id) FROM reading").fetchone()
        self._next_id = (last or 0) + 1
        self._shapes = ShapeNumbers()
        self._statuses = StatusNumbers(db)
        self.behind = db.execute("SELECT 1 FROM correction").fetchone() is not None

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
            " CROSS JOIN newest n ON n.series = s.id CROSS JOIN reading r ON r.id = n.reading"
            " JOIN status q ON q.id = r.status ORDER BY s.id LIMIT ?",
            (limit,),
        )
        return [
            Seed(gateway, device, point, unit, value_of(value, form), status, ts_ms)
            for gateway, device, point, unit, value, form, status, ts_ms in found
        ]

    def history(
        self, gateway: str, device: str, point: str, from_ms: int, to_ms: int, limit: int = 100_000
    ) -> list[Stored]:
        """The readings of a point between these times, both included: the oldest so many, equal stamps by arrival.

        Raises StoreError.
        """
        found = self.query(_HISTORY, (gateway, device, point, from_ms, to_ms + SPAN_MS, to_ms, from_ms, to_ms, limit))
        return [
            Stored(number, ts_ms, value_of(value, form), unit, status)
            for number, ts_ms, value, form, unit, status in found
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
        group = Group(self._shapes, self._statuses, self._next_id, now_ms, self._dead_letters)
        try:
            with self.transaction() as db:
                verdicts = [group.apply(db, entry) for entry in entries]
                group.finish(db)
                for gateway, result in results:
                    store_result(db, gateway, result, now_ms)
                behind = clocks.proceed(db)
        except BaseException:
            self._give_up()  # and with it the numbers that were given out
            raise
        self._next_id = group.next_id
        self.behind = behind
        return verdicts
