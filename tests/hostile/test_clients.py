"""Clients that mean harm, against the real cloud side: it lives, its memory is bounded, an honest gateway is served.

What an unknown client can do stands before what one with a token can do.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from gateway.demo.child import until
from gateway.protocol.messages import MAX_MESSAGE_BYTES, SUBPROTOCOL
from tests.hostile.scene import PATIENCE_S, Scene, peak_kib, scene
from tests.hostile.server import bomb

pytestmark = pytest.mark.timeout(180)

SEED = int(os.environ.get("HOSTILE_SEED", "1"))
MAX_GROWTH_KIB = 192 * 1024
"""At the peak: 64 MiB of the store's page cache, 30 of series by number, 20 of series that are shown live, what one
connection may have under way, and what the allocator makes of it."""
_CLOCK = {"boot": "b" * 32, "offset_ms": 1_763_829_000_000, "error_ms": 1, "trust": "synced"}


@asynccontextmanager
async def besieged() -> AsyncIterator[Scene]:
    """The block attacks; afterwards an honest gateway is served by the same process, which has not grown."""
    async with scene() as (here, machine):
        await here.add("enemy", here.folder / "enemy-token")
        before = peak_kib(here.ingest)
        yield here
        await here.start_gateway([], machine)
        await here.delivers()
        assert "Traceback" not in here.ingest.log.read_text(), here.ingest.last_words(60)
        grown = peak_kib(here.ingest) - before
        assert grown < MAX_GROWTH_KIB, f"{grown} KiB more"


@asynccontextmanager
async def enemy(here: Scene, *, deflate: bool = False) -> AsyncIterator[ClientConnection]:
    """A connection with a good token."""
    async with connect(
        f"ws://127.0.0.1:{here.port}/",
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {(here.folder / 'enemy-token').read_text().strip()}"},
        compression="deflate" if deflate else None,
        max_size=None,
        ping_interval=None,
        close_timeout=1,
        proxy=None,
    ) as ws:
        yield ws


async def hello(ws: ClientConnection, **more: Any) -> None:
    await ws.send(
        json.dumps({"type": "hello", "process": "e" * 32, "software": "x", "clock": _CLOCK, "streams": [], **more})
    )
    assert json.loads(await ws.recv())["type"] == "welcome"


async def closed_with(ws: ClientConnection) -> int:
    """Reads until the server closes."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            while True:
                await ws.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd is not None else 1006


def batch(stream: str, seq: int, device: str, points: list[str], value: Any = 1) -> str:
    group = {
        "device": device, "points": points, "units": [""] * len(points), "t": [0], "v": [[value]] * len(points),
    }  # fmt: skip
    body = {"clock": _CLOCK, "base_ms": 1000, "groups": [group]}
    return json.dumps({"type": "batch", "stream": stream, "lane": "live", "seq": seq, "body": body})


# ── without a token ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_handshakes_that_dribble_are_ended_and_keep_nobody_out() -> None:
    """More of them than the process may have descriptors."""

    async def story() -> None:
        async with besieged() as here:
            resource.prlimit(here.ingest.pid, resource.RLIMIT_NOFILE, (128, 128))
            slow = [asyncio.create_task(_dribble(here.port)) for _ in range(200)]
            try:
                ended, _ = await asyncio.wait(slow, timeout=PATIENCE_S)
                assert len(ended) == len(slow), f"{len(slow) - len(ended)} of them hang on"
            finally:
                for each in slow:
                    each.cancel()

    asyncio.run(story())


