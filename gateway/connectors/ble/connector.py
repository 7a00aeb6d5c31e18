"""The connector of one Bluetooth adapter: listens to sensors, and connects to the devices that want it.

One task owns the scan and keeps it alive (`watchdog.py`); advertisements of addresses that nobody configured, and that
no key resolves to a configured one, are dropped before anything is decoded. Samples wait for the gateway in a bounded
queue; when it is full the oldest goes and is counted, for a sensor repeats itself and the newest value is wanted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from gateway.connectors.base import Emit, Tools
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.config import BleBus, BleDevice, ScanMode
from gateway.connectors.ble.decoders import CHANGING
from gateway.connectors.ble.equipment import equip
from gateway.connectors.ble.identity import Identities
from gateway.connectors.ble.radio import PassiveUnsupported, Radio
from gateway.connectors.ble.sensor import Sensor
from gateway.connectors.ble.session import Airtime, Session
from gateway.connectors.ble.watchdog import SPACING_S, Advice, Remedy, Watchdog
from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Json, Outcome, Sample, Value, Write

log = logging.getLogger(__name__)

_MAX_WAITING: Final = 4096
_BEAT_S: Final = 10.0
_BEAT_PROMISE_S: Final = 90.0
"""Longer than a start of the scan takes at worst (six tries of 10 s and the waits between them)."""
_PASSIVE_TRIAL_S: Final = 60.0
"""Passive scanning can fail without an error (bleak issue 1136); nothing heard for so long, and the scan is active."""
_LAST_WORD_S: Final = 5.0
_WEDGED: Final = "if something is there, unplug it and plug it in again, or restart the machine (rfkill list, dmesg)"


class BleConnector:
    """See the module; a `Connector`."""

    def __init__(
        self,
        bus: BleBus,
        devices: Sequence[BleDevice],
        tools: Tools,
        radio: Radio,
        rng: random.Random | None = None,
        restart_spacing_s: float = SPACING_S,
    ) -> None:
        self._bus = bus
        self._tools = tools
        self._radio = radio
        now = tools.clock.monotonic()
        self._devices = {device.name: device for device in devices}
        self._sensors = {device.address.upper(): Sensor(device, tools.report, now) for device in devices}
        airtime = Airtime(radio, bus.max_connections, bus.connect_timeout)
        rng = rng or random.Random()
        self._sessions = {
            device.address.upper(): Session(device, airtime, tools, self._put, rng)
            for device in devices
            if device.characteristics
        }
        self._identities = Identities({})
        self._watchdog = Watchdog(bus.silence, restart_spacing_s)
        self._wedged = False
        self._fresh = any(device.decoder in CHANGING for device in devices)
        self._passive = bus.scan_mode is ScanMode.PASSIVE or (bus.scan_mode is ScanMode.AUTO and not self._fresh)
        self._started_at = now
        self._heard_anything = False
        self._wake = asyncio.Event()
        self._waiting: deque[Sample] = deque()
        self._arrived = asyncio.Event()
        self._running = False
        self._scanning = False
        self._heard = self._foreign = self._dropped = self._restarts = self._resets = 0

    async def run(self, emit: Emit) -> None:
        """Until cancelled. Raises LinkError."""
        self._tools.beat(_BEAT_PROMISE_S)
        try:
            await self._equip()
            await self._radio.open()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._deliver(emit), name=f"ble-deliver:{self._bus.name}")
                group.create_task(self._watch_medium(), name=f"ble-medium:{self._bus.name}")
                group.create_task(self._scan(), name=f"ble-scan:{self._bus.name}")
                for session in self._sessions.values():
                    if session.device.connect is not None:
                        group.create_task(session.run(), name=f"ble-session:{session.device.name}")
                self._running = True
        except LinkError as closed:
            await self._last_word(emit, str(closed))
            raise
        except BaseExceptionGroup as group_error:
            links, others = group_error.split(LinkError)
            if links is None or others is not None:
                raise
            error = links.exceptions[0]
            await self._last_word(emit, str(error))
            raise error from None
        finally:
            self._running = self._scanning = False
            await self._radio.close()

    async def _equip(self) -> None:
        """What is missing for a device is told, and the others go on."""
        devices = tuple(self._devices.values())
        slow = any(device.bindkey_file or device.irk_file or device.package for device in devices)
        equipped = await asyncio.to_thread(equip, devices) if slow else equip(devices)
        self._identities = Identities(equipped.resolving_keys)
        for name, (hear, keyed, problem) in equipped.devices.items():
            sensor = self._sensors.get(self._devices[name].address.upper())
            if sensor is not None:
                sensor.equip(hear, keyed, problem)
            if problem:
                self._tools.report(name, DeviceState.FAILING, problem)

    async def _last_word(self, emit: Emit, why: str) -> None:
        """The adapter is gone, and nothing can be known of what was heard or read through it."""
        for session in self._sessions.values():
            session.offline(why)
        for sensor in self._sensors.values():
            sample = sensor.gone(self._tools.clock.boot_ns())
            if sample is not None:
                self._put(sample)
        for device in self._devices.values():
            self._tools.report(device.name, DeviceState.OFFLINE, why)
        if self._waiting:
            try:
                async with asyncio.timeout(_LAST_WORD_S):
                    await emit(tuple(self._waiting))
            except TimeoutError:
                self._dropped += len(self._waiting)

    # ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _put(self, sample: Sample) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(sample)
        self._arrived.set()

    async def _deliver(self, emit: Emit) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            samples = tuple(self._waiting)
            self._waiting.clear()
            await emit(samples)

    def _on_heard(self, heard: Advertisement) -> None:
        now = self._tools.clock.monotonic()
        self._watchdog.heard(now)
        self._heard_anything = True
        self._heard += 1
        address = heard.address if heard.stable_address else self._identities.of(heard.address)
        sensor = self._sensors.get(address)
        if sensor is None:
            self._foreign += 1
            return
        sample = sensor.take(heard, now, self._tools.clock.boot_ns())
        if sample is not None:
            self._put(sample)
        session = self._sessions.get(address)
        if session is not None:
            session.heard(heard.address)

    # ── the scan ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch_medium(self) -> None:
        while True:
            why = await self._radio.upset()
            for session in self._sessions.values():
                session.scan_began()
            self._watchdog.upset(why)
            self._wake.set()

    async def _scan(self) -> None:
        clock = self._tools.clock
        await self._start()
        self._scanning = True
        log.info("%s: scanning (%s)", self._bus.name, self._mode())
        while True:
            now = clock.monotonic()
            self._expire(now)
            if self._passive_failed(now):
                self._passive = False
                log.info("%s: nothing heard by passive scanning; scanning actively", self._bus.name)
                await self._start()
            elif advice := self._watchdog.tick(now):
                await self._remedy(advice)
            self._tell_wedged()
            self._tools.beat(_BEAT_PROMISE_S)
            try:
                async with asyncio.timeout(self._next(clock.monotonic())):
                    await self._wake.wait()
                self._wake.clear()
            except TimeoutError:
                pass  # a deadline: the loop looks which

    async def _remedy(self, advice: Advice) -> None:
        remedy = Remedy.RESTART if self._connected() else advice.remedy
        if not self._wedged:
            log.info("%s: %s; %s", self._bus.name, advice.why, remedy.value)
        if remedy is Remedy.RESET:
            self._resets += 1
            self._tools.beat(_BEAT_PROMISE_S)
            await self._radio.reset()
        else:
            self._restarts += 1
        await self._start()

    def _connected(self) -> bool:
        """A controller that holds a connection is not hung, and a reset would cut it."""
        return any(session.connected for session in self._sessions.values())

    def _tell_wedged(self) -> None:
        wedged = self._watchdog.wedged and not self._connected()
        if wedged and not self._wedged:
            log.warning("%s: the adapter hears nothing any more: %s", self._bus.name, _WEDGED)
        elif self._wedged and not wedged:
            log.info("%s: the adapter hears again", self._bus.name)
        self._wedged = wedged

    async def _start(self) -> None:
        for session in self._sessions.values():
            session.scan_began()
        self._tools.beat(_BEAT_PROMISE_S)
        try:
            await self._radio.start(self._passive, self._fresh, self._on_heard)
        except PassiveUnsupported as error:
            if self._bus.scan_mode is ScanMode.PASSIVE:
                advice = 'passive scanning needs bluetoothd --experimental; or set scan_mode = "auto"'
                raise LinkError(f"{error}: {advice}") from error
            self._passive = False
            log.info("%s: no passive scanning here (%s); scanning actively", self._bus.name, error)
            self._tools.beat(_BEAT_PROMISE_S)
            await self._radio.start(False, self._fresh, self._on_heard)
        self._started_at = self._tools.clock.monotonic()
        self._heard_anything = False
        self._watchdog.started(self._started_at)

    def _passive_failed(self, now: float) -> bool:
        trial = self._passive and self._bus.scan_mode is ScanMode.AUTO and not self._heard_anything
        return trial and now >= self._started_at + _PASSIVE_TRIAL_S

    def _expire(self, now: float) -> None:
        for sensor in self._sensors.values():
            sample = sensor.expire(now, self._tools.clock.boot_ns())
            if sample is not None:
                self._put(sample)

    def _next(self, now: float) -> float:
        """Seconds until the loop has something to look at."""
        due = [now + _BEAT_S, self._watchdog.deadline()]
        due += [at for sensor in self._sensors.values() if (at := sensor.expires_at()) is not None]
        return max(0.0, min(due) - now)

    def _mode(self) -> str:
        return "passive" if self._passive else "active"

    # ── commands and status ──────────────────────────────────────────────────────────────────────────────────────────

    async def execute(self, write: Write) -> Value | None:
        """Raises CommandError."""
        device = self._devices.get(write.device)
        if device is None:
            raise CommandError(Outcome.UNSUPPORTED, f"there is no device {write.device} on {self._bus.name}")
        point = next((point for point in device.named if point.name == write.point), None)
        if point is None or not point.characteristic:
            raise CommandError(Outcome.UNSUPPORTED, f"{write.device} has no characteristic {write.point}")
        if point.write is None:
            raise CommandError(Outcome.REJECTED, f"{write.device}/{write.point} is not writable")
        if not self._running:
            raise CommandError(Outcome.UNAVAILABLE, f"{self._bus.name} is not running")
        session = self._sessions[device.address.upper()]
        return await session.write(point, write.value, write.verify or point.write.verify, self._bus.connect_timeout)

    def status(self) -> dict[str, Json]:
        return {
            "open": self._scanning,
            "adapter": self._bus.adapter or "first that is powered",
            "scan": self._mode(),
            "heard": self._heard,
            "foreign": self._foreign,
            "restarts": self._restarts,
            "resets": self._resets,
            "wedged": _WEDGED if self._wedged else "",
            "dropped": self._dropped,
            "devices": {
                device.name: self._sensors[address].status()
                | (self._sessions[address].status() if address in self._sessions else {})
                for device in self._devices.values()
                if (address := device.address.upper()) in self._sensors
            },
        }
