"""Pure: topic templates, and finding the templates that a topic fits.

    plant/{device}/state        `{x}` takes exactly one level and remembers it
    shellies/plug-1/#           `+` and `#` as in MQTT 5.0, 4.7.1

What wildcards take, from the first one to the end of the topic, is the *tail*: `relay/0/power` above. Formats that
say one value per topic name their points by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_MAX_BYTES = 65_535  # MQTT 5.0, 1.5.4: the length of a string is 16 bits


def placeholders(text: str) -> tuple[str, ...]:
    """Names in braces, in order."""
    return tuple(_PLACEHOLDER.findall(text))


def render(text: str, captures: Mapping[str, str]) -> str:
    """Puts what was captured back in; a name that was not captured stays as it is."""
    return _PLACEHOLDER.sub(lambda match: captures.get(match[1], match[0]), text)


class Template(msgspec.Struct, frozen=True):
    """A topic filter with named levels."""

    text: str
    levels: tuple[str, ...]
    """As subscribed: placeholders have become `+`."""
    names: tuple[tuple[int, str], ...]
    """Where the placeholders are."""
    wild: int | None
    """The first level that is a `+` or `#` in the text itself."""

    @classmethod
    def of(cls, text: str) -> Template:
        """Raises ValueError with a sentence for the person who wrote it."""
        if not text or "\0" in text or len(text.encode()) > _MAX_BYTES:
            raise ValueError("a topic is 1 to 65,535 bytes of text")
        levels, names, wild = [], [], None
        written = text.split("/")
        for i, level in enumerate(written):
            match = _PLACEHOLDER.fullmatch(level)
            if match:
                names.append((i, match[1]))
            elif "{" in level or "}" in level:
                raise ValueError(f"{level!r}: a placeholder takes one whole level, such as plant/{{device}}/state")
            elif level in ("+", "#"):
                wild = i if wild is None else wild
            elif "+" in level or "#" in level:
                raise ValueError(f"{level!r}: + and # take one whole level")
            levels.append("+" if match else level)
        if "#" in written[:-1]:
            raise ValueError("# is the last level or none")
        if len({name for _, name in names}) < len(names):
            raise ValueError("a placeholder is used twice")
        return cls(text, tuple(levels), tuple(names), wild)

    @property
    def filter(self) -> str:
        """What is subscribed."""
        return "/".join(self.levels)

    def captures(self, levels: list[str]) -> dict[str, str]:
        return {name: levels[i] for i, name in self.names}

    def tail(self, levels: list[str]) -> str:
        return "" if self.wild is None else "/".join(levels[self.wild :])


class Match(NamedTuple, Generic[T]):
    """One template that a topic fits."""

    value: T
    captures: dict[str, str]
    tail: str


class _Node(Generic[T]):
    __slots__ = ("children", "here")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.here: list[tuple[Template, T]] = []


class Topics(Generic[T]):
    """A tree of templates by level: the cost of a match grows with the depth of a topic, not with their number."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, template: Template, value: T) -> None:
        node = self._root
        for level in template.levels:
            node = node.children.setdefault(level, _Node())
        node.here.append((template, value))

    def match(self, topic: str) -> list[Match[T]]:
        """In the order of depth; a `$` topic fits no wildcard in the first level (MQTT 5.0, 4.7.2)."""
        levels = topic.split("/")
        found: list[tuple[Template, T]] = []
        nodes = [self._root]
        for i, level in enumerate(levels):
            words = (level,) if i == 0 and topic.startswith("$") else (level, "+")
            if len(words) == 2:
                found += [each for node in nodes if (rest := node.children.get("#")) for each in rest.here]
            nodes = [child for node in nodes for word in words if (child := node.children.get(word))]
        found += [each for node in nodes for each in node.here]
        # `a/#` is also `a` itself
        found += [each for node in nodes if (rest := node.children.get("#")) for each in rest.here]
        return [Match(value, template.captures(levels), template.tail(levels)) for template, value in found]


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that fits `narrow` fits `wide` too."""
    if narrow.startswith("$") and wide[:1] in ("+", "#"):
        return False
    left, right = wide.split("/"), narrow.split("/")
    for i, level in enumerate(left):
        if level == "#":
            return True
        if i == len(right) or right[i] == "#" or (level != "+" and level != right[i]):
            return False
    return len(left) == len(right)


def overlap(one: str, other: str) -> bool:
    """Whether a topic can fit both."""
    if "$" in (one[:1], other[:1]) and one[:1] != other[:1]:
        return False
    left, right = one.split("/"), other.split("/")
    for a, b in zip(left, right, strict=False):
        if "#" in (a, b):
            return True
        if a != b and "+" not in (a, b):
            return False
    longer = left[len(right) :] or right[len(left) :]
    return not longer or longer == ["#"]


def reduced(filters: Iterable[str]) -> tuple[str, ...]:
    """Without those that another one covers: a broker may deliver a message once for each filter that it fits."""
    kept: list[str] = []
    for each in dict.fromkeys(filters):
        if not any(covers(other, each) for other in kept):
            kept = [other for other in kept if not covers(each, other)] + [each]
    return tuple(kept)
