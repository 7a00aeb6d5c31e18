"""What a container cannot show of the unit's sandbox: devices that come late, and the kernel's clock."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vm.conftest import Machine, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800), pytest.mark.xdist_group("vm")]

_CONFIG = """
[[bus]]
name = "mast"
kind = "serial"
port = "/dev/ttyUSB0"

[[device]]
name = "cabin"
bus = "mast"
format = "regex"
pattern = 'T=(?P<temperature>[-+0-9.]+)'
points = "auto"
"""
_ADJTIMEX = (
    "import ctypes, gateway.clock as c; t = c._Timex(); ask = c.SystemClock()._libc.adjtimex; "
    "asked = ask(ctypes.byref(t)); t.modes = 2; print('asked', asked >= 0, 'set', ask(ctypes.byref(t)) >= 0)"
)


def test_the_clock_can_be_asked_and_not_set(machine: Machine) -> None:
    machine.run(
        "cp /etc/systemd/system/gateway.service /run/systemd/system/probe.service; "
        "mkdir -p /run/systemd/system/probe.service.d; "
        "printf '[Service]\\nType=oneshot\\nRestart=no\\nWatchdogSec=0\\nExecStart=\\n"
        f'ExecStart=/opt/gateway/current/bin/python -c "{_ADJTIMEX}"\\n\' '
        "> /run/systemd/system/probe.service.d/probe.conf; systemctl daemon-reload; systemctl start probe"
    )
    assert "asked True set False" in machine.run("journalctl --sync; journalctl -u probe -o cat --no-pager")


def test_an_adapter_that_is_plugged_in_for_the_first_time_is_opened_also_after_a_kill(
    machine: Machine, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(_CONFIG)
    machine.call("put", str(config), "/etc/gateway/config.toml")
    machine.run("chgrp gateway /etc/gateway/config.toml; chmod 640 /etc/gateway/config.toml; systemctl restart gateway")
    machine.call("usb-plug")
    try:
        _until_heard(machine)
        machine.run("systemctl kill --signal=KILL --kill-whom=main gateway")
        until(lambda: machine.run("systemctl show -P NRestarts gateway") == "1", 60, "systemd starts it again")
        _until_heard(machine)
    finally:
        machine.call("usb-unplug")


def _until_heard(machine: Machine) -> None:
    rig = Path(os.environ.get("VMRIG_DIR", "/var/tmp/vmrig"))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(rig / "usb0.sock"))

        def heard() -> bool:
            line.sendall(b"T=21.5\n")
            said = machine.run("gateway status --json || true")
            return '"frames": ' in said and '"frames": 0' not in said

        until(heard, 180, "the sensor on the adapter is heard")
