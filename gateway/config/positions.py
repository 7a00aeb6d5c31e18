"""Pure: where each key of a TOML text stands, and what is wrong with a text that is not TOML.

`tomllib` gives values without places. `scan` walks the same text once and gives the place of every path of the parsed
document: `("bus", 0, "port")` → line 3, column 1. It relies on `tomllib` having accepted the text: it finds the ends
of things and judges nothing.

A path stands where its key is written; a table at its header, or where it was first named when it has none; an entry
of an array at its first character. Lines and columns count from 1, columns in characters.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import NamedTuple

from gateway.settings import KeyPath


class Place(NamedTuple):
    """`length` characters from `column` on, all in one line."""

    line: int
    column: int
    length: int = 1


START = Place(1, 1)
NOWHERE = Place(0, 0)
"""Of what is wrong with a file that has no lines: it is not there."""

_BLANK = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r'[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_STRING = re.compile(
    r'"""(?:[^"\\]|\\(?:.|\n)|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'"
)
# the blank inside is the one between a date and a time
_BARE = re.compile(r"[^\s,\]}#]+(?: \d\d:\d\d[^\s,\]}#]*)?")


def scan(text: str) -> dict[KeyPath, Place]:
    """The place of every path of a TOML text that `tomllib` accepts."""
    return _Scanner(text.replace("\r\n", "\n")).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._places: dict[KeyPath, Place] = {(): START}
        self._rows: dict[KeyPath, int] = {}
        """How many tables each array of tables has so far: a header speaks of the last one."""

    def run(self) -> dict[KeyPath, Place]:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(2)
            elif self._text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)
        return self._places

    def _header(self, brackets: int) -> KeyPath:
        self._at += brackets
        parts = self._key()
        path: KeyPath = ()
        for i, (part, place) in enumerate(parts):
            path = (*path, part)
            last = i == len(parts) - 1
            if last and brackets == 2:
                self._places.setdefault(path, place)
                self._rows[path] = self._rows.get(path, 0) + 1
            elif last:
                # a table may be named by its child's header first; its own header is where a person looks
                self._places[path] = place
            else:
                self._places.setdefault(path, place)
            if path in self._rows:
                path = (*path, self._rows[path] - 1)
                self._places.setdefault(path, place)
        self._at += brackets
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for part, place in self._key():
            path = (*path, part)
            self._places.setdefault(path, place)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[tuple[str, Place]]:
        """A dotted key; leaves the position behind the blanks that follow it."""
        parts = []
        while True:
            self._skip(_SPACE)
            start = self._at
            word = self._take(_KEY_PART)
            name = tomllib.loads(f"k = {word}")["k"] if word[0] in "\"'" else word
            parts.append((name, self._place(start)))
            if self._skip(_SPACE) >= len(self._text) or self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        match self._text[self._at]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._take(_STRING)
            case _:
                self._take(_BARE)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._text[self._skip(_BLANK)] != "]":
            start = self._at
            self._value((*path, index))
            self._places[*path, index] = self._place(start)
            index += 1
            if self._text[self._skip(_BLANK)] == ",":
                self._at += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._text[self._skip(_BLANK)] != "}":
            self._pair(path)
            if self._text[self._skip(_BLANK)] == ",":
                self._at += 1
        self._at += 1

    def _place(self, start: int) -> Place:
        line = bisect.bisect_right(self._starts, start)
        begin = self._starts[line - 1]
        end = min(self._at, self._starts[line] - 1 if line < len(self._starts) else len(self._text))
        return Place(line, start - begin + 1, max(1, end - start))

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        assert match is not None, "the pattern also matches nothing"
        self._at = match.end()
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, "tomllib has accepted this text"
        self._at = match.end()
        return match.group()


# ── what is wrong with a text that is not TOML ───────────────────────────────────────────────────────────────────────

