"""Whole configuration files: every mistake in one run, each at its place; and what a good file becomes."""

# ruff: noqa: E501 (expected lines stand here as they are printed)

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import Report, check, check_text
from gateway.config.schema import GatewaySettings
from gateway.connectors.base import Connect, Kind
from gateway.connectors.registry import GROUP, Registry
from gateway.points import Bus, Device, Point
from gateway.settings import Duration, Key


class WireBus(Bus, frozen=True, kw_only=True):
    port: Annotated[str, Key("device node")]
    timeout: Annotated[Duration, Key("give up after", min=0.01, max=60)] = 1.0

    def medium(self) -> tuple[str, str] | None:
        return "port", self.port


class WirePoint(Point, frozen=True, kw_only=True):
    address: Annotated[int, Key("register", min=0, max=65535)]


class WireDevice(Device, frozen=True, kw_only=True):
    unit_id: Annotated[int, Key("station", min=1, max=247, alias=("slave_id",))]
    interval: Annotated[Duration, Key("read this often")] = 10.0
    points: Annotated[tuple[WirePoint, ...], Key("what to read")] = ()


class BrokerBus(Bus, frozen=True, kw_only=True):
    host: Annotated[str, Key("where it is")] = "127.0.0.1"
    password_file: Annotated[Path | None, Key("holds the password")] = None


class BrokerDevice(Device, frozen=True, kw_only=True):
    topic: Annotated[str, Key("topic filter")]


def unloaded() -> Connect[Any, Any]:
    raise AssertionError("checking a configuration imports no driver")


def busy(bus: WireBus, devices: Sequence[WireDevice]) -> Sequence[str]:
    return ["more than the wire can carry"] if len(devices) > 2 else []


WIRE = Kind("wire", WireBus, WireDevice, unloaded, busy)
BROKER = Kind("broker", BrokerBus, BrokerDevice, unloaded)
KINDS = Registry(
    [
        EntryPoint("wire", f"{__name__}:WIRE", GROUP),
        EntryPoint("broker", f"{__name__}:BROKER", GROUP),
        EntryPoint("broken", "no_such_module_anywhere:KIND", GROUP),
    ]
)
GOOD = """\
[[bus]]
name = "rs485a"
kind = "wire"
port = "/dev/ttyUSB0"

[[bus]]
name = "local"
kind = "broker"

[[device]]
name = "meter-1"
bus = "rs485a"
unit_id = 7
points = [{ name = "u", address = 0 }, { name = "i", address = 2 }]

[[device]]
name = "boiler"
bus = "local"
topic = "boiler/state"
"""


def checked(text: str) -> Report:
    return check_text(text, "g.toml", {}, KINDS)


def mistakes(text: str) -> list[str]:
    return [str(problem) for problem in checked(text).mistakes]


def test_a_good_file_becomes_buses_with_their_devices() -> None:
    config = checked(GOOD).config
    assert config is not None
    assert [(bus.name, bus.kind.name, [d.name for d in bus.devices]) for bus in config.buses] == [
        ("rs485a", "wire", ["meter-1"]),
        ("local", "broker", ["boiler"]),
    ]
    assert config.buses[0].devices[0].points[1].address == 2
    assert [device.name for device in config.devices] == ["meter-1", "boiler"]


def test_a_second_bus_on_the_same_wire_is_refused_with_the_way_to_write_it() -> None:
    second = '[[bus]]\nname = "again"\nkind = "wire"\nport = "/dev/ttyUSB0"\n'
    assert mistakes(GOOD + second) == [
        'g.toml:23:1: bus.again.port: /dev/ttyUSB0 is the bus "rs485a" already, which serves all devices there: write '
        'bus = "rs485a" for those of "again"; most of what differs can be said of each device'
    ]
    assert mistakes(GOOD + second.replace("ttyUSB0", "ttyUSB1")) == []
    assert mistakes(GOOD + second + "enabled = false\n") == []
    assert mistakes(GOOD + second.replace("wire", "broker").replace("port", "host")) == []  # a broker serves many


def test_an_empty_file_is_valid_and_waits_for_configuration() -> None:
    report = checked("")
    assert report.config is not None
    assert report.config.buses == ()
    assert len([problem for problem in report.warnings if "waiting for configuration" in problem.message]) == 2


