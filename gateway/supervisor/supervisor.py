"""Keeps every connector running, and every connector's failure its own.

A unit is a name and a way to build its connector anew. Whatever ends a connector, its unit waits (`policy.py`) and
builds another one: for ever when the link is gone, with a rest when our own code keeps failing. Nothing that happens
in one unit reaches another.

    running ──LinkError──▶ waiting ──▶ running          running ──5 faults in 10 min──▶ resting ──▶ running

A connector promises by `beat(s)` when it will be heard of next. One that breaks its promise hangs; `overdue` names it,
and whoever feeds the watchdog then stops feeding it. While a connector waits in `emit` its time stands still: there it
is the buffer that asks for patience, and the buffer is watched by itself.

Log: a lost link once at WARNING however often it is tried, one line when it has held for a minute; a fault each time,
with its traceback, for there are at most five in ten minutes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial

from gateway.clock import Clock
from gateway.connectors.base import Connector, Emit
from gateway.errors import CommandError, LinkError
from gateway.model import Json, Outcome, Sample, Value, Write
from gateway.supervisor.policy import STABLE_S, RestartPolicy, Wait

log = logging.getLogger(__name__)


class UnitState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """Its link is gone or it failed; it is built again after a wait."""
    RESTING = "resting"
    """It failed too often; it is left alone for ten minutes."""
    STOPPED = "stopped"


class _Unit:
    def __init__(self, name: str, build: Callable[[], Connector], policy: RestartPolicy, now: float) -> None:
        self.name = name
        self.build = build
        self.policy = policy
        self.state = UnitState.STARTING
        self.since = now
        self.connector: Connector | None = None
        self.ended: asyncio.Future[None]
        """Done when this connector's life is."""
        self.beat_before: float | None = None
        self.emitting = 0
        """Calls of `emit` that have not returned."""
        self.restarts = 0
        self.last_error = ""
        self.failing = False
        """Its trouble has been logged and not yet its recovery."""

    def become(self, state: UnitState, now: float) -> None:
        if state is not self.state:
            self.state, self.since = state, now


