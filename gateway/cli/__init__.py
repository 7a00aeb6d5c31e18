"""The `gateway` command: what a person types. Each subcommand lives in its own module and is loaded when it is asked.

Exit codes (sysexits.h where it has one): 0 done · 1 the thing asked for failed · 2 wrong usage · 69 no daemon answers
· 78 the configuration must be mended (the unit does not restart on it) · 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from gateway import __version__
from gateway.errors import ConfigError, GatewayError, LinkError

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130

_COMMANDS = {
    "run": ("gateway.cli.run", "run the gateway (what the service does)"),
    "check": ("gateway.cli.check", "check a configuration; explain every mistake and what will be done"),
    "status": ("gateway.cli.status", "ask the running gateway how it is"),
    "tail": ("gateway.cli.tail", "follow live readings"),
    "scan": ("gateway.cli.scan", "find devices (read-only) and print TOML to paste"),
    "ingest": ("gateway.ingest.cli", "the cloud side: receive, store and show"),
    "demo": ("gateway.demo.cli", "simulated machines, gateway and cloud side, live; no hardware needed"),
}


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line; with `only`, no other subcommand's module is imported."""
    top = argparse.ArgumentParser(
        prog="gateway",
        description="Edge gateway: serial, Modbus, BLE and MQTT sensors, buffered on disk, forwarded over one uplink.",
        epilog="Start with `gateway demo`, then `gateway check config.toml`. Every command has its own --help.",
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
    words = list(sys.argv[1:] if argv is None else argv)
    only = next((word for word in words if not word.startswith("-")), "")
    arguments = parser(only if only in _COMMANDS else "").parse_args(words)
    try:
        code = importlib.import_module(_COMMANDS[arguments.command][0]).main(arguments)
    except ConfigError as error:
        code = complain(str(error), EXIT_CONFIG)
    except LinkError as error:
        code = complain(str(error), EXIT_UNAVAILABLE)
    except GatewayError as error:
        code = complain(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # `gateway tail | head`: the reader has enough
        code = 0
    sys.exit(code)


def complain(text: str, code: int) -> int:
    """Says what is wrong on stderr; returns the exit code."""
    print(text, file=sys.stderr)
    return code
