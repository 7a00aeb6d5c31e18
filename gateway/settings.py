"""Pure: how a table of the configuration file is declared, and how it is read.

A stage declares its part of the file as a frozen struct:

    class Endpoint(Table):
        '''One place to deliver to.'''
        url: Annotated[str, Key("where to connect", pattern=r"wss?://\\S+")]
        connect_timeout: Annotated[Duration, Key("give up connecting after", min=0.1)] = 3.0

The annotation is the single source: the reader, the error messages, `config.example.toml` and the editor's schema all
come from it. `read` never stops at the first mistake; it returns all of them, each with the path of its place.

What a value may be: str, int, float, bool, a StrEnum or Literal, `X | None`, tuple[X, ...], dict[str, X], another
Table, and the kinds below. A string `"500ms"` is a Duration, `"512MB"` a Size; both also take bare numbers
(seconds, bytes).
"""

from __future__ import annotations

import difflib
import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

T = TypeVar("T", bound="Table")
KeyPath = tuple[str | int, ...]


class Kind(enum.Enum):
    """A number that is written with its unit."""

    DURATION = 'a duration such as "500ms", "10s", "5m" or "2h"'
    SIZE = 'a size such as "64KB", "512MB" or "1GiB"'


Duration = Annotated[float, Kind.DURATION]
"""Seconds."""
Size = Annotated[int, Kind.SIZE]
"""Bytes."""

_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)\s*")
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.:-]*"
"""Names that become ids of readings: they appear in topics, file names and queries."""


class Key(NamedTuple):
    """What is known of one key beside its type."""

    doc: str
    min: float | None = None
    max: float | None = None
    pattern: str | None = None
    alias: tuple[str, ...] = ()
    """Words that users bring from elsewhere; read as this key."""
    example: str = ""
    """A TOML literal for the example file, where the default says too little."""


