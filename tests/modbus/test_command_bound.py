"""How many commands wait for a bus is bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.connectors.modbus.commands import MAX
from gateway.errors import CommandError
from gateway.model import Outcome, Write

from .bench import Bench, device, rtu
from .slave import Slave
from .test_connector import at


def test_when_too_many_commands_wait_for_a_bus_the_next_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        bench = Bench(rtu(slave.path, timeout=5), [device("meter", 1, at(10, write={}), interval=60)])
        async with bench.running():
            await bench.until(lambda: bool(bench.samples))
            slave.delays = [10.0]
            under_way = asyncio.create_task(bench.connector.execute(Write("meter", "h10", 1)))
            await bench.until(lambda: slave.requests[-1][1][1] == 6)
            waiting = [asyncio.create_task(bench.connector.execute(Write("meter", "h10", 2))) for _ in range(MAX)]
            await bench.until(lambda: bench.connector.status()["commands_waiting"] == MAX)
            with pytest.raises(CommandError, match="wait already") as caught:
                await bench.connector.execute(Write("meter", "h10", 3))
            assert caught.value.outcome is Outcome.UNAVAILABLE
            for task in (under_way, *waiting):
                task.cancel()
            await asyncio.wait((under_way, *waiting))

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))
