"""Pure: mistakes and warnings for people: `file:line:column: key path: message`, and the line underlined."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gateway.config.positions import START, Place, scan, secret
from gateway.settings import KeyPath, Mistake

_ASSIGNED = re.compile(r"(?P<key>[A-Za-z0-9_.\"'-]+)(?P<sign>\s*[=:]+\s*)(?P<value>\"[^\"]*\"?|'[^']*'?|[^,}\s]+)")
_CREDENTIALS = re.compile(r"//[^/\s@\"']+@")


class Problem(NamedTuple):
    """One thing to change (a mistake) or to look at (a warning) in a configuration file."""

    file: str
    place: Place
    key: str
    """Path of the key with the names of the tables it stands in: `device.meter-1.points.voltage.unit`."""
    message: str
    source: str
    """The line as written, secrets left out."""

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self, label: str = "") -> str:
        """In one line; `label` says how grave it is, where that is not clear."""
        parts = (f"{self.place.line}:{self.place.column}" if self.place.line else "", label, self.key, self.message)
        said = ": ".join(part for part in parts if part)
        return f"{self.file}:{said}" if self.place.line else f"{self.file}: {said}"

    def underlined(self, label: str = "") -> str:
        """The problem, and below it the line with the place marked."""
        if not self.source.strip():
            return self.sentence(label)
        number = f"{self.place.line:>5}"
        column = self.place.column - 1
        # tabs stay tabs, so that the mark stands where the terminal shows the key
        indent = "".join("\t" if char == "\t" else " " for char in self.source[:column]).ljust(column)
        length = max(1, min(self.place.length, len(self.source) - column))
        return f"{self.sentence(label)}\n{number} | {self.source}\n{' ' * len(number)} | {indent}{'^' * length}"


class Source:
    """A file's text with the places of its keys: turns paths into problems."""

    def __init__(self, file: str, text: str = "", document: Mapping[str, Any] | None = None) -> None:
        """`document` is what `tomllib` made of the text; without one only places that are given can be shown."""
        self._file = file
        self._text = text
        self._document = document
        self._borrowed: dict[KeyPath, tuple[Source, KeyPath]] = {}

    def borrow(self, path: KeyPath, source: Source, there: KeyPath) -> None:
        """What the document has at this path is written elsewhere: in this text or in another one."""
        self._borrowed[path] = (source, there)

    def written(self, path: KeyPath) -> tuple[Source, KeyPath]:
        """In which text, and where in it, the thing at this path stands."""
        for length in range(len(path), 0, -1):
            if found := self._borrowed.get(path[:length]):
                return found[0], (*found[1], *path[length:])
        return self, path

    @functools.cached_property
    def _lines(self) -> list[str]:
        return self._text.replace("\r\n", "\n").split("\n")

    @functools.cached_property
    def _places(self) -> Mapping[KeyPath, Place]:
        # only when something is wrong: a good file is not read twice
        return {} if self._document is None else scan(self._text)

    def at(self, path: KeyPath) -> Place:
        """The place of a path, or of the nearest table around it that is written down."""
        source, path = self.written(path)
        return source._at(path)

    def _at(self, path: KeyPath) -> Place:
        for length in range(len(path), 0, -1):
            if path[:length] in self._places:
                return self._places[path[:length]]
        return START

    def problem(self, path: KeyPath, message: str) -> Problem:
        source, there = self.written(path)
        if source is not self:
            message += f"; used by {self._name(path[:2])}, {self._file}:{self._at(path[:2]).line}"
        return source.problem_at(source._at(there), message, source._name(there))

    def problems(self, mistakes: Iterable[Mistake]) -> Iterator[Problem]:
        """What many devices have from one place is told once."""
        told: set[tuple[int, KeyPath, str]] = set()
        for path, message in mistakes:
            source, there = self.written(path)
            if (id(source), there, message) not in told:
                told.add((id(source), there, message))
                yield self.problem(path, message)

    def problem_at(self, place: Place, message: str, key: str = "") -> Problem:
        line = self._lines[place.line - 1] if place.line <= len(self._lines) else ""
        return Problem(self._file, place, key, _CREDENTIALS.sub("//…@", message), masked(line))

    def under_header(self, path: KeyPath) -> bool:
        """The table at this path was opened by a header of its own, not in braces."""
        source, there = self.written(path)
        return source._lines[source._at(there).line - 1].lstrip().startswith("[")

    def _name(self, path: KeyPath) -> str:
        words = []
        at: Any = self._document
        for step in path:
            try:
                at = at[step]
            except (KeyError, IndexError, TypeError):
                at = None
            name = at.get("name") if isinstance(step, int) and isinstance(at, dict) else None
            words.append(str(step) if isinstance(step, str) else name if isinstance(name, str) else f"#{step + 1}")
        return ".".join(words)


def masked(line: str) -> str:
    """The line without the values of keys that hold secrets, and without user and password in URLs."""
    line = _ASSIGNED.sub(
        lambda found: f"{found['key']}{found['sign']}…" if secret(found["key"]) else found.group(), line
    )
    return _CREDENTIALS.sub("//…@", line)
