"""Random SIGKILLs of the gateway and of the cloud side in mid-flow: nothing lost, nothing twice. `--long`: 200 of them.

Both are the real programs; between them real sockets and two endpoints (two roads to one sink), below them a real
mosquitto and two Modbus machines. What must be at the sink is known from those who do not ask the gateway: the sensor
knows what it published, the machines know what they answered (`witness.py`).

- MQTT, QoS 1: every id, exactly once.
- Polled: every number, exactly once. One exception, which is counted and printed: the last answer that a killed process
  was given may have been on its way to it. It may be missing, and must not be there twice.
- No gap, no dead letter; in each stream everything in order; of each answer all readings.

`KILLS_SEED` repeats victims and pauses; every run prints its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.demo import world as worlds
from gateway.demo.child import Child, until
from gateway.demo.plant import Plant
from gateway.demo.publisher import publisher
from gateway.demo.world import World
from gateway.model import Status
from gateway.testing import broker
from tests.e2e.conftest import numbers
from tests.e2e.witness import Arrivals, Sensor, Witness, orderly, statuses

pytestmark = pytest.mark.skipif(broker.program() is None, reason="needs mosquitto")

_PATIENCE_S = 90.0
"""More than the longest pause of the uplink before it tries an endpoint again."""
_PACE_S = 0.02
_DELAY_S = 0.05
"""One way, as over a mobile network: at every moment rows are in no batch yet, batches are under way, acks are too."""
_SOON_S = 1.0
"""On an idle machine, after a start: anywhere between exec and the first ack."""


class Assault:
    """Who is hit, when, and how often; `strike` is one of them, chosen by chance."""

    def __init__(self, world: World, sensor: Sensor, witnesses: list[Witness], rng: random.Random) -> None:
        self.world, self.sensor, self.witnesses = world, sensor, witnesses
        self.kills: Counter[str] = Counter()
        self.killed: set[int] = set()
        """Processes of the gateway, by the number under which the witnesses know them."""
        self._rng = rng
        self._arrivals = Arrivals(world.database)
        self._strikes = (
            self._one, self._the_other, self._both, self._twice, self._the_other_twice, self._one_then_the_other,
            self._in_its_drain, self._in_the_others_drain,
        )  # fmt: skip

    async def strike(self) -> None:
        """Waits until everything flows, and a moment more."""
        produced = {each.name: each.produced for each in (self.sensor, *self.witnesses)}
        await until(lambda: self._arrived(produced), _PATIENCE_S, "what is produced now arrives")
        await self._pause(0.3)
        await self._rng.choice(self._strikes)()

    def _arrived(self, left: dict[str, int]) -> bool:
        assert self.world.gateway.running, self.world.gateway.last_words()
        return self._arrivals.beyond(left)

    async def _pause(self, at_most_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, at_most_s))

    # ── strikes ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _one(self) -> None:
        await self._kill(self.world.gateway)
        await self._start_gateway()

    async def _the_other(self) -> None:
        await self._kill(self.world.ingest)
        await self._pause(0.3)
        await self.world.ingest.start()

    async def _both(self) -> None:
        await asyncio.gather(self._kill(self.world.gateway), self._kill(self.world.ingest))
        await self.world.ingest.start()
        await self._start_gateway()

    async def _twice(self) -> None:
        """The second time in its start, its recovery, or its first session."""
        await self._one()
        await self._pause(_SOON_S)
        await self._one()

    async def _the_other_twice(self) -> None:
        await self._the_other()
        await self._pause(_SOON_S)
        await self._the_other()

    async def _one_then_the_other(self) -> None:
        """The cloud side goes while the gateway delivers what it recovered."""
        await self._one()
        await self._pause(_SOON_S)
        await self._the_other()

    async def _in_its_drain(self) -> None:
        await self._drain(self.world.gateway)
        await self._start_gateway()

    async def _in_the_others_drain(self) -> None:
        await self._drain(self.world.ingest)
        await self.world.ingest.start()

    async def _drain(self, child: Child) -> None:
        os.kill(child.pid, signal.SIGTERM)
        await self._pause(0.1)
        await self._kill(child)

    async def _kill(self, child: Child) -> None:
        """One that came to its end by itself is not counted."""
        code = await child.end(signal.SIGKILL)
        if code == -signal.SIGKILL:
            self.kills["gateway" if child is self.world.gateway else "cloud side"] += 1
            if child is self.world.gateway:
                self.killed.add(self.witnesses[0].process)

    async def _start_gateway(self) -> None:
        for witness in self.witnesses:
            witness.process += 1
        await self.world.gateway.start()

    # ── the oracle ───────────────────────────────────────────────────────────────────────────────────────────────

    def verdict(self) -> str:
        """One line of figures. Raises AssertionError with what is not as it must be."""
        told = [
            f"{self.kills.total()} SIGKILLs ({self.kills['gateway']} gateway, {self.kills['cloud side']} cloud side)"
        ]
        unproved: dict[str, dict[int, int]] = {each.name: each.unproved() for each in self.witnesses}
        for each in (self.sensor, *self.witnesses):
            stored = numbers(self.world.database, each.name, "sequence")
            twice = [number for number, times in Counter(stored).items() if times > 1]
            produced = set(range(1, each.produced + 1))
            missing = produced - set(stored)
            excused = {n for n, process in unproved.get(each.name, {}).items() if process in self.killed}
            assert set(stored) <= produced, f"{each.name}: nobody ever said {set(stored) - produced}"
            assert not twice, f"{each.name}: twice at the sink: {twice}"
            assert missing <= excused, f"{each.name}: lost: {sorted(missing - excused)}"
            on_its_way = f", {len(missing)} on their way when it was killed" if missing else ""
            told.append(f"{each.name} {each.produced} produced, {len(stored)} stored{on_its_way}")
        orderly(self.world.database)
        assert statuses(self.world.database) == {Status.GOOD}, "a kill takes no knowledge, so nothing is in doubt"
        records, rows = self._rescued()
        assert self.kills["gateway"] < 5 or (records and rows), "nothing was under way when it was killed"
        told.append(f"found in the flight ring: {records} batches, {rows} times rows that were in none")
        return "; ".join(told)

    def _rescued(self) -> tuple[int, int]:
        """What the successors of killed processes said they found."""
        said = re.findall(r"the flight ring held (\d+) records and (\d+) times", self.world.gateway.log.read_text())
        return sum(int(records) for records, _ in said), sum(int(rows) for _, rows in said)


@asynccontextmanager
async def _assault(folder: Path, rng: random.Random) -> AsyncIterator[Assault]:
    async with AsyncExitStack() as stack:
        # a broker that drops what it cannot deliver would be none of the gateway's doing
        mosquitto = stack.enter_context(broker.Mosquitto(folder, max_queued_messages=1_000_000))
        sensor = Sensor("office", stack.enter_context(publisher(mosquitto.port)).publish)
        plant = Plant(_PACE_S)
        stack.push_async_callback(plant.close)
        plant.toml += sensor.toml(mosquitto.port)
        witnesses = [Witness("inverter"), Witness("meter")]
        for witness, interval_ms in zip(witnesses, (20, 50), strict=True):
            await witness.listen()
            plant.work(witness.name, witness.run())
            plant.toml += witness.toml(f"line-{witness.name}", interval_ms)
        plant.work(sensor.name, plant.every(sensor.step))
        world = await stack.enter_async_context(worlds.running(folder, plant))
        for relay in world.relays.values():
            relay.delay_s = _DELAY_S
        yield Assault(world, sensor, witnesses, rng)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_kills_in_mid_flow_lose_nothing_and_double_nothing(folder: Path, kills: int) -> None:
    seed = os.environ.get("KILLS_SEED") or secrets.token_hex(4)
    print(f"KILLS_SEED={seed}")

    async def story() -> None:
        async with _assault(folder, random.Random(seed)) as assault:
            while assault.kills.total() < kills:
                await assault.strike()
            await assault.world.settle(_PATIENCE_S)
            print(assault.verdict())

    asyncio.run(story())
