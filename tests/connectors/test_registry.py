"""Kinds of bus come from entry points; what is broken in one never touches another."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from gateway.connectors.base import Connect, Kind
from gateway.connectors.registry import GROUP, Registry, load
from gateway.errors import ConfigError
from gateway.points import Bus, Device


def without_driver() -> Connect[Any, Any]:
    raise ModuleNotFoundError("No module named 'driver'")


GOOD = Kind("good", Bus, Device, without_driver)
OTHER = Kind("other", Bus, Device, without_driver)
NOT_A_KIND = "good"


def points(**values: str) -> Registry:
    return Registry([EntryPoint(name, value, GROUP) for name, value in values.items()])


def complaint(registry: Registry, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        registry.kind(name)
    return caught.value.problems[0]


def test_a_broken_plugin_is_an_error_of_its_own_kind_alone() -> None:
    registry = points(broken="no_such_module:KIND", good=f"{__name__}:GOOD")
    assert registry.kind("good") is GOOD
    assert complaint(registry, "broken") == (
        'connector "broken" (no_such_module:KIND) cannot be imported: '
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert registry.names() == ("broken", "good")


def test_an_unknown_kind_names_the_nearest_one_or_all() -> None:
    registry = points(good=f"{__name__}:GOOD", modbus=f"{__name__}:OTHER")
    assert complaint(registry, "godo") == 'no connector of kind "godo" is installed; did you mean `good`?'
    assert complaint(registry, "x") == 'no connector of kind "x" is installed; known: good, modbus'


def test_an_entry_point_that_names_something_else_is_refused() -> None:
    assert complaint(points(good=f"{__name__}:NOT_A_KIND"), "good").endswith('is not a Kind named "good"')
    assert complaint(points(good=f"{__name__}:OTHER"), "good").endswith('is not a Kind named "good"')


def test_two_claims_on_one_name_are_refused_but_one_seen_twice_is_fine() -> None:
    ours, theirs = EntryPoint("good", f"{__name__}:GOOD", GROUP), EntryPoint("good", "else.where:GOOD", GROUP)
    assert Registry([ours, ours]).kind("good") is GOOD
    assert complaint(Registry([ours, theirs]), "good") == (
        f'two connectors call themselves "good": else.where:GOOD and {__name__}:GOOD; uninstall one'
    )


def test_a_missing_driver_library_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match='the connector of kind "good" cannot be loaded: ModuleNotFoundError'):
        load(GOOD)


def test_naming_the_kinds_imports_none_of_them() -> None:
    code = (
        "import sys; from gateway.connectors.registry import Registry; print(*Registry().names());"
        "print(*(m for m in sys.modules if m.startswith('gateway.connectors.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    names, modules = out.splitlines()
    assert {"modbus-rtu", "modbus-tcp", "modbus-rtu-over-tcp", "serial", "ble", "mqtt"} <= set(names.split())
    assert set(modules.split()) == {"gateway.connectors.base", "gateway.connectors.registry", "gateway.connectors.tap"}
