"""One schedule: a seed chooses a world, which faults it has, and what happens in it; then peace, and the judgement.

Each schedule has its own mixture of steps: most have few kinds of faults and many of each, because rare paths lie
where one kind of fault comes again and again.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from gateway.buffer.config import WhenFull
from gateway.model import Lane
from gateway.uplink.config import Standby
from tests.conservation import loop
from tests.conservation.disk import Mood
from tests.conservation.oracle import Judge
from tests.conservation.taps import Taps
from tests.conservation.world import Plan, World

REAL_EVERY = 100
"""One schedule in so many runs on the real SQLite, in the gateway and behind the server."""
PEACE_WITHIN_S = 2400.0
"""After the last fault: an endpoint that refused us twice rests for a quarter of an hour, another for ten minutes."""
ALIVE_WITHIN_S = 90.0
"""From a new reading to its ack, once there is peace. The last hello of a dead process may arrive behind that of the
living one, which takes itself for the older and rests for a minute."""

ALWAYS = {"put": 40, "wait": 40, "heal": 8, "start site": 8, "site works": 4, "disk works": 3}
FAULTS = {
    "alarm": 8,
    "publish": 20,
    "pingresp": 8,
    "broker returns": 4,
    "wait long": 6,
    "stall": 8,
    "refuse": 5,
    "slow": 5,
    "cut": 8,
    "weather": 6,
    "seal": 4,
    "many streams": 1,
    "crash site": 6,
    "site fails": 5,
    "site slow": 4,
    "flow": 4,
    "move": 2,
    "kill": 6,
    "power": 3,
    "drain": 2,
    "disk fails": 5,
    "disk slow": 4,
    "clock": 2,
    "synchronise": 3,
    "back up": 4,
    "restore": 4,
    "clone": 1,
    "rot": 1,
    "damage": 1,
    "poison": 2,
    "oversize": 0.2,
    "big": 0.2,
    "split": 0.2,
    "crowd out": 2,
}


def make_plan(dice: random.Random, real: bool) -> Plan:
    endpoints = dice.choice([("a",), ("a", "b"), ("a", "b"), ("a", "b")])
    small = dice.random() < 0.2
    buffer = {
        "commit_after": dice.choice([0.5, 0.5, 0.05, 3.0]),
        "linger": dice.choice([0.1, 0.01, 0.05]),
        "keep_acked": dice.choice([0, 2_000, 8_000_000]),
        "memory_limit": dice.choice([8_000, 32_000_000, 32_000_000]),
        "max_size": (60_000 if real else dice.choice([3_000, 10_000])) if small else 512_000_000,
        "when_full": WhenFull.REFUSE if small and dice.random() < 0.2 else WhenFull.DROP_OLDEST,
        "max_age": dice.choice([1.0, 5.0]) if dice.random() < 0.05 else None,
    }
    sites = dice.choice([0, 0, 1, 2]) if len(endpoints) > 1 else 0
    if real and sites == 1:
        sites = 0  # a server is alone with its file
    return Plan(
        sites=sites,
        endpoints=endpoints,
        standby=dice.choice([Standby.AUTO, Standby.AUTO, Standby.COLD]),
        ring_size=dice.choice([None, 1_500, 6_000, 65_536, 65_536, 65_536]),
        buffer=buffer,
        real_store=real,
        real_sink=real,
        synced=dice.random() < 0.85,
    )


def mixture(dice: random.Random) -> dict[str, float]:
    """Of faults, each schedule has some, in its own proportions."""
    share = dice.choice([0.1, 0.25, 0.5])
    chosen = {name: weight * dice.choice([0.5, 1, 3]) for name, weight in FAULTS.items() if dice.random() < share}
    return ALWAYS | chosen


async def act(world: World, step: str) -> None:
    dice = world.dice
    name = dice.choice(world.plan.endpoints)
    site = world.sites[name]
    match step:
        case "put":
            world.put(dice.choice([1, 1, 1, 2, 5]), settles=dice.random() < 0.2)
        case "alarm":
            world.put(1, alarm=True)
        case "publish":
            world.publish(dice.choice([1, 1, 3]))
        case "pingresp":
            world.forget_settled()
        case "broker returns":
            world.broker_returns()
        case "poison":
            world.put(1, poison=True)
        case "oversize":
            world.put(1, text="x" * 270_000)
        case "big":
            world.put(2_100)
        case "split":
            world.put(4, text="\x01" * 40_000)  # six times as long in JSON
        case "wait":
            await asyncio.sleep(dice.choice([0.0, 0.003, 0.02, 0.1, 0.4, 0.8]))
        case "wait long":
            await asyncio.sleep(dice.choice([3, 8, 70, 700]))
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
        case "weather":
            world.foul = True
            world.weather.set(*(dice.choice([0.0, 0.02, 0.2]) for _ in range(3)))
        case "seal":
            world.buffer.seal(Lane.LIVE)
        case "many streams":
            for _ in range(40):
                world.put(1)
                await asyncio.sleep(0.002)
                world.buffer.seal(Lane.LIVE)
        case "crash site":
            world.seen["sink crash"] += site.up
            await site.crash()
        case "start site":
            site.start()
        case "site fails":
            site.storage.failing = True
        case "site works":
            site.storage.failing = False
        case "site slow":
            site.slow(dice.choice([0.001, 0.05, 0.5]))
        case "flow":
            batches = dice.choice([0, 0, 1, 4])
            world.seen["flow 0"] += batches == 0
            site.flow(batches)
        case "move":
            site.move(dice.choice([1.0, 30.0]), dice.choice([0.0, 5.0]))
        case "kill":
            await world.crash(power=False)
        case "power":
            await world.crash(power=True)
        case "drain":
            await world.drain()
        case "disk fails":
            world.disk(dice.choice([Mood.FULL, Mood.FULL, Mood.DEAD, Mood.TORN]))
        case "disk works":
            world.disk(Mood.WORKS)
        case "disk slow":
            world.disk_slow(dice.choice([0.001, 0.03, 0.2]))
        case "clock":
            world.step_clock(dice.choice([-3_600_000, 5, 86_400_000]))
        case "synchronise":
            world.synchronise()
        case "back up":
            site.back_up()
        case "restore":
            await world.restore(site)
        case "clone":
            await world.clone(dies=dice.choice([None, None, "kill", "kill", "power"]))
        case "crowd out":
            await crowd_out(world, name)
        case "rot":
            world.rot()
        case "damage":
            world.damage()


async def crowd_out(world: World, name: str) -> None:
    """What comes in pushes out, in one gap, both what the sink has though its ack was lost and what it has not."""
    world.path(name, "open")
    world.sites[name].start()
    for _ in range(4):
        world.put(1)
        await asyncio.sleep(0.02)
    for each in world.plan.endpoints:
        world.lose_acks(each)
    for _ in range(4):
        world.put(1)
        await asyncio.sleep(0.06)
    for each in world.plan.endpoints:
        world.path(each, "refused")
    for _ in range(world.dice.choice([8, 30])):
        world.put(1)
        await asyncio.sleep(0.06)


async def play(taps: Taps, seed: int, home: Path | None) -> World:
    dice = random.Random(seed)
    real = home is not None
    world = World(taps, dice, make_plan(dice, real), home)
    _note_plan(world)
    with world.installed():
        await world.start()
        steps = mixture(dice)
        for step in dice.choices(list(steps), list(steps.values()), k=dice.randint(2, 60)):
            await act(world, step)
        world.make_peace()
        await world.settle(PEACE_WITHIN_S)
        world.put(1)
        world.put(1, alarm=True)
        world.publish(1)
        await world.settle(ALIVE_WITHIN_S)
        await world.stop()
    return world


def _note_plan(world: World) -> None:
    plan, seen = world.plan, world.seen
    seen["no ring"] += plan.ring_size is None
    seen["real store"] += plan.real_store
    seen["real sink"] += plan.real_sink
    seen["refuse when full"] += plan.buffer["when_full"] is WhenFull.REFUSE


def run(seed: int, taps: Taps) -> Counter[str]:
    """One schedule. Raises AssertionError that names the seed; returns which paths it walked."""
    home = _folder() if seed % REAL_EVERY == 0 else None
    taps.witness = type(taps.witness)()
    try:
        world = loop.run(play(taps, seed, home))
        wrong = Judge(world).verdict()
        if wrong:
            raise AssertionError("; ".join(wrong[:8]))
    except BaseException as error:
        error.add_note(f"CONSERVATION_SEED={seed} pytest tests/conservation")
        raise
    finally:
        if home is not None:
            shutil.rmtree(home)
    return taps.witness.seen


def _folder() -> Path:
    memory = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix="conservation-", dir=memory if os.access(memory, os.W_OK) else None))
