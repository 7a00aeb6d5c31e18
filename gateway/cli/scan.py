"""`gateway scan`: what is out there? It asks and listens; it never writes, publishes or pairs.

A table for people goes to stderr, TOML to paste to stdout: `gateway scan ble > found.toml`, then `gateway check
found.toml`. Nothing to paste is exit code 1, with what to look at next. Ctrl-C ends a scan early; what was found until
then is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.cli import EXIT_FAILED, EXIT_INTERRUPTED
from gateway.cli.arguments import between, count, positive
from gateway.cli.modbus import target
from gateway.cli.terminal import errors, printable
from gateway.errors import LinkError
from gateway.settings import toml as quoted

if TYPE_CHECKING:
    from rich.console import Console

_ENDS_WITHIN_S = 2.0
"""Between Ctrl-C and the end of a scan that cannot be told in a nicer way."""

Show = Callable[[float, str], None]
"""`show(share, what)`: how far the scan is, 0 to 1, and what it sees."""


class Found(NamedTuple):
    """What a scan ends with."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    toml: str
    """To paste; empty: there is nothing."""
    remarks: tuple[str, ...] = ()
    """Said below the table, whatever was found."""


class Scan(NamedTuple):
    """One kind of scan, ready to run."""

    begins: str
    run: Callable[[Show, asyncio.Event], Awaitable[Found]]
    advice: tuple[str, ...]
    """What to look at when nothing was found."""


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Read-only. TOML goes to stdout, all else to stderr: gateway scan ble > found.toml"
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    def kind(name: str, summary: str, make: Callable[[argparse.Namespace], Scan]) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        made.set_defaults(make=make, wrong=made.error)
        return made

    ble = kind("ble", "Bluetooth sensors that advertise, and what they say", _ble)
    ble.add_argument("--seconds", type=positive, default=30.0, metavar="S", help="listen for [%(default)g]")
    ble.add_argument("--adapter", default="", metavar="hciN", help="[the first that is powered]")

    modbus = kind("modbus", "Modbus units behind a serial port or a host", _modbus)
    modbus.add_argument(
        "target", type=target, metavar="PORT|HOST[:PORT]|NETWORK", help="/dev/serial/by-id/…, 10.0.0.5, 10.0.0.0/24"
    )
    modbus.add_argument("--baud", type=between(50, 4_000_000), nargs="+", metavar="N", help="[the usual ones, in turn]")
    modbus.add_argument("--parity", choices=["N", "E", "O"], nargs="+", help="[N and E with the usual rates, else all]")
    modbus.add_argument("--stop", type=int, choices=[1, 2], default=1, help="stop bits [%(default)s]")
    modbus.add_argument("--ascii", action="store_true", help="Modbus ASCII, seven data bits, in place of RTU")
    modbus.add_argument("--units", type=_units, metavar="LIST", help="1,5,10-20 [1-247, the likely ones first]")
    modbus.add_argument("--timeout", type=positive, metavar="S", help="wait for each answer [0.1, for a host 0.5]")

    serial = kind("serial", "serial ports of this machine; with --listen what talks on one", _serial)
    serial.add_argument("--listen", metavar="PORT", help="try one baud rate after the other and show what makes sense")
    serial.add_argument("--baud", type=between(50, 4_000_000), nargs="+", metavar="N", help="[the usual ones, in turn]")
    serial.add_argument("--seconds", type=positive, default=3.0, metavar="S", help="at each baud rate [%(default)g]")

    mqtt = kind("mqtt", "devices that publish on an MQTT broker", _mqtt)
    mqtt.add_argument("--host", default="127.0.0.1", help="[%(default)s]")
    mqtt.add_argument("--tcp-port", "--port", type=between(1, 65_535), metavar="N", help="[1883, with TLS 8883]")
    mqtt.add_argument("--topic", action="append", metavar="FILTER", help="may be given several times [#]")
    mqtt.add_argument("--seconds", type=positive, default=10.0, metavar="S", help="listen for [%(default)g]")
    mqtt.add_argument("--username", metavar="NAME")
    mqtt.add_argument("--password-file", type=Path, metavar="FILE", help="file that holds the password, nothing else")
    mqtt.add_argument("--tls", action="store_true", help="encrypt; trusts the system's authorities")
    mqtt.add_argument("--cafile", type=Path, metavar="FILE", help="encrypt; trusts this authority")


