"""The connection to one device: reads, notifications and writes of its characteristics.

One connection attempt at a time on an adapter, never more connections than it bears, and after a failure a wait with
full jitter that doubles. A device that fails disturbs nobody else. A write is never repeated: when the device did not
confirm it, nobody knows whether it acted, and that is what the caller is told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from gateway.connectors.base import Tools
from gateway.connectors.ble.config import BleDevice, BlePoint, ConnectMode
from gateway.connectors.ble.radio import Peripheral, Radio
from gateway.errors import CommandError, DecodeError, DeviceError
from gateway.model import DeviceState, Json, Outcome, Sample, Status, Value

_BACKOFF_S: Final = 1.0
_BACKOFF_MAX_S: Final = 120.0
_OFFLINE_AFTER: Final = 3
"""Failed attempts in a row: one may be the radio, three are the device."""
_NOT_HEARD_S: Final = 60.0
"""A scan that began anew hears most devices within seconds; one that is not heard for so long is gone."""
_OF_ONE_POINT: Final = (Status.EXCEPTION, Status.CONFIG)
"""The device is there and refuses this characteristic: its others are read all the same."""


def _speaks(properties: Collection[str] | None) -> bool:
    return properties is not None and ("notify" in properties or "indicate" in properties)


class _Read(NamedTuple):
    """One value of a characteristic."""

    point: BlePoint
    value: Value | None
    status: Status


class Airtime:
    """What the devices of one adapter share: its connections, and the right to make one."""

    def __init__(self, radio: Radio, max_connections: int, connect_timeout_s: float) -> None:
        self._radio = radio
        self._free = asyncio.Semaphore(max_connections)
        self._turn = asyncio.Lock()
        self._timeout_s = connect_timeout_s

    async def connect(self, address: str, pair: bool, on_lost: Callable[[], None]) -> Peripheral:
        """Raises DeviceError. The caller calls `release` when the connection is over."""
        await self._free.acquire()
        peripheral = None
        try:
            async with self._turn:
                peripheral = await self._radio.connect(address, self._timeout_s, pair, on_lost)
        finally:
            if peripheral is None:
                self._free.release()
        return peripheral

    def release(self) -> None:
        self._free.release()


class Session:
    """One device; `run` keeps its values coming, `write` acts on it."""

    def __init__(
        self, device: BleDevice, airtime: Airtime, tools: Tools, out: Callable[[Sample], None], rng: random.Random
    ) -> None:
        self.device = device
        self._points = device.characteristics
        self._values: dict[str, list[BlePoint]] = {}
        """By characteristic, for one can carry several points."""
        for point in self._points:
            self._values.setdefault(point.uuid(), []).append(point)
        self._address = device.address.upper()
        self._formats = {point.name: point.format() for point in self._points}
        self._airtime = airtime
        self._tools = tools
        self._out = out
        self._rng = rng
        self._nearby = asyncio.Event()
        self._lost = asyncio.Event()
        self._busy = asyncio.Lock()
        self._peripheral: Peripheral | None = None
        self._online = False
        self._refused = self._mute = ""
        """Why one of its characteristics gives no value; the others do."""
        self._failures = self._connects = self._reads = self._notified = self._writes = 0

    # ── what the adapter's owner tells ───────────────────────────────────────────────────────────────────────────────

    def heard(self, address: str) -> None:
        """The current scan heard the device, under this address: it can be connected to."""
        self._address = address
        self._nearby.set()

    @property
    def connected(self) -> bool:
        return self._peripheral is not None

    def scan_began(self) -> None:
        """BlueZ knows the device again only when it is heard again."""
        self._nearby.clear()

    def offline(self, why: str) -> None:
        """No values come any more; said once, until they come again."""
        self._tools.report(self.device.name, DeviceState.OFFLINE, why)
        if self._online:
            self._online = False
            self._emit([_Read(point, None, Status.DEVICE_OFFLINE) for point in self._points])

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until cancelled."""
        connect = self.device.connect
        assert connect is not None, "only devices with `connect` have something to run"
        due = self._tools.clock.monotonic()
        try:
            while True:
                await self._in_reach(max(_NOT_HEARD_S, 2 * connect.interval))
                try:
                    if self.device.stays_connected():
                        await self._stay(connect.mode, connect.interval)
                    else:
                        await self._visit()
                except DeviceError as error:
                    await self._failed(error)
                    continue
                now = self._tools.clock.monotonic()
                while due <= now:
                    due += connect.interval
                await asyncio.sleep(due - now)
        finally:
            await self._close()

    async def _in_reach(self, patience_s: float) -> None:
        """Until the scan has heard the device. One that was online and is not heard again has gone with its values."""
        try:
            async with asyncio.timeout(patience_s):
                await self._nearby.wait()
        except TimeoutError:
            if self._online:
                self.offline("it is not heard any more")
            await self._nearby.wait()

    async def _visit(self) -> None:
        """Connects, reads everything once, leaves. Raises DeviceError."""
        async with self._busy:
            try:
                peripheral = await self._open()
                self._tell_mute(peripheral, ConnectMode.POLL)
                await self._read(self._readable(peripheral))
            finally:
                await self._close()

    async def _stay(self, mode: ConnectMode, interval_s: float) -> None:
        """Holds the connection until it is lost; ends only by DeviceError."""
        async with self._busy:
            peripheral = await self._open()
            # read first: BlueZ tells the answer to a read as a notification too, once there is a subscription
            readable = self._readable(peripheral)
            self._tell_mute(peripheral, mode)
            await self._read(readable)
            polled = readable
            if mode is ConnectMode.NOTIFY:
                speaking = [uuid for uuid in self._values if _speaks(peripheral.properties(uuid))]
                for uuid in speaking:
                    await peripheral.subscribe(uuid, self._on_value(uuid))
                polled = [uuid for uuid in readable if uuid not in speaking]
            self._came_online()
        while True:
            try:
                async with asyncio.timeout(interval_s if polled else None):
                    await self._lost.wait()
            except TimeoutError:
                async with self._busy:
                    await self._read(polled)
            else:
                raise DeviceError("the connection was lost", Status.DEVICE_OFFLINE)

    def _readable(self, peripheral: Peripheral) -> list[str]:
        """With those that the device does not have: reading them says so."""
        allowed = [(uuid, peripheral.properties(uuid)) for uuid in self._values]
        return [uuid for uuid, properties in allowed if properties is None or "read" in properties]

    def _tell_mute(self, peripheral: Peripheral, mode: ConnectMode) -> None:
        """Points that no value can come of: not readable, and not notified in this mode."""
        mute: list[_Read] = []
        self._mute = ""
        for uuid, points in self._values.items():
            allowed = peripheral.properties(uuid)
            if allowed is not None and "read" not in allowed and not (mode is ConnectMode.NOTIFY and _speaks(allowed)):
                mute += [_Read(point, None, Status.CONFIG) for point in points if point.write is None]
        if mute:
            names = ", ".join(each.point.name for each in mute)
            self._mute = f"{names} cannot be read" + ('; mode = "notify" may do' if mode is ConnectMode.POLL else "")
            self._emit(mute)

    async def _read(self, uuids: Sequence[str]) -> None:
        """One acquisition of several characteristics. Raises DeviceError when the device itself does not answer."""
        peripheral = self._peripheral
        if peripheral is None:
            raise DeviceError("the connection was lost", Status.DEVICE_OFFLINE)
        read: list[_Read] = []
        self._refused = self._mute
        for uuid in uuids:
            try:
                read += self._said(uuid, await peripheral.read(uuid))
            except DeviceError as error:
                if error.status not in _OF_ONE_POINT:
                    raise
                self._refused = str(error)
                read += [_Read(point, None, error.status) for point in self._values[uuid]]
        if uuids:
            self._reads += 1
            self._came_online()
            self._emit(read)

    def _said(self, uuid: str, data: bytes) -> list[_Read]:
        """What a value says of the points that are in it; of one that it does not carry, nothing."""
        said = []
        for point in self._values[uuid]:
            try:
                decoded = self._formats[point.name].decode(data)
            except DecodeError:
                decoded = None, Status.DECODE
            if decoded is not None:
                said.append(_Read(point, *decoded))
        return said

    def _on_value(self, uuid: str) -> Callable[[bytes], None]:
        def on_value(data: bytes) -> None:
            self._notified += 1
            self._emit(self._said(uuid, data))

        return on_value

    def _emit(self, read: Sequence[_Read]) -> None:
        if not read:
            return
        status = tuple(each.status for each in read)
        self._out(
            Sample(
                device=self.device.name,
                points=tuple(each.point.name for each in read),
                values=tuple(each.value for each in read),
                at_ns=self._tools.clock.boot_ns(),
                status=None if all(each is Status.GOOD for each in status) else status,
                units=tuple(self._formats[each.point.name].unit for each in read),
            )
        )

    def _came_online(self) -> None:
        self._failures = 0
        self._online = True
        self._tools.report(self.device.name, DeviceState.ONLINE, self._refused)

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> Peripheral:
        if self._peripheral is None:
            self._lost.clear()
            pair = self.device.connect is not None and self.device.connect.pair
            self._peripheral = await self._airtime.connect(self._address, pair, self._on_lost)
            self._connects += 1
        return self._peripheral

    async def _close(self) -> None:
        peripheral, self._peripheral = self._peripheral, None
        if peripheral is not None:
            try:
                await peripheral.disconnect()
            finally:
                self._airtime.release()

    def _on_lost(self) -> None:
        if self._peripheral is not None:
            self._peripheral = None
            self._airtime.release()
        self._lost.set()

    async def _failed(self, error: DeviceError) -> None:
        """Gives the connection back, says so, and waits."""
        lost = self.device.stays_connected() and self._online
        async with self._busy:
            await self._close()
        self._failures += 1
        if lost or self._failures >= _OFFLINE_AFTER:
            self.offline(str(error))
        else:
            self._tools.report(self.device.name, DeviceState.FAILING, str(error))
        await asyncio.sleep(self._rng.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(self._failures, 10))))

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, point: BlePoint, value: Value, verify: bool, timeout_s: float) -> Value | None:
        """Raises CommandError; returns the value read back when that was asked."""
        data = self._encoded(point, value)
        reached_by = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(reached_by):
                await self._busy.acquire()
        except TimeoutError as error:
            raise CommandError(Outcome.UNAVAILABLE, f"{self.device.name} is busy") from error
        try:
            try:
                async with asyncio.timeout_at(reached_by):
                    peripheral = await self._open()
            except (DeviceError, TimeoutError) as error:
                raise CommandError(Outcome.UNAVAILABLE, str(error) or "no connection in time") from error
            await self._write(peripheral, point, data)
            return await self._verify(peripheral, point, data) if verify else None
        finally:
            try:
                if not self.device.stays_connected():
                    await self._close()
            finally:
                self._busy.release()

    def _encoded(self, point: BlePoint, value: Value) -> bytes:
        """The bytes that mean this value. Raises CommandError."""
        layout = self._formats[point.name]
        try:
            return layout.encode(point.raw_of(value, layout.unit))
        except (DecodeError, ValueError) as error:
            raise CommandError(Outcome.REJECTED, str(error)) from error

    async def _write(self, peripheral: Peripheral, point: BlePoint, data: bytes) -> None:
        try:
            await peripheral.write(point.uuid(), data)
        except DeviceError as error:
            outcomes = {Status.EXCEPTION: Outcome.FAILED, Status.CONFIG: Outcome.UNSUPPORTED}
            raise CommandError(outcomes.get(error.status, Outcome.UNKNOWN), str(error)) from error
        self._writes += 1

    async def _verify(self, peripheral: Peripheral, point: BlePoint, data: bytes) -> Value | None:
        try:
            read = await peripheral.read(point.uuid())
        except DeviceError as error:
            raise CommandError(Outcome.UNKNOWN, f"written, but cannot be read back: {error}") from error
        raw = next((said.value for said in self._said(point.uuid(), read) if said.point is point), None)
        value = point.value_of(raw, self._formats[point.name].unit)
        if read != data:
            raise CommandError(Outcome.FAILED, f"{point.name} reads back as {value}", value)
        return value

    def status(self) -> dict[str, Json]:
        return {
            "address": self.device.address.upper(),
            "connected": self._peripheral is not None,
            "connects": self._connects,
            "failures": self._failures,
            "reads": self._reads,
            "notified": self._notified,
            "writes": self._writes,
        }
