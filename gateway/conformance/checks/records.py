"""What is stored, what is not, and what is a violation: §5."""

from __future__ import annotations

import json

from gateway.conformance import says
from gateway.conformance.bench import Bench
from gateway.conformance.peer import Peer
from gateway.conformance.register import Failed, Register, Unseen
from gateway.protocol.messages import MAX_BATCH_BYTES, MAX_BATCH_READINGS

checks = Register()


async def marked(bench: Bench, stream: str, mark: int, second: bool = False) -> Peer:
    """A new session whose welcome gives this mark. Raises Failed: it gives another."""
    peer = await bench.session(stream, second=second)
    known = peer.welcome["marks"].get(stream, 0)
    if known != mark:
        raise Failed(f"the next welcome gives mark {known} instead of {mark}")
    return peer


@checks("R2a")
async def what_continues_is_stored(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1, 2)
    await peer.say(says.clock_record(stream, 3), says.gap(stream, 4, 9), says.end(stream, 10))
    await peer.acked(stream, 10)
    await marked(bench, stream, 10)


@checks("R2b")
async def what_repeats_is_acked_and_nothing_else(bench: Bench) -> None:
    stream = bench.stream()
    one, two = await bench.session(stream), await bench.session(stream, second=True)
    await one.stored(stream, 1, 3)
    await one.say(says.batch(stream, 3), says.batch(stream, 2))
    for seq in (1, 2, 3):
        await two.say(says.batch(stream, seq))
    await two.acked(stream, 3)
    before = one.acks
    await one.say(says.gap(stream, 2, 3))
    await one.until(lambda: one.acks > before, "an ack of what is repeated")
    await marked(bench, stream, 3, second=True)
    await one.stored(stream, 4)
    if one.nacks or two.nacks:
        raise Failed("a nack of what was stored already")
    await marked(bench, stream, 4)


@checks("R2c")
async def of_a_gap_the_rest_is_taken(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1, 3)
    await peer.say(says.gap(stream, 2, 5))
    await peer.acked(stream, 5)
    await peer.stored(stream, 6)
    await marked(bench, stream, 6)


@checks("R2d")
async def nothing_is_stored_beyond_a_hole(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(says.batch(stream, 3))
    await peer.nacked(stream, 2)
    await peer.settle(bench.stream())
    if peer.marks[stream] != 1:
        raise Failed(f"an ack of {peer.marks[stream]}, although 2 is missing")
    again = await marked(bench, stream, 1)
    await again.say(says.gap(stream, 3, 5))
    await again.nacked(stream, 2)
    await again.stored(stream, 2)


@checks("R3a")
async def poison_blocks_nothing(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    bad_columns = says.body()
    bad_columns["groups"][0]["v"] = [[1, 2, 3]]
    await peer.say(
        says.batch(stream, 1, {}),
        says.batch(stream, 2, "no body"),
        says.batch(stream, 3, bad_columns),
        says.gap(stream, 4, 5, reason="conformance"),
        {**says.clock_record(stream, 6), "body": {"boot": 7}},
    )
    await peer.acked(stream, 6)
    await peer.stored(stream, 7)
    await marked(bench, stream, 7)


@checks("R3b")
async def too_many_readings_are_poison(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.say(says.batch(stream, 1, says.body(rows=MAX_BATCH_READINGS + 1)))
    await peer.acked(stream, 1)
    await peer.stored(stream, 2)


@checks("R4a")
async def the_largest_body_is_taken(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    room = MAX_BATCH_BYTES - len(json.dumps(says.body(text="x"), separators=(",", ":")))
    await peer.say(says.batch(stream, 1, says.body(text="x" * (room + 1))))
    await peer.acked(stream, 1)


@checks("R4b")
async def the_most_readings_are_taken(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.say(says.batch(stream, 1, says.body(rows=MAX_BATCH_READINGS // 64, points=64)))
    await peer.acked(stream, 1)


@checks("R5a")
async def a_stream_keeps_its_lane(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(says.batch(stream, 2, lane="alarm"))
    await peer.closed(4410)
    await marked(bench, stream, 1)


@checks("R5b")
async def nothing_follows_an_end(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(says.end(stream, 2))
    await peer.acked(stream, 2)
    await peer.say(says.batch(stream, 3))
    await peer.closed(4410)
    await marked(bench, stream, 2)


@checks("R5c")
async def an_ended_stream_may_repeat(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session(stream)
    await peer.stored(stream, 1)
    await peer.say(says.end(stream, 2))
    await peer.acked(stream, 2)
    again = await marked(bench, stream, 2)
    await again.say(says.batch(stream, 1), says.end(stream, 2))
    await again.acked(stream, 2)


@checks("R5d")
async def records_that_cannot_be_are_refused(bench: Bench) -> None:
    stream = bench.stream()
    for record in (says.batch(stream, 0), says.gap(stream, 5, 4), says.batch("x" * 32, 1), says.batch("ab", 1)):
        peer = await bench.session()
        await peer.say(record)
        await peer.closed(1002)


@checks("R6b")
async def marks_outlive_the_server(bench: Bench) -> None:
    """`bench.remembered` is what an earlier run was acked."""
    if not bench.remembered:
        raise Unseen("run it twice with the same --memory FILE, and restart the server in between")
    streams = list(bench.remembered)
    peer = await bench.session(*streams)
    for stream, mark in bench.remembered.items():
        known = peer.welcome["marks"].get(stream, 0)
        if known < mark:
            raise Failed(f"{mark} was acked in an earlier run, the welcome says {known}")
