"""The demo on a terminal: values moving, roads, buffer, and the story so far."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.demo.story import Told
from gateway.demo.world import ROADS, World
from gateway.model import Json

_ROAD_COLOURS = {"active": "bold green", "standby": "cyan"}


async def draw(world: World, told: Told) -> RenderableType:
    """One picture of the moment."""
    status = await world.status()
    latest = await world.latest()
    parts: list[RenderableType] = [
        Text.assemble(("gateway demo", "bold"), "   page: ", (world.page, "underline"), f"   files: {world.folder}"),
        Text(),
        _values(world, latest),
        Text(),
        _roads(world, status),
        _buffer(status),
        Text(),
    ]
    parts += [Text(f"✓ {sentence}", style="green") for sentence in told.sentences]
    if told.headline:
        parts.append(Text(f"… {told.headline}", style="yellow"))
    parts += [Text(f"  {note}", style="dim") for note in world.plant.notes]
    return Group(*parts)


def _values(world: World, latest: list[tuple[str, str, Json, str, int]]) -> Table:
    table = Table(title="At the cloud side", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("device", "newest values", "numbered"):
        table.add_column(column, justify="right" if column == "numbered" else "left")
    by_device: dict[str, dict[str, str]] = {}
    for device, point, value, unit, _ in latest:
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        by_device.setdefault(device, {})[point] = f"{point} {shown} {unit}".strip()
    for counter in world.plant.counters:
        points = by_device.get(counter.device, {})
        newest = "   ".join(text for point, text in list(points.items())[:4] if point != counter.point)
        table.add_row(counter.device, newest or Text("nothing yet", style="dim"), f"{counter.produced()}")
    return table


def _roads(world: World, status: Json) -> Table:
    table = Table(title="Uplink", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("road", "is", "for the gateway"):
        table.add_column(column)
    states = {each["name"]: each for each in status["uplink"]["endpoints"]} if status else {}
    for road in ROADS:
        state = states.get(road, {"state": "?"})
        fate = world.relays[road].mode.value
        table.add_row(
            road,
            Text(fate, style="green" if fate == "pass" else "red"),
            Text(state["state"], style=_ROAD_COLOURS.get(state["state"], "yellow")),
        )
    return table


def _buffer(status: Json) -> Text:
    if not status:
        return Text("Buffer  the gateway does not answer", style="red")
    buffer = status["buffer"]
    waiting = f"{buffer['records']} batches wait, the oldest {buffer['oldest_s']:.1f} s"
    disk = f"{buffer['disk_bytes'] / 1e6:.2f} MB on disk"
    return Text.assemble(("Buffer  ", "bold"), f"{waiting}, {disk}")
