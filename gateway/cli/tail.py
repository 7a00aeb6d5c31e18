"""`gateway tail`: live readings, one line each, until Ctrl-C."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from gateway.cli.status import add_socket
from gateway.control.client import ControlClient
from gateway.model import Json, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", nargs="?", default="", help="only this device")
    parser.add_argument("--json", action="store_true", help="one JSON document per line")
    add_socket(parser)


def main(arguments: argparse.Namespace) -> int:
    import msgspec

    for reading in ControlClient(Path(arguments.socket)).follow("tail", device=arguments.device):
        line = msgspec.json.encode(reading).decode() if arguments.json else text(reading)
        print(line, flush=True)
    return 0


def text(reading: Json) -> str:
    """`14:03:07.120 meter-1 voltage 230.1 V`; quality only where it is not good."""
    ms = reading["utc_ms"]
    clock = time.strftime("%H:%M:%S", time.localtime(ms / 1000)) + f".{ms % 1000:03d}"
    value = "-" if reading["value"] is None else reading["value"]
    quality = "" if reading["status"] == Status.GOOD else f"  {reading['status']}"
    return f"{clock} {reading['device']} {reading['point']} {value} {reading['unit']}{quality}".rstrip()
