"""`gateway run`: the daemon, in the foreground, as systemd wants it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config.schema import Config

DEFAULT_CONFIG = Path("/etc/gateway/config.toml")

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Python level → syslog priority, sd-daemon(3)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", "-c", type=Path, default=DEFAULT_CONFIG, help="default: %(default)s")
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="stronger than the file's `log_level`"
    )


def main(arguments: argparse.Namespace) -> int:
    from gateway.config.load import load

    config = load(arguments.config, os.environ)
    set_up_logging(arguments.log_level or config.gateway.log_level)
    asyncio.run(_until_told(config))
    return 0


async def _until_told(config: Config) -> None:
    """Runs until SIGTERM or SIGINT, then drains. A second signal ends the process at once."""
    from gateway.app import App

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def told(name: str) -> None:
        if stop.is_set():
            os._exit(1)
        logging.getLogger(__name__).info("%s: finishing", name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    app = await App.open(config)
    await app.run(stop)


def set_up_logging(level: str) -> None:
    """To stderr: with syslog priorities where the journal listens, with the time where a person does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForJournal() if "JOURNAL_STREAM" in os.environ else _ForPeople())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # libraries: what we need of them reaches us as exceptions; a line per packet fills an SD card
    for library in ("websockets", "bleak", "dbus_fast", "paho"):
        logging.getLogger(library).setLevel(logging.ERROR)


class _ForJournal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name.removeprefix('gateway.')}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in text.splitlines())


class _ForPeople(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
