"""Units that fail, hang, recover and are stopped, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.connectors.base import Emit
from gateway.errors import CommandError, LinkError
from gateway.model import Json, Outcome, Sample, Value, Write
from gateway.supervisor.policy import REST_S, STABLE_S
from gateway.supervisor.supervisor import Supervisor
from gateway.testing.loop import VirtualClock, run

Act = Callable[[], None]
SAMPLE = Sample("meter", ("u",), (1,), 0)


async def emit(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
    """Takes and forgets."""


class Bus:
    """A connector that does what its script says, one line for each life: seconds to run, then how to end."""

    def __init__(self, *script: tuple[float, BaseException | None]) -> None:
        self.script = list(script)
        self.built: list[float] = []
        self.ended = 0

    def build(self) -> Bus:
        self.built.append(asyncio.get_running_loop().time())
        return self

    async def run(self, emit: Emit) -> None:
        try:
            seconds, end = self.script.pop(0) if self.script else (float("inf"), None)
            if seconds == float("inf"):
                await asyncio.Event().wait()
            await asyncio.sleep(seconds)
            if end is not None:
                raise end
        finally:
            self.ended += 1

    async def execute(self, write: Write) -> Value | None:
        return write.value

    def status(self) -> dict[str, Json]:
        return {"requests": 7}


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(supervisor.run(emit))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def supervised(**buses: Bus) -> Supervisor:
    supervisor = Supervisor(VirtualClock(), jitter=lambda: 1.0)
    for name, bus in buses.items():
        supervisor.add(name, bus.build, [f"{name}-meter"])
    return supervisor


def steps(bus: Bus) -> list[float]:
    """Seconds between one life and the next."""
    return [round(b - a, 3) for a, b in zip(bus.built, bus.built[1:], strict=False)]


def test_a_lost_link_is_tried_again_for_ever_with_growing_waits() -> None:
    async def main() -> None:
        bus = Bus(*[(0.0, LinkError("no such port"))] * 200)
        async with running(supervised(a=bus)):
            await asyncio.sleep(3 * 3600)
        assert steps(bus)[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
        assert len(bus.built) > 150

    run(main())


def test_one_units_bug_is_its_own_and_after_five_it_rests() -> None:
    async def main() -> None:
        sick, well = Bus(*[(0.0, ZeroDivisionError("oops"))] * 6), Bus()
        supervisor = supervised(sick=sick, well=well)
        async with running(supervisor):
            await asyncio.sleep(60)
            assert supervisor.status()["sick"]["state"] == "resting"
            assert supervisor.status()["sick"]["last_error"] == "ZeroDivisionError: oops"
            await asyncio.sleep(REST_S)
            assert supervisor.status()["sick"]["state"] == "running"
        assert steps(sick) == [1, 2, 4, 8, REST_S, 32]
        assert len(well.built) == 1

    run(main())


ODD_ENDS: list[tuple[BaseException | None, str]] = [
    (None, "it ended without being told to"),
    (asyncio.CancelledError(), "it was cancelled from inside"),
    (ExceptionGroup("two", [LinkError("gone"), ValueError("bug")]), "ExceptionGroup: two (2 sub-exceptions)"),
    (ExceptionGroup("one", [LinkError("gone")]), "gone"),
    (LinkError(), "the link is gone"),
]


@pytest.mark.parametrize(("end", "said"), ODD_ENDS)
def test_whatever_way_a_connector_ends_another_is_built(end: BaseException | None, said: str) -> None:
    async def main() -> None:
        bus = Bus((1.0, end))
        supervisor = supervised(a=bus)
        async with running(supervisor):
            await asyncio.sleep(1.5)
            assert supervisor.status()["a"]["state"] == "waiting"
            await asyncio.sleep(5)
            assert supervisor.status()["a"]["state"] == "running"
            assert supervisor.status()["a"]["last_error"] == said
        assert len(bus.built) == 2

    run(main())


def test_a_connector_that_cannot_even_be_built_is_a_fault_of_its_own() -> None:
    async def main() -> None:
        def build() -> Bus:
            raise KeyError("missing")

        supervisor = supervised(well=Bus())
        supervisor.add("sick", build)
        async with running(supervisor):
            await asyncio.sleep(0.5)
            assert supervisor.status()["sick"]["state"] == "waiting"
            assert supervisor.status()["well"]["state"] == "running"

    run(main())


def test_a_lost_link_is_logged_once_and_its_recovery_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bus = Bus((100.0, LinkError("unplugged")), *[(0.0, LinkError("no such port"))] * 5)
        async with running(supervised(a=bus)):
            await asyncio.sleep(1000)

    with caplog.at_level(logging.INFO):
        run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "bus a: unplugged; trying again until it works",
        "bus a has worked for 60 s, after 6 failures",
    ]


def test_a_link_that_comes_and_goes_is_not_called_recovered(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bus = Bus(*[(STABLE_S / 2, LinkError("loose plug"))] * 10)
        async with running(supervised(a=bus)):
            await asyncio.sleep(500)

    with caplog.at_level(logging.INFO):
        run(main())
    assert len(caplog.records) == 1


def test_stopping_cancels_every_connector_and_waits_for_its_end() -> None:
    async def main() -> None:
        buses = [Bus(), Bus((0.0, LinkError("gone"))), Bus()]
        supervisor = supervised(a=buses[0], b=buses[1], c=buses[2])
        async with running(supervisor):
            await asyncio.sleep(0.5)
        assert [bus.ended for bus in buses] == [1, 1, 1]
        assert {unit["state"] for unit in supervisor.status().values()} == {"stopped"}

    run(main())


def test_a_connector_that_swallows_its_cancellation_is_stopped_all_the_same() -> None:
    class Stubborn(Bus):
        async def run(self, emit: Emit) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    async def main() -> None:
        bus = Stubborn()
        async with running(supervised(a=bus)):
            await asyncio.sleep(1)
        assert len(bus.built) == 1

    run(main())


def test_without_units_it_waits_to_be_stopped() -> None:
    async def main() -> None:
        async with running(supervised()):
            await asyncio.sleep(1)

    run(main())


def test_a_unit_that_breaks_its_promise_is_overdue_until_it_is_built_anew() -> None:
    async def main() -> None:
        clock = VirtualClock()
        bus = Bus((100.0, LinkError("gone")))
        supervisor = supervised(a=bus, b=Bus())
        async with running(supervisor):
            await asyncio.sleep(1)
            assert supervisor.overdue(clock.monotonic()) == []
            supervisor.beat("a", 30)
            await asyncio.sleep(29)
            assert supervisor.overdue(clock.monotonic()) == []
            await asyncio.sleep(2)
            assert supervisor.overdue(clock.monotonic()) == ["a"]
            supervisor.beat("a", 5)
            assert supervisor.overdue(clock.monotonic()) == []
            await asyncio.sleep(80)
            assert supervisor.status()["a"]["restarts"] == 1
            assert supervisor.overdue(clock.monotonic()) == []

    run(main())


def test_waiting_for_the_buffer_breaks_no_promise_and_hides_no_connector_that_hangs() -> None:
    async def main() -> None:
        clock, room = VirtualClock(), asyncio.Event()
        supervisor = Supervisor(clock, jitter=lambda: 1.0)

        class Waits(Bus):
            async def run(self, emit: Emit) -> None:
                supervisor.beat("a", 30)
                await asyncio.sleep(10)
                await emit([SAMPLE])
                await asyncio.Event().wait()

        async def full(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
            await room.wait()

        supervisor.add("a", Waits().build)
        task = asyncio.create_task(supervisor.run(full))
        await asyncio.sleep(3600)
        assert supervisor.overdue(clock.monotonic()) == []
        room.set()
        await asyncio.sleep(19)
        assert supervisor.overdue(clock.monotonic()) == []
        await asyncio.sleep(2)
        assert supervisor.overdue(clock.monotonic()) == ["a"]
        task.cancel()
        await asyncio.wait([task])

    run(main())


def test_a_write_goes_to_the_live_connector_of_its_device_and_is_unavailable_without_one() -> None:
    async def refused(supervisor: Supervisor, device: str) -> str:
        with pytest.raises(CommandError) as caught:
            await supervisor.execute(Write(device, "speed", 5))
        assert caught.value.outcome is Outcome.UNAVAILABLE
        return str(caught.value)

    async def main() -> None:
        supervisor = supervised(a=Bus((10.0, LinkError("unplugged"))))
        assert await refused(supervisor, "a-meter") == 'bus "a" is starting'
        async with running(supervisor):
            await asyncio.sleep(1)
            assert await supervisor.execute(Write("a-meter", "speed", 5)) == 5
            assert await refused(supervisor, "b-meter") == 'no bus in use has a device "b-meter"'
            await asyncio.sleep(9.5)
            assert await refused(supervisor, "a-meter") == 'bus "a" is waiting: unplugged'
            await asyncio.sleep(1)
            assert await supervisor.execute(Write("a-meter", "speed", 6)) == 6

    run(main())


def test_status_shows_the_connectors_own_words_and_survives_a_connector_that_has_none() -> None:
    class Mute(Bus):
        def status(self) -> dict[str, Json]:
            raise RuntimeError("not now")

    async def main() -> None:
        supervisor = supervised(a=Bus(), mute=Mute())
        async with running(supervisor):
            await asyncio.sleep(3)
            assert supervisor.status()["a"] == {
                "state": "running",
                "since_s": 3.0,
                "restarts": 0,
                "last_error": "",
                "bus": {"requests": 7},
            }
            assert supervisor.status()["mute"]["bus"] == {"error": "RuntimeError: not now"}

    run(main())


def test_a_write_ends_with_the_connector_that_was_at_it() -> None:
    async def main() -> None:
        class Dies(Bus):
            async def execute(self, write: Write) -> Value | None:
                await asyncio.Event().wait()  # its answer would have come through `run`
                return None

        supervisor = supervised(a=Dies((5, LinkError("unplugged"))))
        async with running(supervisor):
            await asyncio.sleep(1)
            async with asyncio.timeout(10):
                with pytest.raises(CommandError, match="unplugged") as caught:
                    await supervisor.execute(Write("a-meter", "p", 1.0))
            assert caught.value.outcome is Outcome.UNKNOWN, "it may have been carried out"

    run(main())
