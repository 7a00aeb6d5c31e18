"""`gateway status`: one screen that says how the running gateway is. What is wrong says so in its own words."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from gateway.cli.arguments import count
from gateway.cli.terminal import output, printable
from gateway.control.client import ControlClient
from gateway.errors import ConfigError, LinkError
from gateway.model import Json
from gateway.settings import duration_text

SOCKET = "control.sock"
DEFAULT_SOCKET = f"/run/gateway/{SOCKET}"

_COLOURS = {
    **dict.fromkeys(("online", "running", "active", "healthy", "synced"), "green"),
    **dict.fromkeys(("standby", "unused"), "cyan"),
    **dict.fromkeys(("waiting", "connecting", "starting", "retiring", "holdover", "server", "unsynced"), "yellow"),
}
"""All other words are trouble."""
_WELL = ("online", "running")
_INDENT = 6
_BUSY = 0.9
"""A bus of which more is taken reads late."""

Row = tuple[Sequence[Text], str]
"""Cells, and what is to be said beside or below them."""


def add_socket(parser: argparse.ArgumentParser) -> None:
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    default = Path(f"{runtime}/{SOCKET}" if runtime else DEFAULT_SOCKET)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("-c", "--config", type=Path, metavar="FILE", help="of the gateway to ask")
    which.add_argument(
        "--socket", type=Path, default=default, metavar="FILE", help=f"its {SOCKET} in `runtime_dir` [%(default)s]"
    )


def socket_of(arguments: argparse.Namespace) -> Path:
    """Where the gateway that is meant answers. Raises ConfigError."""
    if arguments.config is None:
        asked: Path = arguments.socket
        return asked
    from gateway.config.load import check

    config = check(arguments.config, os.environ).config
    if config is None:
        raise ConfigError((f"{arguments.config} cannot be used (`gateway check` tells why); name its --socket",))
    return config.gateway.runtime_dir / SOCKET


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    add_socket(parser)
    parser.epilog = "Exit code: 0 it answers (however it is), 69 it does not."


def main(arguments: argparse.Namespace) -> int:
    import msgspec

    client, console = ControlClient(socket_of(arguments)), output()
    status = client.ask("status")
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(status)).decode())
    elif arguments.watch:
        _watch(client, console, status)
    else:
        console.print(screen(status, console.width))
    return 0


def _watch(client: ControlClient, console: Console, status: Json) -> None:
    """Until Ctrl-C; a gateway that restarts meanwhile comes back."""
    with Live(screen(status, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            try:
                picture = screen(client.ask("status"), console.width)
            except LinkError as error:
                picture = Group(Text(str(error), "red"))
            live.update(picture, refresh=True)


def age(seconds: float | None) -> str:
    """`3s`, `5m`, `2h`, `4d`: as coarse as a glance needs."""
    if seconds is None:
        return "never"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 1 else duration_text(round(seconds, 1) or 0.0)


def screen(status: Json, width: int) -> Group:
    """The status document on so many columns."""
    parts = [*_head(status), *_uplink(status["uplink"], width), *_buffer(status["buffer"])]
    if status["buses"]:
        parts += [*_buses(status["buses"], width), *_devices(status["devices"], width)]
    else:
        parts += [Text("Buses  ", "bold").append("none: waiting for configuration", "yellow")]
    return Group(*parts)


def _head(status: Json) -> Iterator[RenderableType]:
    clock, intake = status["clock"], status["intake"]
    error = f" ±{clock['error_ms']} ms" if clock["error_ms"] >= 0 else ""
    yield Text(status["name"], "bold")
    line = Text(
        f"gateway {status['version']}, up {age(status['up_s'])}, {count(intake['readings'], 'reading')}, clock "
    )
    line.append_text(_word(clock["trust"])).append(error)
    if intake["rejected"]:
        line.append(f", {count(intake['rejected'], 'sample')} rejected", "red")
    yield from (line, Text())


def _uplink(uplink: Json, width: int) -> Iterator[RenderableType]:
    title = Text("Uplink  ", "bold")
    if not uplink["endpoints"]:
        yield title.append("none: waiting for configuration", "yellow")
    elif uplink["active"]:
        rtt = f", round trip {uplink['rtt_ms']} ms" if uplink["rtt_ms"] else ""
        yield title.append(f"sending to {uplink['active']} for {age(uplink['since_s'])}{rtt}", "not bold")
    else:
        yield title.append(f"no endpoint takes readings, for {age(uplink['since_s'])}", "not bold red")
    rows: list[Row] = []
    for each in uplink["endpoints"]:
        wait_s = each["next_attempt_s"]
        again = Text(f"again in {age(wait_s)}" if wait_s else "")
        warning = (each["credentials"] or {}).get("warning")
        trouble = each["last_error"] if each["failures"] else None  # what is over is history: --json has it
        said = "; ".join(text for text in (warning, trouble, *_terms(each)) if text)
        rows.append(((_word(each["state"]), again, Text(each["name"])), said))
    yield from (*_table(rows, width), Text())


def _terms(endpoint: Json) -> Iterator[str]:
    """What somebody must know who relies on an endpoint: less than everything is promised, or is paid for."""
    budget = endpoint["budget"]
    if budget is not None:
        used = f"{budget['used_bytes'] / 1e6:.1f} of {budget['limit_bytes'] / 1e6:g} MB used today"
        yield used if budget["state"] == "within" else f"{used}: {budget['state']}"
    if not endpoint["promise"].startswith("exactly"):
        yield endpoint["promise"]


def _buffer(buffer: Json) -> Iterator[RenderableType]:
    lost = ", ".join(f"{number} {reason}" for reason, number in buffer["lost"].items() if number)
    line = Text("Buffer  ", "bold").append_text(_word(buffer["mode"]))
    waiting = (
        f"{count(buffer['records'], 'batch', 'batches')} not acknowledged, the oldest for {age(buffer['oldest_s'])}"
    )
    line.append(f", {waiting}" if buffer["records"] else ", nothing waits", "not bold")
    line.append(f", {buffer['disk_bytes'] / 1e6:.1f} MB on disk" if buffer["disk_bytes"] else "", "not bold")
    line.append(f", lost: {lost}" if lost else ", nothing lost", "not bold red" if lost else "not bold")
    yield line
    if buffer["why"]:
        yield _below(Text(buffer["why"], "red"))
    if buffer["held_back"]:
        yield _below(Text("sources wait until what they sent is stored", "yellow"))
    yield Text()


def _buses(buses: Json, width: int) -> Iterator[RenderableType]:
    yield Text("Buses", "bold")
    rows: list[Row] = []
    for name, bus in buses.items():
        restarts = Text(count(bus["restarts"], "restart") if bus["restarts"] else "")
        taken = bus["bus"].get("utilisation")
        busy = Text(f"{taken:.0%} busy", "yellow" if taken > _BUSY else "") if taken is not None else Text()
        cells = (_word(bus["state"]), Text(age(bus["since_s"])), Text(name), Text(bus["kind"]), busy, restarts)
        rows.append((cells, _set_aside(bus) if bus["state"] in _WELL else bus["last_error"]))
    yield from (*_table(rows, width), Text())


def _set_aside(bus: Json) -> str:
    """What made no sense, and where it is kept."""
    aside = bus.get("set_aside", {"kept": 0})
    number = aside["kept"] and aside["kept"] + aside["left_out"]
    return f"{count(number, 'message')} could not be read: {aside['file']}" if number else ""


def _devices(devices: Json, width: int) -> Iterator[RenderableType]:
    """Those in trouble first: a long list may not fit the screen."""
    states = [device["state"] for device in devices.values()]
    numbers = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    yield Text("Devices  ", "bold").append(numbers or "none yet", "not bold")
    rows: list[Row] = []
    for name, device in sorted(devices.items(), key=lambda item: (item[1]["state"] in _WELL, item[0])):
        cells = (_word(device["state"]), Text(age(device["since_s"])), Text(printable(name)), Text(device["bus"]))
        rows.append((cells, device["why"]))
    yield from _table(rows, width)


def _word(text: str) -> Text:
    return Text(text, _COLOURS.get(text.partition(",")[0], "red"))


def _below(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, _INDENT), expand=False)


def _table(rows: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """Cells in columns; what does not fit beside them stands below."""
    widths = [max(cell.cell_len for cell in column) for column in zip(*(cells for cells, _ in rows), strict=True)]
    for cells, detail in rows:
        line = Text()
        for cell, wide in zip(cells, widths, strict=True):
            if wide:
                line.append_text(cell).append(" " * (wide - cell.cell_len + 2))
        detail = printable(detail)
        if detail and 2 + line.cell_len + len(detail) <= width:
            line.append(detail, "italic")
            detail = ""
        line.rstrip()
        yield Padding(line, (0, 0, 0, 2), expand=False)
        if detail:
            yield _below(Text(detail, "italic"))
