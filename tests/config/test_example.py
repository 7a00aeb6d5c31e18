"""`config.example.toml` says everything, says it right, and works."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import pytest

from gateway.config.example import _value, render
from gateway.config.load import check_text
from gateway.config.schema import TABLES
from gateway.connectors.registry import Registry
from gateway.settings import Table, fields, read, tables

REGISTRY = Registry()
COMMITTED = Path(__file__).parents[2] / "config.example.toml"

SHAPES: list[type[Table]] = [table for _, table in TABLES]
for _name in REGISTRY.names():
    SHAPES += [REGISTRY.kind(_name).bus, REGISTRY.kind(_name).device]
DECLARED = list(dict.fromkeys(inner for shape in SHAPES for inner in tables(shape)))


@functools.cache
def rendered() -> str:
    return render(REGISTRY)


def test_the_committed_file_is_what_the_declarations_say() -> None:
    assert COMMITTED.read_text() == rendered(), (
        "a declaration or a sample.toml has changed: python -m gateway.config.example > config.example.toml"
    )


def test_it_loads_as_it_is_and_shows_a_bus_with_devices_of_every_kind() -> None:
    report = check_text(rendered(), "config.example.toml", {}, REGISTRY)
    assert [str(problem) for problem in report.mistakes] == []
    assert report.config is not None
    assert report.config.uplink.endpoint
    worked = {bus.kind.bus for bus in report.config.buses if bus.devices}
    for kind in map(REGISTRY.kind, REGISTRY.names()):
        # kinds that differ in nothing but the word share one section, which names them both
        assert kind.bus in worked, f"no bus of kind {kind.name} in its sample.toml"
        assert re.search(rf"^kind = .*\b{kind.name}\b", rendered(), re.MULTILINE), f"{kind.name} is not named"


@pytest.mark.parametrize("table", DECLARED, ids=lambda table: table.__name__)
def test_every_declared_key_appears(table: type[Table]) -> None:
    text = rendered()
    missing = [
        field.name
        for field in fields(table)
        if not re.search(rf"^#?{field.name} = |^#?\[+[a-z_.]*\b{field.name}\]", text, re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("table", DECLARED, ids=lambda table: table.__name__)
def test_every_value_that_is_shown_may_be_written(table: type[Table]) -> None:
    for field in fields(table):
        if any(issubclass(arm, Table) for arm in _tables_in(field.type)):
            continue  # shown as a table of its own
        shown = _value(field)
        if shown == '"…"':
            continue  # nothing that would be right everywhere
        _, mistakes = read(table, tomllib.loads(f"{field.name} = {shown}"))
        # what holds between keys is another matter
        of_its_own = "^expected|is not one of|out of bounds|does not fit|^unknown"
        assert [
            each for each in mistakes if each.path[:1] == (field.name,) and re.search(of_its_own, each.message)
        ] == []


def _tables_in(hint: object) -> list[type[Table]]:
    found = [hint] if isinstance(hint, type) and issubclass(hint, Table) else []
    for arm in getattr(hint, "__args__", ()):
        found += _tables_in(arm)
    return found


def test_no_line_is_wider_than_a_screen_where_it_was_rendered() -> None:
    assert [line for line in rendered().splitlines() if line.startswith("#") and len(line) > 120] == []
