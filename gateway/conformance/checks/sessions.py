"""Who speaks first, who may stay: §3 and §4."""

from __future__ import annotations

import asyncio

from gateway.conformance import says
from gateway.conformance.bench import Bench, ident
from gateway.conformance.peer import QUIET_S, Refused
from gateway.conformance.register import Failed, Register

checks = Register()
_HELLO_S = 5.0
_EARLY_S = 0.5
"""What the way there may take off the server's five seconds."""
_LATE_S = 3.0
_WELCOME_S = 2.0


@checks("S1a")
async def hello_comes_first(bench: Bench) -> None:
    for message in (says.stats(), says.batch(bench.stream(), 1)):
        peer = await bench.dial()
        await peer.say(message)
        await peer.closed(1002)


@checks("S1b")
async def a_late_hello_is_not_waited_for(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    peer = await bench.dial()
    began = loop.time()
    await peer.closed(4408, within_s=_HELLO_S + _LATE_S)
    took = loop.time() - began
    if took < _HELLO_S - _EARLY_S:
        raise Failed(f"it waits for {took:.1f} s only")


@checks("S1c")
async def a_second_hello_is_refused(bench: Bench) -> None:
    peer = await bench.session()
    await peer.say(says.hello(bench.process))
    await peer.closed(1002)


@checks("S2b")
async def the_welcome_comes_soon(bench: Bench) -> None:
    peer = await bench.dial()
    await peer.say(says.hello(bench.process, bench.stream()))
    await peer.until(lambda: peer.welcome, "the welcome", _WELCOME_S)


@checks("S4b")
async def after_bye_it_ends_with_1000(bench: Bench) -> None:
    peer = await bench.session()
    await peer.stored(bench.stream(), 1)
    await peer.say({"type": "bye", "reason": "conformance"})
    try:
        while await peer.hear(QUIET_S) is not None:
            pass
    except Failed:
        pass  # it closes first, which is as good
    await peer.ws.close(1000)
    if peer.ws.close_code != 1000:
        raise Failed(f"it closes with {peer.ws.close_code}")


@checks("S5a")
async def the_reason_comes_before_the_close(bench: Bench) -> None:
    peer = await bench.session()
    await peer.say_raw('{"type":"nonsense"}')
    await peer.closed(1007)
    if not peer.errors:
        raise Failed("no `error` came before the close")


@checks("P1a")
async def four_sessions_coexist(bench: Bench) -> None:
    peers = [await bench.session() for _ in range(4)]
    for peer in peers:
        await peer.stored(bench.stream(), 1)


@checks("P1b")
async def a_fifth_session_ends_the_oldest(bench: Bench) -> None:
    oldest, *others = [await bench.session() for _ in range(5)]
    await oldest.closed(1000)
    for peer in others:
        await peer.stored(bench.stream(), 1)


@checks("P2a")
async def a_newer_process_evicts_the_older(bench: Bench) -> None:
    active, standby = await bench.session(), await bench.session(standby=True)
    newer = await bench.session(process=ident())
    await active.closed(4409)
    await standby.closed(4409)
    await newer.stored(bench.stream(), 1)


@checks("P2b")
async def an_evicted_process_stays_away(bench: Bench) -> None:
    evicted = await bench.session()
    newer = await bench.session(process=ident())
    await evicted.closed(4409)
    try:
        again = await bench.dial()
    except Refused as error:
        raise Failed(f"it refuses the connection: {error}") from error
    await again.say(says.hello(bench.process))
    await again.closed(4409)
    await newer.stored(bench.stream(), 1)


@checks("P3")
async def eviction_takes_nothing_back(bench: Bench) -> None:
    stream = bench.stream()
    evicted = await bench.session(stream)
    await evicted.stored(stream, 1, 5)
    newer = await bench.session(stream, process=ident())
    await evicted.closed(4409)
    if newer.welcome["marks"].get(stream, 0) != 5:
        raise Failed(f"5 were acked, the next welcome says {newer.welcome['marks'].get(stream, 0)}")
    await newer.stored(stream, 6)


@checks("P6")
async def a_standby_is_welcomed_like_any_other(bench: Bench) -> None:
    stream = bench.stream()
    active = await bench.session(stream)
    await active.stored(stream, 1, 3)
    standby = await bench.session(stream, standby=True)
    if standby.welcome["sink"] != active.welcome["sink"] or standby.welcome["marks"].get(stream) != 3:
        raise Failed(f"the standby hears of sink {standby.welcome['sink']} and marks {standby.welcome['marks']}")
    active.abort()
    await standby.stored(stream, 4)
