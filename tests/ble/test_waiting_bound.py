"""What waits for a gateway that takes nothing is bounded: the oldest goes, and is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import cycle

import pytest

from gateway.connectors.ble import connector as connector_module
from gateway.model import Sample

from .conftest import Start, device
from .test_connector import FRIDGE, advertise

BOUND = 8


def test_a_gateway_that_takes_nothing_loses_the_oldest_samples_and_counts_them(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector_module, "_MAX_WAITING", BOUND)
    taken: list[Sample] = []
    gate = asyncio.Event()

    async def emit(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        taken.extend(samples)
        await gate.wait()

    async def main() -> None:
        async with start([device("fridge", FRIDGE, min_interval=0)]) as rig:
            rig.running.cancel()
            await asyncio.wait({rig.running})
            rig.connector = rig.build(rig)
            rig.running = asyncio.create_task(rig.connector.run(emit))
            await rig.until(lambda: rig.bluez.scanning)
            values = cycle(range(256))

            async def speak() -> None:
                await advertise(rig, f"02{next(values):02X}09")()

            await rig.until(lambda: taken, speak)
            await rig.until(lambda: rig.connector.status()["dropped"] >= 3, speak)
            assert len(taken) == 1
            gate.set()
            await rig.until(lambda: len(taken) > 1)
            assert len(taken) <= 1 + BOUND

    asyncio.run(main())
