"""Endpoints that do not speak our protocol: what they are sent, and what each kind of ack promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.codec.path import Path
from gateway.model import ClockState, GapReason, Lane, Record, RecordKind, Row, Shape, Status, Trust
from gateway.protocol import batch
from gateway.protocol.manifest import Manifest
from gateway.protocol.messages import StreamOffer
from gateway.protocol.outputs import Acked, Dead, Hold, Ping, Recovered, Send, Suspect
from gateway.protocol.watch import ABANDON_AFTER_S, Watch
from gateway.testing.relay import Relay
from gateway.uplink.config import AckPath, Endpoint, Speech, promise
from gateway.uplink.plain import READINGS_PER_MESSAGE, PlainSession, sink_of
from tests.uplink.house import running, state_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.sink import Sink, Store

CLOCK = ClockState("b" * 32, 1_763_829_000_000, 3, Trust.SYNCED)
UNSET = ClockState("b" * 32, 17, -1, Trust.UNSYNCED)
METER = Shape("meter-1", ("u", "i"), ("V", "A"))
STREAM = "9b" * 16


def body(*rows: Row, clock: ClockState = CLOCK) -> bytes:
    return batch.encode(rows, clock)


def record(seq: int, kind: RecordKind = RecordKind.BATCH, content: bytes = b"", last: int = 0) -> Record:
    return Record(STREAM, Lane.LIVE, seq, kind, content or body(Row(METER, 1000, (230.1, seq))), 2, last)


def session(ack: str | Path = "none", first: int = 1, next_: int = 100) -> PlainSession:
    made = PlainSession(Manifest(), "wss://h/", "plant-7", ack, Watch())
    made.hello("p", "s", CLOCK, (), {}, 0.0)
    made.activate(0.0)
    made.update([StreamOffer(STREAM, Lane.LIVE, first, next_)])
    return made


def send(plain: PlainSession, *records: Record, now: float = 0.0) -> list[Any]:
    fetch = plain.want()
    assert fetch is not None
    return plain.fetched(fetch, records, now)


def messages(outputs: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(each.frame) for each in outputs if isinstance(each, Send)]


def test_a_batch_is_one_message_that_a_person_can_read() -> None:
    rows = (
        Row(METER, 1123, (230.1, None), (Status.GOOD, Status.COMM_TIMEOUT)),
        Row(METER, 2000, (231.5, 4), None, source_ms=1_763_829_009_999),
    )
    (message,) = messages(send(session(), record(17, content=body(*rows))))
    assert message == {
        "type": "readings",
        "gateway": "plant-7",
        "id": f"{STREAM}:17",
        "n": 1,
        "lane": "live",
        "clock": "synced",
        "readings": [
            {"device": "meter-1", "point": "u", "time": "2025-11-22T16:30:01.123Z", "value": 230.1, "unit": "V",
             "quality": "good"},
            {"device": "meter-1", "point": "i", "time": "2025-11-22T16:30:01.123Z", "value": None, "unit": "A",
             "quality": "bad:comm_timeout"},
            {"device": "meter-1", "point": "u", "time": "2025-11-22T16:30:09.999Z", "value": 231.5, "unit": "V",
             "quality": "good"},
            {"device": "meter-1", "point": "i", "time": "2025-11-22T16:30:09.999Z", "value": 4, "unit": "A",
             "quality": "good"},
        ],
    }  # fmt: skip


def test_a_gap_is_a_message_and_what_means_nothing_to_a_peer_without_streams_is_none() -> None:
    gap = json.dumps({"reason": "evicted", "readings": 480, "since_utc_ms": 1_763_829_000_000}).encode()
    plain = session()
    outputs = send(
        plain, record(1, RecordKind.GAP, gap, last=3), record(4, RecordKind.CLOCK, json.dumps({
            "boot": "b", "offset_ms": 1, "error_ms": 1, "trust": "synced"}).encode()), record(5, RecordKind.END)
    )  # fmt: skip
    (message,) = messages(outputs)
    assert message == {"type": "gap", "gateway": "plant-7", "id": f"{STREAM}:1", "n": 1, "lane": "live",
                       "reason": "evicted", "readings": 480, "device": "", "since": "2025-11-22T16:30:00.000Z",
                       "until": None}  # fmt: skip
    assert [each.seq for each in outputs if isinstance(each, Acked)] == [3, 4, 5]


@pytest.mark.parametrize("kind", [RecordKind.BATCH, RecordKind.GAP, RecordKind.CLOCK])
def test_a_record_that_cannot_be_read_is_told_and_blocks_nothing(kind: RecordKind) -> None:
    """As one of a newer version, after which an older one was installed again."""
    outputs = send(session(), record(1, kind, b'{"reason": "unheard of"}'), record(2))
    assert [each["type"] for each in messages(outputs)] == ["unreadable", "readings"]
    assert [each.seq for each in outputs if isinstance(each, Acked)] == [1, 2]


def test_what_makes_no_message_measures_nothing() -> None:
    """A slow peer that was learnt is not forgotten over a record that it never saw."""
    plain = PlainSession(Manifest(), "wss://h/", "plant-7", "pong", Watch(patience_s=4.0))
    plain.hello("p", "s", CLOCK, (), {}, 0.0)
    plain.activate(0.0)
    plain.update([StreamOffer(STREAM, Lane.LIVE, 1, 2)])
    outputs = send(plain, record(1, RecordKind.END))
    assert [each.seq for each in outputs if isinstance(each, Acked)] == [1]
    assert plain.ack_timeout_s == 4.0


def test_stamps_are_put_right_as_far_as_is_known_when_they_are_sent() -> None:
    plain = PlainSession(Manifest(), "wss://h/", "plant-7", "none", Watch())
    plain.hello("p", "s", UNSET, (), {}, 0.0)
    plain.activate(0.0)
    plain.update([StreamOffer(STREAM, Lane.LIVE, 1, 100)])
    early = record(1, content=body(Row(METER, 1000, (1, 2)), clock=UNSET))
    (before,) = messages(send(plain, early))
    assert (before["clock"], before["readings"][0]["time"]) == ("unsynced", "1970-01-01T00:00:01.017Z")
    known = json.dumps({"boot": "b" * 32, "offset_ms": CLOCK.offset_ms, "error_ms": 3, "trust": "synced"}).encode()
    late = record(3, content=body(Row(METER, 1000, (1, 2)), clock=UNSET))
    (after,) = messages(send(plain, record(2, RecordKind.CLOCK, known), late))
    assert (after["clock"], after["readings"][0]["time"]) == ("synced", "2025-11-22T16:30:01.000Z")


def test_a_large_batch_is_several_messages_and_counts_when_all_have_arrived() -> None:
    rows = [Row(METER, i, (i, i)) for i in range(READINGS_PER_MESSAGE)]
    plain = session("pong")
    outputs = send(plain, record(1, content=body(*rows)))
    said = messages(outputs)
    assert [message["id"] for message in said] == [f"{STREAM}:1.1", f"{STREAM}:1.2"]
    assert sum(len(message["readings"]) for message in said) == 2 * READINGS_PER_MESSAGE
    assert plain.pong(0.1, 2) == []
    assert Acked(STREAM, 1) in plain.pong(0.1, 1)


def test_without_acks_what_was_handed_over_is_delivered() -> None:
    plain = session("none")
    outputs = send(plain, record(1), record(2))
    assert [each.seq for each in outputs if isinstance(each, Acked)] == [1, 2]
    assert not [each for each in outputs if isinstance(each, Ping)]
    assert plain.in_flight == (0, 0)


def test_a_pong_acks_the_message_that_its_ping_followed() -> None:
    plain = session("pong")
    outputs = send(plain, record(1), record(2))
    assert [type(each) for each in outputs] == [Hold, Send, Ping, Send, Ping]
    assert not [each for each in outputs if isinstance(each, Acked)]
    assert Acked(STREAM, 1) in plain.pong(0.1, 1)
    assert plain.pong(0.1, 1) == [], "once"
    assert plain.pong(0.2, 2)[:2] == [Acked(STREAM, 2), Hold(STREAM, 0)]


@pytest.mark.parametrize("by", ["id", "n"])
def test_a_path_names_what_is_acked_by_its_id_or_its_number(by: str) -> None:
    plain = session(Path.of("reply.to"))
    said = messages(send(plain, record(1), record(2)))
    assert plain.receive(json.dumps({"reply": {"to": said[1][by]}}).encode(), 0.1) == [], "the first is missing"
    acks = plain.receive(json.dumps({"reply": {"to": said[0][by]}}).encode(), 0.1)
    assert acks[0] == Acked(STREAM, 2), "acks upwards are cumulative"


@given(
    st.binary(max_size=40) | st.sampled_from([b"[", b'{"ack":true}', b'{"ack":99}', b'{"ack":[1]}', b'{"ack":1e999}'])
)
def test_whatever_a_plain_peer_says_is_no_violation(said: bytes) -> None:
    plain = session(Path.of("ack"))
    send(plain, record(1))
    assert not [each for each in plain.receive(said, 0.1) if isinstance(each, Acked)]


def test_overdue_acks_make_a_suspect_then_a_dead_session_and_late_ones_a_recovered() -> None:
    plain = session("pong")
    send(plain, record(1))
    due = plain.deadline()
    assert due is not None
    assert plain.tick(due) == [Suspect()]
    assert Recovered() in plain.pong(due + 1, 1)
    send(plain, record(2), now=due + 1)
    again = plain.deadline()
    assert again is not None
    assert plain.tick(again) == [Suspect()]
    assert isinstance(plain.tick(again + ABANDON_AFTER_S)[0], Dead)


def test_after_a_gap_comes_what_follows_all_that_it_covers() -> None:
    plain = session("none")
    send(plain, record(1, RecordKind.GAP, b'{"reason":"evicted"}', last=3))
    fetch = plain.want()
    assert fetch is not None
    assert fetch.seq == 4


def test_what_another_sink_has_is_left_out() -> None:
    plain = session("none", first=1)
    assert [m["id"] for m in messages(send(plain, record(5), record(6)))] == [f"{STREAM}:5", f"{STREAM}:6"]
    fetch = plain.want()
    assert fetch is not None
    assert plain.fetched(fetch, [], 0.0) == []
    assert plain.want() is None, "nothing more of it is there"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_in_any_order_of_acks_records_are_freed_in_order_and_all_in_the_end(data: st.DataObject) -> None:
    plain = session(Path.of("ack"), next_=41)
    waiting: list[int] = []
    freed: list[int] = []
    at = 1
    while freed[-1:] != [40]:
        fetch = plain.want()
        if (fetch is not None and data.draw(st.booleans())) or not waiting:
            assert fetch is not None
            assert fetch.seq == at
            count = data.draw(st.integers(1, min(5, 41 - at)))
            said = messages(plain.fetched(fetch, [record(at + i) for i in range(count)], 0.0))
            assert len(said) <= count
            waiting += [message["n"] for message in said]
            at += len(said)
        else:
            n = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            acks = plain.receive(json.dumps({"ack": n}).encode(), 0.1)
            freed += [each.seq for each in acks if isinstance(each, Acked)]
    assert freed == sorted(set(freed))
    assert plain.in_flight == (0, 0)


def test_each_kind_of_ack_says_what_it_promises() -> None:
    def said(**keys: Any) -> str:
        return promise(Endpoint(url="wss://h/", **keys)).split(":")[0]

    assert said() == "exactly once"
    assert said(protocol=Speech.PLAIN, ack="none") == "at most once"
    assert said(protocol=Speech.PLAIN).startswith("at least once")
    assert said(protocol=Speech.PLAIN, ack=AckPath(path="ack")).startswith("at least once")
    assert len({sink_of("ws://a/"), sink_of("ws://b/")}) == 2


# ── over real sockets ────────────────────────────────────────────────────────────────────────────────────────────────


class Listener:
    """A bare WebSocket server: keeps what it is told; `answer` may say something back."""

    def __init__(self, answer: Callable[[ServerConnection, dict[str, Any]], Awaitable[None]] | None = None) -> None:
        self.heard: list[dict[str, Any]] = []
        self.port = 0
        self._answer = answer
        self._server: Server | None = None

    async def __aenter__(self) -> Listener:
        self._server = await serve(self._serve, "127.0.0.1", self.port, ping_interval=None, close_timeout=0.2)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for frame in connection:
                assert isinstance(frame, str)
                self.heard.append(json.loads(frame))
                if self._answer is not None:
                    await self._answer(connection, self.heard[-1])

    def values(self) -> list[int]:
        return [
            each["value"] for message in self.heard if message["type"] == "readings" for each in message["readings"]
        ]


NUMBER = Shape("meter", ("n",), ("1",))


class Rows(MemoryOutbox):
    """Its records are real batches, so that a plain endpoint can read them."""

    def close(self, lane: Lane) -> bool:
        rows, self.rows[lane] = self.rows[lane], []
        if not rows:
            return False
        stream = self.open.get(lane) or self._open(lane)
        stream.add(RecordKind.BATCH, batch.encode([Row(NUMBER, 1000, (value,)) for value in rows], CLOCK))  # type: ignore[arg-type]
        return True


def plain(port: int, name: str = "p", ack: Any = "pong") -> Endpoint:
    return Endpoint(url=f"ws://127.0.0.1:{port}/in", name=name, protocol=Speech.PLAIN, ack=ack)


async def echo_the_number(connection: ServerConnection, message: dict[str, Any]) -> None:
    await connection.send(json.dumps({"ok": message["n"]}))


async def echo_everything(connection: ServerConnection, message: dict[str, Any]) -> None:
    await connection.send(json.dumps(message).encode())


@pytest.mark.parametrize(
    ("ack", "answer"),
    [
        ("none", None),
        ("pong", None),
        (AckPath(path="ok"), echo_the_number),
        (AckPath(path="id"), echo_everything),
    ],
)
def test_a_bare_listener_gets_every_row_once_in_order(ack: Any, answer: Any) -> None:
    async def main() -> None:
        outbox = Rows()
        async with Listener(answer) as listener, running(outbox, plain(listener.port, ack=ack)) as uplink:
            for value in range(300):
                outbox.put(value)
                await asyncio.sleep(0)
            await until(lambda: len(listener.values()) == 300 and not outbox.unacked())
            assert listener.values() == list(range(300))
            assert state_of(uplink, "p") == "active"
            assert "once" in uplink.status()["endpoints"][0]["promise"]
            assert [message["n"] for message in listener.heard] == list(range(1, len(listener.heard) + 1))
            assert set(outbox.held.values()) <= {0}

    asyncio.run(main())


def test_without_acks_nothing_is_given_to_a_connection_that_is_closing() -> None:
    """Between the peer's close and the end of TCP lies a round trip, and what is sent in it goes nowhere."""

    async def close(connection: ServerConnection, message: dict[str, Any]) -> None:
        if len(listener.heard) == 1:
            await connection.close()
            outbox.put(1)

    async def main() -> None:
        async with (
            listener,
            Relay("127.0.0.1", listener.port, delay_s=0.2) as relay,
            running(outbox, plain(relay.port, ack="none")),
        ):
            outbox.put(0)
            await until(lambda: listener.values() == [0, 1])

    outbox, listener = Rows(), Listener(close)
    asyncio.run(main())


