"""`gateway trace BUS`: what travels on a Modbus bus of the running gateway, a line for a question and how it ended.

The gateway shows its bytes only while somebody looks, and never waits for who looks: a slow terminal misses the oldest
events and is told how many.
"""

from __future__ import annotations

import argparse
import sys
import time

from gateway.cli import EXIT_UNAVAILABLE, complain
from gateway.cli.arguments import between
from gateway.cli.status import add_socket, socket_of
from gateway.cli.terminal import output, printable
from gateway.connectors.modbus.trace import Entry, Tracer
from gateway.connectors.tap import Event, What
from gateway.control.client import ControlClient
from gateway.model import Json

_COLOURS = {"ok": "green", "refused": "yellow", "late": "yellow", "foreign": "cyan", "noise": "cyan"}
"""By the first word of a verdict; what is not here is trouble."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bus", metavar="BUS", help="a Modbus bus, as the configuration names it")
    parser.add_argument("--unit", type=between(0, 255), metavar="N", help="only this one [all]")
    parser.add_argument("--raw", action="store_true", help="the bytes too, in hexadecimal")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    add_socket(parser)
    parser.epilog = (
        "Verdicts: ok; refused, with the exception; no answer; crc; late: came after its time and was thrown away;"
        " foreign: of another master; noise; echo: the adapter returns what is sent."
    )


def main(arguments: argparse.Namespace) -> int:
    import msgspec

    client, console = ControlClient(socket_of(arguments)), output()
    answers = client.follow("trace", bus=arguments.bus)
    tracer = Tracer(next(answers)["kind"])
    missed = 0
    for told in answers:
        if told["missed"] != missed:
            print(f"{told['missed'] - missed:,} events lost: shown too slowly", file=sys.stderr)
            missed = told["missed"]
        event = Event(told["at_ns"], What(told["what"]), bytes.fromhex(told["data"]), told["said"])
        for entry in tracer.feed(event):
            if arguments.unit not in (None, entry.unit):
                continue
            utc_ms = told["utc_ms"] - (told["at_ns"] - entry.at_ns) / 1e6
            if arguments.json:
                print(msgspec.json.encode(document(entry, utc_ms)).decode(), flush=True)
                continue
            word = entry.verdict.split(" ")[0].rstrip(",")
            console.print(line(entry, utc_ms), style=_COLOURS.get(word, "red") if word != "ok" else "", soft_wrap=True)
            if arguments.raw:
                for sign, data in ((">", entry.sent), ("<", entry.received)):
                    if data:
                        console.print(f"{'':14}{sign} {data.hex(' ')}", style="dim", soft_wrap=True)
    return complain("the gateway ended", EXIT_UNAVAILABLE)


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
