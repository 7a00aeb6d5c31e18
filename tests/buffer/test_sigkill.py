"""A real process, killed for real: what it promised is there, and nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import SystemClock
from tests.buffer.world import Sink, deliver

CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import SystemClock
from gateway.model import Lane
from tests.buffer.world import ALARM, LIVE, row

async def main(home, mode):
    settings = BufferSettings(commit_after=0.05 if mode == "offline" else 60.0, ring_size=1 << 20)
    buffer = await Buffer.open(settings, home / "data", SystemClock(), None if mode == "ringless" else home / "run")
    buffer.online(mode == "online")
    asyncio.get_running_loop().create_task(buffer.run())
    acked = 0
    for number in range(1, 1_000_000):
        await buffer.append([row(number, ALARM if number % 97 == 0 else LIVE)])
        sys.stdout.write(f"{number}\\n")
        if number % 20 == 0:
            buffer.close(Lane.LIVE)
            await asyncio.sleep(0)
        if mode == "online" and number % 60 == 0:
            offer = buffer.offers()[1]
            buffer.ack("sink", offer.stream, offer.next - 2)
            sys.stdout.write(f"acked {offer.stream} {offer.next - 2}\\n")

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.parametrize("mode", ["online", "offline", "ringless"])
@pytest.mark.parametrize("after", [1, 300, 2500])
def test_a_killed_process_leaves_all_that_it_promised(tmp_path: Path, mode: str, after: int) -> None:
    (tmp_path / "run").mkdir()
    if mode == "ringless":
        after //= 10
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD, str(tmp_path), mode], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    promised: set[int] = set()
    acked: dict[str, int] = {}

    def hear(line: str) -> None:
        if line.endswith("\n"):
            words = line.split()
            if words[0] == "acked":
                acked[words[1]] = int(words[2])
            else:
                promised.add(int(words[0]))

    assert child.stdout is not None
    while len(promised) < after:
        line = child.stdout.readline()
        assert line, "the child died by itself"
        hear(line)
    child.send_signal(signal.SIGKILL)
    for line in child.stdout:
        hear(line)
    child.stdout.close()
    child.wait()

    async def main() -> Sink:
        settings = BufferSettings(ring_size=1 << 20)
        buffer = await Buffer.open(settings, tmp_path / "data", SystemClock(), tmp_path / "run")
        sink = Sink()
        sink.marks |= acked
        await deliver(buffer, sink)
        await buffer.release()
        return sink

    sink = asyncio.run(main())
    arrived = sink.numbers
    assert len(arrived) == len(set(arrived))
    # of the live stream the acked rows are gone, rightly: they came first
    live = [number for number in arrived if number % 97]
    if acked:
        assert set(range(min(live), max(promised) + 1)) - {n for n in promised if n % 97 == 0} <= set(live)
    else:
        assert promised <= set(arrived)
