"""What a power cut leaves where SQLite and the kernel promise less than it seems: names, and a log that stayed behind.

For stores of which one process at a time is the owner. Raises OSError.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes names last: what was made, renamed or deleted is not on disk before its directory is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def renew_log(database: Path) -> None:
    """Writes the log of a SQLite file anew and syncs it, if there is one. Before it is opened, by its owner alone.

    Who did not close the file in order left it, or could not. Its last pages may be on no disk yet, and those of a sync
    that failed never will be; but the kernel shows them, so SQLite takes for committed what a power cut undoes.
    """
    log = database.with_name(f"{database.name}-wal")
    try:
        if not log.stat().st_size:
            return
    except FileNotFoundError:
        return
    copy = log.with_name(f"{log.name}.part")
    with log.open("rb") as old, copy.open("wb") as new:
        os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    copy.rename(log)
    sync_folder(log.parent)
