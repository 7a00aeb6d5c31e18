"""`gateway conformance`: does a server keep the protocol? Tries it and says so, requirement by requirement.

Exit codes: 0 nothing is broken · 1 something is, or the server refuses this identity · 69 no server answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import msgspec

from gateway.cli.arguments import positive
from gateway.cli.terminal import output
from gateway.conformance import report
from gateway.conformance.bench import PATIENCE_S, Target
from gateway.conformance.run import Finding, Outcome, chosen, numbers, run
from gateway.conformance.specification import requirements
from gateway.errors import ConfigError, GatewayError
from gateway.uplink.auth import Credentials
from gateway.uplink.config import Endpoint, TlsSettings

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "It uses streams of its own and leaves their records behind, under the device `conformance`. Give it an "
        "identity of its own: a gateway that is connected under the same one is evicted."
    )
    parser.add_argument("--url", help="the server: wss://…, or ws:// on this machine")
    parser.add_argument("--endpoint2", default="", metavar="URL", help="another address of the same sink")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token of the identity to use")
    parser.add_argument("--cafile", type=Path, metavar="FILE", help="private CA of the server")
    parser.add_argument("--certfile", type=Path, metavar="FILE", help="client certificate")
    parser.add_argument("--keyfile", type=Path, metavar="FILE", help="its key")
    parser.add_argument(
        "--memory", type=Path, metavar="FILE", help="what was acked is written there; asked for when it exists (R6b)"
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=PATIENCE_S,
        metavar="SECONDS",
        help=f"how long to wait for what should come [{PATIENCE_S:g}]",
    )
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="A5, A5a, …; may be given again")
    parser.add_argument("--list", action="store_true", help="the requirements of a server, and which can be seen")
    parser.add_argument("--json", action="store_true", help="for programs: one document at the end")


def main(arguments: argparse.Namespace) -> int:
    console = output()
    if arguments.list:
        for line in report.listed(numbers(), requirements(), console.width):
            console.print(line.text, style=line.style or None)
        return 0
    if arguments.url is None:
        raise ConfigError(("--url names the server; --list needs none",))
    wanted = chosen(arguments.only)
    if not wanted:
        raise ConfigError((f"no requirement of a server is called {' or '.join(arguments.only)}; see --list",))
    target = _target(arguments)

    def told(finding: Finding) -> None:
        if not arguments.json:
            for line in report.lines(finding, console.width):
                console.print(line.text, style=line.style or None)

    if not arguments.json:
        console.print(report.head(arguments.url, len(wanted)).text, style="bold")
    outcome = asyncio.run(run(target, arguments.only, _remembered(arguments.memory), told))
    if arguments.json:
        print(json.dumps(report.as_json(arguments.url, outcome), indent=2, ensure_ascii=False))
    else:
        for line in report.summary(outcome):
            console.print(line.text, style=line.style or None)
    _remember(arguments.memory, outcome)
    return EXIT_FAILED if outcome.broken else 0


def _target(arguments: argparse.Namespace) -> Target:
    """Raises ConfigError, AuthError."""
    tls = TlsSettings(cafile=arguments.cafile, certfile=arguments.certfile, keyfile=arguments.keyfile)
    us = Endpoint(url=arguments.url, token_file=arguments.token_file, tls=tls)
    stranger = Endpoint(url=arguments.url, tls=TlsSettings(cafile=arguments.cafile))
    mistakes = [mistake.message for mistake in us.mistakes()]
    if not arguments.url.startswith(("ws://", "wss://")):
        mistakes = [f"{arguments.url} is neither wss:// nor ws://"]
    if arguments.endpoint2 and arguments.endpoint2.partition("://")[0] != arguments.url.partition("://")[0]:
        mistakes.append("both addresses are reached in the same way: wss:// or ws://")
    if mistakes:
        raise ConfigError(tuple(mistakes))
    credential = Credentials(us).read()
    context = Credentials(stranger).read().context
    return Target(
        arguments.url, credential.headers, credential.context, context, arguments.endpoint2, arguments.patience
    )


def _remembered(memory: Path | None) -> dict[str, int]:
    """Raises GatewayError."""
    if memory is None or not memory.exists():
        return {}
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError) as error:
        raise GatewayError(f"{memory} is no memory of an earlier run: {error}") from error


def _remember(memory: Path | None, outcome: Outcome) -> None:
    """Raises GatewayError."""
    if memory is not None and outcome.marks:
        try:
            memory.write_bytes(msgspec.json.encode(outcome.marks))
        except OSError as error:
            raise GatewayError(f"{memory}: {error.strerror}") from error
