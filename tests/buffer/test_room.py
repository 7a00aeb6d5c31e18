"""How large the store becomes: each lane has its room, the file system its floor, alarms and results their reserve."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.buffer import store as store_module
from gateway.buffer.config import WhenFull
from gateway.buffer.retention import Bounds, Bytes, Space, Usage, bounds, fits, plan, refused
from gateway.model import GapReason, Lane
from gateway.testing.loop import run
from tests.buffer.world import ALARM, LIVE, Machine, Sink, deliver, row

MB = 1_000_000
sizes = st.integers(0, 40 * MB)


# ── the arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(readings=sizes, alarms=sizes, more_readings=sizes, more_alarms=sizes, whole=st.integers(1, 40 * MB))
def test_a_plan_makes_room_and_neither_lane_eats_what_is_the_others(
    readings: int, alarms: int, more_readings: int, more_alarms: int, whole: int
) -> None:
    limit = Bounds(whole * 3 // 4, whole)
    usage = [Usage("r", Lane.LIVE, readings), Usage("a", Lane.ALARM, alarms)]
    incoming = Bytes(more_readings, more_alarms)
    cut = {each.stream: each.bytes for each in plan(usage, readings + alarms, incoming, limit)}
    left = {lane: size - cut.get(lane, 0) for lane, size in (("r", readings), ("a", alarms))}
    assert min(left.values()) >= 0
    if more_readings <= limit.readings:
        assert left["r"] + more_readings <= limit.readings
    if more_readings <= limit.readings and more_alarms <= whole - limit.readings:
        assert left["r"] + left["a"] + more_readings + more_alarms <= whole
    reserve = whole - limit.readings
    if alarms + more_alarms <= reserve:
        assert left["a"] == alarms, "readings never push an alarm out of its reserve"
    if readings + more_readings <= limit.readings:
        assert left["r"] == readings, "alarms never push readings out"


def test_the_bounds_follow_the_settings_until_the_file_system_runs_low() -> None:
    plenty = bounds(Space(0, 0, 10_000 * MB), 512 * MB, 16 * MB, 64 * MB)
    assert plenty == Bounds(496 * MB, 512 * MB)
    assert bounds(Space(0, 0, 10_000 * MB), MB, 16 * MB, 64 * MB) == Bounds(MB * 3 // 4, MB)
    low = bounds(Space(100 * MB, 10 * MB, 70 * MB), 512 * MB, 16 * MB, 64 * MB)
    assert low == Bounds(116 * MB, 148 * MB), "alarms may use half of the floor, results of commands the rest"
    none = bounds(Space(100 * MB, 0, 0), 512 * MB, 16 * MB, 64 * MB)
    assert none == Bounds(64 * MB, 68 * MB), "for others who fill the disk it shrinks to an eighth and no further"


def test_below_the_floor_the_file_does_not_grow_but_its_empty_pages_are_used() -> None:
    floor = 64 * MB
    assert fits(Space(MB, 0, 64 * MB + 1000), Bytes(1000, 0), floor)
    assert not fits(Space(MB, 0, 64 * MB), Bytes(1000, 0), floor)
    assert fits(Space(MB, 1000, 0), Bytes(1000, 0), floor)
    assert fits(Space(MB, 0, 33 * MB), Bytes(0, 1000), floor)
    assert not fits(Space(MB, 0, 32 * MB), Bytes(0, 1000), floor)


def test_what_is_refused_depends_on_the_lane() -> None:
    usage = [Usage("r", Lane.LIVE, 700), Usage("a", Lane.ALARM, 50)]
    limit = Bounds(750, 1000)
    assert refused(usage, 750, Bytes(100, 0), limit)
    assert not refused(usage, 750, Bytes(0, 100), limit)
    assert refused(usage, 750, Bytes(0, 300), limit)


# ── the store ────────────────────────────────────────────────────────────────────────────────────────────────────────


class FileSystem:
    """What `statvfs` says. Only what the store asks is faked: the file is a real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        monkeypatch.setattr(store_module.os, "statvfs", self._statvfs)

    def _statvfs(self, _: Any) -> Any:
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)


async def fill(machine: Machine, numbers: range, shape: Any = LIVE) -> None:
    dice = random.Random(numbers.start)
    for number in numbers:
        await machine.buffer.append([row(number, shape, text=dice.randbytes(4000).hex())])
        await asyncio.sleep(0.6)


def test_at_the_floor_readings_stay_in_memory_alarms_go_to_disk_and_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        system = FileSystem(monkeypatch, 40 * MB)  # below the floor, above its half
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await fill(machine, range(5))
        stats = buffer.stats()
        assert stats["mode"] == "degraded"
        assert "floor" in stats["why"]
        assert stats["commits"] == 0
        await buffer.append([row(100, ALARM)])
        await asyncio.sleep(0.01)
        assert buffer.stats()["commits"] == 1, "an alarm is on disk at once"
        system.free = 20 * MB
        await buffer.append([row(101, ALARM)])
        await asyncio.sleep(70)
        assert buffer.stats()["commits"] == 1, "the rest is for the results of commands"
        system.free = 200 * MB
        await asyncio.sleep(130)
        assert buffer.stats()["mode"] == "healthy"
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [0, 1, 2, 3, 4, 100, 101]
        assert buffer.stats()["lost"] == {}
        await machine.stop()

    run(main())


