"""How long until readings are stored again after the road to the active endpoint turns into a black hole.

    python tests/benchmarks/failover.py [TRIALS]

Real gateway and sink as processes, readings of five simulated machines flowing, two endpoints through relays. A trial
black-holes the road in use (connections stay open, nothing passes) and takes the time until the sink holds a reading
that arrived after the cut. Then the road is healed and the next trial cuts the other one.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gateway.demo import plant as plants
from gateway.demo import world as worlds
from gateway.demo.child import until
from gateway.demo.world import ROADS, World

_READY_S, _SWITCH_S = 60.0, 20.0


async def trial(world: World) -> float:
    """Seconds from the cut to the first reading over the other road."""
    active = await _both_ready(world)
    world.relays[active].black_hole()
    cut = time.monotonic()
    await asyncio.sleep(0.05)  # what had passed the relay is stored by now
    before = await world.stored()

    async def flows_again() -> bool:
        return await world.stored() > before

    await until(flows_again, _SWITCH_S, "readings over the other road")
    took = time.monotonic() - cut
    await world.relays[active].forward()
    return took


async def _both_ready(world: World) -> str:
    """The active road, once the other one stands by."""

    async def ready() -> bool:
        status = await world.status()
        states = {each["name"]: each["state"] for each in status["uplink"]["endpoints"]} if status else {}
        return sorted(states.values()) == ["active", "standby"]

    await until(ready, _READY_S, "one road active, the other standing by")
    status = await world.status()
    assert status is not None
    return next(road for road in ROADS if status["uplink"]["active"] == road)


async def main(trials: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gw-"))
    try:
        async with plants.running(folder, pace_s=0.05) as plant, worlds.running(folder, plant) as world:
            times = [await trial(world) for _ in range(trials)]
            proof = await world.settle()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"black hole → stored over the other endpoint, {trials} trials: ", end="")
    print(f"median {statistics.median(times):.2f} s, min {min(times):.2f} s, max {max(times):.2f} s")
    print(proof.sentence())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
