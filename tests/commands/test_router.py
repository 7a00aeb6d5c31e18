"""Commands from the uplink and from this machine, carried out through a callable; the real journal file underneath."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.commands import router as router_module
from gateway.commands.journal import GRACE_S, Entry
from gateway.commands.router import LANE_LIMIT, REOPEN_S, Router
from gateway.commands.store import Store
from gateway.errors import CommandError
from gateway.model import Command, Outcome, Result, Value, Write
from gateway.points import Point, WriteLimits
from gateway.testing.loop import VirtualClock, run

POINTS = {
    "speed": Point(name="speed", write=WriteLimits(min=0, max=100)),
    "flow": Point(name="flow"),
}
TARGETS = {"pump": POINTS, "fan": POINTS}


class Machine:
    """What carries out: records writes, and waits, fails or answers as it is told."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fails: Exception | None = None

    async def execute(self, write: Write) -> Value | None:
        self.writes.append(write)
        self.begun.set()
        await self.go_on.wait()
        if self.fails is not None:
            raise self.fails
        return write.value if write.verify else None


@asynccontextmanager
async def running(
    path: Path, machine: Machine, timeout_s: float = 30.0, store: Store | None = None
) -> AsyncIterator[Router]:
    router = Router(store or Store(path), TARGETS, machine.execute, VirtualClock(), timeout_s)
    await router.open()
    task = asyncio.create_task(router.run())
    await asyncio.sleep(0)
    try:
        yield router
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await router.close()


def command(id: str, device: str = "pump", value: Value | None = 5, ttl_s: float = 60.0, **more: str) -> Command:
    expires_at = asyncio.get_running_loop().time() + ttl_s
    return Command(id, device, more.get("op", "write"), more.get("point", "speed"), value, expires_at, "cloud")


async def results(router: Router, count: int) -> list[Result]:
    """Waits until so many are offered."""
    changed = asyncio.Event()
    router.listen(changed.set)
    async with asyncio.timeout(3600):
        while len(router.results()) < count:
            changed.clear()
            await changed.wait()
    return list(router.results())


