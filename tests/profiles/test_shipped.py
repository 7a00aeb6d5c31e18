"""What holds for every profile that ships, without a device."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.codec import units
from gateway.config.library import Library, Profile
from gateway.config.trial import trial
from gateway.connectors.modbus.config import ModbusDevice, spot
from gateway.connectors.modbus.forecast import LOAD_MAX, load
from gateway.connectors.registry import Registry

LIBRARY = Library()
REGISTRY = Registry()
NAMES = LIBRARY.names()
ON = [(name, kind) for name in NAMES for kind in LIBRARY.find(name).head.kinds]  # type: ignore[union-attr]

ASKED_FOR = {
    "eastron-sdm72d-m", "eastron-sdm120", "eastron-sdm230", "eastron-sdm630", "sunspec", "carlo-gavazzi-em24",
    "carlo-gavazzi-em340", "abb-b23", "schneider-iem3000", "victron-gx-system", "huawei-sun2000", "sma-inverter",
    "growatt-inverter", "deye-sg04lp3", "xy-md02", "waveshare-relay-8",
}  # fmt: skip


def profile(name: str) -> Profile:
    found = LIBRARY.find(name)
    assert found is not None
    return found


def device(name: str, kind: str) -> tuple[object, ModbusDevice]:
    report = trial(profile(name), REGISTRY.kind(kind), REGISTRY)
    assert [str(mistake) for mistake in report.mistakes] == []
    assert report.config is not None
    return report.config.buses[0].bus, report.config.buses[0].devices[0]


def test_the_devices_that_people_own_most_are_there() -> None:
    assert set(NAMES) >= ASKED_FOR


def test_they_lie_in_the_package_where_an_installed_gateway_finds_them() -> None:
    shipped = {each.name.removesuffix(".toml") for each in resources.files("gateway.profiles").iterdir()}
    assert set(NAMES) <= shipped


@pytest.mark.parametrize("name", NAMES)
def test_each_names_the_documents_that_it_rests_on(name: str) -> None:
    head = profile(name).head
    assert head.source
    assert all(paper.title and (paper.url or paper.where) for paper in head.source)
    assert any(paper.url for paper in head.source)
    # what was not seen in the maker's own document needs a second source
    seen = any(
        word in paper.title for paper in head.source for word in ("SMA", "Growatt", "Victron", "SunSpec", "Wave")
    )
    assert seen or len(head.source) >= 2
    assert head.models


@pytest.mark.parametrize(("name", "kind"), ON)
def test_each_is_a_good_device_on_every_kind_of_bus_that_it_names(name: str, kind: str) -> None:
    bus, found = device(name, kind)
    declared = REGISTRY.kind(kind)
    assert declared.check is not None
    assert [*declared.check(bus, [found])] == []
    assert load(bus, [found]) < LOAD_MAX, "with its own interval on a bus of its own"  # type: ignore[arg-type]
    assert declared.plan is not None
    assert declared.plan(bus, [found])


@pytest.mark.parametrize("name", NAMES)
def test_no_two_points_of_one_lie_on_one_another(name: str) -> None:
    _, found = device(name, profile(name).head.kinds[0])
    places = sorted(
        (where.table.value, point.model, where.address, where.address + where.width, point.name)
        for point in found.points
        for where in [spot("ABCD", found, point)]
    )
    for (*place, _, end, first), (*other, start, _, second) in pairwise(places):
        assert place != other or end <= start, f"{first} and {second}"


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_is_known_and_every_number_has_one(name: str) -> None:
    _, found = device(name, profile(name).head.kinds[0])
    for point in found.points:
        if point.unit:
            assert units.symbol(point.unit) == point.unit
            units.convert(point.unit, point.unit)
        else:
            state = point.enum or point.type == "string" or point.register == "coil"
            assert state or point.name in ("vendor_state", "events", "connected", "power_limit_on"), point.name


@pytest.mark.parametrize("name", NAMES)
def test_names_of_points_are_of_one_style(name: str) -> None:
    _, found = device(name, profile(name).head.kinds[0])
    assert all(point.name.replace("_", "").isalnum() and point.name.islower() for point in found.points)


@pytest.mark.parametrize("name", NAMES)
def test_only_relays_can_be_written(name: str) -> None:
    _, found = device(name, profile(name).head.kinds[0])
    assert all(point.write is None for point in found.points) or "relay" in name


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_of_the_profiles_lists_it(name: str) -> None:
    readme = (Path(__file__).parents[2] / "gateway" / "profiles" / "README.md").read_text()
    assert f"| `{name}` |" in readme


def test_the_wheel_takes_the_profiles_along(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {f"gateway/profiles/{name}.toml" for name in NAMES} <= set(inside)
