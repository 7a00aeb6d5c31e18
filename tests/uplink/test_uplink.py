"""The uplink against real servers over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from gateway.errors import StoreError
from gateway.model import Lane, Outcome, Record, Result
from gateway.testing.relay import Relay
from gateway.uplink.config import Endpoint, Standby
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryCommands, MemoryOutbox
from tests.uplink.sink import Sink, Store


def endpoint(port: int, name: str) -> Endpoint:
    return Endpoint(url=f"ws://127.0.0.1:{port}/uplink", name=name)


def test_rows_arrive_once_in_order_and_are_freed() -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        async with Sink(Store()) as sink, running(outbox, endpoint(sink.port, "a")) as uplink:
            for row in range(200):
                outbox.put(row)
                await asyncio.sleep(0)
            await until(lambda: len(sink.store.rows()) == 200 and not outbox.unacked())
            assert sink.store.rows() == list(range(200))
            assert sink.violations == []
            assert outbox.up
            assert state_of(uplink, "a") == "active"
            assert set(outbox.held.values()) == {0}, "nothing is pinned when nothing is in flight"
        assert sink.byes == ["stopping"]
        assert not outbox.up

    asyncio.run(main())


def test_a_row_on_an_idle_link_waits_for_nothing() -> None:
    async def main() -> list[float]:
        outbox, waits = MemoryOutbox(), []
        async with Sink(Store()) as sink, running(outbox, endpoint(sink.port, "a")):
            await until(lambda: outbox.up)
            for row in range(20):
                began = time.monotonic()
                outbox.put(row)
                await until(lambda: not outbox.unacked() and not outbox.rows[Lane.LIVE])
                waits.append(time.monotonic() - began)
        return waits

    assert sorted(asyncio.run(main()))[10] < 0.05


def test_rows_that_come_while_something_is_in_flight_are_gathered_into_one_record() -> None:
    async def main() -> int:
        outbox = MemoryOutbox()
        async with Sink(Store()) as sink, Relay("127.0.0.1", sink.port, delay_s=0.05) as relay:
            async with running(outbox, endpoint(relay.port, "a")):
                await until(lambda: outbox.up)
                for row in range(100):
                    outbox.put(row)
                    await asyncio.sleep(0.001)
                await until(lambda: len(sink.store.rows()) == 100)
            assert sink.store.rows() == list(range(100))
            return len(sink.store.records)

    assert asyncio.run(main()) < 20


def test_a_standby_that_takes_over_after_a_while_sends_new_readings_first() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with (
            Sink(store) as first,
            Sink(store) as second,
            running(outbox, endpoint(first.port, "a"), endpoint(second.port, "b")) as uplink,
        ):
            await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
            outbox.age_s = 6.0
            first.kill()
            await until(lambda: uplink.status()["active"] == "b")
            assert len(outbox.sealed) == 1
            outbox.put(1)
            await until(lambda: store.rows() == [1])

    asyncio.run(main())


def test_the_next_one_waits_too_when_the_one_that_waited_is_lost() -> None:
    """The first is left at its own wish and owes an ack, the second dies waiting: the third must not store it too."""

    async def main() -> None:
        outbox = MemoryOutbox()
        async with Sink(Store("x")) as first, Sink(Store("y")) as second, Sink(Store("z")) as third:
            ends = [endpoint(sink.port, name) for sink, name in ((first, "a"), (second, "b"), (third, "c"))]
            async with running(outbox, *ends) as uplink:
                await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
                first.ack_after_s = 0.6
                outbox.put("once")
                await until(lambda: first.store.rows() == ["once"])
                await first.send({"type": "move", "deadline_ms": 60_000, "spread_ms": 0})
                await until(lambda: uplink.status()["active"] == "b")
                second.kill()
                await until(lambda: uplink.status()["active"] == "c")
                outbox.put("new")
                await until(third.store.rows)
                assert third.store.rows() == ["new"]

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["black hole", "kill", "stopped"])
def test_the_standby_takes_over_quickly_and_nothing_is_stored_twice(fault: str) -> None:
    async def main() -> float:
        outbox, store = MemoryOutbox(), Store()
        async with (
            Sink(store) as first,
            Sink(store) as second,
            Relay("127.0.0.1", first.port) as relay,
            running(outbox, endpoint(relay.port, "a"), endpoint(second.port, "b")) as uplink,
        ):
            await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
            for row in range(50):
                outbox.put(row)
                await asyncio.sleep(0.002)
            await until(lambda: len(store.rows()) == 50)
            match fault:
                case "black hole":
                    relay.black_hole()
                case "kill":
                    first.kill()
                case _:
                    first.silent = first.mute_acks = True
            outbox.put(50)
            took = await until(lambda: not outbox.unacked() and len(store.rows()) == 51)
            for row in range(51, 100):
                outbox.put(row)
            await until(lambda: len(store.rows()) == 100)
            assert uplink.status()["active"] == "b"
            assert store.rows() == list(range(100))
            assert second.hellos[0]["standby"] is True
            assert second.stats[:1] == [{}], "the server is told that this session is active now"
            assert outbox.sealed == [], "one sink: the stream goes on"
            return took

    assert asyncio.run(main()) < 2.5  # 0.7 s on an idle machine


def test_without_a_standby_the_next_endpoint_is_tried_when_acks_are_overdue() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as first, Sink(store) as second, Relay("127.0.0.1", first.port) as relay:
            ends = endpoint(relay.port, "a"), endpoint(second.port, "b")
            async with running(outbox, *ends, standby=Standby.COLD) as uplink:
                outbox.put(1)
                await until(lambda: store.rows() == [1] and not outbox.unacked())
                assert second.hellos == []
                relay.black_hole()
                outbox.put(2)
                await until(lambda: store.rows() == [1, 2] and uplink.status()["active"] == "b")

    asyncio.run(main())


def test_an_endpoint_that_was_away_resumes_where_it_stopped() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        sink = Sink(store)
        await sink.start()
        async with running(outbox, endpoint(sink.port, "a")) as uplink:
            outbox.put(1)
            await until(lambda: store.rows() == [1] and not outbox.unacked())
            await sink.stop(1012)
            await until(lambda: not outbox.up)
            assert "1012" in trouble_of(uplink, "a")
            for row in (2, 3, 4):
                outbox.put(row)
                outbox.close(Lane.LIVE)
            await sink.start()
            await until(lambda: store.rows() == [1, 2, 3, 4] and not outbox.unacked())
        await sink.stop()

    asyncio.run(main())


def test_a_restored_sink_gets_again_what_is_still_held_and_a_gap_for_the_rest() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as sink, running(outbox, endpoint(sink.port, "a")):
            for row in range(10):
                outbox.put(row)
                await until(lambda: not outbox.unacked() and not outbox.rows[Lane.LIVE])
            (stream,) = store.marks
            for number in (1, 2, 3, 4, 5):  # no longer held by the gateway
                del outbox.streams[stream].records[number]
            store.marks[stream] = 2
            del store.records[2:]
            sink.kill()
            await sink.stop()
            await until(lambda: not outbox.up)
            await sink.start()
            outbox.put(10)
            await until(lambda: store.rows() == [0, 1, 5, 6, 7, 8, 9, 10])
            gaps = [(r["seq"], r["last"]) for r in store.records if r["type"] == "gap"]
            assert gaps == [(3, 5)]
            assert outbox.fills == [(store.id, stream, 3, 5)]

    asyncio.run(main())


def test_a_mark_higher_than_anything_sent_ends_the_stream_and_nothing_is_lost() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        own = outbox.open[Lane.LIVE].id
        store.marks[own] = 7
        outbox.put("a")
        outbox.close(Lane.LIVE)
        async with Sink(store) as sink, running(outbox, endpoint(sink.port, "a")):
            outbox.put("b")
            await until(lambda: store.rows() == ["a", "b"])
            assert outbox.distrusted == [own]
            assert store.marks[own] == 7

    asyncio.run(main())


def test_another_sink_gets_a_new_stream_the_rest_of_the_old_one_and_a_gap_of_what_the_first_sink_has() -> None:
    async def main() -> None:
        outbox, north, south = MemoryOutbox(keep_acked=False), Store("n"), Store("s")
        async with (
            Sink(north) as first,
            Sink(south) as second,
            running(outbox, endpoint(first.port, "a"), endpoint(second.port, "b")) as uplink,
        ):
            for row in range(5):
                outbox.put(row)
                await until(lambda: not outbox.unacked() and not outbox.rows[Lane.LIVE])
            (stream,) = north.marks
            await until(lambda: state_of(uplink, "b") == "standby")
            first.mute_acks = True
            outbox.put(5)
            await until(lambda: north.rows() == [0, 1, 2, 3, 4, 5])
            first.kill()
            outbox.put(6)
            await until(lambda: south.rows() == [5, 6] and not outbox.unacked())
            assert outbox.sealed == [stream]
            old = [(r["type"], r["seq"], r.get("last")) for r in south.records if r["stream"] == stream]
            assert old == [("gap", 1, 5), ("batch", 6, None), ("batch", 7, None), ("end", 8, None)]
            assert south.records[0]["body"] == {"reason": "stored_elsewhere", "readings": 0}

    asyncio.run(main())


def test_new_readings_overtake_a_backlog() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        for row in range(300):
            outbox.put(row)
            outbox.close(Lane.LIVE)
        async with (
            Sink(store) as sink,
            Relay("127.0.0.1", sink.port, delay_s=0.02) as relay,
            running(outbox, endpoint(relay.port, "a")),
        ):
            await until(lambda: outbox.up)
            outbox.put("new")
            await until(lambda: len(store.rows()) == 301 and not outbox.unacked())
            assert store.rows().index("new") < 64, "it did not wait for the backlog"
            assert [row for row in store.rows() if row != "new"] == list(range(300))
            assert len(outbox.sealed) == 1

    asyncio.run(main())


def test_alarms_overtake_everything() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        sink = Sink(store)
        sink.window = {"batches": 4, "bytes": 1 << 20}
        for row in range(100):
            outbox.put(row)
            outbox.close(Lane.LIVE)
        outbox.put("fire", Lane.ALARM)
        async with sink, running(outbox, endpoint(sink.port, "a")):
            await until(lambda: "fire" in store.rows())
            assert store.rows().index("fire") == 0
            await until(lambda: len(store.rows()) == 101)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "word"), [(401, "resting"), (403, "resting"), (404, "resting"), (302, "waiting"), (503, "waiting")]
)
def test_http_refusals_rest_or_wait_and_the_other_endpoint_serves(status: int, word: str) -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as first, Sink(store) as second:
            first.status = status, {"Retry-After": "120", "Location": second.url}
            async with running(outbox, endpoint(first.port, "a"), endpoint(second.port, "b")) as uplink:
                outbox.put(1)
                await until(lambda: store.rows() == [1])
                assert state_of(uplink, "a") == word
                assert str(status) in trouble_of(uplink, "a")
                assert len(first.authorizations) == 1, "nobody hammers"
                assert "standby" not in second.hellos[0]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "word"), [(1008, "resting"), (1013, "waiting"), (4403, "resting"), (4406, "resting"), (4409, "resting")]
)
def test_close_codes_rest_or_wait_and_the_other_endpoint_serves(code: int, word: str) -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as first, Sink(store) as second:
            first.on_hello = code, "because"
            async with running(outbox, endpoint(first.port, "a"), endpoint(second.port, "b")) as uplink:
                outbox.put(1)
                await until(lambda: store.rows() == [1])
                await until(lambda: state_of(uplink, "a") == word)
                assert f"{code}: because" in trouble_of(uplink, "a")
                assert len(first.hellos) == 1

    asyncio.run(main())


def test_a_move_is_made_before_the_break() -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with (
            Sink(store) as first,
            Sink(store) as second,
            running(outbox, endpoint(first.port, "a"), endpoint(second.port, "b")) as uplink,
        ):
            await until(lambda: state_of(uplink, "b") == "standby")
            outbox.put(1)
            await until(lambda: store.rows() == [1])
            await first.send({"type": "move", "deadline_ms": 60000, "spread_ms": 0, "reason": "deploy"})
            await until(lambda: first.byes == ["moving as asked"])
            assert uplink.status()["active"] == "b"
            outbox.put(2)
            await until(lambda: store.rows() == [1, 2])

    asyncio.run(main())


def test_commands_reach_the_router_and_results_are_repeated_until_stored() -> None:
    async def main() -> None:
        outbox, commands = MemoryOutbox(), MemoryCommands()
        commands.open_results["old"] = Result("old", Outcome.OK)
        async with Sink(Store()) as sink:
            sink.open_commands = ["old", "lost"]
            async with running(outbox, endpoint(sink.port, "a"), commands=commands):
                await until(lambda: [r["id"] for r in sink.results] == ["old"])
                assert commands.missed == ["old", "lost"]
                order = {"type": "command", "id": "c1", "device": "d", "op": "write", "point": "p", "value": 1.5}
                await sink.send({**order, "ttl_ms": 10_000, "sent_ms": int(time.monotonic() * 1000)})
                await until(lambda: commands.received)
                assert commands.received[0].source == "a"
                assert 5 < commands.received[0].expires_at - time.monotonic() <= 10.1
                commands.finish(Result("c1", Outcome.OK, value=1.5))
                await until(lambda: not commands.open_results)
                assert [r["id"] for r in sink.results] == ["old", "c1"]

    asyncio.run(main())


def test_a_result_does_not_wait_for_a_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server that is faster than the disk, so that the window never fills."""

    async def main() -> None:
        outbox, commands, rows = MemoryOutbox(), MemoryCommands(), 5000
        for row in range(rows):
            outbox.put(row)
            outbox.close(Lane.LIVE)

        async def slow(stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
            await asyncio.sleep(0.002)
            records = outbox.streams[stream].records
            return [records[number] for number in range(seq, seq + 8) if number in records]

        monkeypatch.setattr(outbox, "fetch", slow)
        async with Sink(Store()) as sink, running(outbox, endpoint(sink.port, "a"), commands=commands):
            await until(lambda: sink.store.marks)
            commands.finish(Result("c1", Outcome.OK))
            await until(lambda: sink.results)
            assert len(sink.store.rows()) < rows

    asyncio.run(main())


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"{}", 1003),
        ("nonsense", 1007),
        ('{"type":"surprise"}', 1007),
        ('{"type":"' + "é" * 200 + '"}', 1007),
        ('{"type":"ack","marks":{},"more":' + "[" * 30_000 + "]" * 30_000 + "}", 1007),
        ('{"type":"move","deadline_ms":1' + "0" * 400 + "}", 1007),
        ('{"type":"flow","window":{"batches":-1,"bytes":-1}}', 1007),
        ('{"type":"welcome","sink":"55555555555555555555555555555555","session":"1","marks":{}}', 1002),
        ('{"type":"move","reason":"' + "x" * 65_536 + '"}', 1009),
    ],
)
def test_frames_that_break_the_rules_close_with_the_right_code(frame: bytes | str, code: int) -> None:
    async def main() -> int | None:
        outbox = MemoryOutbox()
        async with Sink(Store()) as sink, running(outbox, endpoint(sink.port, "a")) as uplink:
            await until(lambda: outbox.up)
            (session,) = sink.sessions
            await session.send(frame)
            await until(lambda: state_of(uplink, "a") == "waiting")
            assert uplink.status()["endpoints"][0]["next_attempt_s"] > 50, "nobody hammers"
            await session.wait_closed()
            return session.close_code

    assert asyncio.run(main()) == code


