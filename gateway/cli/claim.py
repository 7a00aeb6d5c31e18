"""One gateway to a directory: two on one flight ring, store or socket would each take the other's data for its own.

The claim is a lock (flock) on the directory itself. The kernel drops it when the process ends in whatever way, so there
is nothing that could be left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gateway.errors import GatewayError


@contextmanager
def claimed(*folders: Path) -> Iterator[None]:
    """The folders exist, are ours to write to, and no other gateway uses them while the block runs.

    Raises:
        GatewayError: they do not, or another does; a finished sentence.
    """
    with ExitStack() as stack:
        for folder in {_made(folder): None for folder in folders}:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise GatewayError(
                    f"another gateway{_pid(descriptor)} uses {folder}; `gateway status` asks it"
                ) from error
        yield


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        # a disk that the kernel has made read-only is no reason to stand still: the buffer then works from memory
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        if os.access(folder, os.R_OK | os.X_OK | (0 if read_only else os.W_OK)):
            return folder.resolve()
        why = "permission denied"
    except PermissionError:
        why = "permission denied"
    except OSError as error:
        why = str(error.strerror)
    raise GatewayError(
        f"cannot use {folder}: {why}. Run it as the service's user, or name other folders: "
        "`state_dir` and `runtime_dir` in [gateway]"
    )


def _pid(descriptor: int) -> str:
    """Who holds the lock, as far as /proc/locks tells: ` (pid 123)`."""
    inode = os.fstat(descriptor).st_ino
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 123 08:01:4711 0 EOF
            if words[1] == "FLOCK" and words[5].endswith(f":{inode}") and int(words[4]) > 0:
                return f" (pid {words[4]})"
    except (OSError, IndexError, ValueError):
        pass  # it was only to be helpful
    return ""
