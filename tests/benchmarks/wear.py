"""What reaches the disk: `python tests/benchmarks/wear.py`.

The state folder lies on a file system of its own, ext4 on a loop device whose file is in memory, so that what the
device is given can be counted with everything that the file system adds, and nobody else's writes are in it (needs
root; without, the process alone is counted). `gateway run` reads a Modbus device, the sink is real.

    healthy    100 readings/s, acked at once: fsyncs by strace, bytes by the kernel's account of the process
    outage     the sink dies; 25 readings in each commit, then 100. `commit_after` is 0.1 s, so that a minute sees as
               many commits as five minutes of the default, and the checkpoint that comes every 2 MiB of them

`written` is what the process handed to the file system, in pages of 4 KiB, however little of each is new. `device` is
what came out of it below: the pages, the file system's journal, its inodes. A machine that is so busy that an ack takes
longer than `commit_after` has no healthy link: then the gateway commits, as it must, and the table says how often.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import meters
from figures import Figure, doing, finish
from rig import Rig, Tool

from gateway.demo.child import until

_SECTOR_BYTES: Final = 512
_DISK_BYTES: Final = 256 << 20
_WARM_UP_S: Final = 3.0
_SETTLED_S: Final = 30.0
"""Where nobody sets the clock, the servers' time becomes known 5 s after the start: one record, committed at once and
trimmed 10 and 20 s later."""


class Disk(NamedTuple):
    """Where the state goes, and what counts the bytes below it."""

    folder: Path
    device: str

    def written_bytes(self) -> float:
        """By the device so far; nan where nobody knows."""
        if not self.device:
            return float("nan")
        return int(Path("/sys/block", self.device, "stat").read_text().split()[6]) * _SECTOR_BYTES


@contextmanager
def disk() -> Iterator[Disk]:
    """A file system of its own; without root a folder like any other."""
    folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
    if os.geteuid() != 0:
        yield Disk(folder, "")
        shutil.rmtree(folder)
        return
    image = Path(tempfile.mkstemp(prefix="gw-bench-", dir="/dev/shm")[1])
    os.truncate(image, _DISK_BYTES)
    device = ""
    try:
        # everything is initialised now: what a background thread would still write is not ours
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        _run("mkfs.ext4", "-q", "-E", options, str(image))
        device = _run("losetup", "--find", "--show", str(image))
        _run("mount", "-o", "noatime", device, str(folder))
        yield Disk(folder, Path(device).name)
    finally:
        if os.path.ismount(folder):
            _run("umount", str(folder))
        if device:
            _run("losetup", "--detach", device)
        image.unlink()
        folder.rmdir()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, timeout=30, capture_output=True, text=True).stdout.strip()


class Traced:
    """Counts what a process asks of the disk, while the context is open."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid = pid
        self._log = log
        self.count = 0

    async def __aenter__(self) -> Traced:
        calls = "trace=fsync,fdatasync,sync_file_range,msync,syncfs,sync"
        self._strace = await asyncio.create_subprocess_exec(
            "strace", "-f", "-q", "-e", calls, "-o", str(self._log), "-p", str(self._pid),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await until(self._attached, 10, "strace is attached")
        return self

    def _attached(self) -> bool:
        return "TracerPid:\t0" not in Path(f"/proc/{self._pid}/status").read_text()

    async def __aexit__(self, *_: object) -> None:
        self._strace.send_signal(signal.SIGINT)
        await self._strace.wait()
        self.count = sum("sync" in line for line in self._log.read_text().splitlines())


async def healthy(seconds: float) -> list[Figure]:
    """20 registers five times a second."""
    with disk() as where:
        async with Rig("ingest", state=where.folder) as rig, Tool("loads.py", "modbus") as machines:
            rig.modbus(machines.said, 1, "200ms", 20)
            await rig.start()
            await asyncio.sleep(_SETTLED_S)
            async with Traced(rig.gateway.pid, rig.folder / "strace.log") as traced:
                before, device, was = meters.usage(rig.gateway.pid), where.written_bytes(), await rig.status()
                await asyncio.sleep(seconds)
                now = await rig.status()
                used = meters.usage(rig.gateway.pid).since(before)
                below = where.written_bytes() - device
    readings = now["intake"]["readings"] - was["intake"]["readings"]
    commits = now["buffer"]["commits"] - was["buffer"]["commits"]
    rate = (
        f"{readings / seconds:.0f} readings/s for {seconds:g} s; {commits} commits, of late acks and what follows them"
    )
    return [
        Figure("healthy link: fsyncs", traced.count, "<= 0", rate),
        Figure("healthy link: bytes written per reading", used.written_bytes / readings, "<= 1",
               f"device {below / readings:.2f}"),
    ]  # fmt: skip


async def outage(per_commit: int, aim: float, seconds: float) -> list[Figure]:
    """A fifth of a commit's readings in each poll, five polls before the first of them is due."""
    with disk() as where:
        async with Rig("ingest", state=where.folder) as rig, Tool("loads.py", "modbus") as machines:
            rig.add('[buffer]\ncommit_after = "100ms"\nlinger = "50ms"\n')
            rig.modbus(machines.said, 1, "22ms", per_commit // 5)
            await rig.start()
            await asyncio.sleep(_WARM_UP_S)
            await rig.ingest.end(signal.SIGKILL)
            await asyncio.sleep(_WARM_UP_S)
            async with Traced(rig.gateway.pid, rig.folder / "strace.log") as traced:
                _run("sync", "-f", str(where.folder))
                before, device, was = meters.usage(rig.gateway.pid), where.written_bytes(), await rig.status()
                await asyncio.sleep(seconds)
                now = await rig.status()
                used = meters.usage(rig.gateway.pid).since(before)
                _run("sync", "-f", str(where.folder))
                below = where.written_bytes() - device
    readings = now["intake"]["readings"] - was["intake"]["readings"]
    commits = now["buffer"]["commits"] - was["buffer"]["commits"]
    body = (now["buffer"]["committed_bytes"] - was["buffer"]["committed_bytes"]) / readings
    name = f"outage, {per_commit} per commit"
    return [
        Figure(f"{name}: bytes written per reading", used.written_bytes / readings, f"<= {aim:g}",
               f"{readings / commits:.1f} in each of {commits} commits, {traced.count} fsyncs, rows {body:.1f}", True),
        Figure(f"{name}: bytes per reading given to the device", below / readings),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="of each measurement [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    doing("healthy link")
    figures = asyncio.run(healthy(arguments.seconds))
    for per_commit, aim in ((25, 300.0), (100, 100.0)):
        doing(f"outage, {per_commit} per commit")
        figures += asyncio.run(outage(per_commit, aim, arguments.seconds))
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
