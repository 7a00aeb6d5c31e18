"""`gateway read modbus`: what do these registers mean? Every type and byte order, the plausible ones marked.

Reads only. A table for people goes to stderr, TOML of what is marked to stdout. Addresses that a device refuses are
found and gone round, so a large range may be named to see which exist. It looks several times: what moves, and how,
tells a float from two integers. Ctrl-C ends it early, with what is known by then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.cli import EXIT_FAILED, EXIT_INTERRUPTED, complain
from gateway.cli.arguments import DEFAULT_CONFIG, between, count, positive
from gateway.cli.modbus import Target, target
from gateway.cli.status import SOCKET
from gateway.cli.terminal import errors
from gateway.control.client import ControlClient
from gateway.errors import ConfigError, LinkError
from gateway.model import Status

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.codec.words import Word
    from gateway.connectors.modbus.config import AnyBus
    from gateway.connectors.modbus.identity import Ask
    from gateway.connectors.modbus.reading import Reading

_LOOKS = 3
_LOOKS_KEPT = 20
"""Of those of --watch: the first and the last ones."""
_PAUSE_S = 1.0
_ENDS_WITHIN_S = 2.0
"""Between Ctrl-C and the end of what cannot be told in a nicer way."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Read-only. TOML goes to stdout, all else to stderr."
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    text = "registers of a Modbus unit as every type and byte order, the plausible ones marked"
    modbus = kinds.add_parser("modbus", help=text, description=f"{text[0].upper()}{text[1:]}.")
    modbus.add_argument(
        "target", type=target, metavar="BUS|PORT|HOST[:PORT]", help="a bus of the configuration, /dev/ttyUSB0, 10.0.0.5"
    )
    modbus.add_argument("--unit", type=between(0, 255), default=1, metavar="N", help="[%(default)s]")
    modbus.add_argument("--address", type=between(0, 65_535), default=0, metavar="N", help="as it travels, from 0 [0]")
    modbus.add_argument("--count", type=between(1, 65_536), default=20, metavar="N", help="registers [%(default)s]")
    modbus.add_argument("--register", choices=["holding", "input", "coil", "discrete"], default="holding")
    modbus.add_argument("--as", dest="how", default="", metavar="all|TYPE[:ORDER]", help="all orders, or float32:CDAB")
    modbus.add_argument(
        "--looks", type=between(1, 1000), default=_LOOKS, metavar="N", help="look N times [%(default)s]"
    )
    modbus.add_argument("--watch", action="store_true", help="look again and again, until Ctrl-C")
    modbus.add_argument("--json", action="store_true", help="values, marks and orders as one JSON document")
    modbus.add_argument("--baud", type=between(50, 4_000_000), default=9600, metavar="N", help="[%(default)s]")
    modbus.add_argument("--parity", choices=["N", "E", "O"], default="N", help="[%(default)s]")
    modbus.add_argument("--stop", type=int, choices=[1, 2], default=1, help="stop bits [%(default)s]")
    modbus.add_argument("--ascii", action="store_true", help="Modbus ASCII, seven data bits, in place of RTU")
    modbus.add_argument("--rtu", action="store_true", help="RTU frames through TCP, as some serial servers want them")
    modbus.add_argument("--timeout", type=positive, default=0.5, metavar="S", help="[%(default)g]")
    modbus.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="[%(default)s]")
    modbus.set_defaults(wrong=modbus.error)


class _Source(NamedTuple):
    """The bus to ask on; the name that the configuration has for it, and where its gateway answers."""

    bus: AnyBus
    name: str = ""
    socket: Path | None = None


class _Seen(NamedTuple):
    """What a session of looking ends with."""

    reading: Reading
    looks: list[Mapping[int, int]]
    interrupted: bool


def main(arguments: argparse.Namespace) -> int:
    word = _word(arguments)
    arguments.count = min(arguments.count, 65_536 - arguments.address)
    source = _source(arguments)
    console = errors()
    try:
        seen = asyncio.run(_read(arguments, source, console))
    except LinkError as error:
        return complain(f"{error}{_hint(arguments, source, error)}", EXIT_FAILED)
    except asyncio.CancelledError:
        return EXIT_INTERRUPTED
    if not seen.reading.values:
        why = seen.reading.ended or f"none of these {count(arguments.count, 'register')} exists"
        if not seen.interrupted:
            why += _elsewhere(arguments, source, seen.reading)
        return EXIT_INTERRUPTED if seen.interrupted else complain(why, EXIT_FAILED)
    from gateway.cli import found_registers

    show = found_registers.Show(arguments, seen.reading, seen.looks, console)
    if arguments.json:
        print(show.json())
    else:
        show.print(source.bus, source.name, word)
    return EXIT_INTERRUPTED if seen.interrupted and not arguments.watch else 0


def _hint(arguments: argparse.Namespace, source: _Source, error: LinkError) -> str:
    if source.name:
        return ""
    if "in use by" in str(error):
        return "\nIf it is the running gateway: `gateway read modbus BUS` asks through it."
    if _may_be_a_name(arguments.target):
        return f"\nNor is there a bus of this name in {arguments.config}."
    return ""


def _elsewhere(arguments: argparse.Namespace, source: _Source, reading: Reading) -> str:
    """Where to look instead, when nothing was found."""
    if not reading.heard:
        return "" if source.name else f"; who does: gateway scan modbus {arguments.target.text}"
    if arguments.register not in ("holding", "input"):
        return ""
    other = "input" if arguments.register == "holding" else "holding"
    return f"; another table: --register {other}, another place: --address"


