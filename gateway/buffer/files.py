"""The files of a store, and how one takes the place of another: a power cut anywhere in it loses neither.

Of what was not synced, a power cut leaves any part; of several names that changed, any. So a file is made under
another name and is whole, without a log, before it takes its place, and each step with names is synced before the next.

    buffer.db.part     is being made; worth nothing
    buffer.db.fresh    is whole and will take its place; what is there then is set aside
    buffer.db          the store, its log (`-wal`) beside it
"""

from __future__ import annotations

import itertools
import shutil
import stat
from pathlib import Path
from typing import Final

from gateway.buffer.database import CorruptError
from gateway.disk import sync_folder

_FILE: Final = "buffer.db"
_SUFFIXES: Final = ("-wal", "-shm", "-journal", "")
_DAMAGED_KEPT: Final = 2


class Files:
    """Raises OSError; the caller maps it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.db = folder / _FILE
        self.part = folder / f"{_FILE}.part"
        self._fresh = folder / f"{_FILE}.fresh"
        self.log = folder / f"{_FILE}-wal"
        self.index = folder / f"{_FILE}-shm"
        """Of the log; SQLite makes and deletes it with it."""

    def is_there(self) -> bool:
        """There is a store. Raises CorruptError: there was one."""
        try:
            found = self.db.lstat()
        except FileNotFoundError:
            if self.log.exists():
                raise CorruptError(f"{self.db} is gone, and its log is not") from None
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
            raise CorruptError(f"{self.db} is no file, or an empty one")
        if self.index.exists() and not self.log.exists():
            raise CorruptError(f"{self.db} was in use, and its log is gone")
        return True

    def log_bytes(self) -> int:
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self) -> None:
        """Makes room for a new `part`."""
        _remove(self.part)

    def finish(self) -> None:
        """The part is whole, synced and closed: it will take its place, whatever happens."""
        self.part.rename(self._fresh)
        sync_folder(self._folder)

    def put_in_place(self) -> None:
        """Lets the fresh file take its place, if there is one."""
        if not self._fresh.exists():
            return
        if any(_is_name(_beside(self.db, suffix)) for suffix in _SUFFIXES):
            self._set_aside()
            sync_folder(self._folder)  # a new file never lies beside the log of an old one
        self._fresh.rename(self.db)
        sync_folder(self._folder)

    def _set_aside(self) -> None:
        names = [self.db, *(self._folder / f"{_FILE}.damaged-{number}" for number in range(1, _DAMAGED_KEPT + 1))]
        _remove(names[-1])
        for old, new in reversed(list(itertools.pairwise(names))):
            for suffix in _SUFFIXES:
                if _is_name(_beside(old, suffix)):
                    _beside(old, suffix).rename(_beside(new, suffix))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _is_name(path: Path) -> bool:
    """Something has this name, be it a link to nowhere."""
    return path.is_symlink() or path.exists()


def _remove(path: Path) -> None:
    for suffix in _SUFFIXES:
        here = _beside(path, suffix)
        if here.is_dir() and not here.is_symlink():
            shutil.rmtree(here)
        else:
            here.unlink(missing_ok=True)
