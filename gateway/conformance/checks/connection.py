"""Handshake, frames, sizes, pings: §2."""

from __future__ import annotations

import json
import secrets

from gateway.conformance import says
from gateway.conformance.bench import Bench
from gateway.conformance.peer import Peer, Refused
from gateway.conformance.register import Failed, Register
from gateway.protocol.messages import MAX_MESSAGE_BYTES, SUBPROTOCOL

checks = Register()
_OTHER = "conformance.none.v1"
_NOT_HERE = (400, 426)
_NO_ENTRY = (401, 403)


@checks("C1b")
async def the_subprotocol_is_named(bench: Bench) -> None:
    peer = await bench.dial((_OTHER, SUBPROTOCOL))
    if peer.ws.subprotocol != SUBPROTOCOL:
        raise Failed(f"the answer names {peer.ws.subprotocol!r}")


@checks("C1c")
async def another_subprotocol_is_refused(bench: Bench) -> None:
    try:
        peer = await bench.dial((_OTHER,))
    except Refused as error:
        if error.status not in _NOT_HERE:
            raise Failed(f"it refuses with {error}") from error
        return
    await peer.closed(4406)


@checks("C2b")
async def strangers_are_refused(bench: Bench) -> None:
    for who, headers in (("nobody", {}), ("an unknown token", {"Authorization": f"Bearer {secrets.token_hex(24)}"})):
        try:
            peer = await bench.dial(stranger=True, headers=headers)
        except Refused as error:
            by_tls = bench.target.stranger is not None and not error.status
            if not by_tls and error.status not in _NO_ENTRY:
                raise Failed(f"it refuses {who} with {error}") from error
            continue
        await peer.say(says.hello(bench.process))
        try:
            await peer.closed(4401, 4403)
        except Failed as error:
            raise Failed(f"it lets {who} in: {error}") from error


@checks("C5c")
async def unknown_members_are_ignored(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.dial()
    hello = says.hello(bench.process, stream)
    hello["streams"][0]["colour"] = "blue"
    await peer.say({**hello, "colour": {"deep": [1, None]}})
    await peer.until(lambda: peer.welcome, "the welcome")
    content = says.body()
    content["groups"][0]["colour"] = content["colour"] = "blue"
    await peer.say({**says.batch(stream, 1, content), "colour": "blue"})
    await peer.acked(stream, 1)


@checks("C5e")
async def binary_frames_are_refused(bench: Bench) -> None:
    peer = await bench.session()
    await peer.say_raw(json.dumps(says.stats()).encode())
    await peer.closed(1003)


@checks("C5f")
async def unreadable_frames_are_refused(bench: Bench) -> None:
    batch = says.batch(bench.stream(), 1)
    for frame in (
        "{",
        "[]",
        '"stats"',
        "{}",
        '{"type":"nonsense"}',
        '{"type":"stats"}',
        '{"type":"stats","values":7}',
        json.dumps({**batch, "seq": "1"}),
        json.dumps({**batch, "lane": "sideways"}),
        json.dumps({key: value for key, value in batch.items() if key != "stream"}),
    ):
        peer = await bench.session()
        await peer.say_raw(frame)
        await peer.closed(1007)


@checks("C5h")
async def deep_nesting_ends_a_session_at_most(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session()
    await peer.say_raw(says.nested(30))
    await peer.stored(stream, 1)
    await peer.say_raw(says.nested(50_000))
    try:
        await peer.stored(stream, 2)
    except Failed:
        if peer.ws.close_code != 1007:
            raise
    await (await bench.session(stream)).stored(stream, 3 if peer.marks.get(stream) == 2 else 2)


@checks("C6a")
async def the_largest_frame_is_taken(bench: Bench) -> None:
    stream = bench.stream()
    peer = await bench.session()
    await peer.say_raw(says.padded(MAX_MESSAGE_BYTES))
    await peer.stored(stream, 1)


@checks("C6b")
async def a_larger_frame_is_not(bench: Bench) -> None:
    for compress in (False, True):
        peer = await bench.session(compress=compress)
        await peer.say_raw(says.padded(MAX_MESSAGE_BYTES + 1))
        await peer.closed(1009)


@checks("C7b")
async def compression_is_agreed_upon_properly(bench: Bench) -> None:
    """The library refuses an answer that RFC 7692 does not allow; what was agreed upon is then used."""
    stream = bench.stream()
    try:
        peer = await bench.dial(compress=True)
    except Refused as error:
        raise Failed(str(error)) from error
    await peer.say(says.hello(bench.process, stream))
    for seq in range(1, 6):
        await peer.stored(stream, seq)


@checks("C8a")
async def pings_are_answered(bench: Bench) -> None:
    peer: Peer = await bench.session()
    await peer.ping()
