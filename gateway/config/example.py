"""Renders `config.example.toml`: every key that can be written, from the declarations that also read it.

For each family of connectors first its `sample.toml`, written by hand and worth copying, then every key of its tables
with default and meaning, commented out.
"""

from __future__ import annotations

import enum
import re
import textwrap
import typing
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.config.schema import TABLES
from gateway.connectors.base import AnyKind
from gateway.connectors.registry import Registry
from gateway.points import Bus, Device, Point
from gateway.settings import Field, Kind, Table, duration_text, fields, size_text, toml

_WIDTH = 120
_WIDEST_ASSIGNMENT = 46
"""Beyond this the meaning stands in the line above."""

_HEAD = """\
The configuration of the gateway: what it reads, how it keeps it, where it delivers.

    gateway check FILE      says what is wrong, where and why, and what would be done

A line that starts with `#key` shows a key that may be left out, with its default (or an example where there is no
default). Times are written with their unit ("500ms", "10s", "5m", "2h"), sizes too ("64KB", "512MB"). A key belongs
to the last [header] above it, so keys stand before sub-tables. Unknown keys are mistakes. Secrets are never written
here: they stand in files of their own, named by keys that end in `_file`."""


_TEMPLATES = """\
A [[template]] has the keys of a [[device]]. Devices that name it in `profile` say only what differs; it may itself
stand on a profile or another template."""


def render(registry: Registry) -> str:
    """The whole file, for all connectors that are installed."""
    lines = [f"# {line}".rstrip() for line in _HEAD.split("\n")]
    for name, table in TABLES:
        lines += _title(_summary(table))
        lines += _block((name,), table, fields(table), live=True)
    lines += _title("Buses and the devices on them")
    lines += _prose("Every bus, every device and every point can say this, whatever its kind:")
    lines += ["", *_block(("bus",), Bus, fields(Bus), many=True)]
    lines += ["", *_block(("device",), Device, fields(Device), many=True)]
    lines += ["", *_block(("device", "points"), Point, fields(Point), many=True)]
    lines += ["", *_prose(_TEMPLATES), "#[[template]]", '#name = "meter"', '#profile = "eastron-sdm630"']
    for kinds in _families(registry):
        lines += _title(", ".join(kind.name for kind in kinds))
        sample = resources.files(_package(kinds[0])).joinpath("sample.toml")
        if sample.is_file():
            lines += sample.read_text().rstrip("\n").split("\n")
        lines += _reference(kinds, "bus", Bus)
        lines += _reference(kinds, "device", Device)
    return "\n".join(lines) + "\n"


def _families(registry: Registry) -> list[list[AnyKind]]:
    """Kinds of one package belong together, serial lines first."""
    found: dict[str, list[AnyKind]] = {}
    for name in registry.names():
        kind = registry.kind(name)
        found.setdefault(_package(kind), []).append(kind)
    return [sorted(kinds, key=lambda kind: kind.name) for _, kinds in sorted(found.items())]


def _package(kind: AnyKind) -> str:
    return kind.device.__module__.rpartition(".")[0]


def _reference(kinds: Sequence[AnyKind], what: Literal["bus", "device"], base: type[Table]) -> Iterable[str]:
    """All keys of the tables of these kinds, but for those that every table of the sort has."""
    by_table: dict[type[Table], list[str]] = {}
    for kind in kinds:
        by_table.setdefault(kind.bus if what == "bus" else kind.device, []).append(kind.name)
    for table, names in by_table.items():
        own = [field for field in fields(table) if field not in fields(base)]
        if own:
            whose = (
                f"a bus of kind {', '.join(names)}"
                if what == "bus"
                else f"a device on a bus of kind {', '.join(names)}"
            )
            yield ""
            yield from _prose(f"Every key of {whose}:")
            yield from _block((what,), table, own, many=True)


