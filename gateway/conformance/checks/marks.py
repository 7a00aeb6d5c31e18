"""Offers and marks, results of commands: §7 and §10."""

from __future__ import annotations

from gateway.conformance import says
from gateway.conformance.bench import Bench, ident
from gateway.conformance.checks.records import marked
from gateway.conformance.register import Failed, Register
from gateway.model import Outcome
from gateway.protocol.messages import MAX_OFFERS

checks = Register()


@checks("M1b")
async def streams_need_no_offer(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session()
    await peer.stored(stream, 1, 2)
    await marked(bench, stream, 2)


@checks("M1c")
async def many_streams_may_be_offered(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(MAX_OFFERS)]
    peer = await bench.session(*streams)
    await peer.stored(streams[-1], 1)


@checks("M2a")
async def the_welcome_gives_the_marks(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(3)]
    peer = await bench.session(*streams)
    for count, stream in enumerate(streams, start=1):
        await peer.stored(stream, 1, count)
    for second in (False, True):
        known = (await bench.session(*streams, second=second)).welcome["marks"]
        for count, stream in enumerate(streams, start=1):
            if known.get(stream, 0) != count:
                raise Failed(f"{count} was acked, the welcome says {known.get(stream, 0)}")


@checks("M2b")
async def an_unknown_stream_has_no_mark(bench: Bench) -> None:
    stream = bench.stream()
    known = (await bench.session(stream)).welcome["marks"].get(stream, 0)
    if known:
        raise Failed(f"a stream that nobody ever sent has mark {known}")


@checks("K5c")
async def a_result_of_an_unknown_command_is_acked(bench: Bench) -> None:
    peer = await bench.session()
    command = f"conformance-{ident()}"
    await peer.say(says.result(command))
    await peer.until(lambda: command in peer.results, "a result_ack")


@checks("K5d")
async def a_result_is_acked_again(bench: Bench) -> None:
    command = f"conformance-{ident()}"
    for _ in range(2):
        peer = await bench.session()
        await peer.say(says.result(command))
        await peer.until(lambda peer=peer: command in peer.results, "a result_ack")  # type: ignore[misc]
        before = len(peer.results)
        await peer.say(says.result(command))
        await peer.until(lambda peer=peer, before=before: len(peer.results) > before, "a second result_ack")  # type: ignore[misc]


@checks("K6a")
async def every_outcome_is_taken(bench: Bench) -> None:
    peer = await bench.session()
    for outcome in Outcome:
        command = f"conformance-{ident()}"
        await peer.say(says.result(command, outcome.value))
        await peer.until(lambda command=command: command in peer.results, f"a result_ack of `{outcome}`")  # type: ignore[misc]
