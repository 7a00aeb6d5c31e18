"""The real buffer, the real uplink, a path that breaks in every way, and the real server: every value once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import SystemClock
from gateway.ingest.config import Settings
from gateway.ingest.server import running as serving
from gateway.ingest.tokens import Role
from gateway.model import Row, Shape
from gateway.testing.relay import Relay
from gateway.uplink.config import Endpoint
from tests.uplink.house import running, state_of, until

SHAPE = Shape("meter", ("n",), ("1",))


def row(value: int) -> Row:
    return Row(SHAPE, SystemClock().boot_ns() // 1_000_000, (value,))


@contextlib.asynccontextmanager
async def buffering(home: Path) -> AsyncIterator[Buffer]:
    (home / "run").mkdir(parents=True, exist_ok=True)
    buffer = await Buffer.open(BufferSettings(), home / "data", SystemClock(), home / "run")
    task = asyncio.create_task(buffer.run())
    try:
        yield buffer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await buffer.drain()
        await buffer.release()


@contextlib.asynccontextmanager
async def path(home: Path) -> AsyncIterator[tuple[tuple[Relay, Relay], tuple[Endpoint, Endpoint], Path]]:
    """A server with two listeners, each behind a relay; the endpoints to go there; the server's file."""
    settings = Settings(home / "sink", listen=(("127.0.0.1", 0), ("127.0.0.1", 0)), drain_s=0.1)
    async with serving(settings, SystemClock()) as server:
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text(await server.committer.call(server.tokens.add, "gw-1", Role.GATEWAY, 0))
        (_, one), (_, two) = server.addresses
        async with Relay("127.0.0.1", one) as a, Relay("127.0.0.1", two) as b:
            ends = [
                Endpoint(url=f"ws://127.0.0.1:{relay.port}/", name=name, token_file=token, connect_timeout=0.5)
                for relay, name in ((a, "a"), (b, "b"))
            ]
            yield (a, b), (ends[0], ends[1]), next((home / "sink").glob("*.db"))


def stored(file: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return [value for (value,) in db.execute("SELECT value FROM reading ORDER BY rowid")]


def gaps(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return int(db.execute("SELECT count(*) FROM gap").fetchone()[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_value_arrives_once_whatever_the_path_does(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        async with path(tmp_path) as (relays, ends, file), buffering(tmp_path) as buffer:
            async with running(buffer, *ends, random=dice.random):
                count = 0
                for _ in range(12):
                    relay = dice.choice(relays)
                    match dice.choice(["cut", "hole", "refuse", "forward", "forward"]):
                        case "cut":
                            relay.cut()
                        case "hole":
                            relay.black_hole()
                        case "refuse":
                            await relay.refuse()
                        case _:
                            await relay.forward()
                    until_s = time.monotonic() + dice.uniform(0.02, 0.4)
                    while time.monotonic() < until_s:
                        await buffer.append([row(count)])
                        count += 1
                        await asyncio.sleep(0.002)
                for relay in relays:
                    await relay.forward()
                await until(lambda: buffer.waiting()[0] == 0 and len(stored(file)) >= count, 30.0)
            values = stored(file)
            assert sorted(values) == list(range(count))
            assert gaps(file) == 0

    asyncio.run(main())


def test_what_a_gateway_did_not_deliver_the_next_one_does(tmp_path: Path) -> None:
    async def main() -> None:
        async with path(tmp_path) as (relays, ends, file):
            async with buffering(tmp_path) as buffer, running(buffer, ends[0]) as uplink:
                await until(lambda: state_of(uplink, "a") == "active")
                await buffer.append([row(0)])
                await until(lambda: stored(file) == [0])
                relays[0].black_hole()
                for value in range(1, 20):
                    await buffer.append([row(value)])
            await relays[0].forward()
            async with buffering(tmp_path) as buffer, running(buffer, ends[0]):
                await until(lambda: len(stored(file)) >= 20)
                await until(lambda: buffer.waiting()[0] == 0)
            assert stored(file) == list(range(20))

    asyncio.run(main())


def test_a_black_hole_costs_little_more_than_the_ack_timeout(tmp_path: Path) -> None:
    async def main() -> float:
        async with (
            path(tmp_path) as (relays, ends, file),
            buffering(tmp_path) as buffer,
            running(buffer, *ends) as uplink,
        ):
            await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
            for value in range(20):
                await buffer.append([row(value)])
                await asyncio.sleep(0.005)
            await until(lambda: buffer.waiting()[0] == 0)
            relays[0].black_hole()
            await buffer.append([row(20)])
            took = await until(lambda: len(stored(file)) == 21)
            assert uplink.status()["active"] == "b"
            return took

    assert asyncio.run(main()) < 2.5  # 0.75 s on an idle machine
