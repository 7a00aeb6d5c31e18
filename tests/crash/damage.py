"""Pure but for the files it spoils: everything that can happen to a store's folder while nobody looks.

Each damage takes the folder and dice. What it may cost without anybody being able to notice is said beside it.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.crash.filled import STALE

DB, WAL, SHM = "buffer.db", "buffer.db-wal", "buffer.db-shm"
PAGE: Final = 1024

Damage = Callable[[Path, random.Random], None]


def _edit(path: Path, change: Callable[[bytearray, random.Random], bytearray], dice: random.Random) -> None:
    path.write_bytes(change(bytearray(path.read_bytes()), dice))


def _page(data: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(data) // PAGE) * PAGE


def _cut(data: bytearray, dice: random.Random) -> bytearray:
    return data[: dice.randrange(1, len(data))]


def _flip(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 100)):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return data


def _zero(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 8)):
        at = _page(data, dice)
        data[at : at + PAGE] = bytes(PAGE)
    return data


def _noise(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 8)):
        at = _page(data, dice)
        data[at : at + PAGE] = dice.randbytes(PAGE)
    return data


def _swap(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 4)):
        here, there = _page(data, dice), _page(data, dice)
        data[here : here + PAGE], data[there : there + PAGE] = data[there : there + PAGE], data[here : here + PAGE]
    return data


def truncated(folder: Path, dice: random.Random) -> None:
    _edit(folder / DB, _cut, dice)


def flipped(folder: Path, dice: random.Random) -> None:
    _edit(folder / DB, _flip, dice)


def zeroed(folder: Path, dice: random.Random) -> None:
    _edit(folder / DB, _zero, dice)


def garbled(folder: Path, dice: random.Random) -> None:
    _edit(folder / DB, _noise, dice)


def swapped(folder: Path, dice: random.Random) -> None:
    _edit(folder / DB, _swap, dice)


def wal_truncated(folder: Path, dice: random.Random) -> None:
    """Looks as if the last commits had not come to their end: nobody can tell."""
    _edit(folder / WAL, _cut, dice)


def wal_flipped(folder: Path, dice: random.Random) -> None:
    _edit(folder / WAL, _flip, dice)


def wal_zeroed(folder: Path, dice: random.Random) -> None:
    _edit(folder / WAL, _zero, dice)


def wal_missing(folder: Path, dice: random.Random) -> None:
    (folder / WAL).unlink()


def wal_stale(folder: Path, dice: random.Random) -> None:
    """An older copy, which is whole: what came behind it looks as if it had never been."""
    (folder / STALE).rename(folder / WAL)


def shm_garbled(folder: Path, dice: random.Random) -> None:
    """Costs nothing."""
    (folder / SHM).write_bytes(dice.randbytes(32768))


def headless(folder: Path, dice: random.Random) -> None:
    with (folder / DB).open("r+b") as file:
        file.write(dice.randbytes(PAGE))


def a_word_of_the_schema(folder: Path, dice: random.Random) -> None:
    """One letter: what was a number can now be anything."""
    with closing(sqlite3.connect(folder / DB)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log would heal it
    word = dice.choice((b"key INTEGER PRIMARY", b"id INTEGER PRIMARY"))
    data = (folder / DB).read_bytes()
    assert word in data
    (folder / DB).write_bytes(data.replace(word, word.replace(b"GER", b"GES")))


def not_utf8(folder: Path, dice: random.Random) -> None:
    """SQLite's message about it quotes the schema, so the message is no text either."""
    with closing(sqlite3.connect(folder / DB)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = (folder / DB).read_bytes()
    assert b"CREATE TABLE record" in data
    (folder / DB).write_bytes(data.replace(b"CREATE TABLE record", b"CREATE TABL\xed record"))


def wal_headless(folder: Path, dice: random.Random) -> None:
    """Zeros: whose checksum would be right."""
    with (folder / WAL).open("r+b") as file:
        file.write(bytes(PAGE))


def empty(folder: Path, dice: random.Random) -> None:
    (folder / DB).write_bytes(b"")


def gone(folder: Path, dice: random.Random) -> None:
    (folder / DB).unlink()


def a_directory(folder: Path, dice: random.Random) -> None:
    (folder / DB).unlink()
    (folder / DB).mkdir()
    (folder / DB / "note.txt").write_text("not a database")


def a_dangling_link(folder: Path, dice: random.Random) -> None:
    (folder / DB).unlink()
    (folder / DB).symlink_to(folder / "nowhere")


def another_program(folder: Path, dice: random.Random) -> None:
    (folder / DB).write_bytes(b"PK\x03\x04" + dice.randbytes(20_000))


def all_at_once(folder: Path, dice: random.Random) -> None:
    for damage in dice.sample([flipped, zeroed, wal_flipped, shm_garbled, swapped], 3):
        damage(folder, dice)


DAMAGES: Final[tuple[Damage, ...]] = (
    truncated, flipped, zeroed, garbled, swapped, wal_truncated, wal_flipped, wal_zeroed, wal_missing, wal_stale,
    wal_headless, shm_garbled, headless, a_word_of_the_schema, not_utf8, empty, gone, a_directory, a_dangling_link,
    another_program, all_at_once,
)  # fmt: skip
UNNOTICED: Final[tuple[Damage, ...]] = (wal_truncated, wal_stale)
"""The end of what was stored may be missing without a word; at the sink the stream has then not ended in order."""


def spoil(damage: Damage, folder: Path, seed: object) -> None:
    damage(folder, random.Random(f"{seed} {damage.__name__}"))
    (folder / STALE).unlink(missing_ok=True)


def copy(template: Path, folder: Path) -> None:
    shutil.copytree(template, folder, dirs_exist_ok=True)
