"""`gateway check`: every mistake at once, then what will be done, then what may hurt."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from gateway.config.schema import Config

EXIT_CONFIG = 78


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, nargs="?", default=DEFAULT_CONFIG, help="default: %(default)s")
    parser.add_argument("--quiet", "-q", action="store_true", help="only mistakes and warnings")


def main(arguments: argparse.Namespace) -> int:
    from gateway.config.load import check

    report = check(arguments.config, os.environ)
    for problem in (*report.mistakes, *report.warnings):
        print(problem.underlined(), file=sys.stderr)
    if report.config is None:
        count = len(report.mistakes)
        print(f"{arguments.config}: {count} mistake{'s' * (count > 1)}; nothing was started", file=sys.stderr)
        return EXIT_CONFIG
    if not arguments.quiet:
        print("\n".join(plan(report.config)))
    return 0


def plan(config: Config) -> list[str]:
    """What this configuration makes the gateway do."""
    lines = []
    for entry in config.buses:
        devices = f"{len(entry.devices)} device{'s' * (len(entry.devices) != 1)}"
        lines.append(f"bus {entry.name} ({entry.kind.name}), {devices}")
        if entry.kind.plan is not None:
            lines += [f"  {line}" for line in entry.kind.plan(entry.bus, entry.devices)]
    if not config.buses:
        lines.append("no bus: the gateway starts and waits for configuration")
    for number, endpoint in enumerate(config.uplink.endpoint, start=1):
        lines.append(f"uplink {number}: {endpoint.url}")
    if not config.uplink.endpoint:
        lines.append("no [[uplink.endpoint]]: readings are kept on disk until there is one")
    lines.append("this configuration is good")
    return lines
