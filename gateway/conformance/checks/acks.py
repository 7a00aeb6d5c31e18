"""What an ack and a nack mean, and when they come: §6 and §8."""

from __future__ import annotations

import asyncio
import statistics

from gateway.conformance import says
from gateway.conformance.bench import Bench
from gateway.conformance.checks.records import marked
from gateway.conformance.peer import Peer
from gateway.conformance.register import Failed, Register

checks = Register()
_SLACK_S = 0.25
"""Beyond the budget and the way there and back: the scheduling of two machines."""
_MOST = 256


@checks("A1a")
async def what_is_acked_is_kept(bench: Bench) -> None:
    stream = bench.stream()
    for seq in range(1, 4):
        peer = await bench.session(stream)
        await peer.stored(stream, seq)
        peer.abort()
        await marked(bench, stream, seq)


@checks("A2a")
async def acks_come_within_the_budget(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    way_s = await peer.ping()
    loop = asyncio.get_running_loop()
    took = []
    for seq in range(1, 6):
        began = loop.time()
        await peer.stored(stream, seq)
        took.append(loop.time() - began)
    budget_s = peer.welcome.get("ack_budget_ms", 100) / 1000
    middle = statistics.median(took)
    if middle > budget_s + way_s + _SLACK_S:
        raise Failed(f"acks take {middle:.3f} s; the budget is {budget_s:g} s, a ping takes {way_s:.3f} s")


@checks("A2b")
async def acks_are_gathered(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    many = _within(peer)
    await peer.stored(stream, 1, many)
    if many > 1 and peer.acks >= many:
        raise Failed(f"{peer.acks} acks for {many} records that came together")


@checks("A3a")
async def acks_go_where_the_records_came_from(bench: Bench) -> None:
    stream = bench.stream()
    one, two = await bench.session(stream), await bench.session(stream)
    await one.stored(stream, 1)
    await two.settle(bench.stream())
    if stream in two.marks:
        raise Failed("the ack came on the other session too")
    await two.stored(stream, 2)


@checks("A5a")
async def one_nack_for_one_hole(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(*(says.batch(stream, seq) for seq in range(3, 9)))
    await peer.nacked(stream, 2)
    await peer.say(says.batch(stream, 9))
    await peer.settle(bench.stream())
    if len(peer.nacks) > 1:
        raise Failed(f"{len(peer.nacks)} nacks for one hole")


@checks("A5b")
async def the_expected_record_ends_the_discarding(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.say(says.batch(stream, 3))
    await peer.nacked(stream, 1)
    await peer.stored(stream, 1, 2)
    await peer.say(says.batch(stream, 5))
    await peer.nacked(stream, 3, so_far=1)
    await peer.say(says.gap(stream, 2, 4))
    await peer.acked(stream, 4)


@checks("A5c")
async def a_duplicate_ends_the_discarding_too(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(says.batch(stream, 3))
    await peer.nacked(stream, 2)
    await peer.say(says.batch(stream, 1), says.batch(stream, 4))
    await peer.nacked(stream, 2, so_far=1)


@checks("W4a")
async def a_full_window_is_taken(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    many = _within(peer)
    await peer.stored(stream, 1, many)
    await marked(bench, stream, many)


def _within(peer: Peer) -> int:
    """Small records that fit the window, as many as there is sense in."""
    window = peer.welcome.get("window", {})
    records, size = int(window.get("batches", 32)), int(window.get("bytes", 1 << 20))
    return max(1, min(records, size // 512, _MOST))
