"""What `gateway ingest` shows: where it listens and how a gateway is added, then one live screen, or plain lines."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from gateway.ingest.config import shown
from gateway.ingest.server import IngestServer

EVERY_S: Final = 0.5
MAX_ROWS: Final = 40
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {"good": "green", "uncertain": "yellow", "bad": "red"}


def welcome(server: IngestServer) -> str:
    """The first lines."""
    scheme = "https" if server.settings.cert is not None else "http"
    pages = "\n".join(f"  {scheme}://{shown(*address)}/" for address in server.addresses)
    data = server.settings.data
    text = f"Ingest is ready. Gateways and browsers connect to\n{pages}\n"
    text += f"Add a gateway: gateway ingest --data {data} add NAME"
    exposed = [host for host, _ in server.addresses if not host.startswith("127.") and host != "::1"]
    if exposed and server.settings.cert is None:
        text += "\nWarning: without --cert, tokens and readings cross the network in the clear."
    return text


async def lines(server: IngestServer, stop: asyncio.Event) -> None:
    """For logs and pipes: the log itself says what happens."""
    print(welcome(server), flush=True)
    await stop.wait()


async def screen(server: IngestServer, stop: asyncio.Event) -> None:
    """For a person, until `stop`."""
    console = Console()
    log = logging.getLogger("gateway")
    handler = RichHandler(console=console, show_path=False)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    console.print(welcome(server), highlight=False, markup=False)
    try:
        with Live(render(server), console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while not stop.is_set():
                live.update(render(server), refresh=True)
                try:
                    async with asyncio.timeout(EVERY_S):
                        await stop.wait()
                except TimeoutError:
                    pass  # the next picture
    finally:
        log.removeHandler(handler)


def render(server: IngestServer) -> Group:
    """One picture."""
    gateways = Table("gateway", "state", "readings/s", "lag", "gaps", "clock", expand=True)
    for view in server.live.gateways_at(server.utc_ms()):
        state = Text("online", "green") if view.online else Text("offline", "red")
        lost = f"{view.gaps} ({view.lost}{'+?' if view.lost_unknown else ''} lost)" if view.gaps else "none"
        lag = f"{view.lag_ms} ms" if view.lag_ms is not None else "–"
        gateways.add_row(Text(view.name), state, f"{view.rate:.1f}", lag, lost, view.trust or "–")
    values = Table("device", "point", "value", "unit", "", "quality", "acquired (UTC)", expand=True)
    series = server.live.series()
    for seen, trail in series[:MAX_ROWS]:
        quality = seen.status.partition(":")[0]
        values.add_row(
            Text(f"{seen.gateway} {seen.device}"),
            Text(seen.point),
            Text(seen.text or "–", justify="right"),
            Text(seen.unit),
            bars(trail[-16:]),
            Text(seen.status, _COLOURS.get(quality, "")),
            utc(seen.ts_ms),
        )
    parts: list[Table | Text] = [gateways, values]
    if len(series) > MAX_ROWS:
        parts.append(Text(f"… and {len(series) - MAX_ROWS} more on the page", "dim"))
    if server.committer.failures:
        parts.insert(0, Text("The store takes no data at present; nothing is acked.", "bold red"))
    return Group(*parts)


def bars(trail: list[float | None]) -> str:
    """A sparkline of block characters."""
    known = [number for number in trail if number is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if n is None else _BARS[min(7, int((n - low) / span * 8))] for n in trail)


def utc(ms: int) -> str:
    """To the second; what lies outside the calendar is shown as it is."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
