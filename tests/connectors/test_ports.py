"""What is said of the serial ports of a machine: a Raspberry Pi and its adapters, as a tree of files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.connectors.ports import TWIN, PortFound, described, serial_ports
from gateway.demo.machines import Pty


class Seen(NamedTuple):
    device: str
    description: str = "n/a"
    vid: int | None = None
    pid: int | None = None
    serial_number: str | None = None


def machine(root: Path, *ports: Seen, links: tuple[tuple[str, str], ...] = ()) -> dict[str, PortFound]:
    for port in ports:
        (root / "dev").mkdir(exist_ok=True)
        (root / port.device[1:]).touch()
    for link, target in links:
        path = root / "dev/serial" / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(root / target)
    return {port.device: port for port in described(ports, root)}


def test_a_port_is_named_by_its_id_which_survives_replugging(tmp_path: Path) -> None:
    ftdi = Seen("/dev/ttyUSB0", "FT232R", 0x0403, 0x6001, "A50285BI")
    links = (("by-id/usb-FTDI", "dev/ttyUSB0"), ("by-path/platform-1", "dev/ttyUSB0"))
    found = machine(tmp_path, ftdi, links=links)["/dev/ttyUSB0"]
    assert (found.by_id, found.by_path) == ("/dev/serial/by-id/usb-FTDI", "/dev/serial/by-path/platform-1")
    assert found.best == found.by_id
    assert found.notes == ()


def test_two_adapters_without_a_serial_number_are_named_by_where_they_are_plugged_in(tmp_path: Path) -> None:
    twins = [Seen(f"/dev/ttyUSB{n}", "CH340", 0x1A86, 0x7523) for n in range(2)]
    links = (
        ("by-id/usb-1a86", "dev/ttyUSB1"),
        ("by-path/one", "dev/ttyUSB0"),
        ("by-path/two", "dev/ttyUSB1"),
    )
    found = machine(tmp_path, *twins, Seen("/dev/ttyUSB2", "CP2102", 0x10C4, 0xEA60), links=links)
    assert [found[f"/dev/ttyUSB{n}"].notes for n in range(3)] == [(TWIN,), (TWIN,), ()]
    assert [found[f"/dev/ttyUSB{n}"].best for n in range(2)] == ["/dev/serial/by-path/one", "/dev/serial/by-path/two"]


def test_the_mini_uart_and_the_console_are_warned_of(tmp_path: Path) -> None:
    node = tmp_path / "sys/class/tty/ttyS0/device/of_node"
    node.mkdir(parents=True)
    (node / "compatible").write_bytes(b"brcm,bcm2835-aux-uart\0")
    (tmp_path / "sys/class/tty/console").mkdir()
    (tmp_path / "sys/class/tty/console/active").write_text("tty1 ttyAMA0\n")
    found = machine(tmp_path, Seen("/dev/ttyS0"), Seen("/dev/ttyAMA0", "ttyAMA0"))
    (mini,) = found["/dev/ttyS0"].notes
    assert "mini-UART" in mini
    assert "disable-bt" in mini
    (console,) = found["/dev/ttyAMA0"].notes
    assert "console" in console
    assert found["/dev/ttyS0"].description == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every port")
def test_a_port_that_this_user_may_not_open_says_so(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    port = tmp_path / "dev/ttyUSB0"
    port.touch(mode=0)
    (found,) = described([Seen("/dev/ttyUSB0")], tmp_path)
    assert found.notes == ("this user may not open it: group dialout",)


def test_who_holds_a_port_is_named() -> None:
    pty = Pty()
    program = f"import os; os.open({pty.path!r}, os.O_RDWR | os.O_NOCTTY); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.close(pty._far)  # so that the holder is the only one
        (found,) = described([Seen(pty.path)])
        assert found.holder.endswith(f"(pid {holder.pid})")
    finally:
        holder.communicate(timeout=10)
        os.close(pty.fd)


def test_this_machine_is_looked_through() -> None:
    assert all(port.device.startswith("/dev/") for port in serial_ports())
