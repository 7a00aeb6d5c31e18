"""The `gateway` command: what a person types. Each subcommand lives in its own module and is loaded when it is asked.

Exit codes (sysexits.h where it has one): 0 done · 1 the thing asked for failed · 2 wrong usage · 69 no daemon answers
· 78 the configuration must be mended (the unit does not restart on it) · 130 interrupted.

What a person can cause (a missing file, no permission, no daemon) ends in one line on stderr. A traceback is our bug.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gateway import __version__
from gateway.errors import ConfigError, GatewayError, LinkError
from gateway.settings import nearest

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130

_COMMANDS = {
    "demo": ("gateway.demo.cli", "simulated machines, gateway and cloud side, live; no hardware needed"),
    "scan": ("gateway.cli.scan", "find devices (read-only) and print TOML to paste"),
    "read": ("gateway.cli.read", "what do these registers mean? every type and byte order, the plausible ones marked"),
    "check": ("gateway.cli.check", "check a configuration: every mistake at once, or what will be done"),
    "profiles": ("gateway.cli.profiles", "ready-made register maps: list, search, show, check one of your own"),
    "import": ("gateway.cli.points", "turn a list of points (CSV, from Excel) into TOML"),
    "run": ("gateway.cli.run", "run the gateway in the foreground (what the service does)"),
    "status": ("gateway.cli.status", "ask the running gateway how it is"),
    "tail": ("gateway.cli.tail", "follow what the running gateway reads"),
    "trace": ("gateway.cli.trace", "follow what travels on a Modbus bus, frame by frame with its meaning"),
    "buffer": ("gateway.cli.buffer", "what waits on disk: count it, export it, verify it"),
    "ingest": ("gateway.ingest.cli", "the cloud side: receive, store and show"),
    "conformance": ("gateway.cli.conformance", "check whether a server keeps the protocol"),
}


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with `only`, no other subcommand's module is imported."""
    top = argparse.ArgumentParser(
        prog="gateway",
        description="Edge gateway: serial, Modbus, BLE and MQTT sensors, buffered on disk, forwarded over one uplink.",
        epilog="Start with `gateway demo`; then scan, check, run, in this order. Every command has its own --help.",
    )
    top.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if only in (None, name):
            importlib.import_module(module).add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows `?`, not a traceback
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        parser("").print_help()
        sys.exit(EXIT_USAGE)
    only = next((word for word in words if not word.startswith("-")), "")
    if only and only not in _COMMANDS:
        sys.exit(complain(f"gateway: there is no command `{only}`{nearest(only, _COMMANDS)}", EXIT_USAGE))
    sys.exit(_run(parser(only).parse_args(words)))


def _run(arguments: argparse.Namespace) -> int:
    try:
        code: int = importlib.import_module(_COMMANDS[arguments.command][0]).main(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        code = complain(str(error), EXIT_CONFIG)
    except LinkError as error:
        code = complain(str(error), EXIT_UNAVAILABLE)
    except GatewayError as error:
        code = complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # `gateway tail | head`: the reader has enough. What is still in our buffer must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


def complain(text: str, code: int) -> int:
    """Says what is wrong on stderr; returns the exit code."""
    print(text, file=sys.stderr)
    return code
