"""The number of each series (gateway, device, point, unit): from memory where it is in use, else from the table.

Memory is bounded whatever gateways make up: long names are looked up each time, and when too many are known, all are
forgotten and learned again. A number that a transaction gave out counts only if that transaction is committed.
"""

from __future__ import annotations

import sqlite3
from typing import Final

Series = tuple[str, str, str, str]
"""Gateway, device, point, unit."""

_KNOWN: Final = 100_000
"""At most so many in memory, about 300 bytes each."""
_NAME: Final = 256
"""Characters of all four; what is longer is not kept in memory."""


class SeriesNumbers:
    """Entered by the store's thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        newest = db.execute(
            "SELECT gateway, device, point, unit, id FROM series ORDER BY id DESC LIMIT ?", (_KNOWN // 2,)
        )
        self._known: dict[Series, int] = {(g, d, p, u): n for g, d, p, u, n in newest if len(g + d + p + u) <= _NAME}
        self._new: list[Series] = []

    def number(self, db: sqlite3.Connection, key: Series) -> int:
        """Inside a transaction: makes the series if it is new."""
        known = self._known.get(key)
        return self._look_up(db, key) if known is None else known

    def _look_up(self, db: sqlite3.Connection, key: Series) -> int:
        found = db.execute(
            "SELECT id FROM series WHERE gateway = ? AND device = ? AND point = ? AND unit = ?", key
        ).fetchone()
        if found is not None:
            number: int = found[0]
        else:
            cursor = db.execute("INSERT INTO series (gateway, device, point, unit) VALUES (?, ?, ?, ?)", key)
            assert cursor.lastrowid is not None
            number = cursor.lastrowid
        if sum(map(len, key)) <= _NAME:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = number
            if found is None:
                self._new.append(key)
        return number

    def committed(self) -> None:
        self._new.clear()

    def rolled_back(self) -> None:
        for key in self._new:
            self._known.pop(key, None)
        self._new.clear()
