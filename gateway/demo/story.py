"""What happens in the demo, in order, each step measured where a person would ask "how long?".

`Told` is what the screen shows; the story writes into it and never draws.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.demo.child import until
from gateway.demo.proof import Proof
from gateway.demo.world import World
from gateway.errors import GatewayError

_CALM_S = 4.0
_DARK_S = 8.0
_SWITCH_S = 15.0
_BACK_S = 45.0


class Told:
    """The story so far: a headline and finished sentences."""

    def __init__(self, listener: Callable[[str], None]) -> None:
        self.headline = ""
        self.sentences: list[str] = []
        self._listener = listener

    def now(self, headline: str) -> None:
        self.headline = headline
        if headline:
            self._listener(f"… {headline}")

    def done(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self._listener(f"✓ {sentence}")


async def outage(world: World, told: Told) -> Proof:
    """Both roads are cut, one after the other, and come back. Raises GatewayError when something takes too long."""
    told.now("all is well: readings go up the north road")
    await until(lambda: _active(world, "north"), _SWITCH_S, "the first endpoint is in use")
    await asyncio.sleep(_CALM_S)

    told.now("the north road is cut: packets vanish, nothing says so")
    before = await world.stored()
    started = time.monotonic()
    world.relays["north"].black_hole()
    await until(lambda: _active(world, "south"), _SWITCH_S, "the gateway moves to the second endpoint")
    await until(lambda: _grows(world, before), _SWITCH_S, "readings arrive over the second endpoint")
    told.done(f"failover: readings arrive over the south road {time.monotonic() - started:.2f} s after the cut")
    await asyncio.sleep(_CALM_S)

    told.now("the south road is cut as well: the buffer fills")
    world.relays["south"].black_hole()
    await asyncio.sleep(_DARK_S)
    status = await world.status()
    held = status["buffer"]["records"] if status else 0
    if not held:
        raise GatewayError("both roads are cut and the buffer is empty: the cut did not work")
    told.done(f"dark for {_DARK_S:.0f} s: {held} batches wait, nothing is given up")

    told.now("both roads are back")
    started = time.monotonic()
    born_ms = time.time_ns() // 1_000_000
    for relay in world.relays.values():
        await relay.forward()
    await until(lambda: _fresh(world, born_ms), _BACK_S, "a new reading arrives")
    first = time.monotonic() - started
    await until(lambda: _empty(world), _BACK_S, "the backlog is delivered")
    told.done(f"live first: a new reading {first:.2f} s after the roads came back, backlog away after "
              f"{time.monotonic() - started:.2f} s")  # fmt: skip
    await asyncio.sleep(_CALM_S / 2)

    told.now("counting")
    proof = await world.settle()
    told.now("")
    return proof


async def _active(world: World, road: str) -> bool:
    status = await world.status()
    return status is not None and status["uplink"]["active"] == road


async def _grows(world: World, before: int) -> bool:
    return await world.stored() > before


async def _fresh(world: World, born_ms: int) -> bool:
    return any(utc_ms > born_ms for *_, utc_ms in await world.latest())


async def _empty(world: World) -> bool:
    status = await world.status()
    return status is not None and status["buffer"]["oldest_s"] < 1.0
