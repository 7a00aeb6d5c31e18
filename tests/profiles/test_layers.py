"""Templates and profiles: what is laid under a device, what wins, and where a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import Report, check_text
from gateway.connectors.modbus.config import ModbusDevice
from gateway.connectors.registry import Registry
from gateway.settings import toml

REGISTRY = Registry()
BUS = '[[bus]]\nname = "a"\nkind = "modbus-rtu"\nport = "/dev/serial/by-id/x"\n'
METER = """\
[profile]
title = "Meter"
kinds = ["modbus-rtu"]

[device]
max_gap = 0
byte_order = "CDAB"
points = [
  { name = "voltage", address = 0, type = "float32", unit = "V" },
  { name = "current", address = 2, type = "float32", unit = "A", interval = "1s" },
  { name = "power", address = 4, type = "float32", unit = "W" },
]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "meter.toml").write_text(METER)
    return tmp_path


def looked_at(home: Path, text: str, bus: str = BUS) -> Report:
    return check_text(text + bus, str(home / "g.toml"), {}, REGISTRY)


def devices(home: Path, text: str, bus: str = BUS) -> dict[str, ModbusDevice]:
    report = looked_at(home, text, bus)
    assert [str(mistake) for mistake in report.mistakes] == []
    assert report.config is not None
    return {device.name: device for device in report.config.devices}  # type: ignore[misc]


def mistakes(home: Path, text: str, bus: str = BUS) -> list[str]:
    return [str(each).replace(f"{home}/", "") for each in looked_at(home, text, bus).mistakes]


# ── what wins ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_device_is_two_lines(home: Path) -> None:
    found = devices(home, '[[device]]\nname = "m"\nbus = "a"\nprofile = "meter"\n')["m"]
    assert [(point.name, point.address, point.unit) for point in found.points] == [
        ("voltage", 0, "V"),
        ("current", 2, "A"),
        ("power", 4, "W"),
    ]
    assert (found.max_gap, found.byte_order, found.unit_id) == (0, "CDAB", 1)


def test_thirty_two_meters_are_thirty_two_lines(home: Path) -> None:
    lines = "".join(f'  {{ name = "m{n}", template = "m", unit_id = {n} }},\n' for n in range(1, 33))
    text = f'device = [\n{lines}]\n[[template]]\nname = "m"\nbus = "a"\nprofile = "meter"\ninterval = "5s"\n'
    found = devices(home, text)
    assert [(device.name, device.unit_id, device.interval) for device in found.values()] == [
        (f"m{n}", n, 5.0) for n in range(1, 33)
    ]
    assert all(device.points == found["m1"].points for device in found.values())


def test_what_stands_higher_wins_key_by_key_and_point_by_point(home: Path) -> None:
    text = """\
[[template]]
name = "t"
bus = "a"
profile = "meter"
slave_id = 9
swap = "word"
tags = { site = "hall", row = "1" }
points = [ { name = "power", unit = "kW", scale = 0.001 } ]
[[device]]
name = "m"
profile = "t"
unit_id = 3
tags = { row = "2" }
points = [ { name = "power", scale = 0.002 }, { name = "extra", address = 9 } ]
"""
    found = devices(home, text)["m"]
    assert (found.unit_id, found.byte_order, found.tags) == (3, "word", {"site": "hall", "row": "2"})
    assert [point.name for point in found.points] == ["voltage", "current", "power", "extra"]
    power = found.points[2]
    assert (power.address, power.type, power.unit, power.scale) == (4, "float32", "kW", 0.002)


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ('only = ["power"]', ["power"]),
        ('only = ["*r*"]', ["current", "power"]),
        ('without = ["power", "vol*"]', ["current"]),
        ('only = ["*r*"]\nwithout = ["power"]', ["current"]),
        ('only = ["power"]\npoints = [ { name = "extra", address = 9 } ]', ["power", "extra"]),
        # a point that is added is not the profile's
        ('without = ["*"]\npoints = [ { name = "power", address = 9 } ]', ["power"]),
    ],
)
def test_a_device_chooses_among_the_points_of_its_profile(home: Path, keys: str, left: list[str]) -> None:
    found = devices(home, f'[[device]]\nname = "m"\nbus = "a"\nprofile = "meter"\n{keys}\n')["m"]
    assert [point.name for point in found.points] == left


