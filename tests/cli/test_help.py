"""What a newcomer types first."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.command import gateway

COMMANDS = (
    (),
    *((name,) for name in ("demo", "scan", "check", "run", "status", "tail", "ingest")),
    *(("scan", kind) for kind in ("ble", "modbus", "serial", "mqtt")),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_within_a_hundred_columns(words: tuple[str, ...]) -> None:
    code, out, err = gateway(*words, "--help", env={"COLUMNS": "100"})
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {' '.join(('gateway', *words))} ")
    assert max(map(len, out.splitlines())) <= 100
    assert "==SUPPRESS==" not in out


def test_without_a_command_the_commands_are_listed() -> None:
    code, out, _ = gateway()
    assert code == 2
    assert all(name in out for (name,) in COMMANDS[1:8])


def test_a_misspelt_command_is_told_the_nearest_one() -> None:
    assert gateway("stauts") == (2, "", "gateway: there is no command `stauts`; did you mean `status`?\n")


def test_the_version_is_known() -> None:
    code, out, _ = gateway("--version")
    assert code == 0
    assert out.startswith("gateway ")


def test_a_terminal_without_unicode_is_no_obstacle() -> None:
    code, out, _ = gateway("scan", "modbus", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert code == 0
    assert "/dev/serial/by-id/?" in out
    assert gateway("scan", "serial", env={"PYTHONIOENCODING": "ascii"}).code in (0, 1)
    example = Path(__file__).parents[2] / "config.example.toml"
    assert gateway("check", example, env={"PYTHONIOENCODING": "ascii"}).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scan", "modbus", "h", "--units", "1-x"), "no range such as 1-247"),
        (("scan", "modbus", "h", "--units", "9-3"), "a range runs upwards"),
        (("scan", "modbus", "h", "--units", "256"), "units are 0 to 255"),
        (("scan", "modbus", "h", "--baud", "9600"), "and --ascii go with a serial port"),
        (("scan", "modbus", "h:70000"), "from 1 to 65535"),
        (("scan", "modbus", "10.0.0.0/8"), "more than 1,024 addresses"),
        (("scan", "modbus", "dev/ttyUSB0"), "neither a port such as /dev/ttyUSB0 nor a network"),
        (("scan", "modbus"), "the following arguments are required: PORT|HOST[:PORT]|NETWORK"),
        (("scan", "ble", "--seconds", "0"), "'0' is not a number above 0"),
        (("scan", "ble", "--seconds", "nan"), "not a number above 0"),
        (("scan", "mqtt", "--password-file", "x"), "needs --username"),
        (("run", "--log-level", "loud"), "invalid choice: 'loud'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_two(words: tuple[str, ...], said: str) -> None:
    code, out, err = gateway(*words)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
