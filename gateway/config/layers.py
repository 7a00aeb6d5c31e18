"""Pure: a device that is said in several places, put together as if it had been written in one.

The layers of a device are its own table, the `[[template]]` it names, the one that names, and at the bottom perhaps a
profile. What stands higher wins: key by key, points of the same name key by key, `tags` word by word; everything else
is replaced whole. `only` and `without` choose among the points that come from below, before their own layer adds any.

What is put together is read like any device. Each part remembers where it was written, so that a mistake is told there.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gateway.config.library import Profile
from gateway.config.problems import Source
from gateway.settings import KeyPath, Mistake, Table, fields, nearest

_OWN = ("name", "profile", "template")
"""What a layer says of itself and not of the devices that use it."""
_MERGED = ("tags",)


class Layer(NamedTuple):
    """One table that says something of a device, and where it is written."""

    raw: Mapping[str, Any]
    source: Source
    path: KeyPath
    title: str = ""
    """What brought it, in a person's words; nothing for the device itself."""
    profile: Profile | None = None
    """Of the lowest one, where that is a profile."""


class Written(NamedTuple):
    """Where something is written."""

    source: Source
    path: KeyPath


class Words(NamedTuple):
    """Every word that a device and its points may use → the key that is meant."""

    device: Mapping[str, str] = {}
    point: Mapping[str, str] = {}


class Whole(NamedTuple):
    """A device put together."""

    raw: dict[str, Any]
    written: dict[KeyPath, Written]
    """Of what its own table did not say: path within the device → where it is written."""
    brought: int
    """Points that came from below."""
    left_out: int
    """Points that were below and were not chosen."""
    mistakes: list[Mistake]


def words(device: type[Table]) -> Words:
    """The vocabulary of one kind of device."""
    point = next((field.type for field in fields(device) if field.name == "points"), None)
    inner = [arm for arm in typing.get_args(point) if isinstance(arm, type) and issubclass(arm, Table)]
    return Words(_vocabulary(device), _vocabulary(inner[0]) if inner else {})


def _vocabulary(table: type[Table]) -> dict[str, str]:
    return {word: field.name for field in fields(table) for word in (field.name, *field.key.alias)}


class _Cells:
    """A table while it is put together: every key once, under the word that was written last."""

    def __init__(self, vocabulary: Mapping[str, str], home: Written) -> None:
        self._vocabulary = vocabulary
        self._word_of: dict[str, str] = {}
        self.raw: dict[str, Any] = {}
        self.written: dict[str, Written] = {}
        self.home = home

    def put(self, word: str, value: Any, written: Written) -> None:
        key = self._vocabulary.get(word, word)
        before = self._word_of.get(key)
        # both words in one table are a mistake that the reader tells
        if before is not None and before != word and self.written[before].path[:-1] != written.path[:-1]:
            del self.raw[before], self.written[before]
        self._word_of[key] = word
        self.raw[word] = value
        self.written[word] = written


def merge(layers: Sequence[Layer], vocabulary: Words) -> Whole:
    """The device that these layers make, its own table first."""
    top = layers[0]
    device = _Cells(vocabulary.device, Written(top.source, top.path))
    tags: dict[str, Written] = {}
    points: list[_Cells] = []
    mistakes: list[Mistake] = []
    brought = below = 0
    for layer in reversed(layers):
        if layer is not layers[-1]:
            points, wrong = _chosen(points, layer)
            mistakes += wrong
        if layer is top:
            brought = len(points)
        for word, value in layer.raw.items():
            written = Written(layer.source, (*layer.path, word))
            if layer is not top and word in _OWN:
                continue
            if word == "points" and _tables(value):
                added = _laid_over(points, value, written, vocabulary.point)
                below += added if layer is not top else 0
                continue
            if word in _MERGED and isinstance(value, dict):
                tags |= {each: Written(layer.source, (*layer.path, word, each)) for each in value}
                value = {**device.raw.get(word, {}), **value}
            device.put(word, value, written)
    raw = dict(device.raw)
    if points:
        raw["points"] = [point.raw for point in points]
    return Whole(raw, dict(_places(device, tags, points)), brought, below - brought, mistakes)


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _laid_over(points: list[_Cells], rows: list[dict[str, Any]], at: Written, vocabulary: Mapping[str, str]) -> int:
    """Points of one layer, over those that are there; returns how many are new."""
    there = {point.raw.get("name"): point for point in points}
    new = 0
    for number, row in enumerate(rows):
        home = Written(at.source, (*at.path, number))
        # a name that stands twice in one layer stays twice: that is a mistake, and is told as one
        point = there.pop(row.get("name"), None)
        if point is None:
            point = _Cells(vocabulary, home)
            points.append(point)
            new += 1
        for word, value in row.items():
            point.put(word, value, Written(home.source, (*home.path, word)))
    return new


def _chosen(points: list[_Cells], layer: Layer) -> tuple[list[_Cells], list[Mistake]]:
    """What `only` and `without` of a layer leave of the points below it."""
    mistakes: list[Mistake] = []
    names = [name for point in points if isinstance(name := point.raw.get("name"), str)]
    for word in ("only", "without"):
        patterns = layer.raw.get(word)
        if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
            continue  # the reader says what is wrong with it
        for number, pattern in enumerate(patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                text = f'no point of the profile is named "{pattern}"{nearest(pattern, names)}'
                mistakes.append(Mistake((*layer.path, word, number), text))
        points = [point for point in points if _named(point, patterns) is (word == "only")]
    return points, mistakes


def _named(point: _Cells, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(str(point.raw.get("name")), pattern) for pattern in patterns)


def _places(device: _Cells, tags: Mapping[str, Written], points: Sequence[_Cells]) -> Iterator[tuple[KeyPath, Written]]:
    yield from (((word,), written) for word, written in device.written.items())
    yield from ((("tags", word), written) for word, written in tags.items())
    for number, point in enumerate(points):
        yield ("points", number), point.home
        for word, written in point.written.items():
            if written != (point.home.source, (*point.home.path, word)):
                yield ("points", number, word), written