def test_templates_stand_on_one_another(home: Path) -> None:
    text = """\
[[template]]
name = "fast"
template = "slow"
interval = "1s"
[[template]]
name = "slow"
bus = "a"
profile = "meter"
interval = "60s"
unit_id = 4
without = ["current"]
[[device]]
name = "m"
template = "fast"
only = ["power", "voltage"]
"""
    found = devices(home, text)["m"]
    assert (found.interval, found.unit_id) == (1.0, 4)
    assert [point.name for point in found.points] == ["voltage", "power"]


def test_a_profile_of_ones_own_is_used_in_place_of_a_shipped_one_and_check_says_so(home: Path) -> None:
    (home / "profiles" / "eastron-sdm120.toml").write_text(METER)
    report = looked_at(home, '[[device]]\nname = "m"\nbus = "a"\nprofile = "eastron-sdm120"\nonly = ["power"]\n')
    assert report.config is not None
    assert [point.name for point in report.config.devices[0].points] == ["power"]  # type: ignore[attr-defined]
    brought = report.config.brought["m"]
    file = home / "profiles" / "eastron-sdm120.toml"
    assert brought.by == (f"profile eastron-sdm120 ({file}, instead of the shipped one)",)
    assert (brought.points, brought.left_out) == (1, 2)


def test_profiles_of_ones_own_lie_where_the_configuration_says(home: Path) -> None:
    (home / "profiles").rename(home / "elsewhere")
    text = '[gateway]\nprofiles_dir = "elsewhere"\n[[device]]\nname = "m"\nbus = "a"\nprofile = "meter"\n'
    assert len(devices(home, text)["m"].points) == 3


