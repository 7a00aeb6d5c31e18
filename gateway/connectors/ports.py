"""The serial ports of this machine: their lasting names, who holds each, and what is known to go wrong with them.

Looks only; opens none (opening raises DTR, and some boards restart then).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from serial.tools import list_ports

from gateway.connectors.port import holder

_MINI_UART = "brcm,bcm2835-aux-uart"
TWIN = "has a twin without a serial number: use by-path"


class Seen(Protocol):
    """What the system says of a port."""

    device: str
    description: str
    vid: int | None
    pid: int | None
    serial_number: str | None


class PortFound(NamedTuple):
    """A serial port of this machine."""

    device: str
    description: str
    by_id: str = ""
    by_path: str = ""
    holder: str = ""
    """`name (pid 123)` of the program that has it open, where this user may know."""
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The path to put into the configuration."""
        return (self.by_path if TWIN in self.notes else self.by_id) or self.by_path or self.device


def serial_ports() -> list[PortFound]:
    """The serial ports of this machine. Blocks while it looks through /sys and /proc."""
    return described(list_ports.comports())


def described(ports: Iterable[Seen], root: Path = Path("/")) -> list[PortFound]:
    """What is to be known of these ports; `root` is where /dev, /sys and /proc are."""
    found = sorted(ports, key=lambda port: port.device)
    # CH340 and PL2303 have no serial number: two of them fight for one by-id name
    twins: Counter[tuple[int | None, int | None]] = Counter(
        (port.vid, port.pid) for port in found if port.vid and not port.serial_number
    )
    by_id, by_path = (_links(root, kind) for kind in ("by-id", "by-path"))
    consoles = _words(root / "sys/class/tty/console/active")
    return [
        PortFound(
            port.device,
            port.description if port.description != "n/a" else "",
            by_id.get(port.device, ""),
            by_path.get(port.device, ""),
            holder(port.device),
            tuple(_notes(port, twins[port.vid, port.pid] > 1, consoles, root)),
        )
        for port in found
    ]


def _notes(port: Seen, twin: bool, consoles: Iterable[str], root: Path) -> Iterable[str]:
    name = port.device.rpartition("/")[2]
    if twin:
        yield TWIN
    if _MINI_UART in _text(root / "sys/class/tty" / name / "device/of_node/compatible"):
        yield "mini-UART: no parity, and a baud rate that follows the core clock; dtoverlay=disable-bt gives the PL011"
    if name in consoles:
        yield "the system console talks on it: take console= out of /boot/firmware/cmdline.txt"
    if not os.access(root / port.device.lstrip("/"), os.R_OK | os.W_OK):
        yield "this user may not open it: group dialout"


def _links(root: Path, kind: str) -> dict[str, str]:
    folder = root / "dev/serial" / kind
    try:
        links = sorted(folder.iterdir())
    except OSError:
        return {}  # no adapter was ever plugged in
    return {f"/{link.resolve().relative_to(root.resolve())}": f"/{link.relative_to(root)}" for link in links}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()
