"""`gateway check`: every mistake at once; when there is none, what will be done and what may hurt.

Mistakes and warnings go to stderr in the form `file:line:column: …`, which editors understand; the plan to stdout.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli import EXIT_CONFIG
from gateway.cli.arguments import DEFAULT_CONFIG, count
from gateway.cli.terminal import errors
from gateway.settings import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from gateway.config.problems import Problem
    from gateway.config.schema import Config

_NAMES_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, nargs="?", default=DEFAULT_CONFIG, metavar="FILE", help="[%(default)s]")
    parser.add_argument("-q", "--quiet", action="store_true", help="only mistakes and warnings, no plan")
    parser.epilog = "Exit code: 0 good (perhaps with warnings), 78 there are mistakes."


def main(arguments: argparse.Namespace) -> int:
    from gateway.config.load import check

    report = check(arguments.config, os.environ)
    console = errors()
    for problem in report.mistakes:
        _show(console, problem, "", "red")
    for problem in report.warnings:
        _show(console, problem, "warning", "yellow")
    if report.config is None:
        console.print(f"{arguments.config}: {count(len(report.mistakes), 'mistake')}", style="bold red", soft_wrap=True)
        return EXIT_CONFIG
    if not arguments.quiet:
        print("\n".join(plan(report.config)))
        warned = f", with {count(len(report.warnings), 'warning')}" if report.warnings else ""
        print(f"{arguments.config} is good{warned}")
    return 0


def _show(console: Console, problem: Problem, label: str, colour: str) -> None:
    """The sentence in bold, the line as it is written, the mark in colour."""
    said, *below = problem.underlined(label).split("\n")
    console.print(said, style="bold")
    for line, style in zip(below, ("", f"bold {colour}"), strict=False):
        console.print(line, style=style, soft_wrap=True)  # folded, the mark would stand elsewhere


def plan(config: Config) -> list[str]:
    """What this configuration makes the gateway do."""
    from gateway.uplink.config import Speech, promise

    lines = []
    for entry in config.buses:
        lines.append(f"bus {entry.name} ({entry.kind.name}), {count(len(entry.devices), 'device')}")
        lines += _brought(config, [device.name for device in entry.devices])
        if entry.kind.plan is not None:
            lines += [f"  {line}" for line in entry.kind.plan(entry.bus, entry.devices)]
    if not config.buses:
        lines.append("no bus: the gateway starts and waits for configuration")
    size = size_text(config.buffer.max_size)
    lines.append(f"buffer in {config.gateway.state_dir}, at most {size}, then {config.buffer.when_full}")
    for number, endpoint in enumerate(config.uplink.endpoint, start=1):
        way = f", out by {endpoint.interface}" if endpoint.interface else ""
        way += f", through {endpoint.proxy}" if endpoint.proxy else ""
        lines.append(f"uplink {number}: {endpoint.url}{way}")
        if endpoint.protocol is Speech.PLAIN:
            lines.append(f"  plain JSON, {promise(endpoint)}")
        if endpoint.daily_budget is not None:
            lines.append(f"  {size_text(endpoint.daily_budget)} a day, then {endpoint.when_spent}")
    if not config.uplink.endpoint:
        lines.append("no [[uplink.endpoint]]: readings are kept on disk until there is one")
    return lines


def _brought(config: Config, devices: Sequence[str]) -> Iterator[str]:
    """What profiles and templates gave to whom; equal devices in one line."""
    alike: dict[str, list[str]] = {}
    for name in devices:
        if brought := config.brought.get(name):
            less = f", without {brought.left_out} more" if brought.left_out else ""
            alike.setdefault(f"{count(brought.points, 'point')} of {', '.join(brought.by)}{less}", []).append(name)
    for what, names in alike.items():
        whom = ", ".join(names) if len(names) <= _NAMES_SHOWN else f"{names[0]} … {names[-1]} ({len(names)} devices)"
        yield f"  {whom}: {what}{' each' if len(names) > 1 else ''}"
