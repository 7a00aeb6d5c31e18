"""What the uplink costs and how fast it fails over: `python -m tests.benchmarks.uplink`.

The server runs in a process of its own; CPU is that of the process with buffer-less outbox and uplink alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from gateway.model import Lane
from gateway.testing.relay import Relay
from gateway.uplink.config import Endpoint
from tests.uplink.house import running, state_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.sink import Sink, Store


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        store = Store()
        async with Sink(store) as one, Sink(store) as two:
            pipe.send((one.port, two.port))
            while not pipe.poll():  # noqa: ASYNC110 (a pipe has no event)
                await asyncio.sleep(0.1)

    asyncio.run(main())


@contextlib.contextmanager
def server() -> Iterator[tuple[int, int]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def endpoint(port: int, name: str) -> Endpoint:
    return Endpoint(url=f"ws://127.0.0.1:{port}/", name=name)


async def steady(port: int, per_second: int, seconds: float) -> None:
    """One row at a time, at a steady rate: from `put` to freed by the ack."""
    outbox, waits = MemoryOutbox(keep_acked=False), []
    born: dict[int, float] = {}
    settled = outbox.ack

    def ack(sink: str, stream: str, seq: int) -> None:
        settled(sink, stream, seq)
        now = time.perf_counter()
        known = outbox.streams[stream].records
        for number in [n for n in known if n <= seq]:
            del known[number]
        waits.extend(now - each for each in born.values())
        born.clear()

    outbox.ack = ack  # type: ignore[method-assign]
    async with running(outbox, endpoint(port, "a")):
        await until(lambda: outbox.up)
        cpu, began = time.process_time(), time.perf_counter()
        for i in range(int(per_second * seconds)):
            born[i] = time.perf_counter()
            outbox.put(i)
            await asyncio.sleep(max(0.0, began + (i + 1) / per_second - time.perf_counter()))
        spent = time.process_time() - cpu
        await until(lambda: not outbox.unacked() and not outbox.rows[Lane.LIVE])
    waits.sort()
    p50, p99 = (1000 * waits[int(len(waits) * q)] for q in (0.5, 0.99))
    print(f"{per_second}/s: put → ack p50 {p50:.2f} ms, p99 {p99:.2f} ms; CPU {100 * spent / seconds:.1f} % of a core")


async def fail_over(ports: tuple[int, int]) -> float:
    outbox = MemoryOutbox()
    async with (
        Relay("127.0.0.1", ports[0]) as relay,
        running(outbox, endpoint(relay.port, "a"), endpoint(ports[1], "b")) as uplink,
    ):
        await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
        for row in range(20):
            outbox.put(row)
            await asyncio.sleep(0.01)
        await until(lambda: not outbox.unacked())
        relay.black_hole()
        outbox.put("x")
        return await until(lambda: not outbox.unacked() and not outbox.rows[Lane.LIVE])


def main() -> None:
    print(f"{os.cpu_count()} cores")
    with server() as ports:
        for per_second in (20, 200, 1000):
            asyncio.run(steady(ports[0], per_second, 5.0))
        took = sorted(asyncio.run(fail_over(ports)) for _ in range(7))
        print(f"black hole → first ack on the standby: median {statistics.median(took):.3f} s, worst {took[-1]:.3f} s")


if __name__ == "__main__":
    main()
