"""What the planner has to know whoever opens the file: readings are many, series are few.

Counted in a young file (`ANALYZE`, by a person with the file) the numbers would say otherwise, and `readings` would
look at every reading for good. So when the store is opened by its owner, they are put right.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_KNOWN: Final = (
    ("reading", None, "100000000"),
    ("strip", "strip_by_time", "10000000 1000 2"),
    ("series", "sqlite_autoindex_series_1", "10000 1000 100 1 1"),
    ("shape_series", "shape_series", "20000 2 1 1"),
    ("status", "sqlite_autoindex_status_1", "20 1"),
    ("batch", "batch", "1000000 10000 1"),
    ("batch", "batch_by_reading", "1000000 1"),
)
"""Table, index, and: rows in all, then for each further column of the key how many share it."""


def tell(db: sqlite3.Connection) -> None:
    """Writes nothing where that is known already: a full disk can be read."""
    counted = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1'").fetchone()
    if counted and set(db.execute("SELECT tbl, idx, stat FROM sqlite_stat1")) == set(_KNOWN):
        return
    db.execute("BEGIN IMMEDIATE")
    for table in ("sqlite_stat1", "sqlite_stat4"):
        db.execute(f"DROP TABLE IF EXISTS {table}")
    db.execute("ANALYZE sqlite_schema")
    db.executemany("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", _KNOWN)
    db.execute("COMMIT")
    db.execute("ANALYZE sqlite_schema")  # reads them in
