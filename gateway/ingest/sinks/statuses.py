"""The number of each word for the status of a value. Words of later versions get theirs when they first come."""

from __future__ import annotations

import sqlite3

from gateway.model import Status


class StatusNumbers(dict[Status, int]):
    """Known words from memory, others from the table each time: however many there are, they fill no memory.

    Entered by the store's thread; a word is new only inside a transaction.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__()
        self._db = db
        for status in Status:
            number = 0 if status is Status.GOOD else None
            db.execute("INSERT OR IGNORE INTO status (id, name) VALUES (?, ?)", (number, status.value))
            self[status] = self.__missing__(status)

    def __missing__(self, word: Status) -> int:
        found = self._db.execute("SELECT id FROM status WHERE name = ?", (word.value,)).fetchone()
        if found is not None:
            return int(found[0])
        cursor = self._db.execute("INSERT INTO status (name) VALUES (?)", (word.value,))
        assert cursor.lastrowid is not None
        return cursor.lastrowid
