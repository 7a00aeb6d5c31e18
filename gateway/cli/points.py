"""`gateway import`: the list of points that people have in Excel, as TOML.

TOML goes to stdout, every row that was not understood to stderr with its line and why. Exit code 1 when there was one;
the others are printed all the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli import EXIT_FAILED, EXIT_USAGE, complain
from gateway.cli.arguments import between, count
from gateway.settings import toml

_MAX_BYTES = 20_000_000
"""Of a list; one with all 65,536 registers and long texts has less."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Separated by commas, semicolons or tabs; headings in English or German: address, name, type, unit, scale,"
        " registers, function code. gateway import points.csv > found.toml, then gateway check."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the list, saved as CSV")
    parser.add_argument("--device", default="device", metavar="NAME", help="what the device shall be called")
    parser.add_argument("--bus", default="bus", metavar="NAME", help="name of its [[bus]] [%(default)s]")
    parser.add_argument("--unit", type=between(0, 255), default=1, metavar="N", help="its unit id [%(default)s]")
    parser.add_argument(
        "--base", type=int, choices=(0, 1), default=0, help="what the list calls the first register [0]"
    )
    parser.add_argument(
        "--addresses",
        choices=("auto", "plain", "reference"),
        default="auto",
        help="is 40001 the first register, or register 40001? [what all of the list allows]",
    )
    parser.add_argument(
        "--register", choices=("holding", "input", "coil", "discrete"), default="", help="table of rows that name none"
    )


def main(arguments: argparse.Namespace) -> int:
    from gateway.connectors.modbus.pointlist import decoded, imported

    try:
        with arguments.file.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        return complain(f"{arguments.file} cannot be read: {error.strerror}", EXIT_USAGE)
    if len(data) > _MAX_BYTES or data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return complain(f"{arguments.file} is no CSV; in Excel: save as, CSV UTF-8", EXIT_USAGE)
    found = imported(decoded(data), arguments.addresses, arguments.register)
    for remark in found.remarks:
        complain(f"{arguments.file}: {remark}", 0)
    for line, why in found.problems:
        complain(f"{arguments.file}:{line}: {why}" if line else f"{arguments.file}: {why}", 0)
    if found.points:
        print(f"# {count(len(found.points), 'point')} from {arguments.file.name}")
        print("[[device]]")
        print(f"name = {toml(arguments.device)}\nbus = {toml(arguments.bus)}\nunit_id = {arguments.unit}")
        if arguments.base:
            print("address_base = 1")
        print("points = [")
        print("\n".join(f"  {toml(point)}," for point in found.points))
        print("]")
    if not found.problems:
        return 0
    return complain(f"{arguments.file}: {count(len(found.problems), 'row')} not understood", EXIT_FAILED)
