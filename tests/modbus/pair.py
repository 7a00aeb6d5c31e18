"""Two pseudo-terminals joined end to end: a null-modem cable between two programs that each want a port."""

from __future__ import annotations

import os
import select
import threading
import tty
from pathlib import Path


class PtyPair:
    """`here` and `there` are the two ends."""

    def __init__(self, folder: Path) -> None:
        self._fds: list[int] = []
        self.here, here = self._end(folder / "here")
        self.there, there = self._end(folder / "there")
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._copy, args=(here, there), name="null modem")
        self._thread.start()

    def _end(self, link: Path) -> tuple[Path, int]:
        master, slave = os.openpty()
        tty.setraw(slave)
        link.symlink_to(os.ttyname(slave))
        self._fds += [master, slave]  # the slave stays open, so that neither program's leaving hangs up the other
        return link, master

    def _copy(self, here: int, there: int) -> None:
        other = {here: there, there: here}
        while True:
            ready, _, _ = select.select([*other, self._stop_r], [], [])
            if self._stop_r in ready:
                return
            for fd in ready:
                os.write(other[fd], os.read(fd, 4096))

    def __enter__(self) -> PtyPair:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_w, b"x")
        self._thread.join(20)
        for fd in (*self._fds, self._stop_r, self._stop_w):
            os.close(fd)
