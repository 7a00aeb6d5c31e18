"""The numbers of shapes and of their series: from memory where they are in use, else from the tables.

A shape is a run of series (gateway, device, point, unit), as one group of a batch has them; what readings are found by
later is looked up once for a whole group. Who asks for a series looks at every shape that it stands in, so those are
few: of a device that tells only what changed, where any choice of points may come, further groups are taken apart into
a shape for each series.

Memory is bounded whatever gateways make up: what has long names is looked up each time, and when too much is known,
all is forgotten and learned again. A number that a transaction gave out counts only if that transaction is committed:
one that failed takes this memory with it (`SqliteSink.commit`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from itertools import chain
from typing import Final

from gateway.ingest.sinks.rows import Numbered

_KNOWN: Final = 100_000
"""Series in all shapes that are in memory: about 200 bytes each, at most 1 kB."""
_SHAPES: Final = 32
"""That a series stands in, beside the one of itself alone: 0.2 ms to look at."""
_NAME: Final = 256
"""Characters of point and unit on average; a shape with longer ones is not kept in memory."""

_Key = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Gateway, device, points, units."""


class ShapeNumbers:
    """Entered by the store's thread."""

    def __init__(self) -> None:
        self._known: dict[_Key, Numbered] = {}
        self._cells = 0
        """Series in all of them."""

    def numbered(
        self, db: sqlite3.Connection, gateway: str, device: str, points: tuple[str, ...], units: tuple[str, ...]
    ) -> Numbered:
        """Inside a transaction: makes the series where they are new, and their shape unless there are too many."""
        key = (gateway, device, points, units)
        return self._known.get(key) or self._look_up(db, key)

    def _look_up(self, db: sqlite3.Connection, key: _Key) -> Numbered:
        gateway, device, points, units = key
        series = tuple([self._series(db, gateway, device, *one) for one in zip(points, units, strict=True)])
        shape = _shape(db, series)
        if shape is None:
            pairs = zip(points, units, strict=True)
            alone = [self.numbered(db, gateway, device, (point,), (unit,)).shapes for point, unit in pairs]
            return Numbered(tuple(chain.from_iterable(alone)), series)
        numbered = Numbered((shape,), series)
        if len(gateway) + len(device) + sum(map(len, points)) + sum(map(len, units)) <= _NAME * len(points):
            if self._cells + len(points) > _KNOWN:
                self._known.clear()
                self._cells = 0
            self._known[key] = numbered
            self._cells += len(points)
        return numbered

    def _series(self, db: sqlite3.Connection, gateway: str, device: str, point: str, unit: str) -> int:
        known = self._known.get((gateway, device, (point,), (unit,)))
        return known.series[0] if known else _one_series(db, (gateway, device, point, unit))


def _shape(db: sqlite3.Connection, series: tuple[int, ...]) -> int | None:
    """None: there is none, and one of these series stands in too many already."""
    digest = hashlib.blake2b(b"".join(number.to_bytes(8, "big") for number in series), digest_size=16).digest()
    found = db.execute("SELECT id FROM shape WHERE digest = ?", (digest,)).fetchone()
    if found is not None:
        return int(found[0])
    if len(series) > 1 and any(_places(db, number) >= _SHAPES for number in set(series)):
        return None
    shape = db.execute("INSERT INTO shape (digest) VALUES (?)", (digest,)).lastrowid
    assert shape is not None
    db.executemany(
        "INSERT INTO shape_series (series, shape, position) VALUES (?, ?, ?)",
        [(number, shape, position) for position, number in enumerate(series)],
    )
    return shape


def _places(db: sqlite3.Connection, series: int) -> int:
    """In how many shapes it stands, as far as that matters."""
    limited = "SELECT count(*) FROM (SELECT 1 FROM shape_series WHERE series = ? LIMIT ?)"
    return int(db.execute(limited, (series, _SHAPES)).fetchone()[0])


def _one_series(db: sqlite3.Connection, names: tuple[str, str, str, str]) -> int:
    found = db.execute(
        "SELECT id FROM series WHERE gateway = ? AND device = ? AND point = ? AND unit = ?", names
    ).fetchone()
    if found is not None:
        return int(found[0])
    made = db.execute("INSERT INTO series (gateway, device, point, unit) VALUES (?, ?, ?, ?)", names).lastrowid
    assert made is not None
    return made
