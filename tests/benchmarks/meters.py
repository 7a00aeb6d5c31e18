"""What the kernel knows of a process, from /proc: processor time, switches, bytes to the disk, memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Of one process with all of its threads, since it began."""

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
    fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    wakeups = sum(_lines(task / "status")["voluntary_ctxt_switches"] for task in (process / "task").iterdir())
    return Usage((int(fields[11]) + int(fields[12])) * _TICK_S, wakeups, _lines(process / "io")["write_bytes"])


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