class Mistake(NamedTuple):
    """One thing that a person must change."""

    path: KeyPath
    message: str


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every configuration struct."""

    def mistakes(self) -> Iterable[Mistake]:
        """What is wrong between the keys of this table; paths are relative to it."""
        return ()

    def warnings(self) -> Iterable[Mistake]:
        """What is allowed and probably not meant; paths are relative to this table."""
        return ()


class Field(NamedTuple):
    """One declared key, for the reader, the example and the schema."""

    name: str
    type: Any
    key: Key
    kind: Kind | None
    required: bool
    default: Any
    attribute: str
    """Its name in the struct, which differs from the key where the key is a word of Python."""


@functools.cache
def fields(table: type[Table]) -> tuple[Field, ...]:
    """The declared keys of a table, in order of declaration."""
    hints = typing.get_type_hints(table, include_extras=True)
    found = []
    for info in msgspec.structs.fields(table):
        hint, key, kind = _unwrap(hints[info.name])
        default = info.default
        if default is msgspec.NODEFAULT and info.default_factory is not msgspec.NODEFAULT:
            default = typing.cast("Any", info.default_factory)()
        found.append(Field(info.encode_name, hint, key or Key(""), kind, info.required, default, info.name))
    return tuple(found)


def _unwrap(hint: Any) -> tuple[Any, Key | None, Kind | None]:
    """Annotated[X, Key, Kind] → X, Key, Kind; looks through `X | None` for a kind inside."""
    key = kind = None
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        key = next((e for e in extras if isinstance(e, Key)), None)
        kind = next((e for e in extras if isinstance(e, Kind)), None)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for arm in typing.get_args(hint):
            if typing.get_origin(arm) is Annotated:
                kind = next((e for e in typing.get_args(arm) if isinstance(e, Kind)), kind)
    return hint, key, kind


Headers = Mapping[str, Collection[str]]
"""Header of a table, `[buffer]` or `[[device]]` → the keys that belong there."""


def read(
    table: type[T], raw: Mapping[str, Any], path: KeyPath = (), elsewhere: Headers | None = None
) -> tuple[T | None, list[Mistake]]:
    """Reads one TOML table. Returns the struct (None when anything is wrong) and every mistake, deepest first.

    `elsewhere` names other tables of the file, for keys that stand in the wrong one.
    """
    mistakes: list[Mistake] = []
    declared = fields(table)
    words = {word: field.name for field in declared for word in (field.name, *field.key.alias)}
    given: dict[str, str] = {}
    for word in raw:
        name = words.get(word)
        if name is not None and name in given:
            mistakes.append(Mistake((*path, word), f"`{word}` says the same as `{given[name]}`; keep one"))
        elif name is not None:
            given[name] = word
    missing = [field for field in declared if field.required and field.name not in given]
    for word in raw:
        if word not in words:
            meant = words.get(closest(word, [each for each, name in words.items() if name not in given]), "")
            # a misspelt key is one mistake, not also a missing one
            missing = [field for field in missing if field.name != meant]
            mistakes.append(Mistake((*path, word), _unknown((*path, word), meant, declared, elsewhere or {})))
    mistakes += [Mistake(path, f"`{field.name}` is missing: {field.key.doc}") for field in missing]
    inside = {**(elsewhere or {}), header(path): words} if path else elsewhere or {}
    values = {}
    for field in declared:
        if field.name in given:
            word = given[field.name]
            place = _Place((*path, word), field.key, mistakes, inside)
            values[field.attribute] = _value(field.type, field.kind, raw[word], place)
    if mistakes:
        return None, mistakes
    result = table(**values)
    mistakes += [Mistake((*path, *m.path), m.message) for m in result.mistakes()]
    return (None if mistakes else result), mistakes


def header(path: KeyPath) -> str:
    """How the table at this path is opened: `[uplink]`, `[[device.points]]`."""
    name = ".".join(part for part in path if isinstance(part, str))
    return f"[[{name}]]" if path and isinstance(path[-1], int) else f"[{name}]"


def _unknown(path: KeyPath, meant: str, declared: Sequence[Field], elsewhere: Headers) -> str:
    word, table = str(path[-1]), path[:-1]
    known = [field.name for field in declared]
    if f"{word}_file" in known:
        return f"secrets do not stand in this file: write it to a file of its own and name that: `{word}_file = …`"
    for field in declared:
        inner = [arm for arm in _arms(field.type) if isinstance(arm, type) and issubclass(arm, Table)]
        if any(word == each.name for arm in inner for each in fields(arm)):
            several = typing.get_origin(field.type) is tuple
            return f"`{word}` is a key of {header((*table, field.name, 0) if several else (*table, field.name))}"
    for outer in (header(table[:n]) for n in range(len(table) - 1, 0, -1)):
        if word in elsewhere.get(outer, ()):
            return f"`{word}` is a key of {outer}, not of {header(table)}: a key belongs to the last header above it"
    for other, keys in elsewhere.items():
        if word in keys and other != header(table):
            return f"`{word}` is a key of {other}"
    return f"unknown key `{word}`{f'; did you mean `{meant}`?' if meant else nearest(word, known)}"


class _Place(NamedTuple):
    """What a value needs to know of where it stands, and where its mistakes go."""

    path: KeyPath
    key: Key
    mistakes: list[Mistake]
    elsewhere: Headers

    def inner(self, step: str | int) -> _Place:
        return self._replace(path=(*self.path, step))

    def complain(self, message: str) -> None:
        self.mistakes.append(Mistake(self.path, message))

    def wrong(self, expected: str, raw: Any) -> None:
        self.complain(f"expected {expected}, not {_described(raw)}")


def _value(hint: Any, kind: Kind | None, raw: Any, place: _Place) -> Any:
    """One value of any declared type; what is wrong goes to the mistakes and the answer is then of no use."""
    hint, inner_key, inner_kind = _unwrap(hint)
    place, kind = place._replace(key=inner_key or place.key), inner_kind or kind
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(hint, kind, raw, place)
    if kind is not None:
        return _bounded(_with_unit(kind, raw, place), place, kind)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(raw, dict) and isinstance(item, type) and issubclass(item, Table):
            return place.complain(f"there can be several: write [{header(place.path)}] with two brackets")
        if not isinstance(raw, list):
            return place.wrong("a list [ … ]", raw)
        return tuple(_value(item, None, each, place.inner(i)) for i, each in enumerate(raw))
    if origin in (dict, Mapping):
        if not isinstance(raw, dict):
            return place.wrong("a table { … }", raw)
        item = typing.get_args(hint)[1]
        return {word: _value(item, None, each, place.inner(word)) for word, each in raw.items()}
    if origin is Literal:
        return _choice(typing.get_args(hint), raw, place)
    if isinstance(hint, type):
        return _plain(hint, raw, place)
    raise TypeError(f"{hint!r} cannot be a configuration value")


def _plain(hint: type, raw: Any, place: _Place) -> Any:
    if issubclass(hint, Table):
        if isinstance(raw, list) and raw and isinstance(raw[0], dict):
            return place.complain(f"there is only one: write {header(place.path)} with single brackets")
        if not isinstance(raw, dict):
            return place.wrong("a table { … }", raw)
        result, inner = read(hint, raw, place.path, place.elsewhere)
        place.mistakes.extend(inner)
        return result
    if issubclass(hint, enum.StrEnum):
        chosen = _choice(tuple(str(member.value) for member in hint), raw, place)
        return hint(chosen) if chosen is not None else None
    if hint is Path:
        return Path(raw) if isinstance(raw, str) and raw else place.wrong("a path in quotes", raw)
    if hint is float and type(raw) is int and abs(raw) < 2**63:
        raw = float(raw)
    names = {str: "text in quotes", bool: "true or false", int: "a whole number", float: "a number"}
    if type(raw) is not hint or (type(raw) is float and not math.isfinite(raw)):
        return place.wrong(names[hint], raw)
    if isinstance(raw, str):
        if place.key.pattern and not re.fullmatch(place.key.pattern, raw):
            shape = f"such as {place.key.example}" if place.key.example else f"pattern {place.key.pattern}"
            place.complain(f"{toml(raw)} does not fit: {place.key.doc} ({shape})")
        return raw
    return raw if hint is bool else _bounded(raw, place)


def _union(hint: Any, kind: Kind | None, raw: Any, place: _Place) -> Any:
    """`X | None` and unions of plain types: the first arm that takes the value; else the arm of its own type speaks."""
    arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    complaints: list[list[Mistake]] = []
    for arm in arms:
        found: list[Mistake] = []
        value = _value(arm, kind if len(arms) == 1 else None, raw, place._replace(mistakes=found))
        if not found:
            return value
        complaints.append(found)
    # the arm that went deepest is the one that was meant
    place.mistakes.extend(max(complaints, key=lambda found: max(len(m.path) for m in found)))
    return None


def _with_unit(kind: Kind, raw: Any, place: _Place) -> float | int | None:
    if isinstance(raw, int | float) and not isinstance(raw, bool) and 0 <= raw < 2**63:
        return float(raw) if kind is Kind.DURATION else int(raw)
    match = _NUMBER_AND_UNIT.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        return place.wrong(kind.value, raw)
    number, unit = match.groups()
    units: Mapping[str, float] = _DURATIONS if kind is Kind.DURATION else _SIZES
    if unit not in units:
        folded = {name.lower(): name for name in units}
        hint = f"; did you mean `{folded[unit.lower()]}`?" if unit.lower() in folded else f"; known: {', '.join(units)}"
        return place.complain(f"{toml(raw)}: unknown unit `{unit}`{hint}")
    total = float(number) * units[unit]
    if total >= 2**63:
        return place.wrong(kind.value, raw)
    return total if kind is Kind.DURATION else int(total)


def _bounded(value: Any, place: _Place, kind: Kind | None = None) -> Any:
    if value is None:
        return None
    low, high = place.key.min, place.key.max
    if (low is not None and value < low) or (high is not None and value > high):
        shows: dict[Kind | None, Callable[[float], str]] = {Kind.DURATION: duration_text, Kind.SIZE: size_text}
        show = shows.get(kind, str)
        at_least = [f"at least {show(low)}"] if low is not None else []
        at_most = [f"at most {show(high)}"] if high is not None else []
        limits = " and ".join(at_least + at_most)
        place.complain(f"{show(value)} is out of bounds: {limits}")
    return value


def _choice(options: Sequence[Any], raw: Any, place: _Place) -> Any:
    # 1 == True: a choice is the same value of the same type
    for option in options:
        if type(option) is type(raw) and option == raw:
            return option
    shown = ", ".join(toml(option) for option in options)
    close = closest(raw, [o for o in options if isinstance(o, str)]) if isinstance(raw, str) else ""
    place.complain(f"{_described(raw)} is not one of {shown}{f'; did you mean `{close}`?' if close else ''}")
    return None


def _described(raw: Any) -> str:
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, list):
        return "a list"
    return toml(raw)


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; empty when none is close."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean `x`?"` where something known is close, else a list of what is known (or nothing)."""
    known = list(known)
    close = closest(word, known)
    if close:
        return f"; did you mean `{close}`?"
    return f"; known: {', '.join(known)}" if known else ""


