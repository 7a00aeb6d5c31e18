"""What goes to a person's terminal: where to, how wide, and without what strangers could do with it."""

from __future__ import annotations

from rich.console import Console

_PIPE_COLUMNS = 10_000
"""Nobody folds what goes to a file or another program."""


def errors() -> Console:
    """Stderr: colours on a terminal only, and as rich finds them in NO_COLOR and TERM."""
    return _console(stderr=True)


def output() -> Console:
    """Stdout, the same."""
    return _console(stderr=False)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS
    return console


def printable(text: str) -> str:
    """Names and payloads of strangers without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