def test_an_alarm_beside_the_readings_that_find_no_room_goes_to_disk_with_the_same_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        FileSystem(monkeypatch, 40 * MB)
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1), row(2, ALARM)])
        await asyncio.sleep(0.01)
        assert buffer.stats()["commits"] == 1
        assert "floor" in buffer.stats()["why"]
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [2]
        await machine.stop()

    run(main())


def test_a_store_that_others_crowd_out_gives_up_its_oldest_and_gives_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        system = FileSystem(monkeypatch, 10_000 * MB)
        machine = Machine(tmp_path, max_size=8 * MB)
        buffer = await machine.start()
        await fill(machine, range(700))
        before = os.stat(machine.data / "buffer.db").st_size
        assert before > 2 * MB
        assert buffer.stats()["lost"] == {}
        system.free = 60 * MB
        await fill(machine, range(700, 760))
        await buffer._committer.commit()
        lost = buffer.stats()["lost"]["evicted"]
        assert lost > 0
        assert buffer.stats()["disk_bytes"] < 1.2 * MB, "an eighth of the largest size is kept"
        buffer._committer.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
        assert os.stat(machine.data / "buffer.db").st_size < before - 0.9 * MB, "the file system has them back"
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == list(range(lost // 2, 760)), "the oldest gave way"
        assert sum(gap.readings or 0 for gap in sink.gaps) == lost
        await machine.stop()

    run(main())


def test_a_full_store_that_refuses_readings_takes_alarms(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_size=MB, memory_limit=MB, when_full=WhenFull.REFUSE)
        buffer = await machine.start()
        accepted: list[int] = []

        async def source() -> None:
            dice = random.Random(1)
            for number in range(1000):
                await buffer.append([row(number, text=dice.randbytes(4000).hex())])
                accepted.append(number)

        task = asyncio.create_task(source())
        await asyncio.sleep(300)
        assert not task.done()
        assert buffer.stats()["held_back"] == 1, "the source of readings waits"
        commits = buffer.stats()["commits"]
        for number in range(5):
            await buffer.append([row(5000 + number, ALARM)])
            await asyncio.sleep(1)
        assert buffer.stats()["commits"] == commits + 5
        task.cancel()
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert {5000, 5001, 5002, 5003, 5004} <= set(sink.numbers), "on disk within a full store"
        assert sink.gaps == []
        await machine.stop()

    run(main())


def test_a_flood_of_alarms_does_not_push_out_the_readings(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_size=MB)
        await machine.start()
        await fill(machine, range(50))
        await fill(machine, range(1000, 1200), ALARM)
        sink = Sink()
        await deliver(machine.buffer, sink)
        assert set(range(50)) <= set(sink.numbers)
        assert 1199 in sink.numbers
        assert 1000 not in sink.numbers
        await machine.stop()

    run(main())


def test_memory_has_a_reserve_for_alarms_too(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, memory_limit=MB, when_full=WhenFull.REFUSE)
        buffer = await machine.start()
        machine.failing = True
        task = asyncio.create_task(_endless(machine))
        await asyncio.sleep(30)
        assert buffer.stats()["held_back"] == 1
        async with asyncio.timeout(1):
            for number in range(10):
                await buffer.append([row(9000 + number, ALARM)])
        task.cancel()
        await machine.stop()

    run(main())


async def _endless(machine: Machine) -> None:
    for number in range(10_000):
        await machine.buffer.append([row(number, text="m" * 10_000)])


def test_each_lane_has_an_age_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_age=600.0, alarm_max_age=3600.0)
        buffer = await machine.start()
        await buffer.append([row(1), row(2, ALARM)])
        await asyncio.sleep(700)
        assert buffer.stats()["lost"] == {"expired": 2}
        sink = Sink()
        await deliver(buffer, sink, ack=False)
        assert sink.numbers == [2]
        assert [gap.reason for gap in sink.gaps] == [GapReason.EXPIRED]
        await asyncio.sleep(3000)
        assert buffer.stats()["lost"] == {"expired": 4}
        await machine.stop()

    run(main())


def test_a_ring_record_whose_row_is_given_up_leaves_no_hole(tmp_path: Path) -> None:
    """A kill between commit and free leaves it in both; the row is the oldest and goes with the next commit."""

    async def main() -> None:
        machine = Machine(tmp_path, max_size=MB)
        await machine.start()
        await machine.buffer.append([row(0, text="f" * 2000)])
        machine.buffer.close(Lane.LIVE)
        both = (machine.run / "flight.ring").read_bytes()
        await fill(machine, range(1, 100))
        await machine.stop()
        (machine.run / "flight.ring").write_bytes(both)
        machine.failing = True
        buffer = await machine.start()
        dice = random.Random(9)
        for number in range(100, 104):
            await buffer.append([row(number, text=dice.randbytes(100_000).hex())])
        machine.failing = False
        await asyncio.sleep(70)
        assert buffer.stats()["lost"]["evicted"] > 2
        sink = Sink()
        await deliver(buffer, sink)
        assert GapReason.UNSENT not in {gap.reason for gap in sink.gaps}
        assert 2 * (104 - len(sink.numbers)) == sum(gap.readings or 0 for gap in sink.gaps)
        assert len(sink.numbers) == len(set(sink.numbers))
        await machine.stop()

    run(main())
