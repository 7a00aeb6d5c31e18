"""Every requirement of a server: the check that tries it, or why it cannot be seen from outside."""

from __future__ import annotations

from gateway.conformance.checks import acks, connection, marks, records, sessions
from gateway.conformance.register import Check

CHECKS: tuple[Check, ...] = tuple(
    check for room in (connection, sessions, records, acks, marks) for check in room.checks.checks
)

_STORE = "it shows in the store alone"
_COMMAND = "it takes a command, and nobody asks for one here"
UNSEEN = {
    "C2a": _STORE,
    "P4b": _COMMAND,
    "P5": _COMMAND,
    "R2e": "it takes a server that is killed while it stores",
    "R6a": "it takes a year",
    "R7": _STORE,
    "R8": _STORE,
    "D2": _STORE,
    "D3": _STORE,
    "D4": _STORE,
    "D5": _STORE,
    "D6b": _STORE,
    "D6c": _STORE,
    "A1c": "it takes a store that is slow",
    "A2c": "it takes a store that is slow",
    "A4": "it takes a store that fails",
    "W4b": "it takes a server that makes its window smaller",
    "W5": "it takes a server that can take no more",
    "K2": _COMMAND,
    "K4a": _COMMAND,
    "K5b": "it takes a server that is killed while it stores",
    "K7a": _COMMAND,
    "B1b": "it takes a server that is stopped",
}
"""Number → why."""
