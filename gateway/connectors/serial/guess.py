"""Pure: what talks on a line, judged by what was heard for a few seconds; and the configuration that reads it.

A wrong baud rate gives bytes that are no text; a right one gives lines. What can be proved (a checksum, a JSON
document) counts more than what merely can be printed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from gateway.connectors.serial import nmea
from gateway.errors import DecodeError
from gateway.settings import toml

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_WORD_BEFORE = re.compile(r"([A-Za-z][A-Za-z0-9_]*)\W{0,3}$")
_MAX_GROUPS = 12


class Guess(NamedTuple):
    """How one setting of the line looked."""

    format: str
    """`nmea`, `json`, `lines`, `noise` (bytes, but no text) or `silence`."""
    share: float
    """Of whole lines that were right in that format."""
    lines: tuple[str, ...]
    """Whole ones; the first, which may have lost its beginning, is left out."""
    delimiter: str = "\n"

    @property
    def certainty(self) -> float:
        """To compare settings by."""
        return {"nmea": 4.0, "json": 3.0, "lines": 1.0}.get(self.format, 0.0) + self.share


def guess(data: bytes) -> Guess:
    """Raises nothing: every sequence of bytes is something."""
    if not data:
        return Guess("silence", 0.0, ())
    delimiter = b"\n" if b"\n" in data else b"\r"
    whole = [line.strip(b"\r\n") for line in data.split(delimiter)[1:-1]]
    whole = [line for line in whole if line]
    lines = tuple(line.decode("ascii") for line in whole if line.isascii() and line.decode("ascii").isprintable())
    if not whole or len(lines) < 0.8 * len(whole):
        return Guess("noise", 0.0, ())
    for name, fits in (("nmea", _is_nmea), ("json", _is_json)):
        share = sum(map(fits, lines)) / len(whole)
        if share >= 0.5:
            return Guess(name, share, lines, delimiter.decode())
    return Guess("lines", len(lines) / len(whole), lines, delimiter.decode())


def _is_nmea(line: str) -> bool:
    try:
        nmea.parse(line)
    except DecodeError:
        return False
    return True


def _is_json(line: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict | list)
    except (msgspec.DecodeError, RecursionError):
        return False


def configuration(port: str, baud_rate: int, guess: Guess) -> str:
    """Ready to paste; names are for a person to better."""
    rows = ["[[bus]]", 'name = "line"', 'kind = "serial"', f"port = {toml(port)}", f"baud_rate = {baud_rate}"]
    if guess.delimiter != "\n":
        rows.append(f'frame = {{ delimiter = "{guess.delimiter.encode("unicode_escape").decode()}" }}')
    rows += ["", "[[device]]", 'name = "device"', 'bus = "line"']
    if guess.format == "lines":
        rows += ['format = "regex"', f"pattern = '{pattern(guess.lines[-1])}'"]
    else:
        rows.append(f'format = "{guess.format}"')
    rows.append('points = "auto"')
    return "\n".join(rows) + "\n"


def pattern(line: str) -> str:
    """A regular expression that reads the numbers of lines like this one: `T=21.5` → `T=(?P<T>…)`."""
    parts, end, names = [], 0, set[str]()
    for match in _NUMBER.finditer(line):
        before = line[end : match.start()]
        if len(names) == _MAX_GROUPS or before[-1:].isalnum():
            continue  # a digit of a word, as in CO2
        word = _WORD_BEFORE.search(before)
        name = word[1] if word and word[1] not in names else f"value{len(names) + 1}"
        names.add(name)
        parts.append(_literal(before) + rf"(?P<{name}>[-+]?\d+(?:\.\d+)?)")
        end = match.end()
    return "".join(parts) if parts else rf"(?P<text>{_literal(line)})"


def _literal(text: str) -> str:
    # in single quotes TOML takes everything but a single quote
    return re.sub(r"(?:\\ )+", r"\\s+", re.escape(text)).replace("'", ".")
