"""What the folder says of itself is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import gateway.connectors.serial as package
from gateway.connectors.serial import nmea
from gateway.connectors.serial.config import SERIAL, Frame, SerialBus, SerialDevice
from gateway.connectors.serial.frames import Reader
from gateway.settings import fields, read

FOLDER = Path(package.__file__).parent


def test_the_sample_is_a_configuration_without_mistakes_or_warnings() -> None:
    raw = tomllib.loads((FOLDER / "sample.toml").read_text())
    assert SERIAL.check is not None
    assert SERIAL.plan is not None
    for table in raw["bus"]:
        bus, mistakes = read(SerialBus, table)
        assert bus is not None, mistakes
        devices = [read(SerialDevice, each) for each in raw["device"] if each["bus"] == bus.name]
        assert devices
        assert [mistakes for _, mistakes in devices] == [[]] * len(devices)
        known = [device for device, _ in devices if device]
        assert SERIAL.check(bus, known) == []
        assert len(SERIAL.plan(bus, known)) == 1 + len(known)


def test_the_sample_reads_the_lines_that_it_is_about() -> None:
    raw = tomllib.loads((FOLDER / "sample.toml").read_text())
    lines = {
        "cabin": ("T=-3.5 H=81", ("temperature", "humidity"), (-3.5, 81)),
        "wind": ("$WIMWV,214.8,R,0.1,K,A*28", ("apparent_wind_angle", "apparent_wind_speed"), (214.8, 0.1)),
        "greenhouse": ('{"probes": [{"moisture": 31}], "light": 880}', ("soil", "light"), (31, 880)),
    }
    for table in raw["device"]:
        device, _ = read(SerialDevice, table)
        assert device is not None
        line, points, values = lines[device.name]
        reader = Reader(device)
        assert reader.fits(line)
        found = reader.read(line)
        assert found is not None
        assert (found.points, found.values) == (points, values)


def test_the_readme_names_keys_and_sentences_that_exist() -> None:
    text = (FOLDER / "README.md").read_text()
    keys = {field.name for table in (SerialBus, SerialDevice, Frame) for field in fields(table)}
    table = text[text.index("| key of") : text.index("What comes before")]
    named = set(re.findall(r"`(?:frame\.)?([a-z_]+)`", table.replace("`overlong`", "").replace("`undecodable`", "")))
    assert named - {"utf"} <= keys
    ready_made = re.search(r"GGA[A-Z ]+", text)
    assert ready_made is not None
    assert all(nmea.known(kind) for kind in ready_made[0].split())
