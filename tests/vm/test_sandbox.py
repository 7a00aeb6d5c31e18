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
_ADJTIMEX = """
import ctypes
from gateway import clock
asking = clock._Timex()
setting = clock._Timex()
setting.modes = 2  # ADJ_FREQUENCY
call = clock.SystemClock()._libc.adjtimex
print("asked", call(ctypes.byref(asking)) >= 0, "set", call(ctypes.byref(setting)) >= 0)
"""
_PROBE = """
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
ExecStart=
ExecStart=/opt/gateway/current/bin/python /opt/probe.py
"""


def test_the_clock_can_be_asked_and_not_set(machine: Machine, tmp_path: Path) -> None:
    """A command in the very sandbox of the unit."""
    machine.write(tmp_path, _ADJTIMEX, "/opt/probe.py")
    machine.run(
        "mkdir -p /run/systemd/system/probe.service.d; "
        "cp /etc/systemd/system/gateway.service /run/systemd/system/probe.service"
    )
    machine.write(tmp_path, _PROBE, "/run/systemd/system/probe.service.d/probe.conf")
    machine.run("systemctl daemon-reload; systemctl start probe")
    assert "asked True set False" in machine.run("journalctl --sync; journalctl -u probe -o cat --no-pager")


def test_an_adapter_that_is_plugged_in_for_the_first_time_is_opened_also_after_a_kill(
    machine: Machine, tmp_path: Path
) -> None:
    machine.configure(tmp_path, _CONFIG)
    machine.run("systemctl restart gateway")
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