def duration_text(seconds: float) -> str:
    """The shortest way a person would write it: 0.5 → `500ms`, 120 → `2m`."""
    for unit, scale in reversed(_DURATIONS.items()):
        if seconds >= scale and abs(seconds / scale - round(seconds / scale)) < 1e-9:
            return f"{round(seconds / scale)}{unit}"
    return f"{seconds:g}s"


def size_text(size: float) -> str:
    """The largest unit that divides it: 67108864 → `64MiB`, 512000000 → `512MB`."""
    best = max((u for u in _SIZES if size and size % _SIZES[u] == 0), key=lambda u: _SIZES[u], default="B")
    return f"{int(size // _SIZES[best])}{best}"


def toml(value: Any, kind: Kind | None = None) -> str:
    """A value as one writes it in TOML."""
    if kind is Kind.DURATION and isinstance(value, int | float):
        return f'"{duration_text(value)}"'
    if kind is Kind.SIZE and isinstance(value, int):
        return f'"{size_text(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{word} = {toml(each)}" for word, each in value.items()) + " }" if value else "{}"
    # JSON and TOML escape alike, but for DEL
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def tables(table: type[Table]) -> Iterator[type[Table]]:
    """The table itself and every table that its keys hold, each once."""
    seen: set[type[Table]] = set()
    waiting = [table]
    while waiting:
        each = waiting.pop(0)
        if each in seen:
            continue
        seen.add(each)
        yield each
        for field in fields(each):
            waiting += [t for t in _arms(field.type) if isinstance(t, type) and issubclass(t, Table)]


def _arms(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in typing.get_args(hint):
        yield from _arms(inner)
