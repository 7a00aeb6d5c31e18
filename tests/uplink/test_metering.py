"""What an endpoint may spend in a day, how fast a backlog flows, and what the wire really costs."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.buffer.config import BufferSettings
from gateway.model import Lane, Outcome, Result
from gateway.protocol.watch import PING_STANDBY_S
from gateway.uplink.config import Endpoint, WhenSpent
from gateway.uplink.connections import Spending
from gateway.uplink.meter import FILE, SAVE_EVERY_S, Meter, wire_bytes
from gateway.uplink.metering import DAY_S, Budget, Day, Throttle
from tests.uplink.house import running, state_of, until
from tests.uplink.memory import MemoryCommands, MemoryOutbox
from tests.uplink.sink import Sink, Store

W, R, O = Spending.WITHIN, Spending.RESERVE, Spending.OVER  # noqa: E741
NOON_MS = 20_000 * DAY_S * 1000 + DAY_S * 500


@pytest.mark.parametrize(
    ("when_spent", "at_89", "at_90", "at_100"),
    [(WhenSpent.ALARMS_ONLY, W, R, R), (WhenSpent.HOLD, W, R, O), (WhenSpent.GO_ON, W, W, W)],
)
def test_what_is_allowed_follows_what_was_spent(
    when_spent: WhenSpent, at_89: Spending, at_90: Spending, at_100: Spending
) -> None:
    budget = Budget(1000, when_spent, Day(), 0.0)
    for size, expected in ((899, at_89), (1, at_90), (100, at_100)):
        budget.count(size)
        assert budget.look(1.0, NOON_MS) is expected


def test_a_day_ends_at_midnight_utc_or_after_a_day_of_running() -> None:
    def spent(day: Day = Day()) -> Budget:  # noqa: B008
        budget = Budget(1000, WhenSpent.HOLD, day, 0.0)
        budget.count(1000)
        return budget

    trusted = spent()
    assert trusted.look(0.0, NOON_MS) is O
    assert trusted.look(DAY_S / 2 - 1, NOON_MS + DAY_S * 500 - 1000) is O
    assert trusted.look(DAY_S / 2, NOON_MS + DAY_S * 500) is W
    running_only = spent()
    assert running_only.look(DAY_S - 1.0, None) is O
    assert running_only.look(float(DAY_S), None) is W
    restarted = spent(Day(0, None, DAY_S - 10.0))
    assert restarted.look(9.0, None) is O
    assert restarted.look(10.0, None) is W


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["spend", "step", "trust", "restart"]), st.integers(1, 50_000)), max_size=60))
def test_no_clock_that_is_set_and_no_restart_gives_anything_back(steps: list[tuple[str, int]]) -> None:
    """Only a later date, or 24 hours without one, begin a new day."""
    budget, now, utc_ms = Budget(10**9, WhenSpent.HOLD, Day(), 0.0), 0.0, NOON_MS
    trusted, newest, since, used = False, -1, 0.0, 0
    for what, amount in steps:
        match what:
            case "spend":
                budget.count(amount)
                used += amount
            case "step":  # the clock is set, back or forth
                utc_ms += (amount - 25_000) * 10_000
            case "trust":
                trusted = not trusted
            case _:
                budget = Budget(10**9, WhenSpent.HOLD, budget.day(now), now)
        now += amount
        utc_ms += amount * 1000
        budget.look(now, utc_ms if trusted else None)
        date = utc_ms // (DAY_S * 1000)
        if trusted:
            if newest >= 0 and date > newest:
                used, since = 0, now
            newest = date
        elif now >= since + DAY_S:
            used, since, newest = 0, now, -1
        assert budget.used_bytes == used


def test_a_throttle_keeps_its_rate_in_the_mean_and_may_be_overdrawn_by_one_fetch() -> None:
    throttle, now, sent = Throttle(1000, 0.0), 0.0, 0
    while now < 60:
        wait_s = throttle.wait_s(now)
        assert wait_s >= 0
        if wait_s:
            now += wait_s + 1e-9
        else:
            throttle.spend(250)
            sent += 250
    assert sent == pytest.approx(60_000, rel=0.01)
    idle = Throttle(1000, 0.0)
    assert idle.wait_s(3600.0) == 0
    idle.spend(101)
    assert idle.wait_s(3600.0) > 0, "an hour of idling is no hour of credit"


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def endpoint(port: int = 1, name: str = "lte", **keys: object) -> Endpoint:
    return Endpoint(url=f"ws://127.0.0.1:{port}/", name=name, **keys)  # type: ignore[arg-type]


def test_what_was_spent_outlives_the_process_and_is_written_rarely(tmp_path: Path) -> None:
    async def main() -> None:
        ends = (endpoint(daily_budget=1_000_000), endpoint(name="other"))
        meter = Meter(ends, tmp_path, 0.0)
        writes = []
        for second in range(3600):
            meter.count(0, 100)
            meter.count(1, 100)
            await meter.keep(float(second))
            if (tmp_path / FILE).exists():
                writes.append((tmp_path / FILE).read_bytes())
        assert len(set(writes)) == 3600 // SAVE_EVERY_S - 1
        meter.close(3600.0)
        again = Meter(ends, tmp_path, 50.0)
        assert again.status(0) == {"used_bytes": 360_000, "limit_bytes": 1_000_000, "state": "within"}
        assert again.status(1) is None
        assert json.loads((tmp_path / FILE).read_text())["lte"]["age_s"] == 3600.0

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"{", b'{"lte":5}', b"\0" * 100])
def test_a_file_that_cannot_be_read_keeps_nothing_from_starting(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert Meter((endpoint(daily_budget=1_000_000),), tmp_path, 0.0).status(0) is not None
    Meter((endpoint(daily_budget=1_000_000),), tmp_path / "none", 0.0).close(1.0)


def test_status_and_log_say_what_is_held_and_when_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    meter = Meter((endpoint(daily_budget=1_000_000, when_spent=WhenSpent.HOLD),), tmp_path, 0.0)
    for size in (900_000, 100_000):
        meter.count(0, size)
        meter.look(1.0, NOON_MS)
        meter.look(2.0, NOON_MS)
    meter.look(3.0, NOON_MS + DAY_S * 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "uplink: lte: 0.9 MB of 1MB are used today, only alarms and results of commands go out",
        "uplink: lte: 1.0 MB of 1MB are used today, nothing goes out",
        "uplink: lte: a new day, readings go out again",
    ]


# ── over real sockets ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_counted_is_what_the_kernel_moved() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            before = wire_bytes(client)
            client.sendall(b"x" * 50_000)
            assert len(peer.recv(50_000, socket.MSG_WAITALL)) == 50_000
            peer.sendall(b"y" * 20_000)
            assert len(client.recv(20_000, socket.MSG_WAITALL)) == 20_000
            deadline = time.monotonic() + 5
            while wire_bytes(client) - before < 70_000 and time.monotonic() < deadline:
                time.sleep(0.01)
            cost = wire_bytes(client) - before
            assert 70_000 < cost < 70_000 + 200 * 52, "the payload, and headers for some packets"
    assert wire_bytes(client) == 0, "a closed one says nothing"


def test_a_spent_budget_holds_readings_lets_alarms_through_and_turns_to_an_unmetered_endpoint(tmp_path: Path) -> None:
    async def main() -> None:
        outbox, store, commands = MemoryOutbox(), Store(), MemoryCommands()
        async with Sink(store) as dear, Sink(store) as free:
            port = free.port
            await free.stop()
            ends = (endpoint(dear.port, metered=True, daily_budget=100_000), endpoint(port, "free"))
            async with running(outbox, *ends, commands=commands) as uplink:
                await until(lambda: state_of(uplink, "lte") == "active")
                assert outbox.patient, "fewer messages"
                for number in range(2000):
                    outbox.put(f"{number} " + "".join(chr(33 + (number * i * i) % 90) for i in range(200)))
                    if number % 10 == 0:
                        outbox.close(Lane.LIVE)
                        outbox.wake()
                    if uplink.status()["endpoints"][0]["budget"]["used_bytes"] > 90_000:
                        break
                    await asyncio.sleep(0.002)
                await until(lambda: not outbox.up)
                status = uplink.status()["endpoints"][0]
                assert status["budget"]["state"] == "alarms and results only"
                assert status["state"] == "active"
                outbox.put("held")
                outbox.close(Lane.LIVE)
                outbox.put("fire", Lane.ALARM)
                commands.finish(Result("c1", Outcome.OK))
                await until(lambda: "fire" in store.rows() and dear.results)
                assert "held" not in store.rows()
                await free.start()
                await until(lambda: uplink.status()["active"] == "free", 45)
                await until(lambda: "held" in store.rows())

    asyncio.run(main())


def test_what_is_held_is_held_on_a_new_connection_too_and_all_is_left_when_all_is_spent(tmp_path: Path) -> None:
    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        day = int(time.time()) // DAY_S
        used = {"lte": {"used_bytes": 95_000, "date": day, "age_s": 0.0}}
        (tmp_path / FILE).write_text(json.dumps(used))
        async with Sink(store) as sink:
            end = endpoint(sink.port, daily_budget=100_000, when_spent=WhenSpent.HOLD)
            async with running(outbox, end, state_dir=tmp_path, trusted=True) as uplink:
                await until(lambda: state_of(uplink, "lte") == "active")
                outbox.put("held")
                outbox.close(Lane.LIVE)
                outbox.put("fire", Lane.ALARM)
                await until(lambda: store.rows() == ["fire"])
                sink.sessions[0].transport.abort()
                await until(lambda: len(sink.hellos) == 2 and state_of(uplink, "lte") == "active")
                for number in range(100):
                    outbox.put(f"{number} still burning", Lane.ALARM)
                    await asyncio.sleep(0.01)
                    if not sink.sessions:
                        break
                await until(lambda: sink.byes == ["the data budget of the day is spent"])
                assert "held" not in store.rows()
                assert uplink.status()["endpoints"][0]["budget"]["state"] == "spent"
                hellos = len(sink.hellos)
                await asyncio.sleep(0.5)
                assert len(sink.hellos) == hellos, "nor is it tried again"
        kept = json.loads((tmp_path / FILE).read_text())["lte"]
        assert kept["used_bytes"] >= 100_000
        assert kept["date"] == day

    asyncio.run(main())


def test_new_readings_are_not_held_back_by_the_rate_of_a_backlog() -> None:
    async def main() -> tuple[float, float]:
        outbox, store = MemoryOutbox(), Store()
        for number in range(300):
            outbox.put(number)
            outbox.close(Lane.LIVE)
        slowest = 0.0
        async with Sink(store) as sink, running(outbox, endpoint(sink.port, backfill_rate=100)):
            await until(lambda: outbox.up)
            began = time.monotonic()
            while len(store.rows()) < 250:
                put_at = time.monotonic()
                name = f"new {put_at}"
                outbox.put(name)
                await until(lambda name=name: name in store.rows()[-40:])
                slowest = max(slowest, time.monotonic() - put_at)
                await asyncio.sleep(0.1)
            old = [row for row in store.rows() if isinstance(row, int)]
            assert old == list(range(len(old)))
            return len(old) / (time.monotonic() - began), slowest

    rate, slowest = asyncio.run(main())
    assert 50 <= rate <= 130, "a hundred a second, and what one fetch overdraws"
    assert slowest < 0.5


def test_a_backlog_that_is_held_to_a_rate_sets_one_timer() -> None:
    async def main() -> int:
        outbox, store = MemoryOutbox(), Store()
        for number in range(100):
            outbox.put(number)
            outbox.close(Lane.LIVE)
        outbox.seal(Lane.LIVE)
        async with Sink(store) as sink, running(outbox, endpoint(sink.port, backfill_rate=1)):
            await until(store.rows)
            for number in range(200):
                outbox.put(f"new {number}")
                await until(lambda: not outbox.rows[Lane.LIVE])
            scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            return len([timer for timer in scheduled if not timer.cancelled()])

    assert asyncio.run(main()) < 30


def test_what_has_waited_for_the_next_day_does_not_hold_up_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        nonlocal allowed
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as sink, running(outbox, endpoint(sink.port, daily_budget=1_000_000)):
            outbox.put("fire", Lane.ALARM)
            await until(lambda: store.rows() == ["fire"])
            assert outbox.sealed == []
            outbox.put("old")
            outbox.close(Lane.LIVE)
            outbox.age_s = 3600.0
            allowed = Spending.WITHIN
            outbox.put("out", Lane.ALARM)
            await until(lambda: outbox.sealed)
            await until(lambda: "old" in store.rows())

    allowed = Spending.RESERVE
    monkeypatch.setattr(Budget, "look", lambda *_: allowed)
    asyncio.run(main())


def test_a_disk_that_hangs_over_the_count_holds_up_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outbox = MemoryOutbox()
        async with (
            Sink(Store()) as sink,
            running(outbox, endpoint(sink.port, daily_budget=1_000_000), state_dir=tmp_path, random=lambda: 0.5),
        ):
            outbox.put(1)
            try:
                await until(hanging.is_set)
                sink.sessions[0].transport.abort()
                await until(lambda: len(sink.hellos) == 2)
            finally:
                released.set()

    hanging, released = threading.Event(), threading.Event()

    def hang(_file: int) -> None:
        hanging.set()
        released.wait(30)

    monkeypatch.setattr("gateway.uplink.meter.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("gateway.uplink.uplink.SAVE_EVERY_S", 0.05)
    monkeypatch.setattr("gateway.uplink.meter.os.fsync", hang)
    asyncio.run(main())


def test_a_metered_endpoint_is_pinged_below_what_networks_forget_and_messages_gather_for_half_of_commit_after() -> None:
    metered, plain = endpoint(metered=True), endpoint()
    assert plain.ping_s < metered.ping_s < 60 < PING_STANDBY_S * 2
    assert endpoint(metered=True, ping_interval=100.0).ping_s == 100.0
    assert BufferSettings().commit_after / 2 > BufferSettings().linger
