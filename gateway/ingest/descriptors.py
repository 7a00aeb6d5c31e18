"""File descriptors, one for each connection: as many as the system grants, and a line in the log when they are used up.

When they are, the event loop stops accepting for a second and tries again: who is connected stays connected, who wants
to come in waits. Handshakes that lead to nothing give theirs back after the library's `open_timeout` of ten seconds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from typing import Any, Final

log = logging.getLogger(__name__)

_USED_UP: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SAY_EVERY_S: Final = 60.0


class Descriptors:
    """Made once for each event loop, by whoever listens on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._refused = 0
        self._said_at: float | None = None
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        loop.set_exception_handler(self._handle)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _USED_UP:
            loop.default_exception_handler(context)
            return
        self._refused += 1
        if self._said_at is None or loop.time() - self._said_at >= _SAY_EVERY_S:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.error(
                "all %d file descriptors are in use: new connections wait (%d attempts so far)", soft, self._refused
            )
            self._said_at = loop.time()
