"""The way in: every sample becomes rows in the buffer, and its source is told in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gateway.intake import Intake
from gateway.model import Origin, Reading, Row, Sample, Status, Trust
from gateway.normalise.normaliser import Normaliser
from gateway.points import Point
from gateway.testing.loop import VirtualClock, run

ORIGIN = Origin(b"s" * 8, 1, b"f" * 16)


class Recorder:
    """A buffer that remembers, and has no room while `full`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.waiting: list[Callable[[], None]] = []
        self.room = asyncio.Event()
        self.room.set()

    async def append(self, rows: Sequence[Row], settled: Callable[[], None] | None = None) -> None:
        await self.room.wait()
        self.rows += rows
        if settled is not None:
            self.waiting.append(settled)


class Bench:
    """An intake that runs, its buffer and the clock."""

    def __init__(self, *points: Point, **options: Any) -> None:
        self.clock = VirtualClock()
        self.buffer = Recorder()
        self.intake = Intake(Normaliser({"d": points}, **options), self.buffer, self.clock)

    async def __aenter__(self) -> Bench:
        self._task = asyncio.create_task(self.intake.run(), name="intake")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task

    def sample(self, *values: Any, device: str = "d", **said: Any) -> Sample:
        names = tuple(f"p{i}" for i in range(len(values)))
        return Sample(device, names, values, self.clock.boot_ns(), **said)


def test_samples_become_rows_and_the_source_is_told_by_the_buffer() -> None:
    async def scenario() -> None:
        settled: list[str] = []
        async with Bench() as bench:
            samples = [bench.sample(1.5, 2, origin=ORIGIN), bench.sample(1.6, 3, origin=ORIGIN)]
            await bench.intake.emit(samples, settled=lambda: settled.append("all"))
            assert [(row.values, row.origin) for row in bench.buffer.rows] == [((1.5, 2), ORIGIN), ((1.6, 3), ORIGIN)]
            assert settled == []
            (told,) = bench.buffer.waiting
            told()
            assert settled == ["all"]
            assert bench.intake.status()["samples"] == 2
            assert bench.intake.status()["readings"] == 4

    run(scenario())


def test_a_message_that_is_no_news_is_settled_at_once_and_only_once() -> None:
    async def scenario() -> None:
        settled: list[int] = []
        async with Bench(Point(name="p0", deadband=1)) as bench:
            for i in range(3):
                await bench.intake.emit([bench.sample(20.0, origin=ORIGIN)], settled=lambda i=i: settled.append(i))
            assert len(bench.buffer.rows) == len(bench.buffer.waiting) == 1
            assert settled == [1, 2]
            assert bench.intake.status()["suppressed"] == 2
            await bench.intake.emit([], settled=lambda: settled.append(9))
            assert settled == [1, 2, 9]

    run(scenario())


def test_emit_waits_for_the_buffer_and_rows_keep_the_order_of_the_calls() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.buffer.room.clear()
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(bench.intake.emit([bench.sample(i)])) for i in range(5)]
                await asyncio.sleep(0.1)
                assert not any(call.done() for call in calls)
                bench.buffer.room.set()
            assert [row.values for row in bench.buffer.rows] == [(i,) for i in range(5)]

    run(scenario())