_WHERE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_PAIR = re.compile(r"\s*(?P<key>[A-Za-z0-9_.\"'-]+)\s*(?P<sign>==|=|:)?\s*(?P<value>[^#]*?)\s*(?:#.*)?$")
_SECRET = re.compile(r"(?i)(token|password|passwd|secret|key|auth)$")
_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false", "true": "true", "false": "false"}


def syntax_error(text: str, error: tomllib.TOMLDecodeError) -> tuple[Place, str]:
    """Where `tomllib` gave up, and what would be right there, as far as that can be guessed."""
    lines = text.replace("\r\n", "\n").split("\n")
    message = str(error)
    match = _WHERE.search(message)
    if match and match[1]:
        line, column = int(match[1]), int(match[2])
    else:
        line = next((i for i in range(len(lines), 0, -1) if lines[i - 1].strip()), 1)
        column = len(lines[line - 1].rstrip()) + 1
    said = _WHERE.sub("", message)
    said = said[:1].lower() + said[1:]
    shown = lines[line - 1] if line <= len(lines) else ""
    if column == 1 and not shown.strip() and line > 1 and lines[line - 2].strip():
        line, shown = line - 1, lines[line - 2]  # it stumbled over the end of the line before
        column = len(shown.rstrip()) + 1
    advice = _advice(shown, said)
    return Place(line, column), said + (f"; {advice}" if advice else "")


def secret(key: str) -> bool:
    """What is written to this key is not to be shown."""
    return _SECRET.search(key.strip("\"' ")) is not None


def _shown(key: str, value: str) -> str:
    return "…" if secret(key) else value


def _advice(line: str, said: str) -> str:
    """What the commonest slips should have been; empty when it is none of them."""
    if any(sign in line for sign in "“”„‘’"):
        return 'write plain quotes ", not typographic ones'
    declared = re.fullmatch(r"cannot declare \('(.*)',?\) twice", said)
    if declared:
        name = ".".join(declared[1].split("', '"))
        return f"for several of them write [[{name}]] with two brackets each time"
    stripped = line.strip()
    if stripped.startswith((";", "//", "--")):
        return "a comment starts with #"
    if stripped.startswith("["):
        opening, closing = len(stripped) - len(stripped.lstrip("[")), stripped.split("#")[0].count("]")
        return f"close the header with {']' * opening}" if opening > closing else ""
    match = _PAIR.fullmatch(line)
    if match is None:
        return ""
    if said.startswith("cannot overwrite"):
        return f"`{match['key']}` stands twice in this table; keep one"
    if match["sign"] is None:
        return f"write `{match['key']} = …`" if said.startswith("expected '='") else ""
    if match["sign"] != "=":
        return f"write a single = : `{match['key']} = {_shown(match['key'], match['value'])}`"
    return _value_advice(match["key"], match["value"].strip(), said)


def _value_advice(key: str, value: str, said: str) -> str:
    if not value.rstrip(",;"):
        return f"`{key}` needs a value; to use its default leave the line out"
    bare = value.rstrip(",;")
    if bare.lower() in _WORDS:
        return f"write `{key} = {_WORDS[bare.lower()]}`"
    if bare.lower() in ("none", "null", "nil"):
        return "there is no null: leave the line out"
    quotes = bare[0] if bare[0] in "\"'" else ""
    if quotes and (len(bare) == 1 or not bare.endswith(quotes)) and bare.count(quotes) == 1:
        return f"the closing {quotes} is missing"
    if "escape" in said or ("\\" in bare and quotes == '"'):
        return "a backslash has a meaning inside \"…\"; write the text in '…'"
    if bare.startswith("{") and "}" not in bare:
        return "a table in { } must end in the same line; over several lines write a [table] instead"
    if bare != value:
        return "no comma or semicolon at the end of the line"
    if re.fullmatch(r"[+-]?0\d+", bare):
        return f"a number has no leading zeros; write `{key} = {int(bare)}`, or quotes if it is text"
    if not quotes and re.fullmatch(r"[^\[\]{}\"',]+", bare):
        return f'text needs quotes: `{key} = "{_shown(key, bare)}"`'
    return ""
