"""The profiles that are there: those that ship with the gateway and those in a folder of the user's own.

A profile is one TOML file, named as the profile: a `[profile]` table that says what it is for and where its facts come
from, and a `[device]` table in the words of `[[device]]`. A user's profile wins over a shipped one of the same name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from gateway.config.positions import Place, syntax_error
from gateway.config.problems import Problem, Source
from gateway.errors import ConfigError
from gateway.settings import ID_PATTERN, Key, Mistake, Table, read

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NOT_HERE = ("name", "bus", "enabled", "profile", "template", "only", "without", "tags")
"""What only the device itself can say."""


class Paper(Table, frozen=True, kw_only=True):
    """A document that the facts come from."""

    title: Annotated[str, Key("what it calls itself")]
    revision: Annotated[str, Key("its revision, issue or date")] = ""
    where: Annotated[str, Key("table, section or page in it")] = ""
    url: Annotated[str, Key("where it can be found", pattern=r"https?://\S+")] = ""


class Serial(Table, frozen=True, kw_only=True):
    """How the device leaves its factory; a hint, the bus decides."""

    baud_rate: Annotated[int, Key("bits per second", min=50, max=4_000_000)]
    parity: Annotated[Literal["N", "E", "O"], Key("parity")] = "N"
    stop_bits: Annotated[Literal[1, 2], Key("stop bits")] = 1


class Head(Table, frozen=True, kw_only=True):
    """What a profile is for."""

    title: Annotated[str, Key("what it describes, in a few words")]
    vendor: Annotated[str, Key("who makes the device")] = ""
    models: Annotated[tuple[str, ...], Key("the models that it fits")] = ()
    kinds: Annotated[tuple[str, ...], Key("kinds of bus that the device can sit on")]
    serial: Annotated[Serial | None, Key("serial settings of a new device")] = None
    notes: Annotated[tuple[str, ...], Key("what one should know before using it")] = ()
    source: Annotated[tuple[Paper, ...], Key("the documents that the facts come from")] = ()

    def mistakes(self) -> Iterable[Mistake]:
        if not self.kinds:
            yield Mistake(("kinds",), "name at least one kind of bus")


class Profile(NamedTuple):
    """One profile file that can be used."""

    name: str
    file: str
    own: bool
    """It lies in the user's folder."""
    hides: bool
    """A shipped profile of the same name is not used because of this one."""
    head: Head
    device: Mapping[str, Any]
    source: Source

    @property
    def origin(self) -> str:
        """Where it comes from, in a person's words."""
        return f"{self.file}, instead of the shipped one" if self.hides else self.file if self.own else "shipped"


class Library:
    """Finds profiles; each is read once."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is the user's own; it need not exist."""
        self._folder = folder
        self._read: dict[str, Profile] = {}

    def names(self) -> list[str]:
        """Every profile that is there, good or not."""
        return sorted({*_stems(_shipped()), *(_stems(self._folder) if self._folder else ())})

    def find(self, name: str) -> Profile | None:
        """The profile of this name, if there is one.

        Raises:
            ConfigError: it cannot be used; every mistake with its file and line.
        """
        if name not in self._read and re.fullmatch(ID_PATTERN, name):
            found = self._load(name)
            if found is None:
                return None
            self._read[name] = found
        return self._read.get(name)

    def _load(self, name: str) -> Profile | None:
        shipped, file = _shipped() / f"{name}.toml", f"{name}.toml"
        own = self._folder / file if self._folder else None
        try:
            if own is not None and own.exists():
                return parse(own.read_text("utf-8-sig"), str(own), name, own=True, hides=shipped.is_file())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError((f"{own} cannot be read: {why}",)) from error
        return parse(shipped.read_text("utf-8"), str(shipped), name) if shipped.is_file() else None


def parse(text: str, file: str, name: str, *, own: bool = False, hides: bool = False) -> Profile:
    """The profile that this text is. What its points say is judged where they are used.

    Raises:
        ConfigError: every mistake with its file and line.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place, said = Place(1, 1), "brackets are nested too deeply"
        if isinstance(error, tomllib.TOMLDecodeError):
            place, said = syntax_error(text, error)
        raise ConfigError((str(Source(file, text).problem_at(place, said)),)) from error
    source = Source(file, text, document)
    problems: list[Problem] = []
    for word in document:
        if word not in ("profile", "device"):
            problems.append(source.problem((word,), "a profile has two tables: [profile] and [device]"))
    raw, device = document.get("profile"), document.get("device")
    head, mistakes = read(Head, raw if isinstance(raw, dict) else {}, ("profile",))
    problems += source.problems(mistakes)
    if not isinstance(device, dict):
        problems.append(source.problem(("device",), "a profile has one [device] table, in single brackets"))
        device = {}
    for word in device:
        if word in _NOT_HERE:
            problems.append(source.problem(("device", word), "is said by the device that uses a profile"))
    if problems or head is None:
        raise ConfigError(tuple(str(problem) for problem in problems))
    return Profile(name, file, own, hides, head, device, source)


def _shipped() -> Traversable:
    from importlib import resources  # 20 ms that most configurations do not need

    return resources.files("gateway.profiles")


def _stems(folder: Traversable) -> Iterator[str]:
    try:
        yield from (each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))
    except OSError:
        return  # a folder of one's own need not exist
