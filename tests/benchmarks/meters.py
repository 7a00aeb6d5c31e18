"""What the kernel knows of a process, from /proc: processor time, switches, bytes to the disk, memory."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Of one process with all of its threads, while they live."""

    cpu_s: float
    wakeups: int
    """Times that one of its threads gave up the processor to wait, and so had to be woken."""
    written_bytes: int
    """Handed to the block layer; what lies on tmpfs is not among them."""

    def since(self, earlier: Usage) -> Usage:
        return Usage(*(now - then for now, then in zip(self, earlier, strict=True)))


class Memory(NamedTuple):
    rss_mb: float
    pss_mb: float


def usage(pid: int) -> Usage:
    process = Path("/proc", str(pid))
    tasks = list((process / "task").iterdir())
    # in nanoseconds, where `stat` counts in hundredths of a second; threads that have ended are not in it
    cpu_ns = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    wakeups = sum(_lines(task / "status")["voluntary_ctxt_switches"] for task in tasks)
    return Usage(cpu_ns / 1e9, wakeups, _lines(process / "io")["write_bytes"])


async def by_the_second(pid: int, seconds: float) -> list[Usage]:
    """What it used in each of so many seconds."""
    taken = [usage(pid)]
    for _ in range(round(seconds)):
        await asyncio.sleep(1)
        taken.append(usage(pid))
    return [now.since(then) for then, now in pairwise(taken)]


def memory(pid: int) -> Memory:
    rollup = _lines(Path("/proc", str(pid), "smaps_rollup"))
    return Memory(rollup["Rss"] * 1024 / 1e6, rollup["Pss"] * 1024 / 1e6)


def _lines(path: Path) -> dict[str, int]:
    """`word: number …` per line; lines that say something else are left out."""
    found = {}
    for line in path.read_text().splitlines():
        word, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdecimal():
            found[word] = int(number[0])
    return found