def scenario(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """A test as a coroutine in virtual time."""

    def run_it(tmp_path: Path) -> None:
        async def main() -> None:
            await test(tmp_path / "commands.db")

        run(main())

    run_it.__name__, run_it.__doc__ = test.__name__, test.__doc__  # type: ignore[attr-defined]
    return run_it


@scenario
async def test_a_command_is_carried_out_and_its_result_offered_until_acked(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("a"))
        (result,) = await results(router, 1)
        assert (result.id, result.outcome) == ("a", Outcome.OK)
        assert result.utc_ms is not None
        assert machine.writes == [Write("pump", "speed", 5)]
    async with running(path, machine) as router:
        assert [each.id for each in router.results()] == ["a"]
        router.acked("a")
        assert router.results() == ()
        router.receive(command("b"))
        await results(router, 1)
    async with running(path, machine) as router:
        assert [each.id for each in router.results()] == ["b"]


@scenario
async def test_a_command_that_comes_twice_is_carried_out_once_also_after_a_restart(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("a"))
        router.receive(command("a"))
        await results(router, 1)
        router.acked("a")
        router.receive(command("a"))
        assert len(await results(router, 1)) == 1
        router.acked("a")
        router.receive(command("flush"))
        await results(router, 1)
    async with running(path, machine) as router:
        router.receive(command("a"))
        assert [each.id for each in await results(router, 2)] == ["flush", "a"]
    assert [write.value for write in machine.writes] == [5, 5]


ENDINGS = [
    (CommandError(Outcome.UNAVAILABLE, "the device rests"), Outcome.UNAVAILABLE, "the device rests"),
    (CommandError(Outcome.REJECTED, "exception 3"), Outcome.REJECTED, "exception 3"),
    (ZeroDivisionError("oops"), Outcome.FAILED, "ZeroDivisionError: oops"),
    (TimeoutError(), Outcome.UNKNOWN, "no answer within 30 s: it may or may not have acted"),
]


@pytest.mark.parametrize(("error", "outcome", "reason"), ENDINGS)
def test_whatever_goes_wrong_in_carrying_out_becomes_the_result_of_this_command(
    error: Exception, outcome: Outcome, reason: str, tmp_path: Path
) -> None:
    async def main() -> None:
        machine = Machine()
        machine.fails = error
        async with running(tmp_path / "commands.db", machine) as router:
            router.receive(command("a"))
            (result,) = await results(router, 1)
            assert (result.outcome, result.reason) == (outcome, reason)
            machine.fails = None
            router.receive(command("b"))
            assert (await results(router, 2))[1].outcome is Outcome.OK

    run(main())


@scenario
async def test_a_machine_that_never_answers_ends_in_unknown_and_the_next_command_has_its_turn(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine, timeout_s=7.0) as router:
        began = asyncio.get_running_loop().time()
        router.receive(command("a"))
        router.receive(command("b"))
        await machine.begun.wait()
        (first,) = await results(router, 1)
        machine.go_on.set()
        assert (first.id, first.outcome) == ("a", Outcome.UNKNOWN)
        assert asyncio.get_running_loop().time() - began == pytest.approx(7.0)
        assert (await results(router, 2))[1].outcome is Outcome.OK


@scenario
async def test_what_cannot_be_done_ends_before_anything_is_touched(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("op", op="reboot"))
        router.receive(command("device", device="pmp"))
        router.receive(command("point", point="sped"))
        router.receive(command("read-only", point="flow"))
        router.receive(command("limit", value=101))
        router.receive(command("nothing", value=None))
        router.receive(command("late", ttl_s=0.0))
        ended = {each.id: each.outcome for each in await results(router, 7)}
    assert machine.writes == []
    assert ended == {
        "op": Outcome.UNSUPPORTED,
        "device": Outcome.REJECTED,
        "point": Outcome.REJECTED,
        "read-only": Outcome.REJECTED,
        "limit": Outcome.REJECTED,
        "nothing": Outcome.REJECTED,
        "late": Outcome.EXPIRED,
    }


@scenario
async def test_one_device_keeps_the_order_and_another_does_not_wait_for_it(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine) as router:
        for i in range(5):
            router.receive(command(f"p{i}", value=i))
        router.receive(command("f", device="fan", value=50))
        while len(machine.writes) < 2:
            machine.begun.clear()
            await machine.begun.wait()
        assert [(write.device, write.value) for write in machine.writes] == [("pump", 0), ("fan", 50)]
        assert router.status()["waiting"] == {"pump": 5, "fan": 1}
        machine.go_on.set()
        await results(router, 6)
    assert [write.value for write in machine.writes if write.device == "pump"] == [0, 1, 2, 3, 4]


@scenario
async def test_a_command_that_expires_while_it_waits_for_its_turn_is_not_carried_out(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine, timeout_s=20.0) as router:
        router.receive(command("slow"))
        router.receive(command("short", ttl_s=10.0))
        slow, short = await results(router, 2)
    assert (slow.outcome, short.outcome) == (Outcome.UNKNOWN, Outcome.EXPIRED)
    assert len(machine.writes) == 1


@scenario
async def test_when_too_many_wait_for_a_device_the_next_is_busy_and_others_are_not(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine) as router:
        for i in range(LANE_LIMIT + 1):
            router.receive(command(f"{i}"))
        router.receive(command("other", device="fan"))
        (busy,) = await results(router, 1)
        assert (busy.id, busy.outcome) == (f"{LANE_LIMIT}", Outcome.REJECTED)
        assert busy.reason.startswith("busy")
        machine.go_on.set()
        assert all(each.outcome is Outcome.OK for each in (await results(router, LANE_LIMIT + 2))[1:])


@scenario
async def test_ids_that_the_server_misses_are_offered_again_or_answered_as_unknown(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("known"))
        await results(router, 1)
        router.acked("known")
        router.missing(["known", "lost", "coming"])
        assert [each.id for each in router.results()] == ["known"]
        router.receive(command("coming"))
        began = asyncio.get_running_loop().time()
        ended = {each.id: each for each in await results(router, 3)}
        assert asyncio.get_running_loop().time() - began == pytest.approx(GRACE_S)
        assert ended["coming"].outcome is Outcome.OK
        assert ended["lost"].outcome is Outcome.UNKNOWN
        assert ended["lost"].reason.startswith("unknown id")


@scenario
async def test_a_local_write_follows_the_same_rules_and_no_server_hears_of_it(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        result = await router.submit(Write("pump", "speed", 7, verify=True), "control")
        assert (result.outcome, result.value) == (Outcome.OK, 7)
        assert (await router.submit(Write("pump", "speed", 700), "control")).outcome is Outcome.REJECTED
        assert router.results() == ()
    async with running(path, machine) as router:
        assert router.results() == ()
        assert router.status()["remembered"] == 2
    assert router.writable() == {"pump": ["speed"], "fan": ["speed"]}


@scenario
async def test_a_local_caller_is_told_when_the_gateway_stops(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine) as router:
        waiting = asyncio.create_task(router.submit(Write("pump", "speed", 7), "control"))
        await machine.begun.wait()
    assert (await waiting).outcome is Outcome.INTERRUPTED


@scenario
async def test_a_restart_while_a_command_is_carried_out_reports_it_interrupted(path: Path) -> None:
    machine = Machine()
    machine.go_on.clear()
    async with running(path, machine) as router:
        router.receive(command("begun"))
        router.receive(command("behind"))
        await machine.begun.wait()
    async with running(path, machine) as router:
        ended = [(each.id, each.outcome) for each in router.results()]
        router.receive(command("begun"))
        assert len(router.results()) == 2
    assert ended == [("begun", Outcome.INTERRUPTED), ("behind", Outcome.UNAVAILABLE)]
    assert len(machine.writes) == 1


@scenario
async def test_what_cannot_be_written_down_is_not_carried_out_and_the_disk_is_tried_again(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        blocker = sqlite3.connect(path)
        blocker.execute("BEGIN IMMEDIATE")  # the store's writes end in "database is locked"
        router.receive(command("a"))
        (result,) = await results(router, 1)
        assert result.outcome is Outcome.UNAVAILABLE
        assert machine.writes == []
        blocker.execute("ROLLBACK")
        blocker.close()
        router.receive(command("b"))
        assert (await results(router, 2))[1].outcome is Outcome.OK
        assert router.status()["disk_failures"] == 0


@scenario
async def test_a_journal_that_cannot_be_opened_makes_commands_unavailable_until_it_can(path: Path) -> None:
    path.mkdir()  # noqa: ASYNC240
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("a"))
        (result,) = await results(router, 1)
        assert result.outcome is Outcome.UNAVAILABLE
        path.rmdir()  # noqa: ASYNC240
        await asyncio.sleep(REOPEN_S + 1)
        router.receive(command("b"))
        assert (await results(router, 2))[1].outcome is Outcome.OK
    assert len(machine.writes) == 1


@pytest.mark.parametrize("damage", [b"this is not a database, " * 100, None])
def test_a_damaged_journal_is_set_aside_and_the_gateway_goes_on(damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "commands.db"

    async def main() -> None:
        machine = Machine()
        async with running(path, machine) as router:
            router.receive(command("a"))
            await results(router, 1)
        if damage is not None:
            path.write_bytes(damage)
        else:
            file = sqlite3.connect(path)
            file.execute("UPDATE command SET entry = '{\"id\":'")
            file.commit()
            file.close()
        async with running(path, machine) as router:
            assert router.results() == ()
            router.receive(command("b"))
            assert (await results(router, 1))[0].outcome is Outcome.OK

    run(main())
    assert (tmp_path / "commands.db.corrupt").exists()


@scenario
async def test_results_older_than_thirty_days_are_forgotten_on_disk_too(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        router.receive(command("a"))
        await results(router, 1)
        router.acked("a")
        await asyncio.sleep(31 * 86_400)
        assert router.status()["remembered"] == 0
    file = sqlite3.connect(path)
    assert file.execute("SELECT count(*) FROM command").fetchone() == (0,)
    file.close()


class DyingStore(Store):
    """The process dies at the n-th write, before or after it is on disk: nothing that follows ever happens."""

    def __init__(self, path: Path, dies_at: int, after: bool) -> None:
        super().__init__(path)
        self.dies_at, self.after = dies_at, after
        self.dead = asyncio.Event()

    async def save(self, entries: Sequence[Entry]) -> None:
        self.dies_at -= 1
        if self.dies_at != 0 or self.after:
            await super().save(entries)
        if self.dies_at == 0:
            self.dead.set()
            await asyncio.Event().wait()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dies_at", range(1, 17))
def test_wherever_the_process_dies_no_command_runs_twice_and_each_has_a_result(
    dies_at: int, after: bool, tmp_path: Path
) -> None:
    path = tmp_path / "commands.db"

    async def main() -> None:
        machine = Machine()
        sent: dict[str, Outcome] = {}

        async def work(router: Router) -> None:
            for i in range(4):
                router.receive(command(f"{i}", device=("pump", "fan")[i % 2], value=i))
                for result in await results(router, 1):
                    assert sent.setdefault(result.id, result.outcome) is result.outcome
                    router.acked(result.id)
            await asyncio.sleep(1)

        store = DyingStore(path, dies_at, after)
        async with running(path, machine, store=store) as router:
            working = asyncio.create_task(work(router))
            dead = asyncio.create_task(store.dead.wait())
            await asyncio.wait([working, dead], return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            dead.cancel()
        async with running(path, machine) as router:
            router.missing(["0", "1", "2", "3"])
            for result in await results(router, 4):
                assert sent.get(result.id, result.outcome) is result.outcome, "a result that was sent is contradicted"
            for i in range(4):
                router.receive(command(f"{i}", device=("pump", "fan")[i % 2], value=i))
            await asyncio.sleep(60)
            assert len(router.results()) == 4
        written = [write.value for write in machine.writes]
        assert len(written) == len(set(written))

    run(main())


CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.clock import SystemClock
from gateway.commands.router import Router
from gateway.commands.store import Store
from gateway.model import Command
from gateway.points import Point, WriteLimits

async def execute(write):
    print("begun", flush=True)
    await asyncio.Event().wait()

async def main():
    clock = SystemClock()
    targets = {"pump": {"speed": Point(name="speed", write=WriteLimits())}}
    router = Router(Store(Path(sys.argv[1])), targets, execute, clock)
    await router.open()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(router.run())
        await asyncio.sleep(0)
        router.receive(Command("a", "pump", "write", "speed", 5, clock.monotonic() + 60))

asyncio.run(main())
"""


def test_a_process_killed_in_mid_execution_leaves_an_interrupted_command_that_is_never_run_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "commands.db"
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=30)

    async def main() -> None:
        machine = Machine()
        async with running(path, machine) as router:
            assert [(each.id, each.outcome) for each in router.results()] == [("a", Outcome.INTERRUPTED)]
            router.receive(command("a"))
            router.receive(command("b", value=6))
            await results(router, 2)
        assert [write.value for write in machine.writes] == [6]

    run(main())


@scenario
async def test_entries_that_wait_for_the_disk_are_bounded(path: Path) -> None:
    machine = Machine()
    async with running(path, machine) as router:
        for i in range(router_module.UNSAVED_LIMIT + 50):
            router.receive(command(f"{i}", value=1000))
        local = await router.submit(Write("pump", "speed", 1), "control")
        assert local.reason.startswith("busy")
        assert len(await results(router, router_module.UNSAVED_LIMIT)) == router_module.UNSAVED_LIMIT
