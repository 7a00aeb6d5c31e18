"""UTC from the servers, where NTP is blocked: what is believed, to what error, and what becomes of the stamps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import DRIFT_PPM, SystemClock, told
from gateway.ingest.config import Settings
from gateway.ingest.server import running as serving
from gateway.ingest.tokens import Role
from gateway.model import ClockState, Row, Shape, Trust
from gateway.normalise.timebase import Timebase
from gateway.testing.loop import BOOT
from gateway.uplink.config import Endpoint, UplinkSettings
from gateway.uplink.servertime import CONFIRM_AFTER_S, SERVER_ERROR_MS, ServerTime
from gateway.uplink.uplink import About, Uplink
from tests.uplink.house import until
from tests.uplink.memory import MemoryCommands

OFFSET_MS = 1_795_000_000_000
"""UTC − boot time, in truth."""
HOUR_MS, YEAR_MS = 3_600_000, 365 * 86_400_000


def says(boot_s: float, lie_ms: float = 0.0, rtt_s: float = 0.1, at: float = 0.5) -> int:
    """What a server wrote at a moment between hello and welcome."""
    return round(OFFSET_MS + (boot_s - rtt_s * (1 - at)) * 1000 + lie_ms)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.floats(0, 2),
            st.floats(0, 1),
            st.floats(-1, 1),
            st.floats(0, 86_400),
            st.floats(-1, 1),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_true_offset_is_within_the_stated_error_whenever_servers_are_within_theirs(
    welcomes: list[tuple[int, float, float, float, float, float]],
) -> None:
    """Also with an oscillator that is as bad as is assumed."""
    server, boot_s, drift_ms = ServerTime(), 1000.0, 0.0
    for endpoint, rtt_s, at, off, later_s, ppm in welcomes:
        boot_s += later_s
        drift_ms += later_s * DRIFT_PPM / 1000 * ppm
        lie_ms = off * (SERVER_ERROR_MS - 1) + drift_ms
        heard = server.heard(endpoint, says(boot_s, lie_ms, rtt_s, at), rtt_s, boot_s)
        assert heard.complaint == ""
        assert heard.error_ms is not None
        assert abs(heard.offset_ms - OFFSET_MS - drift_ms) <= heard.error_ms + 1


def test_endpoints_that_agree_narrow_it_down_and_time_widens_it() -> None:
    server = ServerTime()
    alone = server.heard(0, says(1000.0, -900), 0.1, 1000.0)
    both = server.heard(1, says(1000.0, 900), 0.1, 1000.0)
    assert alone.error_ms == pytest.approx(SERVER_ERROR_MS + 50, abs=2)
    assert both.error_ms == pytest.approx(150, abs=2)
    later = told(BOOT, both.offset_ms, both.error_ms or 0, 0, 86_400 * 10**9)
    assert later.error_ms == pytest.approx(150 + 43_200, abs=3), "500 ppm of a day"
    assert later.trust is Trust.SERVER


def test_of_two_that_disagree_by_an_hour_the_first_is_believed_until_a_third_decides() -> None:
    server = ServerTime()
    server.heard(1, says(1000.0, HOUR_MS), 0.1, 1000.0)
    second = server.heard(0, says(1001.0), 0.1, 1001.0)
    assert second.offset_ms == pytest.approx(OFFSET_MS + HOUR_MS, abs=60)
    assert second.complaint == "it contradicts the time that is believed"
    third = server.heard(2, says(1002.0), 0.1, 1002.0)
    assert third.complaint == ""
    assert third.offset_ms == pytest.approx(OFFSET_MS, abs=60)


def test_a_server_that_jumps_by_a_year_is_ignored_unless_it_says_so_again_later() -> None:
    server = ServerTime()
    server.heard(0, says(1000.0), 0.1, 1000.0)
    for later_s in (1.0, 2.0, CONFIRM_AFTER_S):
        jumped = server.heard(0, says(1000.0 + later_s, YEAR_MS), 0.1, 1000.0 + later_s)
        assert jumped.complaint == "it contradicts what it said before"
        assert jumped.offset_ms == pytest.approx(OFFSET_MS, abs=60)
    back = server.heard(0, says(3000.0), 0.1, 3000.0)
    assert (back.complaint, back.offset_ms) == ("", pytest.approx(OFFSET_MS, abs=60))
    for later_s in (4000.0, 4000.0 + CONFIRM_AFTER_S):
        jumped = server.heard(0, says(later_s, YEAR_MS), 0.1, later_s)
    assert (jumped.complaint, jumped.offset_ms) == ("", pytest.approx(OFFSET_MS + YEAR_MS, abs=60))


@pytest.mark.parametrize("utc_ms", [1, 946_684_800_000, 2**53, -(2**53)])
def test_what_is_no_time_of_today_is_no_time(utc_ms: int) -> None:
    server = ServerTime()
    assert server.heard(0, utc_ms, 0.1, 1000.0).error_ms is None
    server.heard(1, says(1000.0), 0.1, 1000.0)
    assert server.heard(0, utc_ms, 0.1, 1000.0).offset_ms == pytest.approx(OFFSET_MS, abs=60)


def test_the_systems_clock_never_gives_way_to_a_server_once_it_was_synchronised(tmp_path: Path) -> None:
    mark = tmp_path / "synchronized"
    clock = SystemClock(mark)
    if clock.state().trust is not Trust.UNSYNCED:
        pytest.skip("this machine's clock is synchronised")
    clock.learn(OFFSET_MS, 70)
    assert (clock.state().trust, clock.state().offset_ms) == (Trust.SERVER, OFFSET_MS)
    assert 70 <= clock.state().error_ms <= 72
    mark.touch()
    assert clock.state().trust is Trust.SYNCED
    assert abs(clock.state().offset_ms - OFFSET_MS) > 1000, "its own"
    mark.unlink()
    assert clock.state().trust is Trust.HOLDOVER


def test_only_a_server_that_is_known_by_its_certificate_or_is_this_machine_is_believed() -> None:
    assert Endpoint(url="wss://far.example/").trusted_time
    assert Endpoint(url="ws://127.0.0.1:1/").trusted_time
    assert not Endpoint(url="ws://far.example/").trusted_time


# ── the whole way: a boot without NTP, a real server, its store ──────────────────────────────────────────────────────


class Adjustable:
    """A clock that was never set, until somebody does; or a server's, which is off by so much."""

    def __init__(self, off_ms: int = 0, synced: bool = True) -> None:
        self.off_ms = off_ms
        self.synced = synced
        self._told: tuple[int, int, int] | None = None

    def monotonic(self) -> float:
        return time.monotonic()

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def utc_ms(self) -> int:
        return OFFSET_MS + self.boot_ns() // 1_000_000 + self.off_ms

    def learn(self, offset_ms: int, error_ms: int) -> None:
        self._told = offset_ms, error_ms, self.boot_ns()

    def state(self) -> ClockState:
        if self.synced:
            return ClockState(BOOT, OFFSET_MS, 1, Trust.SYNCED)
        return told(BOOT, *self._told, self.boot_ns()) if self._told else ClockState(BOOT, 17, -1, Trust.UNSYNCED)


