"""`gateway demo [--outage]`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

from rich.console import Console
from rich.live import Live

from gateway.demo import plant
from gateway.demo.proof import Proof
from gateway.demo.screen import draw
from gateway.demo.story import Told, outage
from gateway.demo.world import World, running

_PICTURE_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--outage", action="store_true", help="cut both endpoints, bring them back, prove nothing lost")
    parser.add_argument("--seconds", type=float, default=None, help="end after this long (default: Ctrl-C)")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live screen")
    parser.add_argument("--keep", action="store_true", help="keep the demo's files (configuration, logs, databases)")


def main(arguments: argparse.Namespace) -> int:
    # a short path: the sockets in it have room for 107 characters
    folder = Path(tempfile.mkdtemp(prefix="gw-demo-", dir="/tmp"))
    try:
        return asyncio.run(_demo(folder, arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130 if arguments.outage else 0  # the proof was not taken; without --outage this is how it ends
    finally:
        if arguments.keep:
            print(f"files are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _demo(folder: Path, arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(highlight=False)
    live = console.is_terminal and not arguments.plain
    told = Told((lambda _: None) if live else print)
    console.print("starting machines, gateway and cloud side …")
    async with plant.running(folder) as machines, running(folder, machines) as world:
        drawing = asyncio.create_task(_draw(world, told, console) if live else _list(world), name="screen")
        try:
            proof = await _story(world, told, arguments)
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])
    if proof is None:
        return 0
    for sentence in told.sentences if live else ():
        console.print(f"✓ {sentence}")
    for tally in proof.tallies:
        console.print(f"  {tally.device}: produced {tally.produced}, stored {tally.stored}, twice {tally.twice}")
    console.print(proof.sentence(), style="bold green" if proof.holds else "bold red")
    return 0 if proof.holds else 1


async def _story(world: World, told: Told, arguments: argparse.Namespace) -> Proof | None:
    if arguments.outage:
        return await outage(world, told)
    told.now("Ctrl-C ends it; `gateway demo --outage` cuts both roads and proves that nothing is lost")
    try:
        async with asyncio.timeout(arguments.seconds):
            await asyncio.Event().wait()
    except TimeoutError:
        pass
    return None


async def _draw(world: World, told: Told, console: Console) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(await draw(world, told), refresh=True)
            await asyncio.sleep(_PICTURE_S)


async def _list(world: World) -> None:
    """Without a terminal: what is new at the cloud side, a line a device, every second."""
    print(f"page: {world.page}", flush=True)
    for note in world.plant.notes:
        print(note, flush=True)
    shown: dict[str, str] = {}
    while True:
        devices: dict[str, list[str]] = {}
        for device, point, value, unit, _ in await world.latest():
            devices.setdefault(device, []).append(f"{point}={value}{unit}")
        for device, values in sorted(devices.items()):
            line = f"{device}: {' '.join(values)}"
            if shown.get(device) != line:
                print(line, flush=True)
            shown[device] = line
        await asyncio.sleep(1)
