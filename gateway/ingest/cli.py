"""`gateway ingest`: runs the cloud side, adds and lists who may connect, sends commands.

gateway ingest [--listen HOST:PORT …] [--data DIR] [--cert FILE --key FILE --client-ca FILE]
gateway ingest add NAME [--viewer]      prints a token, once, and what to paste into the gateway's configuration
gateway ingest list | revoke NAME
gateway ingest send GATEWAY DEVICE POINT VALUE [--ttl 10s] [--queue]
gateway ingest show                     the latest values and commands
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway import logs
from gateway.clock import SystemClock
from gateway.errors import ConfigError, GatewayError, LinkError, StoreError
from gateway.ingest import commands, control, terminal
from gateway.ingest.commands import Issued
from gateway.ingest.config import DEFAULT_PORT, Settings, address, shown
from gateway.ingest.control import Answer
from gateway.ingest.live import shown as shown_value
from gateway.ingest.server import running, take
from gateway.ingest.sinks.sqlite import FILE, SqliteSink
from gateway.ingest.tokens import Role, Tokens
from gateway.model import Outcome, Value
from gateway.settings import Duration, Table, read

EX_OK, EX_FAILED, EX_UNAVAILABLE, EX_CONFIG = 0, 1, 69, 78
_DURATION = "a duration such as 500ms, 10s or 5m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything behind `gateway ingest`."""
    parser.add_argument("--data", type=Path, default=None, metavar="DIR", help=f"folder of the store [{_data()}]")
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help=f"may be given several times [127.0.0.1:{DEFAULT_PORT}]",
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="server certificate, PEM; without it there is no TLS")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key, where it is not in the same file")
    parser.add_argument("--client-ca", type=Path, metavar="FILE", help="CA whose client certificates name gateways")
    parser.add_argument("--drain", default="5s", metavar="TIME", help="time to move elsewhere when it stops [5s]")
    parser.add_argument("--plain", action="store_true", help="lines in place of the live screen")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add = actions.add_parser("add", help="lets a gateway (or a viewer) in: prints its token once")
    add.add_argument("name")
    add.add_argument("--viewer", action="store_true", help="may look at the page from another machine")
    add.add_argument(
        "--token-file", type=Path, metavar="FILE", help="write the token there (mode 0600), do not show it"
    )
    actions.add_parser("list", help="who may connect, and who is there")
    revoke = actions.add_parser("revoke", help="takes all tokens of a name back and ends its sessions")
    revoke.add_argument("name")
    send = actions.add_parser("send", help="writes a value to a point and waits for the result")
    for word in ("gateway", "device", "point", "value"):
        send.add_argument(word)
    send.add_argument("--ttl", default="10s", metavar="TIME", help="it must have begun by then [10s]")
    send.add_argument("--queue", action="store_true", help="keep it for a gateway that is offline, until its time ends")
    send.add_argument("--id", default="", help="repeating an id never acts twice")
    actions.add_parser("show", help="the latest values, gaps and commands")


def main(args: argparse.Namespace) -> int:
    """Returns the exit code; everything expected is printed as one line."""
    try:
        settings = _settings(args)
        match args.action:
            case None:
                return asyncio.run(_serve(settings, args.plain))
            case "add":
                return _add(settings, args)
            case "list":
                return _list(settings)
            case "revoke":
                return _revoke(settings, args.name)
            case "send":
                return _send(settings, args)
            case _:
                return _show(settings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except LinkError as error:
        print(error, file=sys.stderr)
        return EX_UNAVAILABLE
    except GatewayError as error:
        print(error, file=sys.stderr)
        return EX_FAILED


def _data() -> Path:
    """systemd's StateDirectory, else the place that XDG names."""
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if state:
        return Path(state)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "gateway-ingest"


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        data=args.data or _data(),
        listen=tuple(address(text) for text in args.listen) or (("127.0.0.1", DEFAULT_PORT),),
        cert=args.cert,
        key=args.key,
        client_ca=args.client_ca,
        drain_s=_seconds(args.drain),
    )


class _Times(Table, frozen=True, kw_only=True):
    """Durations are read as in the configuration."""

    time: Duration = msgspec.field()


def _seconds(text: str) -> float:
    times, mistakes = read(_Times, {"time": float(text) if text.replace(".", "", 1).isdecimal() else text})
    if times is None:
        raise ConfigError(tuple(mistake.message for mistake in mistakes))
    return times.time


async def _serve(settings: Settings, plain: bool) -> int:
    live = sys.stdout.isatty() and not plain
    if not live:
        logs.set_up("info")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, SystemClock()) as server:
        if live:
            await terminal.screen(server, stop)
        else:
            await terminal.lines(server, stop)
    return EX_OK