SHAPE = Shape("meter", ("n",), ("1",))


@contextlib.asynccontextmanager
async def plant(home: Path, *servers: Adjustable, use: bool = True) -> AsyncIterator[tuple[Buffer, Adjustable, Uplink]]:
    """A gateway whose clock nobody sets, and for each server's clock a server with a store of its own."""
    clock = Adjustable(synced=False)
    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for number, each in enumerate(servers):
            folder = home / f"sink{number}"
            server = await stack.enter_async_context(serving(Settings(folder, listen=(("127.0.0.1", 0),)), each))
            token = home / f"token{number}"
            token.touch(mode=0o600)
            token.write_text(await server.committer.call(server.tokens.add, "gw-1", Role.GATEWAY, 0))
            port = server.addresses[0][1]
            ends.append(Endpoint(url=f"ws://127.0.0.1:{port}/", name=f"e{number}", token_file=token))
        (home / "run").mkdir()
        buffer = await Buffer.open(BufferSettings(), home / "data", clock, home / "run")
        uplink = Uplink(
            UplinkSettings(endpoint=tuple(ends), use_server_time=use), buffer, MemoryCommands(), clock, About("test"),
            random.Random(1).random,
        )  # fmt: skip
        tasks = [asyncio.create_task(each) for each in (buffer.run(), uplink.run(), look(clock, buffer))]
        try:
            yield buffer, clock, uplink
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await buffer.drain()
            await buffer.release()


