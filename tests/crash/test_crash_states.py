"""Every write and sync of the store is recorded; what a power cut can leave of them is opened, thousands of times.

`python -m tests.crash.states SEED` is the same with numbers of one's own; README.md says how to read what it prints.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.record import Disk, Event, Kind, Left, events
from tests.crash.states import ROOT, campaign, look, memory, promises, record, verify

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: the recorder is a small C library")

_SEED = 1


def test_the_recorder_misses_nothing_that_the_kernel_sees(shim: Path) -> None:
    """What the log says is in the files, is; and strace, where there is one, counts the same calls."""
    with memory() as folder:
        below, log, trace = folder / "life", folder / "log", folder / "trace"
        command = [sys.executable, "-m", "tests.crash.workload", str(below), str(_SEED), "8", "live"]
        strace = shutil.which("strace")
        if strace is not None:
            calls = "trace=openat,open,creat,pwrite64,write,writev,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync"
            more = ",unlink,unlinkat,rename,renameat,renameat2,link,symlink,mmap,copy_file_range,sendfile,rmdir"
            command = [strace, "-f", "-y", "-o", str(trace), "-e", calls + more, *command]
        environment = {"LD_PRELOAD": str(shim), "DISK_BELOW": str(below), "DISK_LOG": str(log), "PATH": "/usr/bin:/bin"}
        if strace is not None:  # into the child only: strace's own files are nobody's
            command[1:1] = [word for key, value in environment.items() for word in ("-E", f"{key}={value}")]
            environment = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True, timeout=110
        )
        assert done.returncode == 0, done.stderr
        said = list(events(log.read_bytes()))
        disk = Disk({}, random.Random(0))
        for event in said:
            disk.do(event)
        found = {path.name: path.read_bytes() for path in below.iterdir()}
        assert disk.killed() == found
        if strace is None:
            pytest.skip("needs strace to count the calls; the files were as recorded")
        counted = Counter(_seen(trace, below))
    recorded = Counter(event.kind.name for event in said if event.kind in _TRACED)
    assert counted == recorded


_TRACED = (Kind.WRITE, Kind.TRUNCATE, Kind.SYNC, Kind.UNLINK, Kind.RENAME)
_CALLS = {
    "pwrite64": "WRITE", "write": "WRITE", "ftruncate": "TRUNCATE", "fsync": "SYNC", "fdatasync": "SYNC",
    "unlink": "UNLINK", "unlinkat": "UNLINK", "rmdir": "UNLINK", "rename": "RENAME", "renameat": "RENAME",
    "renameat2": "RENAME",
}  # fmt: skip


def _seen(trace: Path, below: Path) -> list[str]:
    """Calls that changed something below the folder, as strace saw them; one that the recorder does not know fails."""
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        call = re.match(r"\d+\s+(\w+)\((.*?)\)?\s+= (-?\d+)", line)
        if call is None or f"{below}" not in call[2][:400] or int(call[3]) < 0 or "-shm" in line:
            continue
        if call[1] in ("openat", "open"):
            continue
        if call[1] == "mmap":
            assert "PROT_WRITE" not in call[2], f"written to by way of memory: {line}"
            continue
        found.append(_CALLS[call[1]])
    return found


def test_the_database_is_not_written_by_way_of_memory(tmp_path: Path) -> None:
    from gateway.buffer.database import connect

    db = connect(tmp_path / "buffer.db")
    assert db.execute("PRAGMA mmap_size").fetchone() == (0,)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    db.close()


def test_the_life_that_is_recorded_has_everything_in_it(shim: Path) -> None:
    """Else the states prove little: commits, trims, eviction, checkpoints, vacuum, three rescues."""
    with memory() as folder:
        record(shim, folder / "life", folder / "log", str(_SEED), "8", "live")
        log = list(events((folder / "log").read_bytes()))
    _, steps = promises(log)
    verify(steps)
    assert len(steps) > 80
    assert sum(step.damaged for step in steps) == 2
    assert sum(step.asked["call"] == "rescue" for step in steps) == 1
    assert any(step.asked.get("marks") and len(step.after.rows) < len(step.before.rows) for step in steps)
    assert any(row[4].startswith("evicted") for step in steps for row in step.after.rows)
    truncations = [event.offset for event in log if event.kind is Kind.TRUNCATE]
    assert truncations.count(0) >= 5  # the log begins anew
    assert len({offset for offset in truncations if offset}) >= 2  # the file grows shorter
    assert {row[3] for step in steps for row in step.after.rows} == {"BATCH", "GAP", "END"}


def test_any_power_cut_leaves_a_store_that_holds_what_was_promised() -> None:
    _, looked, violations = campaign(_SEED, 2500, scale=8)
    assert not violations, violations
    assert looked > 2000


@pytest.mark.parametrize("chapters", [("stumble",), ("die", "go-on")], ids=["in one process", "and the next process"])
def test_nothing_is_built_on_a_sync_that_failed(chapters: tuple[str, ...]) -> None:
    """The kernel takes the pages for written; a sync that succeeds later says nothing about them."""
    for seed in range(3):
        _, looked, violations = campaign(seed, 400, scale=8, chapters=chapters)
        assert not violations, violations
        assert looked > 300


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_power_cuts_do() -> None:
    seed, total = random.SystemRandom().randrange(1 << 20), 0
    while total < 100_000:
        scale = 2 if seed % 4 == 0 else 8
        calls, looked, violations = campaign(seed, 12_000, scale)
        print(f"seed {seed}: {looked} states of {calls} calls")
        assert not violations, violations
        total += looked
        seed += 1


# ── the disk's model can lose what was not synced, and nothing else ──────────────────────────────────────────────────


def _write(fd: int, at: int, data: bytes) -> Event:
    return Event(Kind.WRITE, fd, at, "", data)


def test_what_was_synced_stays_and_what_was_not_may_go() -> None:
    dice = random.Random(0)
    disk = Disk({}, dice)
    for event in (
        Event(Kind.OPEN, 3, 1, "a", b""),
        _write(3, 0, b"x" * 5000),
        Event(Kind.SYNC, 3, 0, "", b""),
        _write(3, 0, b"y" * 5000),
    ):
        disk.do(event)
    assert disk.left(Left.NONE, dice) == {}  # its name was never synced
    disk.do(Event(Kind.OPEN, 4, 0, "", b""))
    disk.do(Event(Kind.SYNC, 4, 0, "", b""))
    assert disk.left(Left.NONE, dice) == {"a": b"x" * 5000}
    assert disk.left(Left.ALL, dice) == {"a": b"y" * 5000}
    torn = {disk.left(Left.SOME, dice)["a"] for _ in range(200)}
    assert len(torn) > 20
    assert all(set(content) <= {120, 121} for content in torn)
    disk.do(Event(Kind.SYNC_FAILED, 3, 0, "", b""))
    disk.do(Event(Kind.SYNC, 3, 0, "", b""))  # tried again: the kernel has nothing to write any more
    assert disk.killed()["a"] == b"y" * 5000


def test_of_names_that_changed_any_may_have_changed() -> None:
    dice = random.Random(0)
    disk = Disk({"a": b"1", "b": b"2"}, dice)
    disk.do(Event(Kind.RENAME, 0, 0, "a", b"b"))
    disk.do(Event(Kind.UNLINK, 0, 0, "b", b""))
    seen = {tuple(sorted(disk.left(Left.SOME, dice).items())) for _ in range(200)}
    assert seen == {
        (("a", b"1"), ("b", b"2")),  # neither
        (("b", b"1"),),  # the rename only
        (("a", b"1"),),  # the unlink only
        (),  # both
    }


def test_a_store_that_was_promised_more_than_it_holds_is_found_out(tmp_path: Path) -> None:
    from tests.crash.states import Holds, Violation

    promised = Holds(frozenset({("ab" * 16, 1, 1, "BATCH", "0")}), False)
    with pytest.raises(Violation, match="missing"):
        look(tmp_path / "image", {}, [promised])
