"""How a line of the log looks: with syslog priorities where the journal listens, with the time where a person does.

Words that came over a wire are data: a control character in them is shown, never obeyed, so that nobody who sends us a
reason or a name can write lines of our log or move a reader's cursor.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

_PRIORITY: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Python level → syslog priority, sd-daemon(3)."""


def set_up(level: str) -> None:
    """To stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForJournal() if _journal() else _ForPeople())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # libraries: what we need of them reaches us as exceptions; a line per packet fills an SD card
    for library in ("asyncio", "websockets", "bleak", "dbus_fast", "paho"):
        logging.getLogger(library).setLevel(logging.ERROR)


def marked(text: str, level: int) -> str:
    """With the priority that the journal reads at the beginning of each line, where it does."""
    prefix = f"<{_PRIORITY.get(level, 6)}>" if _journal() else ""
    return "\n".join(prefix + line for line in text.splitlines())


def _journal() -> bool:
    """Stderr goes to the journal: systemd names its stream, and children inherit the name with or without it."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        file = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{file.st_dev}:{file.st_ino}"


def _said(record: logging.LogRecord) -> str:
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(argument) for argument in record.args)
    return record.getMessage()


def _shown(argument: object) -> object:
    """Texts lose their control characters; of errors, which are ours, line ends stay."""
    if isinstance(argument, str):
        return argument if argument.isprintable() else "".join(map(_escaped, argument))
    if isinstance(argument, BaseException):
        return "\n".join("".join(map(_escaped, line)) for line in str(argument).splitlines())
    return argument


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class _ForJournal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name.removeprefix('gateway.')}: {_said(record)}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return marked(text, record.levelno)


class _ForPeople(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        _said(record)
        return super().format(record)
