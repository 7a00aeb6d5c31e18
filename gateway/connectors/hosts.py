"""Why a host cannot be reached, in one sentence, whatever bus is behind it."""

from __future__ import annotations

import os
import ssl

from gateway.errors import LinkError

# UnicodeError: a name that can be none, such as "a..b" or one with a label of more than 63 letters
UNREACHABLE = (OSError, UnicodeError)
"""What connecting raises, but for running out of time (`TimeoutError`), which is an OSError too: catch it before."""


def unreachable(host: str, tcp_port: int, error: Exception) -> LinkError:
    """The error to raise from one of `UNREACHABLE`."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    if isinstance(error, UnicodeError):
        reason = "this is no name of a host"
    elif number is not None and number > 0:  # asyncio repeats address and call
        reason = os.strerror(number)
    else:
        reason = str(error)
    return LinkError(f"cannot connect to {host}:{tcp_port}: {reason}")


def unanswered(host: str, tcp_port: int, seconds: float) -> LinkError:
    """Nobody said anything for so long."""
    return LinkError(f"cannot connect to {host}:{tcp_port}: no answer for {seconds:g} s")
