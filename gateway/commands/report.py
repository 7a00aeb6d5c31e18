"""What the log says of commands: each one that touched a device, and of the others no more than a person reads.

A server that has gone wrong can send twenty a second for years; a line for each would wear the disk out.
"""

from __future__ import annotations

import logging
from typing import Final

from gateway.commands.journal import Entry
from gateway.model import Outcome

log = logging.getLogger(__name__)

_TOUCHED: Final = frozenset({Outcome.OK, Outcome.FAILED, Outcome.INTERRUPTED, Outcome.UNKNOWN})
_LINES: Final = 20
_WITHIN_S: Final = 60.0


class Report:
    """Time is `now`, monotonic seconds."""

    def __init__(self) -> None:
        self._since = float("-inf")
        self._lines = 0

    def ended(self, entry: Entry, now: float) -> None:
        assert entry.result is not None, "only ended commands are spoken of"
        what = f"write {entry.point} of {entry.device}" if entry.device else "asked for"
        outcome = ": ".join(part for part in (entry.result.outcome, entry.result.reason) if part)
        self._say(
            entry.result.outcome in _TOUCHED, now, "command %s from %s: %s: %s", entry.id, entry.source, what, outcome
        )

    def not_taken(self, command_id: str, why: str, now: float) -> None:
        self._say(False, now, "command %s is not taken over: %s", command_id, why)

    def _say(self, always: bool, now: float, text: str, *arguments: str) -> None:
        if always:
            log.info(text, *arguments)
            return
        if now - self._since >= _WITHIN_S:
            if self._lines > _LINES:
                log.warning("%d more commands were not carried out", self._lines - _LINES)
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= _LINES:
            log.info(text, *arguments)
        elif self._lines == _LINES + 1:
            log.warning("more than %d commands a minute are not carried out: the others are counted", _LINES)
