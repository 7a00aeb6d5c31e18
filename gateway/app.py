"""The composition root: the only module that knows every stage.

It builds the objects, hands each of them the two or three callables it needs, runs them in one TaskGroup, and takes
them down in the order that loses nothing: connectors first, then the buffer, the uplink last.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from functools import partial

import msgspec

from gateway import __version__
from gateway.buffer.buffer import Buffer
from gateway.clock import Clock, SystemClock
from gateway.commands.router import Router
from gateway.commands.store import Store as JournalStore
from gateway.config.schema import BusConfig, Config
from gateway.connectors import registry
from gateway.connectors.base import Connector, Inquirable, Tools
from gateway.connectors.tap import Event, Tap
from gateway.control.server import ControlServer
from gateway.errors import GatewayError
from gateway.health.aside import Aside
from gateway.health.devices import Devices
from gateway.health.health import Health
from gateway.health.systemd import Notifier
from gateway.intake import Intake
from gateway.model import Json, Trust
from gateway.normalise.normaliser import Normaliser
from gateway.normalise.timebase import Timebase
from gateway.points import Device, Point
from gateway.settings import nearest
from gateway.supervisor.supervisor import Supervisor
from gateway.uplink.uplink import About, Uplink

log = logging.getLogger(__name__)

CONTROL_SOCKET = "control.sock"
_CLOCK_LOOK_S = 5.0
"""How often UTC is looked at: a clock that was just set is noticed within this."""
_LAST_WORDS_S = 3.0
"""How long the uplink may still deliver after SIGTERM; what remains is on disk."""
_WORTH_TELLING_S = 10.0
"""Younger than this, what waits for its ack is the ordinary traffic."""
_LAST_LOOK_S = 0.02
_LOOK_UP_S = 8.0
"""For a question about a bus; who asks gives up after ten."""


class App:
    """One gateway: `await App.open(config)`, then `run`, which returns when it has drained."""

    def __init__(self, config: Config, clock: Clock, buffer: Buffer) -> None:
        self._config = config
        self._clock = clock
        self._buffer = buffer
        self._started = clock.monotonic()
        self._name = config.gateway.name or socket.gethostname()
        self._notifier = Notifier()
        self._timebase = Timebase()
        self._devices = Devices(clock, {device.name: entry.name for entry in config.buses for device in entry.devices})
        points = {device.name: {point.name: point for point in declared(device)} for device in config.devices}
        normaliser = Normaliser({name: tuple(each.values()) for name, each in points.items()}, start_ns=clock.boot_ns())
        self._intake = Intake(normaliser, buffer, clock)
        self._supervisor = Supervisor(clock)
        self._aside = Aside(config.gateway.state_dir / "rejected", clock)
        self._taps = {entry.name: Tap() for entry in config.buses}
        for entry in config.buses:
            self._add(entry)
        journal = JournalStore(config.gateway.state_dir / "commands.db")
        self._router = Router(journal, points, self._supervisor.execute, clock)
        about = About(
            f"gateway {__version__}",
            {device.name: device.tags for device in config.devices},
            {name: [p.name for p in each.values() if p.write is not None] for name, each in points.items()},
            self._vitals,
            self._name,
        )
        self._uplink = Uplink(config.uplink, buffer, self._router, clock, about, state_dir=config.gateway.state_dir)
        self._health = Health(clock, self._notifier, buffer.probe, self._supervisor.overdue, self._sentence)

    @classmethod
    async def open(cls, config: Config, clock: Clock | None = None) -> App:
        """Opens the buffer (whatever state it is in) and builds everything; no bus is touched yet.

        State and runtime directory exist, and no other gateway uses them: see `cli/claim.py`.

        Raises:
            ConfigError: a connector's driver library cannot be imported.
        """
        clock = clock or SystemClock()
        where = config.gateway
        buffer = await Buffer.open(config.buffer, where.state_dir, clock, where.runtime_dir)
        return cls(config, clock, buffer)

    def _add(self, entry: BusConfig) -> None:
        connect = registry.load(entry.kind)
        beat, report = partial(self._supervisor.beat, entry.name), partial(self._devices.report, entry.name)
        tap, aside = self._taps[entry.name], partial(self._aside.keep, entry.name)
        tools = Tools(self._clock, self._buffer.ledger, beat, report, self._buffer.hurry, tap, aside)

        def build() -> Connector:
            return connect(entry.bus, entry.devices, tools)

        self._supervisor.add(entry.name, build, [device.name for device in entry.devices])

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set: then the connectors end, what was accepted is committed, the uplink delivers what it
        can in a few seconds, and everything is closed. An unexpected exception of a core stage ends the process."""
        await self._router.open()
        control = ControlServer(
            self._config.gateway.runtime_dir / CONTROL_SOCKET,
            {"status": self._answer_status, "ask": self._look_up},
            {"tail": self._tail, "trace": self._trace},
        )
        async with control.serving(), asyncio.TaskGroup() as tasks:
            self._look_at_the_clock()
            core = [
                tasks.create_task(self._buffer.run(), name="buffer"),
                tasks.create_task(self._router.run(), name="commands"),
                tasks.create_task(self._uplink.run(), name="uplink"),
                tasks.create_task(self._health.run(), name="health"),
                tasks.create_task(self._keep_the_clock(), name="clock"),
                tasks.create_task(self._aside.run(), name="aside"),
            ]
            front = [
                tasks.create_task(self._intake.run(), name="intake"),
                tasks.create_task(self._supervisor.run(self._intake.emit), name="supervisor"),
            ]
            self._notifier.ready()
            log.info("%s: %s", self._name, self._sentence())
            await stop.wait()
            self._notifier.stopping()
            await _end(front)
            await self._buffer.drain()
            await self._last_words()
            await _end(core)
        await self._buffer.release()
        await self._router.close()

    async def _last_words(self) -> None:
        """Gives the uplink a moment, if it has a session: what remains is on disk."""
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while self._uplink.online and self._buffer.waiting()[0]:  # noqa: ASYNC110  # once, at the end
                    await asyncio.sleep(_LAST_LOOK_S)
        except TimeoutError:
            log.info("%d batches are left for the next start", self._buffer.waiting()[0])

    async def _keep_the_clock(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_LOOK_S)
            self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        state = self._clock.state()
        due = self._timebase.observe(state)
        if due is not None:
            source = "the servers tell the time" if state.trust is Trust.SERVER else f"the clock is {state.trust}"
            log.info("%s: UTC is known to %d ms", source, state.error_ms)
        self._buffer.clock(state, record=due is not None)

    # ── for those who look ───────────────────────────────────────────────────────────────────────────────────────

    async def _answer_status(self, _: Mapping[str, Json]) -> Json:
        return self.status()

    def status(self) -> dict[str, Json]:
        """Everything that `gateway status --json` shows."""
        kinds = {entry.name: entry.kind.name for entry in self._config.buses}
        return {
            "name": self._name,
            "version": __version__,
            "up_s": round(self._clock.monotonic() - self._started, 1),
            "clock": msgspec.to_builtins(self._clock.state()),
            "uplink": self._uplink.status(),
            "buffer": self._buffer.stats(),
            "buses": {
                name: {"kind": kinds[name], **unit, "set_aside": self._aside.status(name)}
                for name, unit in self._supervisor.status().items()
            },
            "devices": self._devices.status(),
            "intake": self._intake.status(),
            "commands": self._router.status(),
        }

    def _vitals(self) -> dict[str, Json]:
        """What the cloud side is told once a minute."""
        buffer = self._buffer.stats()
        return {
            "waiting": buffer["records"],
            "oldest_s": buffer["oldest_s"],
            "disk_bytes": buffer["disk_bytes"],
            "lost": buffer["lost"],
            "buffer": buffer["mode"],
            "devices": len(self._devices),
            "failing": self._devices.failing(),
            "up_s": round(self._clock.monotonic() - self._started),
        }

    def _sentence(self) -> str:
        """For systemd's status line."""
        config, failing = self._config, self._devices.failing()
        if not config.buses or not config.uplink.endpoint:
            missing = [
                word for word, there in (("a bus", config.buses), ("an endpoint", config.uplink.endpoint)) if not there
            ]
            return f"Waiting for configuration: {' and '.join(missing)}"
        records, age_s = self._buffer.waiting()
        waiting = f", {records} batches wait ({age_s:.0f} s)" if records and age_s >= _WORTH_TELLING_S else ""
        where = f"{self._uplink.sentence()}{waiting}"
        number = len(self._devices)
        devices = f"{number} {'device' if number == 1 else 'devices'}" + (f", {failing} failing" if failing else "")
        return f"{devices}; {where}"

    async def _tail(self, question: Mapping[str, Json]) -> AsyncIterator[Json]:
        wanted = question.get("device")
        with self._intake.viewer() as viewer:
            async for readings in viewer:
                for reading in readings:
                    if not wanted or reading.device == wanted:
                        yield msgspec.to_builtins(reading)

    async def _look_up(self, question: Mapping[str, Json]) -> Json:
        """Asks a bus for something, between two of its polls."""
        entry = self._bus(question.get("bus"))
        connector = self._supervisor.connector(entry.name)
        if connector is None:
            raise GatewayError(f"bus {entry.name} is not open; `gateway status` says why")
        if not isinstance(connector, Inquirable):
            raise GatewayError(f"{entry.name} is a bus of kind {entry.kind.name}; it cannot be asked")
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                return await connector.inquire(question)
        except TimeoutError:
            raise GatewayError(f"bus {entry.name} had no time for {_LOOK_UP_S:g} s") from None

    def _bus(self, name: Json) -> BusConfig:
        entry = next((entry for entry in self._config.buses if entry.name == name), None)
        if entry is None:
            raise GatewayError(f"no bus {name!r}{nearest(str(name), self._taps)}")
        return entry

    async def _trace(self, question: Mapping[str, Json]) -> AsyncIterator[Json]:
        """What travels on one bus. The first answer says what kind of bus it is; events follow."""
        entry = self._bus(question.get("bus"))
        if not entry.kind.name.startswith("modbus"):
            raise GatewayError(f"{entry.name} is a bus of kind {entry.kind.name}; only Modbus can be traced")
        yield {"bus": entry.name, "kind": entry.kind.name}
        with self._taps[entry.name].viewer() as viewer:
            async for events in viewer:
                offset_ms = self._clock.state().offset_ms
                for event in events:
                    yield _traced(event, offset_ms, viewer.missed)


def _traced(event: Event, offset_ms: int, missed: int) -> Json:
    return {
        "utc_ms": event.at_ns // 1_000_000 + offset_ms,
        "at_ns": event.at_ns,
        "what": event.what.value,
        "data": event.data.hex(),
        "said": event.said,
        "missed": missed,
    }


def declared(device: Device) -> tuple[Point, ...]:
    """The points that the configuration names; none where the device itself decides (`points = "auto"`)."""
    points = getattr(device, "points", ())
    return tuple(point for point in points if isinstance(point, Point)) if isinstance(points, tuple) else ()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels and waits; what else they raise is the group's."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
