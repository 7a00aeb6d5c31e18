"""What one Modbus TCP poll costs: `python tests/benchmarks/modbus_poll.py` prints microseconds of this process.

A thousand reads of ten registers a second, behind one connection, four and a thousand: the connector with a sink that
throws everything away, beside bare sockets at the same pace. And what a turn of the schedule costs by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from rig import Tool

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.modbus.config import ModbusDevice, ModbusPoint, TcpBus
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.schedule import Job, Schedule
from gateway.model import Origin, Sample

READS_S = 1000
UNITS_MAX = 250
SECONDS = 4.0
POINTS = tuple(ModbusPoint(name=f"r{n}", address=n) for n in range(10))
QUESTION = bytes.fromhex("00010000000601030000000a")
TURNS = 5000


class Nowhere:
    """Emits to nobody, and is the ledger of a source that keeps nothing."""

    def __init__(self) -> None:
        self.samples = 0

    async def __call__(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        self.samples += len(samples)

    def seen(self, origin: Origin) -> bool:
        return False

    settled = seen

    def whole(self, session: bytes) -> bool:
        return True

    def forget(self, origins: Sequence[Origin]) -> None:
        return None

    def keep_only(self, session: bytes, origins: object) -> None:
        return None


class Socket(asyncio.Protocol):
    answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        Socket.answers += 1


async def cost_us(count: Callable[[], int]) -> float:
    """Of each thing that is counted, in the quietest of some seconds."""
    await asyncio.sleep(2)
    best = float("inf")
    for _ in range(round(SECONDS)):
        had, began = count(), time.process_time()
        await asyncio.sleep(1)
        best = min(best, (time.process_time() - began) / max(count() - had, 1))
    return best * 1e6


async def connector(port: int, hosts: int) -> float:
    nowhere, clock = Nowhere(), SystemClock()
    each, busy = READS_S // hosts, []
    for host in range(hosts):
        bus = TcpBus(name=f"line-{host}", kind="modbus-tcp", host="127.0.0.1", tcp_port=port)
        devices = [
            ModbusDevice(name=f"d{host}-{n}", bus=bus.name, unit_id=n % UNITS_MAX + 1, interval=1.0, points=POINTS)
            for n in range(each)
        ]
        tools = Tools(clock, nowhere, lambda _: None, lambda *_: None)
        busy.append(asyncio.create_task(ModbusConnector(bus, devices, tools).run(nowhere)))
    spent = await cost_us(lambda: nowhere.samples)
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    return spent


async def sockets(port: int, hosts: int) -> float:
    loop = asyncio.get_running_loop()

    async def pace(number: int) -> None:
        transport, _ = await loop.create_connection(Socket, "127.0.0.1", port)
        due = loop.time() + number / READS_S
        while True:
            due += hosts / READS_S
            await asyncio.sleep(due - loop.time())
            transport.write(QUESTION)

    busy = [asyncio.create_task(pace(number)) for number in range(hosts)]
    spent = await cost_us(lambda: Socket.answers)
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    return spent


def turn_us(jobs: int) -> float:
    plan = Schedule([Job(f"d{n}", 1.0, n) for n in range(jobs)], 0.0)
    now, turns, began = 0.0, 0, 0.0
    while turns < jobs + TURNS:
        if turns == jobs:  # all are due at first
            began = time.process_time()
        turn = plan.pick(now, lambda _: 0.0)
        if turn is None:
            now = plan.next_at(lambda _: 0.0)
            continue
        turns += 1
        plan.advance(turn.job, now + 1e-6)
    return (time.process_time() - began) / TURNS * 1e6


async def main() -> None:
    async with Tool("loads.py", "modbus") as machines:
        for hosts in (1, 4, 1000):
            alone, ours = await sockets(machines.said, hosts), await connector(machines.said, hosts)
            print(f"a read, {hosts:4} connections   connector {ours:4.0f} us   bare sockets {alone:4.0f} us")
    print(f"a turn of the schedule, 10 and 1,000 jobs   {turn_us(10):.1f} us, {turn_us(1000):.1f} us")


if __name__ == "__main__":
    asyncio.run(main())