def test_a_server_that_asks_and_does_not_read_fills_no_memory() -> None:
    """Each of its commands is refused with an answer that names it, as long as it may be."""
    sizes: list[int] = []

    async def ask(session: ServerConnection) -> None:
        await session.recv()
        welcome = {"type": "welcome", "sink": "5" * 32, "session": "1", "marks": {}}
        await session.send(json.dumps(welcome))
        for _ in range(1000):
            order = {"type": "command", "id": "x" * 60_000, "device": "d", "op": "write", "ttl_ms": 1, "sent_ms": 1}
            await session.send(json.dumps(order))
            await asyncio.sleep(0)
            carrier = next(iter(uplink._carriers.values()), None)
            if carrier is not None and carrier._link is not None:
                sizes.append(carrier._link._connection.transport.get_write_buffer_size())
            if sizes[-1:] > [8_000_000]:
                break
        done.set()

    async def main() -> None:
        nonlocal uplink
        async with serve(
            ask, "127.0.0.1", 0, subprotocols=[Subprotocol("gateway.uplink.v1")], compression=None, max_queue=1
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with running(MemoryOutbox(), endpoint(port, "a")) as uplink:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(3):
                        await done.wait()

    uplink: Any = None
    done = asyncio.Event()
    asyncio.run(main())
    assert len(sizes) > 1, "it was asked"
    assert max(sizes) < 1_000_000


def test_without_endpoints_it_waits_and_takes_nothing() -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        async with running(outbox) as uplink:
            outbox.put(1)
            await asyncio.sleep(0.05)
            assert uplink.status()["active"] is None
            assert not outbox.up

    asyncio.run(main())


def test_a_backlog_that_the_disk_does_not_give_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        outbox.put("old")
        outbox.seal(Lane.LIVE)
        (backlog,) = outbox.sealed
        fetch, broken = outbox.fetch, True

        async def failing(stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
            if broken and stream == backlog:
                raise StoreError("disk I/O error")
            return await fetch(stream, seq, max_bytes)

        monkeypatch.setattr(outbox, "fetch", failing)
        async with Sink(Store()) as sink, running(outbox, endpoint(sink.port, "a")):
            await until(lambda: outbox.up)
            for number in range(20):
                outbox.put(number)
            await until(lambda: sink.store.rows() == list(range(20)))
            broken = False
            await until(lambda: not outbox.unacked())
            assert sink.store.rows()[-1] == "old"

    asyncio.run(main())
