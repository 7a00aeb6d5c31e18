"""`gateway tail`: what the running gateway reads, one line each, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time

from gateway.cli import EXIT_UNAVAILABLE, complain
from gateway.cli.status import add_socket, socket_of
from gateway.cli.terminal import printable
from gateway.control.client import ControlClient
from gateway.model import Json, Status
from gateway.settings import nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", nargs="?", default="", metavar="DEVICE", help="only this one [all]")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    add_socket(parser)
    parser.epilog = "Shows what is news: a value within its deadband is not. Quality stands behind what is not good."


def main(arguments: argparse.Namespace) -> int:
    import msgspec

    client = ControlClient(socket_of(arguments))
    if arguments.device:
        known = client.ask("status")["devices"]
        if arguments.device not in known:
            hint = nearest(arguments.device, known)
            print(f'no device "{arguments.device}" has been heard of yet{hint}; waiting for it', file=sys.stderr)
    for reading in client.follow("tail", device=arguments.device):
        line = msgspec.json.encode(reading).decode() if arguments.json else text(reading)
        print(line, flush=True)
    return complain("the gateway ended", EXIT_UNAVAILABLE)


def text(reading: Json) -> str:
    """`14:03:07.120 meter-1 voltage 230.1 V`; quality only where it is not good."""
    ms = reading["utc_ms"]
    clock = time.strftime("%H:%M:%S", time.localtime(ms // 1000)) + f".{ms % 1000:03d}"
    quality = "" if reading["status"] == Status.GOOD else f"  {reading['status']}"
    said = f"{reading['device']} {reading['point']} {shown(reading['value'])} {reading['unit']}{quality}"
    return f"{clock} {printable(said)}".rstrip()


def shown(value: Json) -> str:
    """As one writes it in the configuration; `-` where there is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else str(value)