def test_a_broken_sample_is_counted_and_logged_once_and_its_neighbours_pass(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        settled: list[str] = []
        async with Bench() as bench:
            broken = Sample("bad", ("a", "b"), (1,), 0)
            with caplog.at_level(logging.INFO):
                for _ in range(3):
                    await bench.intake.emit([bench.sample(1), broken, bench.sample(2)])
                await bench.intake.emit([broken], settled=lambda: settled.append("dropped"))
            assert [row.values for row in bench.buffer.rows] == [(1,), (2,)] * 3
            assert bench.intake.status()["rejected"] == 4
            assert settled == ["dropped"], "kept at its source it would come back for ever"
            assert len(caplog.records) == 1

    run(scenario())


def test_silence_reaches_the_buffer_though_nobody_emits() -> None:
    async def scenario() -> None:
        async with Bench(Point(name="p0", expire_after=30)) as bench:
            await bench.intake.emit([bench.sample(1)])
            await asyncio.sleep(29.9)
            assert len(bench.buffer.rows) == 1
            await asyncio.sleep(0.2)
            assert bench.buffer.rows[1].status == (Status.STALE,)
            assert bench.intake.latest()[0].status is Status.STALE

    run(scenario())


def test_a_change_that_was_held_back_comes_on_time_although_the_intake_slept() -> None:
    async def scenario() -> None:
        async with Bench(Point(name="p0", min_interval=0.2)) as bench:
            await asyncio.sleep(0.1)
            await bench.intake.emit([bench.sample(1)])
            await bench.intake.emit([bench.sample(2)])
            await asyncio.sleep(0.19)
            assert len(bench.buffer.rows) == 1
            await asyncio.sleep(0.02)
            assert [row.values for row in bench.buffer.rows] == [(1,), (2,)]

    run(scenario())


def test_a_stamp_of_the_device_counts_as_soon_as_the_clock_is_trusted() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            bench.clock.trust = Trust.UNSYNCED
            await asyncio.sleep(2)
            stamp = bench.clock.boot_ns() // 10**6 + bench.clock.utc_offset_ms - 60_000
            await bench.intake.emit([bench.sample(1, source_ms=stamp)])
            bench.clock.trust = Trust.SYNCED
            await asyncio.sleep(2)
            await bench.intake.emit([bench.sample(1, source_ms=stamp)])
            assert [row.source_ms for row in bench.buffer.rows] == [None, stamp]

    run(scenario())


def test_latest_knows_the_newest_acquisition_of_every_point() -> None:
    async def scenario() -> None:
        async with Bench(Point(name="p0", unit="V"), Point(name="p1", deadband=5)) as bench:
            await bench.intake.emit([bench.sample(1, 10)])
            late = bench.sample(0)
            await asyncio.sleep(1)
            await bench.intake.emit([bench.sample(2, 11), bench.sample(True, device="e")])
            await bench.intake.emit([late])
            latest = bench.intake.latest()
            assert [(r.device, r.point, r.value, r.unit) for r in latest] == [
                ("d", "p0", 2, "V"),
                ("d", "p1", 10, ""),
                ("e", "p0", True, ""),
            ]
            assert latest[0].utc_ms == bench.clock.boot_ns() // 10**6 + bench.clock.utc_offset_ms

    run(scenario())


def test_latest_is_bounded() -> None:
    async def scenario() -> None:
        async with Bench(pairs=30_000) as bench:
            for i in range(25_000):
                await bench.intake.emit([bench.sample(i, device=f"d{i}")])
            latest = bench.intake.latest()
            assert len(latest) == 20_000
            assert {"d24999", "d5000"} <= {r.device for r in latest}

    run(scenario())


def test_a_slow_viewer_loses_the_oldest_rows_and_nobody_waits_for_it() -> None:
    async def scenario() -> None:
        seen: list[Reading] = []
        async with Bench() as bench:
            with bench.intake.viewer(rows=3) as viewer:
                for i in range(10):
                    await bench.intake.emit([bench.sample(i)])
                async for readings in viewer:
                    seen += readings
                    if len(seen) == 3:
                        break
                assert [reading.value for reading in seen] == [7, 8, 9]
                assert viewer.missed == 7
                assert bench.intake.status()["viewers"] == 1
            assert bench.intake.status()["viewers"] == 0

    run(scenario())


def test_a_viewer_wakes_up_when_something_comes() -> None:
    async def scenario() -> None:
        async with Bench() as bench:
            with bench.intake.viewer() as viewer:
                first = asyncio.ensure_future(anext(aiter(viewer)))
                await asyncio.sleep(5)
                assert not first.done()
                await bench.intake.emit([bench.sample(1, 2)])
                assert [reading.value for reading in await first] == [1, 2]

    run(scenario())