def _units(text: str) -> tuple[int, ...]:
    """`1,5,10-20` → 1, 5, 10 … 20."""
    units: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{part!r} is no unit and no range such as 1-247")
        units += range(int(first), int(last or first) + 1)
    if not units or min(units) < 0 or max(units) > 255:
        raise argparse.ArgumentTypeError(f"{text!r}: units are 0 to 255, a range runs upwards")
    return tuple(dict.fromkeys(units))


# ── running one ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: argparse.Namespace) -> int:
    console = errors()
    scan: Scan = arguments.make(arguments)
    try:
        found, interrupted = asyncio.run(_run(scan, console))
    except LinkError as error:
        console.print(f"{error}", style="red")
        return EXIT_FAILED
    except asyncio.CancelledError:
        return EXIT_INTERRUPTED
    _print(found, console)
    if not found.toml:
        for line in ("Interrupted, and nothing to paste so far.",) if interrupted else scan.advice:
            console.print(line)
    return EXIT_INTERRUPTED if interrupted else 0 if found.toml else EXIT_FAILED


async def _run(scan: Scan, console: Console) -> tuple[Found, bool]:
    """The scan, with a bar where somebody sees it; True: Ctrl-C ended it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"

    def told() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()
        loop.call_later(_ENDS_WITHIN_S, task.cancel)  # it may be connecting, which nothing else ends

    loop.add_signal_handler(signal.SIGINT, told)
    console.print(scan.begins)
    columns = (BarColumn(30), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=1.0)
        found = await scan.run(lambda share, what: bar.update(line, completed=share, description=what), stop)
    return found, stop.is_set()


def _print(found: Found, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if found.rows:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in found.columns:
            table.add_column(column, overflow="fold")
        for row in found.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
    for remark in found.remarks:
        console.print(remark)
    if found.toml:
        if sys.stdout.isatty():
            console.print("\nTo paste into the configuration:\n", style="bold")
        print(found.toml.rstrip("\n"))


# ── the kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ble(arguments: argparse.Namespace) -> Scan:
    from gateway.connectors.ble import scan as ble
    from gateway.connectors.ble.link import BleakRadio

    async def run(show: Show, stop: asyncio.Event) -> Found:
        def progress(share: float, devices: int) -> None:
            show(share, count(devices, "device"))

        found = await ble.scan(BleakRadio(arguments.adapter), arguments.seconds, progress, stop)
        usable = any(each.decoded for each in found)
        return Found(
            ble.COLUMNS,
            ble.rows(found),
            ble.to_toml(found, arguments.adapter) if usable else "",
            ()
            if usable or not found
            else ("None of these speaks a format that is known here; a decoder `package` may know it.",),
        )

    return Scan(
        f"listening for {arguments.seconds:g} s; Ctrl-C ends it early",
        run,
        (
            "Nothing to paste. Is the sensor close, awake, and not connected to a phone? Some advertise once a minute:",
            "try --seconds 120. Is the adapter on: `bluetoothctl show`, `rfkill list`? Is this user in the group"
            " bluetooth?",
        ),
    )


def _modbus(arguments: argparse.Namespace) -> Scan:
    from gateway.cli.scan_modbus import scan

    return scan(arguments)


def _serial(arguments: argparse.Namespace) -> Scan:
    return _ports() if arguments.listen is None else _listen(arguments)


def _ports() -> Scan:
    from gateway.connectors.ports import serial_ports

    async def run(_show: Show, _stop: asyncio.Event) -> Found:
        ports = await asyncio.to_thread(serial_ports)
        rows = [(port.device, port.description, port.best, port.holder, "; ".join(port.notes)) for port in ports]
        toml = "".join(f"# port = {quoted(port.best)}  {printable(port.description)}".rstrip() + "\n" for port in ports)
        nexts = (
            "What talks there?   gateway scan serial --listen PORT",
            "What can be asked?  gateway scan modbus PORT",
        )
        return Found(("port", "what", "for the configuration", "held by", ""), rows, toml, nexts if ports else ())

    return Scan(
        "serial ports of this machine:",
        run,
        (
            "None. Is the adapter plugged in (`dmesg | tail` says what the kernel thinks of it)?",
            "The port on a Raspberry Pi's pins appears after enable_uart=1 in config.txt: /dev/serial0.",
        ),
    )


def _listen(arguments: argparse.Namespace) -> Scan:
    from gateway.connectors.serial import scan as serial

    settings = tuple(map(serial.Setting, arguments.baud)) if arguments.baud else serial.SETTINGS

    async def run(show: Show, stop: asyncio.Event) -> Found:
        def progress(setting: serial.Setting) -> None:
            show(settings.index(setting) / len(settings), f"{setting.baud_rate} baud")

        heard = await serial.listen(lasting(arguments.listen), settings, arguments.seconds, progress, stop)
        rows = [
            (f"{each.setting.baud_rate}", each.guess.format, each.guess.lines[-1] if each.guess.lines else "")
            for each in heard
        ]
        noise = any(each.guess.format == "noise" for each in heard)
        best = heard[0].toml if heard else ""
        remark = "Bytes come, but no text: another baud rate or parity, or a binary protocol (`gateway scan modbus`)."
        return Found(("baud rate", "sounds like", "last line"), rows, best, (remark,) if noise and not best else ())

    span = arguments.seconds * len(settings)
    return Scan(
        f"listening at {count(len(settings), 'baud rate')}, {span:g} s at most; Ctrl-C ends it early",
        run,
        (
            "Nothing that can be read. Does the device speak of its own accord, now? Are TX and RX crossed, the ground"
            " connected? Is it RS-232 on a TTL adapter, or the other way round?",
            "A device that only answers when asked is silent here: if it speaks Modbus, `gateway scan modbus PORT`.",
        ),
    )


def _mqtt(arguments: argparse.Namespace) -> Scan:
    from gateway.connectors.mqtt import scan as mqtt
    from gateway.connectors.mqtt.config import MqttBus, Tls

    if arguments.password_file and not arguments.username:
        arguments.wrong("--password-file needs --username")
    cafile = arguments.cafile and arguments.cafile.resolve()
    bus = MqttBus(
        name="broker",
        kind="mqtt",
        host=arguments.host,
        tcp_port=arguments.tcp_port,
        username=arguments.username,
        password_file=arguments.password_file and arguments.password_file.resolve(),
        tls=Tls(cafile=cafile) if cafile or arguments.tls else None,
    )

    async def run(show: Show, stop: asyncio.Event) -> Found:
        def progress(elapsed_s: float, messages: int) -> None:
            show(elapsed_s / arguments.seconds, count(messages, "message"))

        heard = await mqtt.scan(bus, arguments.seconds, progress, arguments.topic or ("#",), stop)
        rows = [
            (
                each.name,
                each.format.value,
                each.topic,
                f"{each.rate_hz:.3g}/s",
                ", ".join(f"{point.name} {quoted(point.last)} {point.unit}".rstrip() for point in each.points),
            )
            for each in heard.devices
        ]
        remarks = [f"the broker does not grant {filter}: {why}" for filter, why in heard.refused.items()]
        if heard.left_off:
            remarks.append(f"{heard.left_off} messages came of yet more devices: narrow it with --topic")
        if heard.messages and not heard.devices:
            remarks.append(f"{heard.messages} messages, and no number in any of them")
        toml = heard.toml if heard.devices else ""
        return Found(("device", "format", "topic", "rate", "last values"), rows, toml, tuple(remarks))

    return Scan(
        f"listening to {bus.host}:{bus.broker_port} for {arguments.seconds:g} s; Ctrl-C ends it early",
        run,
        (
            "No reading was heard. Does anything publish? Longer: --seconds 60. May this user read: --username, and the"
            " broker's ACL? Another topic tree: --topic 'plant/#'",
        ),
    )


def lasting(port: str) -> str:
    """A name of this port that survives replugging, where it has one and none was given."""
    from gateway.connectors.ports import serial_ports

    return next((found.best for found in serial_ports() if found.device == port), port)
