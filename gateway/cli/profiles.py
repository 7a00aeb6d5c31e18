"""`gateway profiles`: the ready-made register maps, and what each of them would do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli import EXIT_CONFIG, EXIT_FAILED, complain
from gateway.cli.arguments import DEFAULT_CONFIG, count
from gateway.errors import ConfigError
from gateway.settings import nearest, toml

if TYPE_CHECKING:
    from gateway.config.library import Library, Profile
    from gateway.points import Device

_OWN = DEFAULT_CONFIG.parent / "profiles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        'In the configuration: [[device]] with profile = "NAME". How to write one: gateway/profiles/README.md'
    )
    parser.add_argument("--dir", type=Path, default=_OWN, metavar="FOLDER", help="your own profiles [%(default)s]")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="every profile that is there", description="Every profile that is there.")
    search = verbs.add_parser("search", help="profiles that mention all these words", description="Finds profiles.")
    search.add_argument("words", nargs="+", metavar="WORD", help="of a name, a maker, a model")
    show = verbs.add_parser("show", help="points, requests and sources of one", description="All of one profile.")
    show.add_argument("name", metavar="NAME")
    check = verbs.add_parser("check", help="check a profile of your own", description="Checks a profile file.")
    check.add_argument("file", type=Path, metavar="FILE")


def main(arguments: argparse.Namespace) -> int:
    from gateway.config.library import Library

    library = Library(arguments.dir)
    match arguments.verb:
        case "list":
            return _list(library, ())
        case "search":
            return _list(library, tuple(word.lower() for word in arguments.words))
        case "show":
            return _show(library, arguments.name)
    return _check(arguments.file)


def _list(library: Library, words: tuple[str, ...]) -> int:
    code, rows = 0, []
    for name in library.names():
        try:
            profile = library.find(name)
        except ConfigError as error:
            code = complain("\n".join(error.problems), EXIT_CONFIG)
            continue
        assert profile is not None, "its name came from the library"
        text = " ".join((name, profile.head.title, profile.head.vendor, *profile.head.models)).lower()
        if all(word in text for word in words):
            rows.append((name, profile.head.title + ("" if profile.origin == "shipped" else f" ({profile.origin})")))
    width = max((len(name) for name, _ in rows), default=0)
    for name, title in rows:
        print(f"{name:<{width}}  {title}")
    if not rows and words:
        return complain("No profile mentions that; `gateway profiles list` shows all.", code or EXIT_FAILED)
    return code


def _show(library: Library, name: str) -> int:
    profile = library.find(name)
    if profile is None:
        return complain(f"there is no profile `{name}`{nearest(name, library.names())}", EXIT_FAILED)
    print("\n".join(_head(profile)))
    return _tried(profile)


def _check(file: Path) -> int:
    from gateway.config.library import parse

    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return complain(f"{file} cannot be read: {why}", EXIT_CONFIG)
    profile = parse(text, str(file), file.stem, own=True)
    if not profile.head.source:
        complain(f"{file}: no [[profile.source]]: whoever uses it cannot tell what it rests on", 0)
    code = _tried(profile)
    if not code:
        print(f"{file} is good")
    return code


def _head(profile: Profile) -> Iterator[str]:
    head = profile.head
    yield f"{profile.name}: {head.title}"
    yield f"models: {', '.join(head.models) or 'not said'}"
    yield f"from: {profile.origin}"
    if head.serial is not None:
        yield f"leaves the factory with {head.serial.baud_rate} 8{head.serial.parity}{head.serial.stop_bits}"
    yield from (f"note: {note}" for note in head.notes)
    for paper in head.source:
        where = ", ".join(part for part in (paper.title, paper.revision, paper.where) if part)
        yield f"source: {where}"
        if paper.url:
            yield f"        {paper.url}"
    yield from ("", "[[device]]", 'name = "…"', 'bus = "…"', f"profile = {toml(profile.name)}", "")


def _tried(profile: Profile) -> int:
    """The points, and the requests on each kind of bus; or the mistakes."""
    from gateway.config.trial import trial
    from gateway.connectors.registry import Registry

    registry = Registry()
    for number, name in enumerate(profile.head.kinds):
        kind = registry.kind(name)
        report = trial(profile, kind, registry)
        if report.config is None:
            return complain("\n".join(problem.underlined() for problem in report.mistakes), EXIT_CONFIG)
        entry = report.config.buses[0]
        if not number:
            print("\n".join(_points(entry.devices[0])))
        print(f"on {name}:")
        if kind.check is not None:
            print("".join(f"  warning: {text}\n" for text in kind.check(entry.bus, entry.devices)), end="")
        if kind.plan is not None:
            print("\n".join(f"  {line}" for line in kind.plan(entry.bus, entry.devices)))
    return 0


def _points(device: Device) -> Iterator[str]:
    points = getattr(device, "points", ())
    width = max((len(point.name) for point in points), default=0)
    yield count(len(points), "point")
    for point in points:
        said = [getattr(point, word, None) for word in ("register", "address", "type")]
        what = " ".join(str(each) for each in said if each not in (None, ""))
        writable = ", can be written" if point.write is not None else ""
        yield f"  {point.name:<{width}}  {point.convert or point.unit:<6} {what}{writable}".rstrip()
