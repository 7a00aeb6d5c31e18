"""`gateway status`: one screen that says how the running gateway is."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from gateway.control.client import ControlClient
from gateway.model import Json
from gateway.settings import duration_text

DEFAULT_SOCKET = "/run/gateway/control.sock"


def add_socket(parser: argparse.ArgumentParser) -> None:
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    default = f"{runtime}/control.sock" if runtime else DEFAULT_SOCKET
    parser.add_argument("--socket", default=default, help="the gateway's local socket (default: %(default)s)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    add_socket(parser)


def main(arguments: argparse.Namespace) -> int:
    import msgspec
    from rich.console import Console
    from rich.live import Live

    client = ControlClient(Path(arguments.socket))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(client.ask("status"))).decode())
        return 0
    if not arguments.watch:
        Console(highlight=False).print(screen(client.ask("status")))
        return 0
    with Live(screen(client.ask("status")), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(screen(client.ask("status")), refresh=True)


def age(seconds: float | None) -> str:
    """`3s`, `5m`, `2h`, `4d`: as coarse as a glance needs."""
    if seconds is None:
        return "never"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 1 else duration_text(round(seconds, 1) or 0.0)


def screen(status: Json) -> Json:
    """The status document as something rich can draw."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {"online": "green", "running": "green", "active": "green", "healthy": "green", "standby": "cyan"}

    def word(text: str) -> Text:
        return Text(text, style=colours.get(text, "yellow" if text in ("waiting", "connecting") else "red"))

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in columns:
            made.add_column(column, overflow="fold")
        return made

    clock, buffer, uplink = status["clock"], status["buffer"], status["uplink"]
    trust = clock["trust"] if clock["error_ms"] < 0 else f"{clock['trust']} ±{clock['error_ms']} ms"
    head = Text(f"{status['name']}  gateway {status['version']}  up {age(status['up_s'])}  clock {trust}\n")

    links = table("Uplink", "endpoint", "state", "next attempt", "last error")
    for each in uplink["endpoints"]:
        wait = each["next_attempt_s"]
        links.add_row(each["name"], word(each["state"]), f"in {age(wait)}" if wait else "", each["last_error"] or "")
    if not uplink["endpoints"]:
        links.add_row("none", Text("waiting for configuration", style="yellow"), "", "")
    if uplink["active"]:
        rtt = f", round trip {uplink['rtt_ms']} ms" if uplink["rtt_ms"] else ""
        links.caption = f"sending to {uplink['active']} for {age(uplink['since_s'])}{rtt}"
    else:
        links.caption = f"no endpoint takes readings for {age(uplink['since_s'])}"
    links.caption_justify = "left"

    store = table("Buffer", "state", "waiting", "oldest", "on disk", "lost")
    lost = ", ".join(f"{count} {reason}" for reason, count in buffer["lost"].items() if count) or "nothing"
    disk = f"{buffer['disk_bytes'] / 1e6:.1f} MB"
    store.add_row(word(buffer["mode"]), f"{buffer['records']} batches", age(buffer["oldest_s"]), disk, lost)
    why = [Text(f"  {buffer['why']}", style="red")] if buffer["why"] else []

    buses = table("Buses", "bus", "kind", "state", "since", "restarts", "last error")
    for name, bus in status["buses"].items():
        buses.add_row(
            name, bus["kind"], word(bus["state"]), age(bus["since_s"]), str(bus["restarts"]), bus["last_error"]
        )
    devices = table("Devices", "device", "bus", "state", "since", "why")
    for name, device in status["devices"].items():
        devices.add_row(name, device["bus"], word(device["state"]), age(device["since_s"]), device["why"])
    nothing = Text("No bus is configured: waiting for configuration.", style="yellow")
    below = (buses, Text(), devices) if status["buses"] else (nothing,)
    return Group(head, links, Text(), store, *why, Text(), *below)