@contextmanager
def _store(settings: Settings) -> Iterator[SqliteSink | None]:
    """The store, ours alone for the moment; None: a server runs on it, and is to be asked. Raises StoreError."""
    try:
        lock = take(settings)
    except StoreError:
        yield None
        return
    try:
        sink = SqliteSink(settings.data)
        try:
            yield sink
        finally:
            sink.close()
    finally:
        os.close(lock)


def _ask(settings: Settings, request: control.Request, within_s: float = 10.0) -> Answer:
    """Raises LinkError: no server; GatewayError: it refused."""
    answer = asyncio.run(control.ask(settings.control, request, within_s))
    if answer.error:
        raise GatewayError(answer.error)
    return answer


def _add(settings: Settings, args: argparse.Namespace) -> int:
    role = Role.VIEWER if args.viewer else Role.GATEWAY
    with _store(settings) as sink:
        if sink is None:
            answer = _ask(settings, control.Add(args.name, role))
            token, url = answer.token, answer.url
        else:
            token = Tokens(sink).add(args.name, role, SystemClock().utc_ms())
            url = f"{'wss' if settings.cert is not None else 'ws'}://{shown(*settings.listen[0])}/"
    if args.token_file is not None:
        _write_secret(args.token_file, token)
        print(f"Token of {role} {args.name} is in {args.token_file}")
        return EX_OK
    if role is Role.VIEWER:
        print(f"Token of viewer {args.name}, shown once; the browser asks for it as a password:\n\n{token}")
        return EX_OK
    print(f"Token of gateway {args.name}, shown once. On the gateway, in a file of mode 0600:\n\n{token}\n")
    print(f"and in its configuration:\n\n{uplink_block(url)}")
    return EX_OK


def _write_secret(path: Path, secret: str) -> None:
    """Readable by its owner from the first moment. Raises GatewayError."""
    try:
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{secret}\n")
    except OSError as error:
        raise GatewayError(f"{path}: {error.strerror}") from error


def uplink_block(url: str) -> str:
    """What a gateway's configuration needs for this server."""
    return f'[[uplink.endpoint]]\nname = "ingest"\nurl = "{url}"\ntoken_file = "/etc/gateway/token"\n'


def _list(settings: Settings) -> int:
    online: tuple[str, ...] = ()
    with _store(settings) as sink:
        if sink is None:
            answer = _ask(settings, control.List())
            listed, online = answer.listed, answer.online
        else:
            listed = tuple(Tokens(sink).list())
    for each in listed:
        state = "revoked" if each.revoked else "online" if each.name in online else "offline"
        seen = terminal.utc(each.hello_ms) if each.hello_ms else "never seen"
        print(f"{each.name}  {each.role}  {state if each.role == 'gateway' else '-'}  tokens {each.tokens}  {seen}")
    return EX_OK


def _revoke(settings: Settings, name: str) -> int:
    with _store(settings) as sink:
        gone = _ask(settings, control.Revoke(name)).revoked if sink is None else Tokens(sink).revoke(name)
    print(f"{name} is revoked" if gone else f"{name} is not known", file=sys.stdout if gone else sys.stderr)
    return EX_OK if gone else EX_FAILED


def _value(text: str) -> Value | None:
    """JSON where it is JSON, else text: 21.5, true, "on", on."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    if not isinstance(value, bool | int | float | str) and value is not None:
        raise ConfigError((f"{text!r} is not one value",))
    return value


def _send(settings: Settings, args: argparse.Namespace) -> int:
    ttl_s = _seconds(args.ttl)
    request = control.SendCommand(
        gateway=args.gateway,
        id=args.id or secrets.token_hex(16),
        device=args.device,
        point=args.point,
        value=_value(args.value),
        ttl_ms=int(ttl_s * 1000),
        queue=args.queue,
    )
    answer = _ask(settings, request, ttl_s + 30.0)
    issued = answer.commands[0]
    print(line(issued))
    return EX_OK if issued.state in (Outcome.OK.value, "queued") else EX_FAILED


def line(issued: Issued) -> str:
    """One command for a terminal."""
    reason = f" ({issued.reason})" if issued.reason else ""
    result = f" → {issued.result!r}" if issued.result is not None else ""
    target = f"{issued.gateway} {issued.device}/{issued.point} = {issued.value!r}"
    return f"{issued.id}  {target}  {issued.state}{reason}{result}"


def _show(settings: Settings) -> int:
    if not (settings.data / FILE).exists():
        raise ConfigError((f"{settings.data}: nothing has been stored there",))
    sink = SqliteSink(settings.data, alone=False)
    try:
        for seed in sink.latest():
            where = f"{seed.gateway}  {seed.device}/{seed.point}"
            print(
                f"{where}  {shown_value(seed.value)[0] or '–'} {seed.unit}  {seed.status}  {terminal.utc(seed.ts_ms)}"
            )
        for issued in commands.recent(sink, SystemClock().utc_ms()):
            print(line(issued))
    finally:
        sink.close()
    return EX_OK