async def _dribble(port: int) -> None:
    """Returns when the server has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while not reader.at_eof():
            writer.write(b"X")
            await writer.drain()
            try:
                async with asyncio.timeout(0.5):
                    await reader.read(1)
            except TimeoutError:
                continue
    except OSError:
        pass  # reset: that is an end as well
    finally:
        writer.close()


# ── with a token ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_that_inflates_to_a_gigabyte_is_refused() -> None:
    small = bomb()

    async def story() -> None:
        async with besieged() as here, enemy(here, deflate=True) as ws:
            mask = bytes(4)  # which leaves the payload as it is
            ws.transport.write(b"\xc1\xff" + len(small).to_bytes(8, "big") + mask + small)
            assert await closed_with(ws) == 1009

    asyncio.run(story())


def test_endless_fragments_are_refused() -> None:
    async def story() -> None:
        async with besieged() as here, enemy(here) as ws:
            await _raw(ws, Frame(Opcode.TEXT, b"{", fin=False))
            with pytest.raises((ConnectionClosed, OSError)):
                await _fragments(ws)
            assert await closed_with(ws) in (1009, 1006)

    asyncio.run(story())


async def _fragments(ws: ClientConnection) -> None:
    for _ in range(1_000_000):
        await _raw(ws, Frame(Opcode.CONT, b"", fin=False))


async def _raw(ws: ClientConnection, frame: Frame) -> None:
    """Past what the library would let through."""
    if ws.transport.is_closing():
        raise OSError("closed")
    ws.transport.write(frame.serialize(mask=True))
    await ws.drain()


def test_names_and_texts_without_end_are_stored_and_do_not_fill_the_memory() -> None:
    """Every message names new points, with names and texts as long as a message allows."""

    async def story() -> None:
        async with besieged() as here, enemy(here) as ws:
            await hello(ws)
            reading = asyncio.create_task(closed_with(ws))
            seq, long = 0, "n" * (MAX_MESSAGE_BYTES // 2)
            for i in range(200):
                for message in (
                    batch("1" * 32, seq + 1, f"{long}{i}", ["p"]),
                    batch("1" * 32, seq + 2, f"d{i}", [f"{i}-{k}" for k in range(1000)]),
                    batch("1" * 32, seq + 3, f"d{i}", ["text"], long),
                ):
                    await ws.send(message)
                seq += 3
            assert not reading.done(), "such messages are allowed"
            reading.cancel()

    asyncio.run(story())


def test_results_that_nobody_asked_for_are_taken_as_fast_as_the_disk_and_no_faster() -> None:
    async def story() -> None:
        async with besieged() as here, enemy(here) as ws:
            await hello(ws)
            acks = asyncio.create_task(_drain(ws))
            reason = "r" * 2000
            for i in range(10_000):
                await ws.send(f'{{"type":"result","id":"{i}","outcome":"ok","reason":"{reason}"}}')
            acks.cancel()

    asyncio.run(story())


async def _drain(ws: ClientConnection) -> None:
    while True:
        await ws.recv()


def test_who_sends_and_never_reads_is_held_back_or_dropped() -> None:
    async def story() -> None:
        async with besieged() as here, enemy(here) as ws:
            await hello(ws)
            ws.transport.pause_reading()
            with pytest.raises((ConnectionClosed, OSError, TimeoutError)):
                await asyncio.wait_for(_stray(ws), 30)

    asyncio.run(story())


async def _stray(ws: ClientConnection) -> None:
    """Each one is answered by a nack."""
    for i in range(1_000_000):
        await ws.send(batch(f"{i:032x}", 5, "d", ["p"]))


def test_hellos_with_many_tags_do_not_add_up() -> None:
    async def story() -> None:
        async with besieged() as here:
            tags = {f"device-{k}": {"site": "x" * 100} for k in range(1500)}
            for i in range(100):
                async with enemy(here) as ws:
                    await hello(ws, process=f"{i:032x}", devices=tags)

    asyncio.run(story())


def campaign(messages: int) -> None:
    async def story() -> None:
        dice = random.Random(SEED)
        sent = sessions = 0
        async with besieged() as here:
            while sent < messages:
                async with enemy(here) as ws:
                    sessions += 1
                    sent += await _converse(ws, dice)
        print(f"seed {SEED}: {sent} messages in {sessions} sessions")

    asyncio.run(story())


async def _converse(ws: ClientConnection, dice: random.Random) -> int:
    """Sends until the server has had enough; returns how many messages that were."""
    sent = 0
    try:
        if dice.random() < 0.9:
            await hello(ws, process=f"{dice.getrandbits(128):032x}")
        reading = asyncio.create_task(closed_with(ws))
        seqs: dict[str, int] = {}
        try:
            while not reading.done() and sent < 500:
                await ws.send(_message(dice, seqs))
                sent += 1
                if sent % 20 == 0:
                    await asyncio.sleep(0)
        finally:
            reading.cancel()
    except ConnectionClosed:
        pass
    return sent


def _message(dice: random.Random, seqs: dict[str, int]) -> str | bytes:
    stream = dice.choice(list(seqs)) if seqs and dice.random() < 0.9 else f"{dice.getrandbits(128):032x}"
    seq = seqs[stream] = max(1, seqs.get(stream, 0) + dice.choice((1, 1, 1, 1, 1, 0, 2, -3, 50)))
    value = dice.choice((1, 2.5, None, True, "t", 2**63, 1e308, "x" * 5000))
    good = batch(stream, seq, dice.choice(("d", "ü", "x" * 300)), [f"p{dice.randrange(50)}"], value)
    chance = dice.random()
    if chance < 0.8:
        return good
    if chance < 0.9:
        body: Any = dice.choice(
            ({}, [], None, {"reason": "evicted"}, {"groups": 1}, {"reason": "evicted", "readings": -1})
        )
        kind = dice.choice(("batch", "gap", "clock"))
        return json.dumps({"type": kind, "stream": stream, "lane": "live", "seq": seq, "last": seq + 3, "body": body})
    if chance < 0.95:
        return json.dumps(
            {"type": "stats", "values": {dice.choice("abc"): dice.choice((1, "x" * 3000, {"a": [1]}, None))}}
        )
    if chance < 0.98:
        return json.dumps({"type": "result", "id": str(dice.random()), "outcome": dice.choice(("ok", "failed"))})
    return dice.choice(
        (good[: dice.randrange(len(good))], good.encode(), '{"type":"bye"}', "[" * 9000, '{"type":"hello"}', "\x00")
    )


def test_messages_at_random_from_a_client_harm_nothing() -> None:
    campaign(1_000)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_messages_at_random_from_a_client_harm_nothing() -> None:
    campaign(10_000)


def test_the_honest_gateway_is_served_while_the_attack_goes_on() -> None:
    """A gateway with a token that floods does not starve the others."""

    async def story() -> None:
        async with scene() as (here, machine):
            await here.add("enemy", here.folder / "enemy-token")
            await here.start_gateway([], machine)
            await here.delivers()
            async with enemy(here) as ws:
                await hello(ws)
                flood = asyncio.create_task(_flood(ws))
                acks = asyncio.create_task(_drain(ws))
                for _ in range(10):
                    await here.delivers()
                assert not flood.done(), flood.result()
                flood.cancel()
                acks.cancel()
            await until(lambda: here.ingest.running, 1, "the sink runs")

    asyncio.run(story())


async def _flood(ws: ClientConnection) -> None:
    before, after = batch("f" * 32, 123456, "flood", [f"p{k}" for k in range(1000)]).split("123456")
    for seq in range(1, 1_000_000):
        await ws.send(f"{before}{seq}{after}")
        await asyncio.sleep(0)  # the machine that the honest gateway asks is in this process too