def _may_be_a_name(where: Target) -> bool:
    return not where.port and not {".", ":"} & set(where.text)


def _word(arguments: argparse.Namespace) -> Word | None:
    """The one type and order that is asked for."""
    from gateway.codec.words import parse

    if arguments.how in ("", "all"):
        return None
    name, _, order = arguments.how.partition(":")
    try:
        return parse(name, order, length=8 if name == "string" else 0)
    except ValueError as error:
        arguments.wrong(f"--as {arguments.how}: {error}")
        raise AssertionError("wrong() exits") from error


def _source(arguments: argparse.Namespace) -> _Source:
    """The bus to ask on.

    Raises:
        ConfigError: the configuration that is needed cannot be used.
    """
    from gateway.connectors.modbus.config import RtuBus, TcpBus

    where: Target = arguments.target
    if where.network:
        arguments.wrong(f"{where.text} is a network; `gateway scan modbus` finds the hosts in it")
    if where.port:
        from gateway.cli.scan import lasting

        line: dict[str, Any] = {"baud_rate": arguments.baud, "parity": arguments.parity, "stop_bits": arguments.stop}
        port = lasting(where.port)
        line |= {"kind": "modbus-ascii", "data_bits": 7} if arguments.ascii else {"kind": "modbus-rtu"}
        return _Source(RtuBus(name="rs485", port=port, timeout=arguments.timeout, **line))
    if _may_be_a_name(where) and arguments.config.exists():
        from gateway.config.load import check

        config = check(arguments.config, os.environ).config
        if config is None:
            raise ConfigError((f"{arguments.config} cannot be used (`gateway check` tells why)",))
        for entry in config.buses:
            if entry.name == where.text:
                if not isinstance(entry.bus, RtuBus | TcpBus):
                    arguments.wrong(f"{entry.name} is a bus of kind {entry.kind.name}")
                return _Source(entry.bus, entry.name, config.gateway.runtime_dir / SOCKET)
    kind = "modbus-rtu-over-tcp" if arguments.rtu else "modbus-tcp"
    bus = TcpBus(name="modbus", kind=kind, host=where.host, tcp_port=where.tcp_port, timeout=arguments.timeout)
    return _Source(bus)


async def _read(arguments: argparse.Namespace, source: _Source, console: Console) -> _Seen:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gateway.connectors.modbus.planner import Table
    from gateway.connectors.modbus.reading import Reading

    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"

    def told() -> None:
        stop.set()
        loop.call_later(_ENDS_WITHIN_S, task.cancel)  # it may be connecting, which nothing else ends

    loop.add_signal_handler(signal.SIGINT, told)
    async with _asking(source, console) as ask:
        reading = Reading(ask, arguments.unit, Table(arguments.register), arguments.address, arguments.count)
        columns = (BarColumn(30), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
        looks: list[Mapping[int, int]] = []
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            shown = bar.add_task("", total=1.0)
            await reading.run(lambda share, what: bar.update(shown, completed=share, description=what), stop)
        looks.append(dict(reading.values))
        await _look_again(arguments, reading, looks, stop)
    return _Seen(reading, looks, stop.is_set())


@asynccontextmanager
async def _asking(source: _Source, console: Console) -> AsyncIterator[Ask]:
    """How a question reaches the unit: through the running gateway if it has the bus, else over a line of our own."""
    from gateway.clock import SystemClock
    from gateway.connectors.modbus.client import Reply
    from gateway.connectors.modbus.request import Request
    from gateway.connectors.modbus.scan import opened

    client = ControlClient(source.socket) if source.socket is not None else None
    if client is not None and await asyncio.to_thread(_runs, client):
        console.print(f"asking through the running gateway, between its polls on {source.name}")
        gateway = client

        async def through(request: Request) -> Reply:
            unit, function, address, quantity, _ = request
            asked = {"bus": source.name, "unit": unit, "address": address, "quantity": quantity}
            said = await asyncio.to_thread(gateway.ask, "ask", function=int(function), **asked)
            data, fault = said["data"], said["fault"]
            return Reply(None if data is None else bytes.fromhex(data), said["code"], Status(fault) if fault else None)

        yield through
        return
    line = await opened(source.bus, SystemClock())

    async def direct(request: Request) -> Reply:
        return (await line.ask(request)).reply

    try:
        yield direct
    finally:
        line.close()


def _runs(client: ControlClient) -> bool:
    try:
        client.ask("status")
    except LinkError:
        return False
    return True


async def _look_again(
    arguments: argparse.Namespace, reading: Reading, looks: list[Mapping[int, int]], stop: asyncio.Event
) -> None:
    number = 1
    if reading.table.bits and not arguments.watch:
        return
    while not stop.is_set() and reading.values and (arguments.watch or number < arguments.looks):
        try:
            async with asyncio.timeout(_PAUSE_S):
                await stop.wait()
        except TimeoutError:
            looks.append(await reading.look())
            number += 1
        if arguments.watch and sys.stderr.isatty():
            print(f"\r{count(number, 'look')}, Ctrl-C shows them", end="\r", file=sys.stderr)
        del looks[1 : max(1, len(looks) - _LOOKS_KEPT)]
