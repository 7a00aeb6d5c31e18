"""The sample is valid, and mistakes are found before anything runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.connectors.ble.config import BLE, BleBus, BleDevice
from gateway.connectors.ble.sensor import Sensor
from gateway.settings import read

from .conftest import bus, device

SAMPLE = Path(__file__).parents[2] / "gateway/connectors/ble/sample.toml"


def sample() -> tuple[BleBus, list[BleDevice]]:
    raw = tomllib.loads(SAMPLE.read_text())
    (bus_table,) = raw["bus"]
    settings, mistakes = read(BleBus, bus_table)
    assert settings is not None, mistakes
    devices = []
    for table in raw["device"]:
        found, mistakes = read(BleDevice, table)
        assert found is not None, mistakes
        devices.append(found)
    return settings, devices


def test_the_sample_is_valid_and_without_warnings() -> None:
    settings, devices = sample()
    assert [each.name for each in devices] == ["fridge", "sauna", "cellar", "loft", "probe", "scale", "tank"]
    assert BLE.check is not None
    assert list(BLE.check(settings, devices)) == []


def test_the_plan_says_what_will_be_done() -> None:
    assert BLE.plan is not None
    assert list(BLE.plan(*sample())) == [
        "fridge: listens for everything that it advertises",
        "sauna: listens for temperature, battery_voltage",
        "cellar: listens for everything that it advertises",
        "loft: listens for everything that it advertises",
        "probe: connects (notify) for temperature, led",
        "scale: connects (notify) for weight, bmi",
        "tank: connects (poll) for battery, level",
    ]


PROBE: dict[str, Any] = {"name": "probe", "bus": "air", "address": "F0:F1:F2:F3:F4:F5"}
FF01: dict[str, Any] = {"name": "t", "characteristic": "ff01", "write": {}}


@pytest.mark.parametrize(
    ("keys", "path", "says"),
    [
        ({"address": "F0F1F2F3F4F5"}, ("address",), "Bluetooth address"),
        ({"decoder": "bthom"}, ("decoder",), "did you mean `bthome`"),
        ({"connect": {"mode": "poll"}}, ("connect",), "nothing to connect for"),
        ({"points": [{"name": "t", "characteristic": "2a6e"}]}, ("points", 0, "characteristic"), "needs `connect`"),
        ({"points": [FF01 | {"characteristic": "2a6"}]}, ("points", 0, "characteristic"), "not a UUID"),
        ({"points": [FF01]}, ("points", 0, "characteristic"), "`type` is needed"),
        ({"points": [FF01 | {"type": "uint33"}]}, ("points", 0, "type"), "uint33"),
        ({"points": [{"name": "t", "type": "uint8"}]}, ("points", 0, "type"), "belongs to a `characteristic`"),
        ({"points": [{"name": "t", "write": {}}]}, ("points", 0, "write"), "can be written"),
        ({"points": [{"name": "t"}, {"name": "t"}]}, ("points", 1, "name"), "second point"),
        ({"points": [{"name": "t", "field": "bmi"}]}, ("points", 0, "field"), "belongs to a `characteristic`"),
        ({"points": [FF01 | {"characteristic": "2a9d", "field": "size"}]}, ("points", 0, "field"), "bmi, height"),
        ({"points": [FF01 | {"characteristic": "2a37"}]}, ("points", 0, "write"), "cannot be written"),
        ({"package": "bthome-ble", "decoder": "bthome"}, ("decoder",), "keep one"),
        ({"package": "os; rm"}, ("package",), "such as"),
        ({"bindkey_file": "/k", "decoder": "govee"}, ("bindkey_file",), "not encrypted"),
        ({"bindkey": "00"}, ("bindkey",), "secrets do not stand in this file"),
    ],
)
def test_mistakes_name_their_place(keys: dict[str, Any], path: tuple[object, ...], says: str) -> None:
    found, mistakes = read(BleDevice, PROBE | keys)
    assert found is None
    (mistake,) = mistakes
    assert mistake.path == path
    assert says in mistake.message


def test_more_staying_connections_than_allowed_are_warned_of() -> None:
    points = [{"name": "t", "characteristic": "2a6e"}]
    devices = [device(f"d{n}", f"F0:F1:F2:F3:F4:0{n}", connect={"mode": "notify"}, points=points) for n in range(3)]
    assert BLE.check is not None
    assert list(BLE.check(bus(max_connections=3), devices)) == []
    (warning,) = BLE.check(bus(max_connections=2), devices)
    assert "d0, d1, d2" in warning
    visited = device("v", "F0:F1:F2:F3:F4:0A", connect={"mode": "poll", "interval": "5m"}, points=points)
    assert list(BLE.check(bus(max_connections=3), [*devices[:2], visited])) == []
    assert len(BLE.check(bus(max_connections=2), [*devices[:2], visited])) == 1, "none is left to visit it"


def test_a_passive_scan_for_what_measures_in_the_company_is_warned_of() -> None:
    assert BLE.check is not None
    meter = device("meter", "F0:F1:F2:F3:F4:F5", decoder="inkbird")
    (warning,) = BLE.check(bus(scan_mode="passive"), [meter])
    assert "meter" in warning
    assert list(BLE.check(bus(scan_mode="auto"), [meter])) == []


def test_two_devices_with_one_address_are_warned_of() -> None:
    assert BLE.check is not None
    (warning,) = BLE.check(bus(), [device("a", "F0:F1:F2:F3:F4:F5"), device("b", "f0:f1:f2:f3:f4:f5")])
    assert "same address" in warning


@pytest.mark.parametrize("points", [{}, {"points": "auto"}, {"points": []}])
def test_auto_is_said_as_everywhere(points: dict[str, Any]) -> None:
    found, mistakes = read(BleDevice, {"name": "d", "bus": "b", "address": "A4:C1:38:8D:18:B2", **points})
    assert found is not None, mistakes
    assert found.named == ()
    assert Sensor(found, lambda *_: None, 0.0).listens