async def look(clock: Adjustable, buffer: Buffer) -> None:
    """As the daemon does every few seconds."""
    timebase = Timebase()
    while True:
        state = clock.state()
        buffer.clock(state, record=timebase.observe(state) is not None)
        await asyncio.sleep(0.02)


def stamps(home: Path, number: int = 0) -> list[tuple[int, int, str]]:
    """Value, stamp and trust of every row in a store."""
    file = next((home / f"sink{number}").glob("*.db"))
    with contextlib.closing(sqlite3.connect(file)) as db:
        return [tuple(row) for row in db.execute("SELECT value, ts_ms, clock FROM readings ORDER BY id")]


def row(clock: Adjustable, value: int) -> tuple[Row, int]:
    at_ms = clock.boot_ns() // 1_000_000
    return Row(SHAPE, at_ms, (value,)), at_ms + OFFSET_MS


def test_a_boot_without_ntp_gets_right_stamps_from_the_server_and_better_ones_from_ntp(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, Adjustable(off_ms=400)) as (buffer, clock, _):
            true = {}
            for value in range(3):  # before anybody says what time it is
                made, true[value] = row(clock, value)
                await buffer.append([made])
            await until(lambda: len(stamps(tmp_path)) == 3 and {t for _, _, t in stamps(tmp_path)} == {"server"})
            error_ms = clock.state().error_ms
            assert 400 < error_ms < 400 + SERVER_ERROR_MS
            assert all(abs(ts_ms - true[value]) <= error_ms for value, ts_ms, _ in stamps(tmp_path))
            made, true[3] = row(clock, 3)
            await buffer.append([made])
            await until(lambda: len(stamps(tmp_path)) == 4)
            assert stamps(tmp_path)[3][1:] == (pytest.approx(true[3], abs=error_ms), "server")
            clock.synced = True
            await until(lambda: {t for _, _, t in stamps(tmp_path)} == {"synced"})
            assert [(value, ts_ms) for value, ts_ms, _ in stamps(tmp_path)] == list(true.items()), "all four, exactly"

    asyncio.run(main())


def test_of_two_endpoints_an_hour_apart_one_is_believed_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with plant(tmp_path, Adjustable(), Adjustable(off_ms=HOUR_MS)) as (buffer, clock, uplink):
            await until(lambda: [each["state"] for each in uplink.status()["endpoints"]] == ["active", "standby"])
            assert abs(clock.state().offset_ms - OFFSET_MS) <= clock.state().error_ms
            made, true = row(clock, 1)
            await buffer.append([made])
            await until(lambda: len(stamps(tmp_path)) == 1)
            # it may have left before the buffer looked at the clock; then a clock record puts it right
            await until(lambda: abs(stamps(tmp_path)[0][1] - true) <= clock.state().error_ms)

    caplog.set_level(logging.WARNING, "gateway.uplink.uplink")
    asyncio.run(main())
    assert "the time of e1 is not believed: it contradicts the time that is believed" in caplog.text


def test_switched_off_the_servers_time_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with plant(tmp_path, Adjustable(), use=False) as (buffer, clock, _):
            await buffer.append([row(clock, 1)[0]])
            await until(lambda: len(stamps(tmp_path)) == 1)
            assert clock.state().trust is Trust.UNSYNCED
            assert stamps(tmp_path)[0][2] == "unsynced"

    asyncio.run(main())
