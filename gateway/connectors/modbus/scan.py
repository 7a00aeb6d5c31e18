"""Finds what is on a bus: serial ports of this machine, Modbus units behind a port or a host.

Read-only: a unit is asked for one register, and whatever it says in a valid frame, a refusal included, means that it is
there. Findings come out as TOML that can be pasted into the configuration.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from serial.tools import list_ports

from gateway.clock import Clock
from gateway.connectors.modbus.config import AnyBus, RtuBus, TcpBus, character_s, gap_s
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import GATEWAY, Function, Request
from gateway.connectors.modbus.values import reason_of
from gateway.errors import LinkError
from gateway.settings import toml

Parity = Literal["N", "E", "O"]

SETTINGS: tuple[tuple[int, Parity], ...] = (
    (9600, "N"),
    (19200, "E"),  # what the standard asks for
    (9600, "E"),
    (19200, "N"),
    (38400, "N"),
    (115200, "N"),
    (4800, "N"),
    (2400, "N"),
    (57600, "N"),
)
"""Baud rates and parities, the most common first."""
UNITS = tuple(range(1, 248))
TIMEOUT_S = 0.1


class Finding(NamedTuple):
    """A unit that answered."""

    bus: AnyBus
    unit: int
    answer: str


class Progress(NamedTuple):
    """How far a scan is."""

    done: int
    total: int
    what: str
    findings: int


class PortFound(NamedTuple):
    """A serial port of this machine."""

    device: str
    description: str
    by_id: str
    by_path: str
    note: str

    @property
    def best(self) -> str:
        """The path to put into the configuration."""
        return (self.by_path if self.note else self.by_id) or self.by_path or self.device


def port_candidates(
    port: str, settings: Sequence[tuple[int, Parity]] = SETTINGS, timeout_s: float = TIMEOUT_S
) -> list[RtuBus]:
    """One bus for each setting to try on a port."""
    return [
        RtuBus(
            name="rs485",
            kind="modbus-rtu",
            port=port,
            baud_rate=baud_rate,
            parity=parity,
            timeout=timeout_s,
            late_window=timeout_s,
        )
        for baud_rate, parity in settings
    ]


def host_candidates(host: str, tcp_port: int = 502, timeout_s: float = 0.5) -> list[TcpBus]:
    """The one bus to try on a host."""
    return [TcpBus(name="modbus", kind="modbus-tcp", host=host, tcp_port=tcp_port, timeout=timeout_s)]


def longest_s(candidates: Sequence[AnyBus], units: Sequence[int] = UNITS) -> float:
    """How long a scan that finds nobody takes, about: 8 characters asked, 5 in the shortest answer."""
    return sum(len(units) * (bus.timeout + gap_s(bus) + 13 * character_s(bus)) for bus in candidates)


async def scan(
    candidates: Sequence[AnyBus],
    clock: Clock,
    progress: Callable[[Progress], None],
    *,
    units: Sequence[int] = UNITS,
    function: Literal[Function.READ_HOLDING_REGISTERS, Function.READ_INPUT_REGISTERS] = Function.READ_HOLDING_REGISTERS,
    address: int = 0,
    every_setting: bool = False,
    stop: asyncio.Event | None = None,
) -> list[Finding]:
    """Asks every unit under every setting; ends with the first setting that found any, unless `every_setting`.

    When `stop` is set it returns what was found until then.

    Cancelling is safe; the port is closed then.

    Raises:
        LinkError: the port or host cannot be opened.
    """
    findings: list[Finding] = []
    total = len(candidates) * len(units)
    for number, bus in enumerate(candidates):
        line = await _opened(bus, clock)
        try:
            for count, unit in enumerate(units):
                if stop and stop.is_set():
                    return findings
                progress(Progress(number * len(units) + count, total, f"{named(bus)}, unit {unit}", len(findings)))
                if line.lost:  # some gateways hang up on a unit that they do not know
                    line.close()
                    line = await _opened(bus, clock)
                answer = await _answer(line, Request(unit, function, address))
                if answer:
                    findings.append(Finding(bus, unit, answer))
        finally:
            line.close()
        if findings and not every_setting:
            break
    progress(Progress(total, total, "done", len(findings)))
    return findings


async def _opened(bus: AnyBus, clock: Clock) -> Line:
    line = Line(bus, clock, lambda: None)
    try:
        await line.open()
    except BaseException:
        line.close()
        raise
    return line


async def _answer(line: Line, request: Request) -> str:
    """What the unit said; empty when it is not there."""
    try:
        reply = (await line.ask(request)).reply
    except LinkError:
        return ""
    if reply.data is not None:
        return f"register {request.address} holds {int.from_bytes(reply.data, 'big')}"
    if reply.code in GATEWAY:
        return ""  # a gateway answered, for a unit that it does not reach
    return reason_of(reply.code) if reply.code else ""


def named(bus: AnyBus) -> str:
    """`9600 8N1`, or `192.168.1.50:502`."""
    if isinstance(bus, RtuBus):
        return f"{bus.baud_rate} 8{bus.parity}{bus.stop_bits}"
    return f"{bus.host}:{bus.tcp_port}"


def paste(findings: Sequence[Finding]) -> str:
    """The findings as tables of the configuration; the points are a start, the device's manual knows the rest."""
    lines: list[str] = []
    buses: list[AnyBus] = []
    for finding in findings:
        if finding.bus not in buses:
            buses.append(finding.bus)
    for number, bus in enumerate(buses):
        name = bus.name if number == 0 else f"{bus.name}-{number + 1}"
        keys = ("port", "baud_rate", "parity", "stop_bits") if isinstance(bus, RtuBus) else ("host", "tcp_port")
        lines += ["[[bus]]", f"name = {toml(name)}", f"kind = {toml(bus.kind)}"]
        lines += [f"{key} = {toml(getattr(bus, key))}" for key in keys]
        for finding in findings:
            if finding.bus == bus:
                lines += [
                    "",
                    f"# {finding.answer}",
                    "[[device]]",
                    f"name = {toml(f'unit-{finding.unit}')}",
                    f"bus = {toml(name)}",
                    f"unit_id = {finding.unit}",
                    'points = [ { name = "register-0", register = "holding", address = 0 } ]',
                ]
        lines.append("")
    return "\n".join(lines)


def serial_ports(links: Path = Path("/dev/serial")) -> list[PortFound]:
    """The serial ports of this machine with their lasting names. Blocks while it looks through /sys."""
    ports = sorted(list_ports.comports())
    twins = Counter((port.vid, port.pid) for port in ports if port.vid is not None and not port.serial_number)
    lasting = {kind: _links(links / kind) for kind in ("by-id", "by-path")}
    return [
        PortFound(
            port.device,
            port.description if port.description != "n/a" else "",
            lasting["by-id"].get(port.device, ""),
            lasting["by-path"].get(port.device, ""),
            # CH340 and PL2303 have no serial number: two of them fight for one by-id name
            "has a twin without a serial number: use by-path" if twins[port.vid, port.pid] > 1 else "",
        )
        for port in ports
    ]


def _links(folder: Path) -> dict[str, str]:
    try:
        return {str(link.resolve()): str(link) for link in sorted(folder.iterdir())}
    except OSError:
        return {}  # no adapter was ever plugged in