def _block(
    path: tuple[str, ...],
    table: type[Table],
    keys: Sequence[Field],
    *,
    many: bool = False,
    live: bool = False,
    note: str = "",
) -> list[str]:
    """A header and its keys, sub-tables last. `live`: the header and what is required are not commented out."""
    header = f"[[{'.'.join(path)}]]" if many else f"[{'.'.join(path)}]"
    rows: list[tuple[str, str]] = [(f"{'' if live else '#'}{header}", note)]
    below: list[str] = []
    for field in keys:
        inner, inner_many = _inner(field.type)
        if inner is not None:
            inner_live = live and inner_many and bool(_required(inner))
            below += [
                "",
                *_block(
                    (*path, field.name), inner, _own_keys(inner), many=inner_many, live=inner_live, note=field.key.doc
                ),
            ]
        if inner is None or isinstance(field.default, str):
            mark = "" if live and field.required else "#"
            rows.append((f"{mark}{field.name} = {_value(field)}", _doc(field)))
    return [*_aligned(rows), *below]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    short = [len(text) for text, _ in rows if len(text) <= _WIDEST_ASSIGNMENT]
    column = max(short, default=0) + 2
    lines = []
    for text, doc in rows:
        if not doc:
            lines.append(text)
        elif len(text) <= _WIDEST_ASSIGNMENT and column + 2 + len(doc) <= _WIDTH:
            lines.append(f"{text:<{column}}# {doc}")
        else:
            lines += [*_prose(doc), text]
    return lines


def _prose(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2)]


def _title(text: str) -> list[str]:
    return ["", "", f"# ── {text} ".ljust(_WIDTH, "─"), ""]


def _summary(table: type[Table]) -> str:
    return (table.__doc__ or "").split("\n")[0].rstrip(".")


def _own_keys(table: type[Table]) -> Sequence[Field]:
    """What a point of one kind can say beyond what every point can; all keys of other tables."""
    if table is not Point and issubclass(table, Point):
        return [field for field in fields(table) if field not in fields(Point)]
    return fields(table)


def _required(table: type[Table]) -> bool:
    return any(field.required for field in fields(table))


def _inner(hint: Any) -> tuple[type[Table] | None, bool]:
    """The table in a type, and whether there can be several."""
    if isinstance(hint, type) and issubclass(hint, Table):
        return hint, False
    for arm in typing.get_args(hint):
        found, many = _inner(arm)
        if found is not None:
            return found, many or typing.get_origin(hint) is tuple
    return None, False


def _doc(field: Field) -> str:
    limits = _limits(field)
    return field.key.doc + (f" ({limits})" if limits else "")


def _limits(field: Field) -> str:
    options = _options(field.type)
    if options:
        return " ".join(each if isinstance(each, str) else toml(each) for each in options)
    low, high = field.key.min, field.key.max
    if low is not None and high is not None:
        return f"{_number(low, field.kind)} to {_number(high, field.kind)}"
    if low is not None and low > 0:
        return f"at least {_number(low, field.kind)}"
    return f"at most {_number(high, field.kind)}" if high is not None else ""


def _number(number: float, kind: Kind | None) -> str:
    match kind:
        case Kind.DURATION:
            return duration_text(number)
        case Kind.SIZE:
            return size_text(number)
        case None:
            return str(int(number) if number == int(number) else number)


def _options(hint: Any) -> list[Any]:
    """What may be chosen from, where it is a choice."""
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
        return [str(member.value) for member in hint]
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [option for arm in typing.get_args(hint) if typing.get_origin(arm) is not tuple for option in _options(arm)]


def _value(field: Field) -> str:
    """The default; an example where there is none."""
    stands_for_none = isinstance(field.default, int | float) and field.default < (field.key.min or field.default)
    if field.default not in (None, "", (), {}, msgspec.NODEFAULT) and not stands_for_none:
        return toml(field.default, field.kind)
    if field.key.example:
        return field.key.example
    empty_fits = field.key.pattern is None or re.fullmatch(field.key.pattern, "") is not None
    if field.default in ((), {}) or (field.default == "" and empty_fits):
        return toml(field.default)
    return _made_up(field)


def _made_up(field: Field) -> str:
    """A value of the right type, for keys that say nothing of their own."""
    low = field.key.min or 0.0
    if field.kind is not None:
        return '"10s"' if field.kind is Kind.DURATION else '"1MB"'
    options = _options(field.type)
    if options:
        return toml(options[0])
    arms = [arm for arm in (typing.get_args(field.type) or (field.type,)) if arm is not type(None)]
    if arms[0] is Path:
        return toml(f"/etc/gateway/{field.name.removesuffix('file').rstrip('_')}")
    return {bool: "true", int: f"{int(low)}", float: f"{low:g}"}.get(arms[0], '"…"')


if __name__ == "__main__":
    print(render(Registry()), end="")
