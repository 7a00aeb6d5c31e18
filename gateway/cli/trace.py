"""`gateway trace BUS`: what travels on a Modbus bus of the running gateway, a line for a question and how it ended.

The gateway shows its bytes only while somebody looks, and never waits for who looks: a slow terminal misses the oldest
events and is told how many. A port that nobody here holds can be listened to: what others say on that line.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import NoReturn

from gateway.cli import EXIT_FAILED, EXIT_UNAVAILABLE, complain
from gateway.cli.arguments import between
from gateway.cli.status import add_socket, socket_of
from gateway.cli.terminal import output, printable
from gateway.connectors.modbus.trace import Entry, Tracer
from gateway.connectors.tap import Event, What
from gateway.control.client import ControlClient
from gateway.errors import LinkError
from gateway.model import Json

_COLOURS = {"refused": "yellow", "late": "yellow", "foreign": "cyan", "noise": "cyan"}
"""By the first word of a verdict; what is not here is trouble."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bus", metavar="BUS|PORT", help="a Modbus bus, as the configuration names it; or a serial port, to listen to"
    )
    parser.add_argument("--unit", type=between(0, 255), metavar="N", help="only this one [all]")
    parser.add_argument("--raw", action="store_true", help="the bytes too, in hexadecimal")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    parser.add_argument("--baud", type=between(50, 4_000_000), default=9600, metavar="N", help="of PORT [%(default)s]")
    parser.add_argument("--parity", choices=["N", "E", "O"], default="N", help="of PORT [%(default)s]")
    add_socket(parser)
    parser.epilog = (
        "Verdicts: ok; refused, with the exception; no answer; crc; late: came after its time and was thrown away;"
        " foreign: of another master; noise; echo: the adapter returns what is sent."
    )


def main(arguments: argparse.Namespace) -> int:
    if arguments.bus.startswith("/"):
        try:
            asyncio.run(_overhear(arguments))
        except LinkError as error:
            return complain(str(error), EXIT_FAILED)
    client = ControlClient(socket_of(arguments))
    answers = client.follow("trace", bus=arguments.bus)
    show = _Show(arguments, Tracer(next(answers)["kind"]))
    missed = 0
    for told in answers:
        if told["missed"] != missed:
            print(f"{told['missed'] - missed:,} events lost: shown too slowly", file=sys.stderr)
            missed = told["missed"]
        event = Event(told["at_ns"], What(told["what"]), bytes.fromhex(told["data"]), told["said"])
        show.feed(event, told["utc_ms"] - told["at_ns"] / 1e6)
    return complain("the gateway ended", EXIT_UNAVAILABLE)


async def _overhear(arguments: argparse.Namespace) -> NoReturn:
    """Shows what others say on a line; sends nothing.

    Raises:
        LinkError: the port cannot be opened, or is gone.
    """
    from gateway.connectors.modbus.config import RtuBus
    from gateway.connectors.port import SerialPort

    lost: asyncio.Future[LinkError] = asyncio.get_running_loop().create_future()
    show = _Show(arguments, Tracer("modbus-rtu"))
    line = RtuBus(name="line", kind="modbus-rtu", port=arguments.bus, baud_rate=arguments.baud, parity=arguments.parity)
    port = SerialPort(line, lambda data: show.feed(Event(time.time_ns(), What.RECEIVED, data), 0.0), lost.set_result)
    port.open()
    try:
        raise await lost
    finally:
        port.close()


class _Show:
    """Prints what a tracer makes of events."""

    def __init__(self, arguments: argparse.Namespace, tracer: Tracer) -> None:
        self._arguments = arguments
        self._tracer = tracer
        self._console = output()

    def feed(self, event: Event, offset_ms: float) -> None:
        """`offset_ms`: from the clock of the events to UTC."""
        for entry in self._tracer.feed(event):
            if self._arguments.unit in (None, entry.unit):
                self._print(entry, entry.at_ns / 1e6 + offset_ms)

    def _print(self, entry: Entry, utc_ms: float) -> None:
        import msgspec

        if self._arguments.json:
            print(msgspec.json.encode(document(entry, utc_ms)).decode(), flush=True)
            return
        word = entry.verdict.split(" ")[0].rstrip(",")
        style = "" if word == "ok" else _COLOURS.get(word, "red")
        self._console.print(line(entry, utc_ms), style=style, soft_wrap=True)
        if self._arguments.raw:
            for sign, data in ((">", entry.sent), ("<", entry.received)):
                if data:
                    self._console.print(f"{'':14}{sign} {data.hex(' ')}", style="dim", soft_wrap=True)


def line(entry: Entry, utc_ms: float) -> str:
    """`14:03:07.120 unit 7    read input 100…103    17254 6656     23 ms  ok`."""
    stamp = time.strftime("%H:%M:%S", time.localtime(utc_ms / 1000)) + f".{int(utc_ms % 1000):03d}"
    unit = "" if entry.unit is None else f"unit {entry.unit}"
    took = "" if entry.took_ms is None else f"{entry.took_ms:.0f} ms"
    said = " → ".join(filter(None, (entry.question, printable(entry.answer))))
    return f"{stamp}  {unit:<8}  {said:<60}  {took:>8}  {entry.verdict}".rstrip()


def document(entry: Entry, utc_ms: float) -> Json:
    """The same for a program."""
    return {
        "utc_ms": round(utc_ms, 3),
        "unit": entry.unit,
        "question": entry.question,
        "answer": entry.answer,
        "took_ms": entry.took_ms,
        "verdict": entry.verdict,
        "sent": entry.sent.hex(),
        "received": entry.received.hex(),
    }
