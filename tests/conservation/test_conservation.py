"""Nothing is lost, nothing comes twice, whatever happens to whom: delivered + reported = promised.

Each schedule is a seed. A failing one is run again alone with `CONSERVATION_SEED=… pytest tests/conservation`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.model import Lane
from gateway.testing.loop import run
from gateway.uplink import session
from tests.conservation.world import ENDPOINTS, World

STEPS = {
    "put": 40,
    "alarm": 6,
    "publish": 12,
    "pingresp": 6,
    "wait": 60,
    "wait long": 3,
    "stall": 5,
    "refuse": 3,
    "heal": 10,
    "slow": 3,
    "cut": 5,
    "seal": 1,
    "crash site": 3,
    "start site": 8,
    "site fails": 3,
    "site works": 6,
    "site slow": 2,
    "kill": 3,
    "power": 1,
    "drain": 1,
    "disk fails": 1,
    "disk works": 3,
    "disk slow": 2,
    "clock": 1,
    "back up": 2,
    "restore": 1,
}


async def act(world: World, step: str) -> None:
    dice = world.dice
    name = dice.choice(ENDPOINTS)
    site = world.sites[name]
    match step:
        case "put":
            world.put(dice.choice([1, 1, 2, 5, 40]), alarm=False, settles=dice.random() < 0.2)
        case "alarm":
            world.put(1, alarm=True, settles=False)
        case "publish":
            world.publish()
        case "pingresp":
            world.forget_settled()
        case "wait":
            await asyncio.sleep(dice.choice([0.0, 0.003, 0.02, 0.1, 0.4, 0.8]))
        case "wait long":
            await asyncio.sleep(dice.choice([3, 8, 70]))
        case "stall":
            world.path(name, "stalled")
        case "refuse":
            world.path(name, "refused")
        case "heal":
            world.path(name, "open")
        case "slow":
            world.slow(name, dice.choice([0.001, 0.05, 0.3, 1.0]))
        case "cut":
            site.cut()
        case "seal":
            world.buffer.seal(Lane.LIVE)
        case "crash site":
            await site.crash()
        case "start site":
            site.start()
        case "site fails":
            site.storage.failing = True
        case "site works":
            site.storage.failing = False
        case "site slow":
            site.slow_s = dice.choice([0.001, 0.05, 0.5])
        case "kill":
            await world.crash(power=False)
        case "power":
            await world.crash(power=True)
        case "drain":
            await world.drain()
        case "disk fails":
            world.disk(failing=True)
        case "disk works":
            world.disk(failing=False)
        case "disk slow":
            world.disk_s = dice.choice([0.001, 0.03, 0.2])
        case "clock":
            world.step_clock(dice.choice([-3_600_000, 5, 86_400_000]))
        case "back up":
            world.back_up(site)
        case "restore":
            await world.restore(site)


async def schedule(home: Path, seed: int, steps: int) -> None:
    dice = random.Random(seed)
    world = World(
        home,
        dice,
        sinks=dice.choice([0, 0, 1, 2]),
        real=seed % 16 == 0,
        ring_size=1 << 20,
        keep_acked=dice.choice([0, 5_000, 8_000_000]),
        memory_limit=dice.choice([1_000_000, 32_000_000]),
    )
    await world.start()
    for step in dice.choices(list(STEPS), list(STEPS.values()), k=dice.randint(1, steps)):
        await act(world, step)
    await world.settle()
    world.judge()
    await world.stop()


def run_seed(seed: int, steps: int = 120) -> None:
    home = Path(tempfile.mkdtemp(prefix="conservation-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        run(schedule(home, seed, steps))
    except BaseException:
        print(f"CONSERVATION_SEED={seed}")
        raise
    finally:
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(session, "open_link", session.open_link)
    log = logging.getLogger("gateway")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def seeds(count: int) -> range:
    chosen = os.environ.get("CONSERVATION_SEED")
    return range(int(chosen), int(chosen) + 1) if chosen else range(count)


@pytest.mark.parametrize("tenth", range(10))
def test_delivered_and_reported_is_what_was_promised(tenth: int) -> None:
    for seed in seeds(250)[tenth::10]:
        run_seed(seed)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_delivered_and_reported_is_what_was_promised_twenty_thousand_times() -> None:
    for seed in range(1000, 21_000):
        run_seed(seed, 300)
