"""The connector over a real pseudo-terminal, against a slave with bad manners."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Outcome, Status, Write

from .bench import Bench, device, rtu
from .slave import Slave


def at(address: int, register: str = "holding", **more: object) -> dict[str, object]:
    return {"name": f"{register[0]}{address}", "address": address, "register": register, **more}


def test_what_is_polled_is_what_the_registers_hold(tmp_path: Path) -> None:
    async def scenario(slave: Slave) -> None:
        slave.registers |= {(1, 10): 0x41A8, (1, 11): 0xCCCD, (1, 12): 0xFFFE}
        bench = Bench(
            rtu(slave.path),
            [
                device(
                    "meter",
                    1,
                    at(10, type="float32"),
                    at(12, type="int16"),
                    at(7, "input"),
                    at(3, "coil"),
                    at(4, "discrete"),
                    interval=0.1,
                )
            ],
        )
        async with bench.running():
            await bench.until(lambda: bool(bench.values("meter", "d4")))
        assert bench.values("meter", "h10")[0] == 21.1
        assert bench.values("meter", "h12")[0] == -2
        assert bench.values("meter", "i7")[0] == 5007
        assert bench.values("meter", "c3")[0] is True
        assert bench.values("meter", "d4")[0] is False
        assert bench.reports[0] == ("meter", DeviceState.ONLINE, "")
        merged = next(sample for sample in bench.samples if "h10" in sample.points)
        assert merged.points == ("h10", "h12")

    with Slave(tmp_path) as slave:
        asyncio.run(scenario(slave))
