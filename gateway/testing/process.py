"""Children that do not outlive us: what tests and the demo start ends with them, even when they are killed."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Runs in the child, between fork and exec: it gets SIGTERM as soon as the thread that started it ends.

    It does not get the terminal's Ctrl-C beside us: we end our children, in the order that is right.
    """
    os.setpgid(0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
