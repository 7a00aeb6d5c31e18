"""`gateway check` on files as people write them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from cli.command import BOUND_S, PROGRAM, environment, gateway

ROOT = Path(__file__).parents[2]

MISTAKES = """\
[gatway]
[gateway]
log_lvel = "debug"
max_size = "1GB"
[buffer]
max_age = "3 weeks"
ring_size = "512 mb"
[[uplink.endpoint]]
url = "https://example.com"
token = "s3cret"
[[bus]]
name = "net"
kind = "modbus-tpc"
[[bus]]
name = "line"
kind = "modbus-rtu"
port = "/dev/ttyUSB0"
baud_rate = "fast"
parity = "even"
[[bus]]
name = "plant"
kind = "modbus-tcp"
tcp_port = 70000
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
[[device]]
name = "meter"
bus = "plnat"
points = [{ name = "u", address = 0, unit = "V", convert = "Cel" }]
[[device]]
name = "meter"
bus = "plant"
unit_id = 300
points = [{ name = "a", address = "7", min = 3 }, { name = "a", adress = 1 }]
[[device]]
name = "office"
bus = "broker"
topic = "a/#/b"
format = "jsno"
"""
EXPECTED = (
    (1, "gatway", "did you mean `gateway`?"),
    (3, "gateway.log_lvel", "did you mean `log_level`?"),
    (4, "gateway.max_size", "`max_size` is a key of [buffer]"),
    (6, "buffer.max_age", "unknown unit `weeks`"),
    (7, "buffer.ring_size", "did you mean `MB`?"),
    (9, "uplink.endpoint.#1.url", "does not fit: where to connect"),
    (10, "uplink.endpoint.#1.token", "secrets do not stand in this file"),
    (11, "bus.net", "`host` is missing"),
    (13, "bus.net.kind", "did you mean `modbus-tcp`?"),
    (18, "bus.line.baud_rate", 'expected a whole number, not "fast"'),
    (19, "bus.line.parity", '"even" is not one of "N", "E", "O"'),
    (20, "bus.plant", "`host` is missing"),
    (23, "bus.plant.tcp_port", "at least 1 and at most 65535"),
    (30, "device.meter.bus", "did you mean `plant`?"),
    (31, "device.meter.points.u.convert", "Cel"),
    (33, "device.meter.name", "already the name of a device, in line 28"),
    (35, "device.meter.unit_id", "out of bounds: at least 0 and at most 255"),
    (36, "device.meter.points.a.address", "written without quotes"),
    (36, "device.meter.points.a.adress", "did you mean `address`?"),
    (36, "device.meter.points.a.name", "already the name of a point of this device"),
    (41, "device.office.format", "did you mean `json`?"),
)


def test_every_mistake_is_named_in_one_run_with_its_line_and_the_nearest_right_word(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(MISTAKES)
    code, out, err = gateway("check", "bad.toml", cwd=tmp_path)
    assert (code, out) == (78, "")
    said = re.findall(r"^bad\.toml:(\d+):\d+: ([^:]+): (.*)$", err, re.M)
    for line, key, words in EXPECTED:
        assert any((int(at), where) == (line, key) and words in what for at, where, what in said), (line, key, err)
    assert len(said) == len(EXPECTED), err
    assert err.count("^\n") == len(said)
    assert err.endswith(f"bad.toml: {len(EXPECTED)} mistakes\n")
    assert "s3cret" not in err
    assert "\x1b" not in err


def test_the_example_is_good_and_its_plan_is_told() -> None:
    code, out, err = gateway("check", ROOT / "config.example.toml")
    assert (code, err) == (0, "")
    for line in (
        "bus rs485a (modbus-rtu), 2 devices",
        "  subscribe zigbee2mqtt/living room with QoS 1",
        "uplink 1: wss://ingest.example.com/uplink",
    ):
        assert line in out.splitlines()
    assert out.endswith("config.example.toml is good\n")


def test_the_plan_says_which_way_an_endpoint_is_reached(tmp_path: Path) -> None:
    keys = 'url = "wss://a/"\ninterface = "wwan0"\nproxy = "socks5://10.0.0.1:1080"\n'
    (tmp_path / "a.toml").write_text(f"[[uplink.endpoint]]\n{keys}")
    _, out, _ = gateway("check", "a.toml", cwd=tmp_path)
    assert "uplink 1: wss://a/, out by wwan0, through socks5://10.0.0.1:1080" in out.splitlines()


def test_the_plan_says_what_a_plain_endpoint_promises_and_what_a_day_may_cost(tmp_path: Path) -> None:
    keys = 'url = "wss://a/"\nprotocol = "plain"\nack = "none"\nmetered = true\ndaily_budget = "20MB"\n'
    (tmp_path / "a.toml").write_text(f"[[uplink.endpoint]]\n{keys}")
    _, out, err = gateway("check", "a.toml", cwd=tmp_path)
    assert "  plain JSON, at most once: what is under way when the connection breaks is lost" in out.splitlines()
    assert "  20MB a day, then alarms_only" in out.splitlines()
    assert "the promise is at most once" in err, "and warns of it"


def test_a_warning_says_that_it_is_one_and_the_file_is_good_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[uplink.endpoint]]\nurl = "ws://example.com/"\n')
    code, out, err = gateway("check", "a.toml", cwd=tmp_path)
    assert code == 0
    assert re.search(r"^a\.toml:2:1: warning: uplink\.endpoint\.#1\.url: readings travel unencrypted", err, re.M)
    assert out.endswith("a.toml is good, with 2 warnings\n")
    assert gateway("check", "-q", "a.toml", cwd=tmp_path) == (0, "", err)


def test_on_a_terminal_the_mark_is_coloured(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[gateway]\nlog_lvel = 1\n")
    near, far = os.openpty()
    try:
        command = [*PROGRAM, "check", str(tmp_path / "a.toml")]
        env = environment({"TERM": "xterm-256color"})
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=far, env=env, timeout=BOUND_S, check=False)
        shown = os.read(near, 65536).decode()
    finally:
        os.close(near)
        os.close(far)
    assert done.returncode == 78
    assert re.search(r"\x1b\[1;31m\s*\| \^{8}", shown), repr(shown)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    code, _, err = gateway("check", "nothing.toml", cwd=tmp_path)
    assert code == 78
    assert err.splitlines()[0] == "nothing.toml: cannot be read: No such file or directory"
    code, _, err = gateway("check", tmp_path)
    assert code == 78
    assert "cannot be read: Is a directory" in err


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [*PROGRAM, "check", str(ROOT / "config.example.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    assert command.stderr.read() == b""
    assert command.wait(BOUND_S) == 0
    command.stderr.close()


def test_thirty_two_equal_meters_are_two_lines(tmp_path: Path) -> None:
    head = '[[bus]]\nname = "hall"\nkind = "modbus-rtu"\nport = "/dev/serial/by-id/x"\nbaud_rate = 19200\n'
    head += '[[template]]\nname = "meter"\nbus = "hall"\ninterval = "10s"\n'
    head += 'points = [{ name = "u", address = 0 }, { name = "i", address = 1 }]\n'
    meters = [f'[[device]]\nname = "m{n:02}"\ntemplate = "meter"\nunit_id = {n}\n' for n in range(1, 33)]
    (tmp_path / "a.toml").write_text(head + "".join(meters))
    _, out, _ = gateway("check", "a.toml", cwd=tmp_path)
    assert out.splitlines()[:5] == [
        "bus hall (modbus-rtu), 32 devices",
        "  m01 … m32 (32 devices): 2 points of template meter each",
        "  m01 … m32 (32 devices, units 1–32)",
        "    every 10s  holding 0…1  2 registers  19 ms  6.0%  u, i",
        "  6.0% of its time at 19200 8N1; everything once: 32 requests, 64 values, 603 ms",
    ]
