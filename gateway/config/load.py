"""Reads a configuration file: all of its mistakes in one run, each with its place, or a `Config`.

The tables `[gateway]`, `[buffer]` and `[uplink]` have one shape each. `[[bus]]` and `[[device]]` have the shape that
their kind of bus declares; only kinds that the file names are imported. What profiles and templates say is laid under
the devices that name them. A file without buses or endpoints is valid.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config.assemble import Profiles, assemble
from gateway.config.library import Library
from gateway.config.positions import NOWHERE, Place, syntax_error
from gateway.config.problems import Problem, Source
from gateway.config.schema import Config
from gateway.config.warnings import warnings
from gateway.connectors.registry import Registry


class Report(NamedTuple):
    """What `check` found; `config` is None when there are mistakes."""

    config: Config | None
    mistakes: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check(path: Path, environ: Mapping[str, str], registry: Registry | None = None) -> Report:
    """What this file says, or every mistake in it; warnings are looked for when nothing is wrong. Sorted by line.

    `environ` is the process's environment.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        hint = " (try sudo)" if isinstance(error, PermissionError) else ""
        return _unusable(Source(str(path)), NOWHERE, f"cannot be read: {error.strerror}{hint}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        shown = Source(str(path), raw.decode("utf-8", "replace"))
        return _unusable(shown, place, "the file is not UTF-8 text; save it as UTF-8")
    return check_text(text, str(path), environ, registry or Registry())


def check_text(text: str, file: str, environ: Mapping[str, str], registry: Registry) -> Report:
    """Like `check`, of a text that is already here; `file` is what problems call it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return _unusable(Source(file, text), *syntax_error(text, error))
    except RecursionError:
        return _unusable(Source(file, text), Place(1, 1), "brackets are nested too deeply")
    library = Library(_folder(document, Path(file)))
    return check_document(document, Source(file, text, document), environ, registry, library)


def check_document(
    document: Mapping[str, Any], source: Source, environ: Mapping[str, str], registry: Registry, profiles: Profiles
) -> Report:
    """Like `check`, of what TOML made of a text."""
    config, tables, mistakes, unused = assemble(document, environ, registry, profiles, source)
    if config is None:
        return Report(None, _sorted(source.problems(mistakes)), ())
    return Report(config, (), _sorted(source.problems([*warnings(config, tables, source), *unused])))


def _folder(document: Mapping[str, Any], file: Path) -> Path:
    """Where the user's own profiles lie; what is wrong with the key is told when it is read."""
    gateway = document.get("gateway")
    said = gateway.get("profiles_dir") if isinstance(gateway, dict) else None
    return file.parent / (said if isinstance(said, str) and said else "profiles")


def _unusable(source: Source, place: Place, message: str) -> Report:
    return Report(None, (source.problem_at(place, message),), ())


def _sorted(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.place, problem.message)))