def test_a_backlog_in_memory_does_not_hold_the_loop() -> None:
    async def main() -> int:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        outbox = Rows()
        for row in range(300):
            outbox.put(row)
            outbox.close(Lane.LIVE)
        records = next(iter(outbox.streams.values())).records

        async def fetch(stream: str, seq: int, max_bytes: int) -> list[Record]:
            nonlocal turns
            turns = 0 if seq == 1 else turns
            return [records[seq]]

        outbox.fetch = fetch  # type: ignore[method-assign]
        async with Listener() as listener, running(outbox, plain(listener.port, ack="none")):
            other = asyncio.create_task(turn())
            await until(lambda: not outbox.unacked())
            other.cancel()
        return turns

    assert asyncio.run(main()) >= 299


@contextlib.asynccontextmanager
async def behind_a_relay(ack: Any) -> AsyncIterator[tuple[Rows, Relay, Listener, Any]]:
    answer = echo_the_number if isinstance(ack, AckPath) else None
    outbox = Rows()
    async with (
        Listener(answer) as listener,
        Relay("127.0.0.1", listener.port) as relay,
        running(outbox, plain(relay.port, ack=ack)) as uplink,
    ):
        await until(lambda: outbox.up)
        yield outbox, relay, listener, uplink


@pytest.mark.parametrize("ack", ["pong", AckPath(path="ok")])
@pytest.mark.parametrize("fault", ["cut", "black hole"])
def test_with_acks_a_broken_path_loses_nothing_and_may_repeat(ack: Any, fault: str) -> None:
    async def main() -> None:
        async with behind_a_relay(ack) as (outbox, relay, listener, _):
            for value in range(400):
                outbox.put(value)
                outbox.close(Lane.LIVE)
                if value in (100, 200, 300):
                    relay.cut() if fault == "cut" else relay.black_hole()
                    await until(lambda: not outbox.up)
                    await relay.forward()
                await asyncio.sleep(0.001)
            await until(lambda: not outbox.unacked(), 30)
            values = listener.values()
            assert sorted(set(values)) == list(range(400)), "nothing is lost"
            ids = [message["id"] for message in listener.heard]
            assert len(ids) - len(set(ids)) == len(values) - 400, "what came twice has the same id"

    asyncio.run(main())


