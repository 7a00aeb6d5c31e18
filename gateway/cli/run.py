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

from gateway import __version__
from gateway.cli import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED
from gateway.cli.arguments import DEFAULT_CONFIG
from gateway.cli.claim import claimed
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.config.schema import Config

log = logging.getLogger(__name__)

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Python level → syslog priority, sd-daemon(3)."""

_BEGIN = "config.example.toml shows what it may say, `--config FILE` names another, `gateway demo` needs none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="[%(default)s]")
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="instead of the file's `log_level`"
    )
    parser.epilog = "SIGTERM or Ctrl-C: it stops reading, commits what it has, delivers what it can in 3 s, and ends."


def main(arguments: argparse.Namespace) -> int:
    from gateway.config.load import check

    report = check(arguments.config, os.environ)
    if report.config is None:
        if _missing(arguments.config):
            raise ConfigError((_marked(f"{arguments.config}: there is no such file; {_BEGIN}", logging.ERROR),))
        raise ConfigError(tuple(_marked(str(problem), logging.ERROR) for problem in report.mistakes))
    config = report.config
    set_up_logging(arguments.log_level or config.gateway.log_level)
    log.info("gateway %s with %s", __version__, arguments.config)
    for problem in report.warnings:
        log.warning("%s", problem)
    try:
        with claimed(config.gateway.state_dir, config.gateway.runtime_dir):
            asyncio.run(_until_told(config))
    except GatewayError as error:
        log.error("%s", error)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


def _missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it may be there: `check` says what is in the way
    return False


async def _until_told(config: Config) -> None:
    """Runs until SIGTERM or SIGINT, then drains. A second signal ends the process at once."""
    from gateway.app import App

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def told(name: str) -> None:
        if stop.is_set():
            log.warning("%s again: ending at once; what is not delivered is kept for the next start", name)
            os._exit(EXIT_INTERRUPTED)
        log.info("%s: finishing", name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number.name)
    app = await App.open(config)
    await app.run(stop)
    log.info("finished")


def set_up_logging(level: str) -> None:
    """To stderr: with syslog priorities where the journal listens, with the time where a person does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForJournal() if _journal() else _ForPeople())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # libraries: what we need of them reaches us as exceptions; a line per packet fills an SD card
    for library in ("asyncio", "websockets", "bleak", "dbus_fast", "paho"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _journal() -> bool:
    """Stderr goes to the journal: systemd names its stream, and children inherit the name with or without it."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        file = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{file.st_dev}:{file.st_ino}"


def _marked(text: str, level: int) -> str:
    """With the priority that the journal reads at the beginning of each line, where it does."""
    prefix = f"<{_PRIORITY.get(level, 6)}>" if _journal() else ""
    return "\n".join(prefix + line for line in text.splitlines())


class _ForJournal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name.removeprefix('gateway.')}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _marked(text, record.levelno)


class _ForPeople(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
