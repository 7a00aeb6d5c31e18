"""Which connectors there are: entry points of the group `gateway.connectors`, a stranger's like our own.

Only what is asked for is imported: a kind's entry point names its declarations, and `Kind.load` its driver. A plug-in
that cannot be imported is an error of that kind alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gateway.connectors.base import AnyKind, Connect, Kind
from gateway.errors import ConfigError
from gateway.settings import nearest

GROUP = "gateway.connectors"


class Registry:
    """The kinds of bus that this installation can speak on."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._points: dict[str, set[EntryPoint]] = {}
        for point in entry_points(group=GROUP) if points is None else points:
            self._points.setdefault(point.name, set()).add(point)
        self._kinds: dict[str, AnyKind] = {}

    def names(self) -> tuple[str, ...]:
        """Every kind that is installed, whether it can be imported or not."""
        return tuple(sorted(self._points))

    def alike(self, name: str) -> list[str]:
        """Installed kinds that a name which is none may mean, the likeliest first."""
        return [] if name in self._points else difflib.get_close_matches(name.lower(), self.names())

    def kind(self, name: str) -> AnyKind:
        """The declarations of one kind. Raises ConfigError."""
        if name not in self._kinds:
            self._kinds[name] = self._find(name)
        return self._kinds[name]

    def _find(self, name: str) -> AnyKind:
        claims = self._points.get(name, set())
        if not claims:
            raise ConfigError((f'no connector of kind "{name}" is installed{nearest(name, self.names())}',))
        if len({point.value for point in claims}) > 1:
            both = " and ".join(sorted(point.value for point in claims))
            raise ConfigError((f'two connectors call themselves "{name}": {both}; uninstall one',))
        point = next(iter(claims))
        try:
            kind = point.load()
        except Exception as error:  # a stranger's import can fail in any way
            raise ConfigError((f"{_named(point)} cannot be imported: {type(error).__name__}: {error}",)) from error
        if not isinstance(kind, Kind) or kind.name != name:
            raise ConfigError((f'{_named(point)} is not a Kind named "{name}"',))
        return kind


def load(kind: AnyKind) -> Connect[Any, Any]:
    """Imports the connector itself and its driver library. Raises ConfigError."""
    try:
        return kind.load()
    except Exception as error:  # a driver library that is not installed, or broken
        text = f'the connector of kind "{kind.name}" cannot be loaded: {type(error).__name__}: {error}'
        raise ConfigError((text,)) from error


def _named(point: EntryPoint) -> str:
    owner = f" of {point.dist.name}" if point.dist is not None else ""
    return f'connector "{point.name}"{owner} ({point.value})'
