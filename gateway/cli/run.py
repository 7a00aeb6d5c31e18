"""`gateway run`: the daemon, in the foreground, as systemd wants it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__, logs
from gateway.cli import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED
from gateway.cli.arguments import DEFAULT_CONFIG
from gateway.cli.claim import claimed
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.config.schema import Config

log = logging.getLogger(__name__)

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
            raise ConfigError((logs.marked(f"{arguments.config}: there is no such file; {_BEGIN}", logging.ERROR),))
        raise ConfigError(tuple(logs.marked(str(problem), logging.ERROR) for problem in report.mistakes))
    config = report.config
    logs.set_up(arguments.log_level or config.gateway.log_level)
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