class Supervisor:
    """`add` every unit, then `run`."""

    def __init__(self, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._units: dict[str, _Unit] = {}
        self._unit_of: dict[str, _Unit] = {}

    def add(self, name: str, build: Callable[[], Connector], devices: Sequence[str] = ()) -> None:
        """A unit, before `run`. `build` is called each time a connector is needed; `devices` sit on its bus."""
        assert name not in self._units, "names of buses are unique"
        unit = _Unit(name, build, RestartPolicy(self._jitter), self._clock.monotonic())
        self._units[name] = unit
        self._unit_of.update(dict.fromkeys(devices, unit))

    async def run(self, emit: Emit) -> None:
        """Until cancelled; then every connector has been cancelled and has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for unit in self._units.values():
                    tasks.create_task(self._keep(unit, emit), name=f"bus {unit.name}")
                await asyncio.Event().wait()  # without units there is nothing to do, which is no reason to end
        finally:
            for unit in self._units.values():
                unit.become(UnitState.STOPPED, self._clock.monotonic())

    def beat(self, name: str, within_s: float) -> None:
        """The unit's loop is alive and will say so again within this time."""
        self._units[name].beat_before = self._clock.monotonic() + within_s

    def overdue(self, now: float) -> list[str]:
        """Units that broke their promise to be heard of."""
        return [
            unit.name
            for unit in self._units.values()
            if unit.beat_before is not None and unit.beat_before < now and not unit.emitting
        ]

    async def execute(self, write: Write) -> Value | None:
        """Writes one point through the live connector of the device's bus. Raises CommandError."""
        unit = self._unit_of.get(write.device)
        if unit is None:
            raise CommandError(Outcome.UNAVAILABLE, f'no bus in use has a device "{write.device}"')
        if unit.connector is None:
            why = f": {unit.last_error}" if unit.last_error else ""
            raise CommandError(Outcome.UNAVAILABLE, f'bus "{unit.name}" is {unit.state}{why}')
        doing = asyncio.create_task(unit.connector.execute(write), name=f"write {write.device}")
        try:
            await asyncio.wait((doing, unit.ended), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
        raise CommandError(Outcome.UNKNOWN, f'bus "{unit.name}" failed in mid-write: {unit.last_error}')

    def connector(self, name: str) -> Connector | None:
        """The one that runs now under this name, if one does."""
        return self._units[name].connector

    def status(self) -> dict[str, Json]:
        """Unit → how it fares, with its connector's own words under `bus`."""
        now = self._clock.monotonic()
        return {
            unit.name: {
                "state": str(unit.state),
                "since_s": round(now - unit.since, 1),
                "restarts": unit.restarts,
                "last_error": unit.last_error,
                "bus": _own_words(unit.connector) if unit.connector is not None else {},
            }
            for unit in self._units.values()
        }

    # ── one unit ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self, unit: _Unit, emit: Emit) -> None:
        while True:
            wait = await self._run_once(unit, emit)
            unit.become(UnitState.RESTING if wait.rest else UnitState.WAITING, self._clock.monotonic())
            await asyncio.sleep(wait.seconds)
            unit.restarts += 1

    async def _run_once(self, unit: _Unit, emit: Emit) -> Wait:
        """Builds a connector and runs it until it ends; the answer is how long to leave it."""
        unit.policy.started(self._clock.monotonic())
        stable = asyncio.get_running_loop().call_later(STABLE_S, partial(self._recovered, unit))
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        try:
            unit.ended = asyncio.get_running_loop().create_future()
            unit.connector = unit.build()
            unit.become(UnitState.RUNNING, self._clock.monotonic())
            await unit.connector.run(self._patient(unit, emit))
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            # nobody cancelled us: it cancelled itself, and would otherwise be gone without a word
            return self._fault(unit, "it was cancelled from inside")
        except Exception as error:  # one connector's bug is not the others' trouble
            lost = _link_lost(error)
            return self._link_lost(unit, lost) if lost else self._fault(unit, f"{type(error).__name__}: {error}", error)
        finally:
            stable.cancel()
            unit.connector = unit.beat_before = None
            unit.ended.set_result(None)
        if task.cancelling():
            raise asyncio.CancelledError  # it swallowed ours
        return self._fault(unit, "it ended without being told to")

    def _patient(self, unit: _Unit, emit: Emit) -> Emit:
        """`emit`, with the unit's promise put off by as long as it waits."""

        async def patient(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
            began = self._clock.monotonic()
            left_s = None if unit.beat_before is None else unit.beat_before - began
            unit.emitting += 1
            try:
                await emit(samples, settled=settled)
            finally:
                unit.emitting -= 1
                if left_s is not None and unit.beat_before is not None:
                    unit.beat_before = max(unit.beat_before, self._clock.monotonic() + left_s)

        return patient

    def _link_lost(self, unit: _Unit, why: str) -> Wait:
        if not unit.failing:
            log.warning("bus %s: %s; trying again until it works", unit.name, why)
            unit.failing = True
        unit.last_error = why
        return unit.policy.link_lost(self._clock.monotonic())

    def _fault(self, unit: _Unit, why: str, error: Exception | None = None) -> Wait:
        wait = unit.policy.fault(self._clock.monotonic())
        unit.failing, unit.last_error = True, why
        log.error("bus %s failed unexpectedly: %s", unit.name, why, exc_info=error)
        if wait.rest:
            log.error("bus %s fails again and again; it rests for %d s", unit.name, wait.seconds)
        return wait

    def _recovered(self, unit: _Unit) -> None:
        if unit.failing:
            log.info("bus %s has worked for %d s, after %d failures", unit.name, STABLE_S, unit.policy.failures)
        unit.failing = False


def _link_lost(error: Exception) -> str:
    """What a lost link says of itself; empty when the error is something else. A group of nothing else counts."""
    if isinstance(error, LinkError):
        return str(error) or "the link is gone"
    if isinstance(error, ExceptionGroup):
        links, others = error.split(LinkError)
        if links is not None and others is None:
            return _link_lost(links.exceptions[0])
    return ""


def _own_words(connector: Connector) -> dict[str, Json]:
    try:
        return connector.status()
    except Exception as error:  # looking at a connector must not break the looker
        return {"error": f"{type(error).__name__}: {error}"}