def test_what_is_switched_off_is_checked_and_not_used() -> None:
    off = GOOD.replace('kind = "broker"', 'kind = "broker"\nenabled = false')
    config = checked(off).config
    assert config is not None
    assert [bus.name for bus in config.buses] == ["rs485a"]
    config = checked(GOOD.replace("unit_id = 7", "unit_id = 7\nenabled = false")).config
    assert config is not None
    assert config.buses[0].devices == ()
    assert mistakes(off.replace('topic = "boiler/state"', "topic = 5")) == [
        "g.toml:20:1: device.boiler.topic: expected text in quotes, not 5"
    ]


# each: what is replaced in GOOD, by what, and the only mistake
SINGLE = [
    ("unit_id = 7", "unit_id = 300", "13:1: device.meter-1.unit_id: 300 is out of bounds: at least 1 and at most 247"),
    ("unit_id = 7", "", "10:3: device.meter-1: `unit_id` is missing: station"),
    ("unit_id = 7", "unti_id = 7", "13:1: device.meter-1.unti_id: unknown key `unti_id`; did you mean `unit_id`?"),
    ("unit_id = 7", "slave_idd = 7", "13:1: device.meter-1.slave_idd: unknown key `slave_idd`; did you mean `unit_id`?"),
    ("unit_id = 7", "unit_id = nan", "13:1: device.meter-1.unit_id: expected a whole number, not nan"),
    (
        "unit_id = 7",
        "unit_id = 7\nslave_id = 7",
        "14:1: device.meter-1.slave_id: `slave_id` says the same as `unit_id`; keep one",
    ),
    (
        "unit_id = 7",
        'unit_id = 7\ninterval = "10 sec"',
        '14:1: device.meter-1.interval: "10 sec": unknown unit `sec`; known: us, ms, s, m, h, d',
    ),
    ('bus = "rs485a"', 'bus = "rs485b"', '12:1: device.meter-1.bus: no [[bus]] is named "rs485b"; did you mean `rs485a`?'),
    ('bus = "rs485a"', "", "10:3: device.meter-1: `bus` is missing: name of the [[bus]] it sits on"),
    ('bus = "rs485a"', "bus = 3", "12:1: device.meter-1.bus: expected the name of a [[bus]] in quotes"),
    (
        'bus = "rs485a"',
        'bus = "local"',
        '12:1: device.meter-1.bus: bus "local" is of kind broker, and `unit_id`, `points` belongs to a device of kind '
        'wire; such a bus is "rs485a"',
    ),
    ('name = "boiler"', 'name = "meter-1"', '17:1: device.meter-1.name: "meter-1" is already the name of a device, in line 10'),
    ('name = "i"', 'name = "u"', '14:42: device.meter-1.points.u.name: "u" is already the name of a point of this device, in line 14'),
    ("address = 2", "addr = 2", "14:54: device.meter-1.points.i.addr: unknown key `addr`; did you mean `address`?"),
    (
        "address = 2",
        "address = 2, interval = 5",
        "14:67: device.meter-1.points.i.interval: `interval` is a key of [[device]], not of [[device.points]]: a key "
        "belongs to the last header above it",
    ),
    ('kind = "broker"', 'kind = "brokr"', '8:1: bus.local.kind: no connector of kind "brokr" is installed; did you mean `broker`?'),
    ('kind = "broker"', "", "6:3: bus.local: `kind` is missing: which connector speaks on it; known: broken, broker, wire"),
    ('kind = "broker"', 'kid = "broker"', "8:1: bus.local.kid: unknown key `kid`; did you mean `kind`?"),
    ('kind = "broker"', 'kind = "broker"\ntimeout = 5', "9:1: bus.local.timeout: unknown key `timeout`; known: name, kind, enabled, host, password_file"),
    ('kind = "broker"', "kind = 1", "8:1: bus.local.kind: expected text in quotes"),
    (
        'kind = "broker"',
        'kind = "broken"',
        '8:1: bus.local.kind: connector "broken" (no_such_module_anywhere:KIND) cannot be imported: '
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    (
        'kind = "broker"',
        'kind = "broker"\npassword = "hunter2"',
        "9:1: bus.local.password: secrets do not stand in this file: write it to a file of its own and name that: "
        "`password_file = …`",
    ),
    ('topic = "boiler/state"', "topic = []", "19:1: device.boiler.topic: expected text in quotes, not a list"),
    ("[[bus]]\nname = \"rs485a\"", 'port = 1\n[[bus]]\nname = "rs485a"', "1:1: port: `port` is a key of [[bus]]: write it below that header"),
    ("[[bus]]\nname = \"rs485a\"", '[[points]]\nname = "u"\n[[bus]]\nname = "rs485a"', "1:3: points: `points` is a key of [[device]]: write it below that header, as [[device.points]]"),
    ("unit_id = 7", "unit_id = 7\naddress = 3", "14:1: device.meter-1.address: `address` is a key of [[device.points]]"),
    ("[[bus]]\nname = \"rs485a\"", '[[outputs]]\nurl = "x"\n[[bus]]\nname = "rs485a"', "1:3: outputs: unknown table `outputs`; here it is [[uplink.endpoint]]"),
    ("[[bus]]\nname = \"rs485a\"", 'address = []\n[[bus]]\nname = "rs485a"', "1:1: address: unknown table or key `address`; known: gateway, buffer, uplink, bus, template, device"),
    ("[[bus]]\nname = \"rs485a\"", 'port = []\n[[bus]]\nname = "rs485a"', "1:1: port: `port` is a key of [[bus]]: write it below that header"),
    ("[[bus]]\nname = \"rs485a\"", '[gatewai]\n[[bus]]\nname = "rs485a"', "1:2: gatewai: unknown table or key `gatewai`; did you mean `gateway`?"),
    ("[[bus]]\nname = \"rs485a\"", '[gateway]\nhost = "a"\n[[bus]]\nname = "rs485a"', "2:1: gateway.host: `host` is a key of [[bus]]"),
    ("[[bus]]\nname = \"rs485a\"", '[[gateway]]\n[[bus]]\nname = "rs485a"', "1:3: gateway: there is only one: write [gateway] with single brackets"),
    ("[[bus]]\nname = \"rs485a\"", 'gateway = 3\n[[bus]]\nname = "rs485a"', "1:1: gateway: there is only one: write [gateway] and its keys below"),
    ("unit_id = 7\npoints = [{ name = \"u\", address = 0 }, { name = \"i\", address = 2 }]", 'unit_id = 7\n[device.points]\nname = "u"\naddress = 1', "14:9: device.meter-1.points: there can be several: write [[device.points]] with two brackets"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), SINGLE)
def test_one_mistake_gives_exactly_one_line_that_says_what_is_right(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert mistakes(GOOD.replace(old, new, 1)) == [f"g.toml:{expected}"]


def test_every_mistake_of_a_file_comes_in_one_run_sorted_by_line() -> None:
    text = """\
[gateway]
nam = "x"
log_level = "verbose"
[[bus]]
name = "a b"
kind = "wire"
timeout = "90s"
[[device]]
name = "m"
bus = "a b"
unit_id = "7"
[[device.points]]
name = "u"
address = -1
[[device.points]]
nme = "u"
address = 1.5
"""
    found = checked(text).mistakes
    assert [(problem.place.line, problem.key) for problem in found] == [
        (2, "gateway.nam"),
        (3, "gateway.log_level"),
        (4, "bus.a b"),
        (5, "bus.a b.name"),
        (7, "bus.a b.timeout"),
        (11, "device.m.unit_id"),
        (14, "device.m.points.u.address"),
        (16, "device.m.points.#2.nme"),
        (17, "device.m.points.#2.address"),
    ]


@pytest.mark.parametrize(("key", "meant"), [("port", "modbus-rtu"), ("host", "modbus-tcp")])
def test_a_misspelt_kind_hides_nothing_else_and_the_one_is_meant_whose_keys_fit(key: str, meant: str) -> None:
    text = f'[[bus]]\nname = "b"\nkind = "modbus"\n{key} = "/dev/ttyS0"\nretires = 3\n'
    found = check_text(text, "g.toml", {}, Registry()).mistakes
    assert [str(problem) for problem in found] == [
        f'g.toml:3:1: bus.b.kind: no connector of kind "modbus" is installed; did you mean `{meant}`?',
        "g.toml:5:1: bus.b.retires: unknown key `retires`; did you mean `retries`?",
    ]


def test_two_buses_of_one_name_are_a_mistake() -> None:
    bus = '[[bus]]\nname = "a"\nkind = "broker"\n'
    assert mistakes(bus + bus) == ['g.toml:5:1: bus.a.name: "a" is already the name of a bus, in line 1']


def test_a_single_bracket_table_is_told_that_there_can_be_several() -> None:
    assert mistakes('[bus]\nname = "a"\nkind = "broker"\n') == [
        "g.toml:1:2: bus: there can be several: write [[bus]] with two brackets"
    ]
    assert mistakes("bus = 3\n") == ["g.toml:1:1: bus: expected tables: write [[bus]] above the keys of each"]


def test_a_device_without_any_bus_in_the_file_is_a_mistake() -> None:
    assert mistakes('[[device]]\nname = "x"\nbus = "y"\n') == [
        'g.toml:3:1: device.x.bus: no [[bus]] is named "y"; there is no [[bus]] in this file'
    ]
    assert mistakes('[[device]]\nname = "x"\n') == [
        "g.toml:1:3: device.x: `bus` is missing: name of the [[bus]] it sits on"
    ]


def test_a_problem_is_shown_with_its_line_underlined_and_without_the_secret_in_it() -> None:
    text = GOOD.replace('kind = "broker"', '\tkind = "broker"\n\tpassword = "hunter2"')
    (problem,) = checked(text).mistakes
    assert problem.underlined().splitlines()[1:] == ["    9 | \tpassword = …", "      | \t^^^^^^^^"]
    (syntax,) = checked("token = hunter2").mistakes
    assert "hunter2" not in syntax.underlined()


def test_a_syntax_error_is_shown_with_its_line_and_what_would_be_right() -> None:
    (problem,) = checked('[[bus]]\nname = "a"\nport = /dev/ttyUSB0\n').mistakes
    assert problem.underlined() == (
        'g.toml:3:8: invalid value; text needs quotes: `port = "/dev/ttyUSB0"`\n'
        "    3 | port = /dev/ttyUSB0\n"
        "      |        ^"
    )


def test_brackets_nested_beyond_reason_are_a_mistake_and_not_a_crash() -> None:
    assert mistakes("a = " + "[" * 100_000) == ["g.toml:1:1: brackets are nested too deeply"]


def test_a_file_that_cannot_be_read_or_is_not_utf8_says_so(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    assert [str(each) for each in check(file, {}, KINDS).mistakes] == [
        f"{file}: cannot be read: No such file or directory"
    ]
    file.write_bytes(b'[gateway]\nname = "K\xfchler"\n')
    (problem,) = check(file, {}, KINDS).mistakes
    assert str(problem).startswith(f"{file}:2:10: the file is not UTF-8")
    file.write_bytes(b"\xef\xbb\xbf[gateway]\r\nname = 'a'\r\n")
    assert settings_of(file, {}).name == "a"


def settings_of(file: Path, environ: dict[str, str]) -> GatewaySettings:
    config = check(file, environ, KINDS).config
    assert config is not None
    return config.gateway


def test_systemd_gives_the_directories_unless_the_file_does(tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text("")
    assert settings_of(file, {}).state_dir == Path("/var/lib/gateway")
    environ = {"STATE_DIRECTORY": "/var/lib/private/g:/other", "RUNTIME_DIRECTORY": "/run/g"}
    settings = settings_of(file, environ)
    assert (settings.state_dir, settings.runtime_dir) == (Path("/var/lib/private/g"), Path("/run/g"))
    file.write_text('[gateway]\nstate_dir = "/data"\n')
    settings = settings_of(file, environ)
    assert (settings.state_dir, settings.runtime_dir) == (Path("/data"), Path("/run/g"))


def texts(report: Report) -> list[str]:
    return [str(problem).removeprefix("g.toml:") for problem in report.warnings if "waiting" not in problem.message]


def test_warnings_stand_apart_from_mistakes_and_keep_nothing_from_starting() -> None:
    more = "".join(f'[[device]]\nname = "m{i}"\nbus = "rs485a"\nunit_id = {i + 1}\n' for i in range(3))
    report = checked(GOOD + more + '[[bus]]\nname = "idle"\nkind = "broker"\n')
    assert report.config is not None
    assert texts(report) == [
        "1:3: bus.rs485a: more than the wire can carry",
        "32:3: bus.idle: no device is in use on this bus",
    ]


def test_a_key_that_slipped_into_a_free_table_is_pointed_out() -> None:
    report = checked(
        GOOD.replace(
            'bus = "local"\ntopic = "boiler/state"', 'bus = "local"\ntopic = "t"\n[device.tags]\nenabled = "no"'
        )
    )
    assert texts(report) == [
        "21:1: device.boiler.tags.enabled: is taken as a word of [device.tags]; if the key of [[device]] is meant, "
        "write it above [device.tags]"
    ]


def test_a_secret_that_everybody_can_read_or_nobody_can_is_pointed_out(tmp_path: Path) -> None:
    file = tmp_path / "password"
    text = GOOD.replace('kind = "broker"', f'kind = "broker"\npassword_file = "{file}"')
    assert "No such file or directory" in texts(checked(text))[0]
    file.touch()
    assert texts(checked(text)) == [f"9:1: bus.local.password_file: {file} is empty"]
    assert texts(checked(text.replace(str(file), str(tmp_path)))) == [
        f"9:1: bus.local.password_file: {tmp_path} is not a file"
    ]
    file.write_text("x")
    os.chmod(file, 0o644)
    assert texts(checked(text)) == [
        f"9:1: bus.local.password_file: everybody on this machine can read {file}: chmod 600 {file}"
    ]
    os.chmod(file, 0o600)
    assert texts(checked(text)) == []


def test_an_interface_that_is_not_there_is_pointed_out() -> None:
    uplink = '[[uplink.endpoint]]\nurl = "wss://a.example/"\ninterface = '
    said = [text for text in texts(checked(f'{uplink}"nosuch0"\n')) if "interface" in text]
    assert len(said) == 1
    assert said[0].startswith(
        "3:1: uplink.endpoint.#1.interface: there is no interface nosuch0 at the moment; there is "
    )
    assert not [text for text in texts(checked(f'{uplink}"lo"\n')) if "interface" in text]


def test_a_reserve_for_alarms_that_will_be_cut_is_pointed_out() -> None:
    cut = "4:1: buffer.alarm_reserve: a quarter of `max_size` at most: 2500KB will be kept for alarms"
    text = '[buffer]\nmax_size = "10MB"\n\nalarm_reserve = "20MB"\n'
    assert cut in texts(checked(text))
    assert not [text for text in texts(checked('[buffer]\nmax_size = "10MB"\n')) if "alarm_reserve" in text]


def test_an_endpoint_without_encryption_is_pointed_out_unless_it_is_this_machine() -> None:
    report = checked(
        '[[uplink.endpoint]]\nurl = "ws://plant.example/up"\n[[uplink.endpoint]]\nurl = "ws://127.0.0.1:1/"\n'
    )
    assert texts(report) == ["2:1: uplink.endpoint.#1.url: readings travel unencrypted; write wss:// if the server can"]


def test_a_token_in_the_file_is_told_where_secrets_belong_and_not_repeated() -> None:
    (problem,) = checked('[[uplink.endpoint]]\nurl = "wss://a.example/"\ntoken = "hunter2"\n').mistakes
    assert "`token_file = …`" in problem.message
    assert "hunter2" not in problem.underlined()


def test_a_password_inside_a_url_is_not_repeated() -> None:
    (problem,) = checked('[[uplink.endpoint]]\nurl = "wss://me:hunter2@a.example/"\n').mistakes
    assert "hunter2" not in problem.underlined()
    (problem,) = checked('[[uplink.endpoint]]\nurl = "https://me:hunter2@a.example/"\n').mistakes
    assert "does not fit" in problem.message
    assert "hunter2" not in problem.underlined()


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "wire", "rs485a", "10s"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "kind", "bus", "points", "tags", "unit_id", "x", "write"]), inner)
    ),
    max_leaves=10,
)


def as_toml(value: Any, inline: bool = True) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{word} = {as_toml(each)}" for word, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["gateway", "buffer", "uplink", "bus", "device", "tags"]), values))
def test_no_document_whatever_is_in_it_breaks_the_check(document: dict[str, Any]) -> None:
    report = checked("".join(f"{word} = {as_toml(value)}\n" for word, value in document.items()))
    assert (report.config is None) == bool(report.mistakes)
    for problem in report.mistakes + report.warnings:
        assert problem.underlined()