KEYS: list[tuple[str, Any]] = [
    ("unit_id", 7), ("interval", "3s"), ("max_gap", 2), ("max_read", 40), ("byte_order", "BADC"),
    ("delay_between_requests", "50ms"), ("address_base", 1),
]  # fmt: skip
POINT: list[tuple[str, Any]] = [
    ("type", "int32"), ("unit", "V"), ("scale", 0.5), ("offset", 1.5), ("digits", 2), ("interval", "2s"),
    ("invalid", [-1]), ("deadband", 0.25), ("enum", {"1": "on"}),
]  # fmt: skip
NAMES = ("p", "q", "r")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_however_a_device_is_cut_into_layers_it_is_the_same_device(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every key is written in one layer, and perhaps in lower ones with another value."""
    layer = st.sampled_from(["profile", "template", "device"])
    layers: dict[str, dict[str, Any]] = {"profile": {}, "template": {}, "device": {}}
    points: dict[str, dict[str, dict[str, Any]]] = {each: {} for each in layers}
    whole: dict[str, Any] = {}
    for key, value in data.draw(st.lists(st.sampled_from(KEYS), unique_by=lambda pair: pair[0])):
        whole[key] = layers[data.draw(layer)][key] = value
    whole_points = []
    for number, name in enumerate(NAMES):
        own = {"name": name, "address": 10 * number + 1}
        keys = data.draw(st.lists(st.sampled_from(POINT), unique_by=lambda pair: pair[0]))
        said = {**own, **dict(keys)}
        # the profile has every point, so that their order is the same
        points["profile"][name] = {"name": name}
        for key, value in said.items():
            if key != "name":
                points[data.draw(layer)].setdefault(name, {"name": name})[key] = value
        whole_points.append(said)
    folder = tmp_path_factory.mktemp("home")
    (folder / "profiles").mkdir()
    for each, table in layers.items():
        if points[each]:
            table["points"] = list(points[each].values())

    def written(table: dict[str, Any]) -> str:
        return "".join(f"{key} = {toml(value)}\n" for key, value in table.items())

    head = '[profile]\ntitle = "P"\nkinds = ["modbus-rtu"]\n[device]\n'
    (folder / "profiles" / "p.toml").write_text(head + written(layers["profile"]))
    cut = (
        f'[[template]]\nname = "t"\nbus = "a"\nprofile = "p"\n{written(layers["template"])}'
        f'[[device]]\nname = "m"\nprofile = "t"\n{written(layers["device"])}'
    )
    one = f'[[device]]\nname = "m"\nbus = "a"\n{written({**whole, "points": whole_points})}'
    first, second = devices(folder, cut)["m"], devices(folder, one)["m"]
    assert first.profile == "t"
    assert json.dumps(_plain(first)) == json.dumps(_plain(second))


def _plain(device: ModbusDevice) -> Any:
    import msgspec

    return msgspec.to_builtins(msgspec.structs.replace(device, profile=""))


# ── where a mistake is told ──────────────────────────────────────────────────────────────────────────────────────────

DEVICE = '[[device]]\nname = "m"\nbus = "a"\nprofile = "meter"\n'

WRONG = {
    "a misspelt profile": (
        DEVICE.replace("meter", "metre"),
        ['g.toml:4:1: device.m.profile: no profile or [[template]] is named "metre"; did you mean `meter`?'],
    ),
    "a profile that nothing resembles": (
        DEVICE.replace("meter", "42"),
        ['g.toml:4:1: device.m.profile: no profile or [[template]] is named "42";'
         " `gateway profiles list` shows what there is"],
    ),
    "a path as a name": (
        DEVICE.replace("meter", "../profiles/meter"),
        ['g.toml:4:1: device.m.profile: no profile or [[template]] is named "../profiles/meter";'
         " `gateway profiles list` shows what there is"],
    ),
    "a point to choose that is not there": (
        DEVICE + 'only = ["power", "curent"]\n',
        ['g.toml:5:18: device.m.only.#2: no point of the profile is named "curent"; did you mean `current`?'],
    ),
    "nothing to choose from": (
        '[[device]]\nname = "m"\nbus = "a"\nonly = ["x"]\npoints = [ { name = "x", address = 1 } ]\n',
        ["g.toml:4:1: device.m.only: chooses among the points of a profile, and there is none"],
    ),
    "a key of the device itself": (
        DEVICE + "max_gap = 300\n",
        ["g.toml:5:1: device.m.max_gap: 300 is out of bounds: at least 0 and at most 125"],
    ),
    "a key that changes a point": (
        DEVICE + 'points = [\n  { name = "power", scale = "k" },\n]\n',
        ['g.toml:6:21: device.m.points.power.scale: expected a number, not "k"'],
    ),
    "a misspelt word of a point that is added": (
        DEVICE + 'points = [\n  { name = "n", adress = 3 },\n]\n',
        ["g.toml:6:17: device.m.points.n.adress: unknown key `adress`; did you mean `address`?"],
    ),
    "two words for one key": (
        DEVICE + "unit_id = 1\nslave = 1\n",
        ["g.toml:6:1: device.m.slave: `slave` says the same as `unit_id`; keep one"],
    ),
    "a template that stands on itself": (
        '[[template]]\nname = "t"\nprofile = "u"\n[[template]]\nname = "u"\nprofile = "t"\n'
        '[[device]]\nname = "m"\nbus = "a"\nprofile = "t"\n',
        ["g.toml:6:1: template.u.profile: template t stands on itself"],
    ),
    "a template without a name": (
        '[[template]]\nbus = "a"\n' + DEVICE,
        ["g.toml:1:3: template.#1: `name` is missing: what devices call it, in `profile`"],
    ),
    "two templates of one name": (
        '[[template]]\nname = "t"\nbus = "a"\n[[template]]\nname = "t"\nbus = "b"\n' + DEVICE,
        ['g.toml:5:1: template.t.name: "t" is already the name of a template, in line 1'],
    ),
    "single brackets": (
        '[template]\nname = "t"\n' + DEVICE,
        ["g.toml:1:2: template: there can be several: write [[template]] with two brackets"],
    ),
    "a profile that is no text": (
        DEVICE.replace('"meter"', "7"),
        ["g.toml:4:1: device.m.profile: expected text in quotes, not 7"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_told_where_it_is_made(home: Path, text: str, told: list[str]) -> None:
    assert [each for each in mistakes(home, text) if "without points" not in each] == told


def test_what_is_wrong_in_a_profile_is_told_there_and_names_who_uses_it(home: Path) -> None:
    (home / "profiles" / "meter.toml").write_text(METER.replace('"float32", unit = "A"', '"float33", unit = "A"'))
    assert mistakes(home, DEVICE) == [
        "profiles/meter.toml:10:36: device.points.current.type: unknown type 'float33'; known: "
        + mistakes(home, DEVICE)[0].split("known: ")[1]
    ]
    assert mistakes(home, DEVICE)[0].endswith("; used by device.m, g.toml:1")


def test_what_is_wrong_in_a_template_of_many_devices_is_told_once(home: Path) -> None:
    many = "".join(f'[[device]]\nname = "m{n}"\nprofile = "t"\n' for n in range(9))
    text = f'[[template]]\nname = "t"\nbus = "a"\nprofile = "meter"\nintervall = "5s"\n{many}'
    assert mistakes(home, text) == [
        "g.toml:5:1: template.t.intervall: unknown key `intervall`; did you mean `interval`?"
    ]


def test_what_is_wrong_in_a_profile_of_many_devices_is_told_once_and_names_the_first(home: Path) -> None:
    (home / "profiles" / "meter.toml").write_text(METER.replace("max_gap = 0", "max_gap = -1"))
    many = "".join(f'[[device]]\nname = "m{n}"\nbus = "a"\nprofile = "meter"\n' for n in range(9))
    assert mistakes(home, many) == [
        "profiles/meter.toml:6:1: device.max_gap: -1 is out of bounds: at least 0 and at most 125; "
        "used by device.m0, g.toml:1"
    ]


def test_a_profile_that_is_not_toml_names_its_line_and_who_wanted_it(home: Path) -> None:
    (home / "profiles" / "meter.toml").write_text(METER.replace("[device]", "[device"))
    (told,) = mistakes(home, DEVICE)
    assert told.startswith("g.toml:4:1: device.m.profile: profile meter cannot be used: ")
    assert "profiles/meter.toml:5:8: " in told


HEADS = {
    "a misspelt word": ('title = "Meter"', 'tittle = "Meter"', "3: profile.tittle: unknown key `tittle`"),
    "no kinds": ('kinds = ["modbus-rtu"]', "kinds = []", "profile.kinds: name at least one kind of bus"),
    "what the device says": ("max_gap = 0", 'bus = "a"', "device.bus: is said by the device that uses a profile"),
    "another table": ("[device]", "[extra]\n[device]", "extra: a profile has two tables: [profile] and [device]"),
    "no device": ("[device]", "[profile.device]", "a profile has one [device] table, in single brackets"),
}


@pytest.mark.parametrize(("old", "new", "told"), HEADS.values(), ids=HEADS.keys())
def test_a_profile_whose_head_is_wrong_is_not_used(home: Path, old: str, new: str, told: str) -> None:
    (home / "profiles" / "meter.toml").write_text(METER.replace(old, new))
    found = mistakes(home, DEVICE)
    assert found
    assert any(told.removeprefix("3: ") in each for each in found), found
    assert all(each.startswith("g.toml:4:1: device.m.profile: profile meter cannot be used") for each in found)


def test_a_profile_belongs_on_a_bus_of_its_kind(home: Path) -> None:
    bus = '[[bus]]\nname = "a"\nkind = "modbus-tcp"\nhost = "h"\n'
    assert mistakes(home, DEVICE, bus) == [
        "g.toml:1:3: device.m: profile meter is for a bus of kind modbus-rtu; a is of kind modbus-tcp"
    ]


def test_a_profile_that_nobody_may_read_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "profiles" / "meter.toml").write_bytes(b"\xff\xfe\x00")
    (told,) = mistakes(home, DEVICE)
    assert told == (
        "g.toml:4:1: device.m.profile: profile meter cannot be used: profiles/meter.toml cannot be read: "
        "it is not UTF-8 text"
    )


def test_a_template_that_nobody_uses_is_pointed_out(home: Path) -> None:
    report = looked_at(home, '[[template]]\nname = "t"\nwhatever = 1\n' + DEVICE)
    assert [each.message for each in report.warnings if each.key.startswith("template")] == [
        "no device uses this template: nothing in it was checked"
    ]
