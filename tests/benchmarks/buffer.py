"""What the buffer costs: CPU of `append` per message, and how fast records come back from disk.

python -m tests.benchmarks.buffer
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from pathlib import Path

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import SystemClock
from gateway.model import Lane, Origin, Row, Shape

MESSAGES = 120_000
SHAPES = [Shape(f"meter-{i}", ("voltage", "current"), ("V", "A")) for i in range(50)]


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def accept(home: Path, *, origins: bool, online: bool, runtime: Path) -> str:
    buffer = await Buffer.open(BufferSettings(max_size=2_000_000_000), home, SystemClock(), runtime)
    buffer.online(online)
    running = asyncio.create_task(buffer.run())
    known = [Origin(b"session1", i % 65535 + 1, i.to_bytes(16, "big")) for i in range(MESSAGES)]
    rows = [
        Row(SHAPES[i % 50], i, (230.0 + i % 7 / 10, i % 16), origin=known[i] if origins else None)
        for i in range(MESSAGES)
    ]
    settled = (lambda: None) if origins else None
    before, start = cpu_s(), time.perf_counter()
    for i, row in enumerate(rows):
        await buffer.append((row,), settled)
        if i % 1200 == 1199:  # 0.1 s at 12,000 messages a second
            await asyncio.sleep(0)
            if online:
                buffer.close(Lane.LIVE)
                for offer in buffer.offers():
                    buffer.ack("sink", offer.stream, offer.next - 1)
    used, wall = cpu_s() - before, time.perf_counter() - start
    stats = buffer.stats()
    running.cancel()
    await buffer.drain()
    await buffer.release()
    return (
        f"{used / MESSAGES * 1e6:5.2f} µs CPU a message, {MESSAGES / wall:8,.0f} messages/s; "
        f"{stats['commits']} commits, {stats['committed_bytes'] / MESSAGES:.1f} bytes a message to disk"
    )


async def backlog(home: Path, runtime: Path) -> str:
    buffer = await Buffer.open(BufferSettings(), home, SystemClock(), runtime)
    offer = next(offer for offer in buffer.offers() if offer.sealed)
    start, at, readings = time.perf_counter(), 1, 0
    while records := await buffer.fetch(offer.stream, at, 1 << 20):
        at = records[-1].upto + 1
        readings += sum(record.readings for record in records)
    wall = time.perf_counter() - start
    await buffer.release()
    return f"{readings / wall:,.0f} readings/s"


def main() -> None:
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for name, origins, online in (
            ("polled, acked in time", False, True),
            ("polled, offline", False, False),
            ("MQTT QoS 1, acked in time", True, True),
            ("MQTT QoS 1, offline", True, False),
        ):
            home = Path(disk) / name.replace(" ", "-").replace(",", "")
            print(f"{name:28}", asyncio.run(accept(home, origins=origins, online=online, runtime=Path(memory))))
        print(f"{'backlog from disk':28}", asyncio.run(backlog(Path(disk) / "polled-offline", Path(memory))))


if __name__ == "__main__":
    main()