def test_without_acks_what_is_under_way_in_a_black_hole_is_lost_as_promised() -> None:
    async def main() -> tuple[int, int]:
        async with behind_a_relay("none") as (outbox, relay, listener, _):
            for value in range(50):
                outbox.put(value)
            await until(lambda: len(listener.values()) == 50)
            relay.black_hole()
            for value in range(50, 60):
                outbox.put(value)
                outbox.close(Lane.LIVE)
            await until(lambda: not outbox.unacked())
            relay.cut()
            await until(lambda: not outbox.up)
            await relay.forward()
            outbox.put(60)
            await until(lambda: 60 in listener.values())
            values = listener.values()
            assert len(values) == len(set(values)), "at most once"
            return len(values), 61

    arrived, sent = asyncio.run(main())
    assert arrived == sent - 10


def test_a_plain_endpoint_takes_over_from_a_sink_and_gives_back_to_it() -> None:
    async def main() -> None:
        outbox, store = Rows(keep_acked=False), Store()

        def values() -> list[Any]:
            return [r["body"]["groups"][0]["v"][0] for r in store.records if r["type"] == "batch"]

        async with Listener() as listener, Sink(store) as sink:
            first = Endpoint(url=sink.url, name="a")
            async with running(outbox, first, plain(listener.port)) as uplink:
                await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "p") == "standby")
                outbox.put(1)
                await until(lambda: store.records and not outbox.unacked())
                sink.kill()
                await sink.stop()
                await until(lambda: state_of(uplink, "p") == "active")
                outbox.put(2)
                await until(lambda: listener.values() == [2] and not outbox.unacked())
                await sink.start()
                await listener.__aexit__()
                await until(lambda: state_of(uplink, "a") == "active")
                outbox.put(3)
                await until(lambda: len(values()) == 2)
                assert values() == [[1], [3]]
                reasons = [r["body"]["reason"] for r in store.records if r["type"] == "gap"]
                assert reasons == [GapReason.STORED_ELSEWHERE.value]
                await listener.__aenter__()

    asyncio.run(main())
