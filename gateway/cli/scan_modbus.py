"""`gateway scan modbus`: units behind a serial port, a host, or the hosts of a network."""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

from gateway.cli.arguments import count
from gateway.cli.modbus import Target
from gateway.cli.scan import Found, Scan, Show, lasting
from gateway.cli.terminal import printable
from gateway.clock import SystemClock
from gateway.connectors.modbus import candidates, findings
from gateway.connectors.modbus import scan as modbus
from gateway.connectors.modbus.candidates import Parity, Step
from gateway.connectors.modbus.config import RtuBus
from gateway.connectors.modbus.scan import Result


def scan(arguments: argparse.Namespace) -> Scan:
    where: Target = arguments.target
    units: Sequence[int] | None = arguments.units
    if where.network:
        return _network(arguments)
    if where.port:
        settings = _settings(arguments, candidates.SETTINGS)
        timeout_s = arguments.timeout or candidates.TIMEOUT_S
        port = lasting(where.port)
        steps = candidates.port_steps(
            port, settings, units or candidates.UNITS, timeout_s, arguments.stop, arguments.ascii
        )
        tries, asked = f" at {count(len(settings), 'setting')}", len(units or candidates.UNITS)
    elif arguments.baud or arguments.parity or arguments.ascii:
        arguments.wrong("--baud, --parity and --ascii go with a serial port")
    else:
        steps = candidates.host_steps(where.host, where.tcp_port, units, arguments.timeout or candidates.TCP_TIMEOUT_S)
        tries, asked = "", len({unit for step in steps for unit in step.units})
    longest = max(1.0, candidates.longest_s(steps))
    soon = candidates.longest_s(step for step in steps if step.units == steps[0].units)
    likely = f", the likely ones within {_span(soon)}" if soon < longest / 2 else ""
    wire = (
        "No unit answered. Are A and B swapped (names differ between makers: just try)? Is the device powered, the bus"
        " terminated at both ends, the ground connected? Does another master ask on this bus?",
        "Menus of devices name baud rate, parity and unit: --baud, --parity, --units. For slow ones: --timeout 1",
    )
    network = (
        "No unit answered, though the connection was accepted. Is Modbus TCP switched on in the device? Some answer"
        f" one connection only: is another master connected? Try --units 0-255; {where.host}:PORT if it is not 502.",
    )
    return Scan(
        f"asking {count(asked, 'unit')}{tries} for one register, {_span(longest)} at most{likely};"
        " Ctrl-C ends it early",
        _find(arguments, steps),
        wire if where.port else network,
    )


def _find(arguments: argparse.Namespace, steps: Sequence[Step]) -> Callable[[Show, asyncio.Event], Awaitable[Found]]:
    """Asks step by step."""

    async def run(show: Show, stop: asyncio.Event) -> Found:
        def progress(now: modbus.Progress) -> None:
            show(now.share, f"{now.what}, {now.findings} found")

        result = await modbus.Scan(steps, SystemClock(), progress, stop).run()
        return _found(result, str(arguments.target.text))

    return run


def _network(arguments: argparse.Namespace) -> Scan:
    hosts, tcp_port = arguments.target.network, arguments.target.tcp_port

    async def run(show: Show, stop: asyncio.Event) -> Found:
        def progress(now: modbus.Progress) -> None:
            show(now.share, f"{now.what}, {now.findings} found")

        return _found(await modbus.scan_network(hosts, tcp_port, SystemClock(), progress, stop), "HOST")

    return Scan(
        f"asking {count(len(hosts), 'host')} on port {tcp_port}; Ctrl-C ends it early",
        run,
        ("No host answered. Is this the right network? Another port: 192.168.1.0/24:1502",),
    )


def _found(result: Result, target: str) -> Found:
    rows = [
        (
            str(each.unit),
            candidates.named(each.bus),
            each.identity + (" (SunSpec)" if each.sunspec else ""),
            each.answer,
        )
        for each in result.findings
    ]
    remarks = list(result.remarks)
    told = next((each.identity for each in result.findings if each.identity and not each.sunspec), "")
    if told and not told.startswith("server id"):
        remarks.append(f"A ready-made map?  gateway profiles search {printable(told.split()[0])}")
    if result.findings:
        first = result.findings[0]
        line = " --rtu" if first.bus.kind == "modbus-rtu-over-tcp" else ""
        if isinstance(first.bus, RtuBus):
            line = f" --baud {first.bus.baud_rate} --parity {first.bus.parity}"
            line += " --ascii" if first.bus.kind == "modbus-ascii" else ""
        table = " --register input" if first.answer.startswith(findings.INPUT) else ""
        remarks.append(f"What do its registers mean?  gateway read modbus {target}{line} --unit {first.unit}{table}")
    return Found(("unit", "at", "who", "answer"), rows, findings.paste(result.findings), tuple(remarks))


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _settings(arguments: argparse.Namespace, usual: Sequence[tuple[int, Parity]]) -> list[tuple[int, Parity]]:
    """Baud rate and parity of every try."""
    if arguments.baud:
        return list(itertools.product(arguments.baud, arguments.parity or ("N", "E", "O")))
    if arguments.parity:
        return list(itertools.product(dict.fromkeys(baud for baud, _ in usual), arguments.parity))
    return list(usual)
