"""`gateway profiles` and what `gateway check` says of them, as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import gateway

GOOD = """\
[profile]
title = "My meter"
vendor = "Example"
models = ["EX-1"]
kinds = ["modbus-rtu"]
serial = { baud_rate = 2400, parity = "E" }
notes = ["Slow."]
[[profile.source]]
title = "EX-1 register list"
revision = "2"
[device]
points = [ { name = "power", register = "input", address = 2, type = "float32", unit = "W" } ]
"""


def test_the_list_has_every_shipped_profile_and_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    done = gateway("profiles", "--dir", tmp_path, "list")
    assert done.code == 0
    names = [line.split()[0] for line in done.out.splitlines()]
    assert {"mine", "eastron-sdm630", "sunspec"} <= set(names)
    assert f"My meter ({tmp_path / 'mine.toml'})" in done.out


def test_a_search_wants_all_words_in_any_case() -> None:
    done = gateway("profiles", "search", "EASTRON", "single")
    assert [line.split()[0] for line in done.out.splitlines()] == ["eastron-sdm120", "eastron-sdm230"]
    assert gateway("profiles", "search", "TL-30").out.startswith("sma-inverter")
    nothing = gateway("profiles", "search", "zeppelin")
    assert (nothing.code, nothing.out) == (1, "")


def test_show_says_what_it_reads_what_that_costs_and_what_it_rests_on() -> None:
    done = gateway("profiles", "show", "xy-md02")
    assert done.code == 0
    for part in (
        "leaves the factory with 9600 8N1",
        "source: ",
        'profile = "xy-md02"',
        "temperature  Cel    input 1 int16",
        "on modbus-rtu:",
        "input 1…2",
    ):
        assert part in done.out


def test_show_tells_models_where_no_address_is_known() -> None:
    done = gateway("profiles", "show", "sunspec")
    assert "model 101/102/103 2…41" in done.out


def test_a_misspelt_name_gets_the_right_one() -> None:
    done = gateway("profiles", "show", "eastron-sdm360")
    assert (done.code, done.err) == (1, "there is no profile `eastron-sdm360`; did you mean `eastron-sdm630`?\n")


def test_a_good_profile_shows_its_requests_at_the_devices_own_baud_rate(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    done = gateway("profiles", "check", tmp_path / "mine.toml")
    assert (done.code, done.err) == (0, "")
    assert "2400 8E1" in done.out
    assert done.out.endswith("mine.toml is good\n")


WRONG = {
    "a key": ("address = 2", "adress = 2", 78, "mine.toml:12:50: device.points.power.adress: unknown key `adress`"),
    "a unit of no meaning": ('type = "float32"', 'type = "float33"', 78, "unknown type"),
    "no TOML": ("[device]", "[device", 78, "mine.toml:11:8: "),
    "a kind that is none": ('kinds = ["modbus-rtu"]', 'kinds = ["modbus"]', 78, 'no connector of kind "modbus"'),
    "no source": ('[[profile.source]]\ntitle = "EX-1 register list"\nrevision = "2"\n', "", 0, "no [[profile.source]]"),
}


@pytest.mark.parametrize(("old", "new", "code", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_profile_with_a_mistake_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, code: int, told: str
) -> None:
    assert old in GOOD
    (tmp_path / "mine.toml").write_text(GOOD.replace(old, new))
    done = gateway("profiles", "check", tmp_path / "mine.toml")
    assert done.code == code, done
    assert told in done.err


def test_a_broken_profile_in_ones_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[profile\n")
    done = gateway("profiles", "--dir", tmp_path, "list")
    assert done.code == 78
    assert "broken.toml:1:9" in done.err
    assert "eastron-sdm630" in done.out


def test_check_shows_what_a_profile_brought(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "xy-md02.toml").write_text(GOOD)
    (tmp_path / "g.toml").write_text(
        '[[template]]\nname = "t"\nbus = "a"\nprofile = "eastron-sdm120"\n'
        '[[device]]\nname = "m1"\nprofile = "t"\nonly = ["power"]\n'
        '[[device]]\nname = "m2"\nbus = "a"\nprofile = "xy-md02"\nunit_id = 2\n'
        '[[bus]]\nname = "a"\nkind = "modbus-rtu"\nport = "/dev/serial/by-id/x"\n'
    )
    done = gateway("check", tmp_path / "g.toml")
    assert done.code == 0, done.err
    assert "  m1: 1 point of template t, profile eastron-sdm120 (shipped), without 12 more\n" in done.out
    own = tmp_path / "profiles" / "xy-md02.toml"
    assert f"  m2: 1 point of profile xy-md02 ({own}, instead of the shipped one)\n" in done.out
