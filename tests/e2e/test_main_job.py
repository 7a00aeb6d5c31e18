"""The main job: sensors on every kind of bus → stored once at the cloud side, through outages and kills."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from gateway.demo import plant as plants
from gateway.demo import world as worlds
from gateway.demo.child import until
from gateway.demo.proof import take
from gateway.demo.story import Told, outage
from gateway.demo.world import World
from gateway.testing import broker
from tests.e2e.conftest import numbers

pytestmark = pytest.mark.skipif(
    broker.program() is None or shutil.which("dbus-daemon") is None, reason="needs mosquitto and dbus-daemon"
)

_PATIENCE_S = 60.0


def test_readings_of_every_kind_of_bus_are_stored_once(folder: Path) -> None:
    async def story() -> None:
        async with plants.running(folder) as plant, worlds.running(folder, plant) as world:

            def enough() -> bool:
                return all(tally.stored >= 10 for tally in take(world.database, plant.counters).tallies)

            await until(enough, _PATIENCE_S, "ten numbers of each machine are stored")
            assert {counter.device for counter in plant.counters} == {"inverter", "meter", "scale", "office", "fridge"}
            proof = await world.settle()
            assert proof.holds, f"{proof.sentence()}\n{proof.tallies}\n{world.gateway.last_words()}"

    asyncio.run(story())


@pytest.mark.timeout(240)
def test_both_endpoints_are_cut_and_come_back_and_the_proof_holds(folder: Path) -> None:
    async def story() -> None:
        async with plants.running(folder) as plant, worlds.running(folder, plant) as world:
            proof = await outage(world, Told(lambda _: None))
            assert proof.holds, f"{proof.sentence()}\n{proof.tallies}\n{world.gateway.last_words()}"

    asyncio.run(story())


@pytest.mark.timeout(300)
def test_twenty_kills_in_mid_flow_lose_nothing_and_double_nothing(folder: Path) -> None:
    """MQTT QoS 1: every message. Polled: every reply that the gateway had; one that was on its way to it when it was
    killed, it never had. What a killed process did not hear on a serial line or in the air is not promised, but
    nothing is stored twice either."""
    rng = random.Random(20)

    async def story() -> None:
        async with plants.running(folder, pace_s=0.02) as plant, worlds.running(folder, plant) as world:
            polled = {c.device: c.produced for c in plant.counters if c.device in ("inverter", "meter")}
            never_had: dict[str, set[int]] = {device: set() for device in polled}
            for _ in range(20):
                await asyncio.sleep(rng.uniform(0.1, 0.9))
                before = {device: produced() for device, produced in polled.items()}
                await world.gateway.end(signal.SIGKILL)
                await asyncio.sleep(0.05)  # a request that was already on the wire is still answered
                for device, produced in polled.items():
                    never_had[device] |= set(range(before[device], produced() + 1))
                await world.gateway.start()
                await until(partial(_polls_again, world, polled, before), _PATIENCE_S, "it polls again")
            proof = await world.settle()
            twice = {tally.device: tally.twice for tally in proof.tallies if tally.twice}
            assert not twice, twice
            office = next(tally for tally in proof.tallies if tally.device == "office")
            assert office.stored == office.produced > 0, office
            for device, produced in polled.items():
                missing = set(range(1, produced() + 1)) - set(numbers(world.database, device, "sequence"))
                assert missing <= never_had[device], (device, missing - never_had[device])

    asyncio.run(story())


async def _polls_again(world: World, polled: Mapping[str, Callable[[], int]], before: Mapping[str, int]) -> bool:
    assert world.gateway.running, world.gateway.last_words()
    return all(produced() > before[device] + 1 for device, produced in polled.items())


@pytest.mark.timeout(180)
def test_the_cloud_side_is_killed_ten_times_and_everything_is_stored_once(folder: Path) -> None:
    rng = random.Random(10)

    async def story() -> None:
        async with plants.running(folder, pace_s=0.05) as plant, worlds.running(folder, plant) as world:
            for _ in range(10):
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                await world.ingest.end(signal.SIGKILL)
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                await world.ingest.start()
            proof = await world.settle()
            assert proof.holds, f"{proof.sentence()}\n{proof.tallies}\n{world.gateway.last_words()}"

    asyncio.run(story())
