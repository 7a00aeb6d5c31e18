"""The adapter, and the door to Bluetooth: BlueZ over D-Bus, by way of bleak.

What bleak 3.1 leaves to its user, and what happens here: bluetoothd may restart without an exception anywhere, the
scan is then deaf and connections look alive for ever. So a D-Bus connection of our own watches who owns the name
`org.bluez` and whether the adapter is there and powered (`upset`); every connection is declared lost when they are
not; and a device can be connected to only after the scan that runs *now* has heard it. Every call has a bound, also
where bluetoothd accepts it and never answers: bleak itself waits without one while it cleans up.

Foreign exceptions become `LinkError` here, and `DeviceError` in `peripheral.py`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from bleak import BleakScanner
from bleak.args.bluez import BlueZScannerArgs, OrPattern, OrPatternLike
from bleak.assigned_numbers import AdvertisementDataType
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from bleak.exc import BleakDBusError, BleakError
from dbus_fast import BusType, Message, MessageType, Variant, unpack_variants
from dbus_fast.aio import MessageBus

from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.peripheral import FOREIGN, BleakPeripheral
from gateway.connectors.ble.radio import Heard, PassiveUnsupported
from gateway.errors import DeviceError, LinkError
from gateway.model import Status

log = logging.getLogger(__name__)

_BLUEZ: Final = "org.bluez"
_ADAPTER: Final = "org.bluez.Adapter1"
_NO_RSSI: Final = -127
"""bleak's word for "BlueZ has no signal strength": the properties changed, but nothing was received."""
_CALL_S: Final = 10.0
_POWER_PAUSE_S: Final = 1.0
"""For the controller to lose what it holds, and to come up again."""
_COMES_BACK_S: Final = 15.0
"""A restart of bluetoothd or a replugged adapter takes a few seconds; after this it counts as gone."""
_START_TRIES: Final = 6
_PASSING: Final = ("InProgress", "NotReady", "UnknownObject", "UnknownMethod", "ServiceUnknown", "NoReply")
"""Errors of a bluetoothd that is still busy: starting, or stopping the previous scan."""

# AdvertisementMonitor1 insists on patterns, and with eight bluetoothd writes beyond the end of its memory and dies
# (5.66; the newest source still: `cp_len` in adv_monitor.c has eight bits, and a pattern takes 34 bytes). So: the usual
# values of the flags, by which nearly all formats and devices to connect to are heard, and two formats often sent bare.
_PATTERNS: Final[list[OrPatternLike]] = [
    *(OrPattern(0, AdvertisementDataType.FLAGS, flags) for flags in (b"\x02", b"\x04", b"\x05", b"\x06", b"\x1a")),
    *(OrPattern(0, AdvertisementDataType.SERVICE_DATA_UUID16, uuid) for uuid in (b"\xd2\xfc", b"\x1a\x18")),
]


class BleakRadio:
    """One adapter of this machine; a `Radio`."""

    def __init__(self, adapter: str, rng: random.Random | None = None) -> None:
        self._wanted = adapter
        self._rng = rng or random.Random()
        self._name = adapter
        self._bus: MessageBus | None = None
        self._watch: asyncio.Task[None] | None = None
        self._scanner: BleakScanner | None = None
        self._devices: dict[str, BLEDevice] = {}
        self._peripherals: set[BleakPeripheral] = set()
        self._changed = asyncio.Event()
        self._void = ""
        self._resetting = False

    async def open(self) -> None:
        try:
            async with asyncio.timeout(_CALL_S):
                self._bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
                self._bus.add_message_handler(self._signal)
                for rule in (
                    "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.bluez'",
                    "type='signal',interface='org.freedesktop.DBus.ObjectManager',path='/'",
                    "type='signal',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',"
                    f"path_namespace='/org/bluez',arg0='{_ADAPTER}'",
                ):
                    await self._call(self._bus, "org.freedesktop.DBus", "/org/freedesktop/DBus", "AddMatch", rule)
        except FOREIGN as error:
            await self.close()
            raise LinkError(f"no system D-Bus ({error}): is dbus running, and may this user reach it?") from error
        self._watch = asyncio.create_task(self._until_dbus_ends(self._bus), name="ble-dbus")
        problem = await self._adapter_problem()
        if problem:
            await self.close()
            raise LinkError(problem)

    async def _until_dbus_ends(self, bus: MessageBus) -> None:
        try:
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except FOREIGN as error:
            log.debug("system D-Bus: %r", error)
        self._became_void("the system D-Bus ended")

    async def close(self) -> None:
        await self.stop()
        self._lose_all()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            self._watch = None
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    async def start(self, passive: bool, fresh: bool, heard: Heard) -> None:
        await self.stop()
        delay_s = 0.5
        for attempt in range(1, _START_TRIES + 1):
            try:
                await self._start_once(passive, fresh, heard)
                return
            except BleakDBusError as error:
                passing = error.dbus_error.rpartition(".")[2] in _PASSING
                if passive and not passing:
                    raise PassiveUnsupported(str(error)) from error
                if not passing or attempt == _START_TRIES:
                    raise LinkError(f"{self._name} refuses to scan: {error}; does another program use it?") from error
                log.debug("%s: scan refused (%s), attempt %d", self._name, error.dbus_error, attempt)
            except BleakError as error:
                if passive:
                    raise PassiveUnsupported(str(error)) from error
                raise LinkError(f"{self._name} cannot scan: {error}") from error
            except FOREIGN as error:
                raise LinkError(f"{self._name} cannot scan: {error!r}; is bluetoothd running?") from error
            await asyncio.sleep(self._rng.uniform(delay_s / 2, delay_s))
            delay_s *= 2

    async def _start_once(self, passive: bool, fresh: bool, heard: Heard) -> None:
        def detected(device: BLEDevice, data: AdvertisementData) -> None:
            if data.rssi == _NO_RSSI:
                return
            address = device.address.upper()
            self._devices[address] = device
            heard(_advertisement(address, device, data))

        self._devices.clear()
        arguments: BlueZScannerArgs = {"adapter": self._name}
        if passive:
            arguments["or_patterns"] = _PATTERNS
        elif fresh:
            arguments["filters"] = {"DuplicateData": True}  # bluetoothd then clears before it adds
        scanner = BleakScanner(detected, scanning_mode="passive" if passive else "active", bluez=arguments)
        async with asyncio.timeout(_CALL_S):
            await scanner.start()
        self._scanner = scanner

    async def stop(self) -> None:
        scanner, self._scanner = self._scanner, None
        if scanner is None:
            return
        try:
            async with asyncio.timeout(_CALL_S):
                await scanner.stop()
        except FOREIGN as error:
            # InProgress, or a bluetoothd that knows nothing of our scan any more: it is over either way
            log.debug("%s: stop of the scan: %r", self._name, error)

    async def reset(self) -> None:
        await self.stop()
        self._resetting = True
        try:
            for on in (False, True):
                await self._power(on)
                await asyncio.sleep(_POWER_PAUSE_S)
        finally:
            self._resetting = False
            self._lose_all()

    async def _power(self, on: bool) -> None:
        bus = self._bus
        if bus is None:
            return
        powered = Message(
            destination=_BLUEZ,
            path=f"/org/bluez/{self._name}",
            interface="org.freedesktop.DBus.Properties",
            member="Set",
            signature="ssv",
            body=[_ADAPTER, "Powered", Variant("b", on)],
        )
        try:
            async with asyncio.timeout(_CALL_S):
                await self._answered(bus, powered)
        except FOREIGN as error:
            log.warning("%s cannot be switched %s: %r", self._name, "on" if on else "off", error)

    async def upset(self) -> str:
        await self._changed.wait()
        self._changed.clear()
        why = self._void
        try:
            async with asyncio.timeout(_COMES_BACK_S):
                while problem := await self._adapter_problem():
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError as error:
            raise LinkError(problem) from error
        return why

    async def connect(self, address: str, timeout_s: float, pair: bool, on_lost: Callable[[], None]) -> BleakPeripheral:
        device = self._devices.get(address.upper())
        if device is None:
            raise DeviceError(f"{address} has not been heard since the scan began", Status.DEVICE_OFFLINE)
        peripheral = BleakPeripheral(device, self._name, timeout_s, pair, on_lost, self._peripherals.discard)
        await peripheral.connect()
        self._peripherals.add(peripheral)
        return peripheral

    def _signal(self, message: Message) -> None:
        """Everything that makes scans and connections void, as BlueZ tells it."""
        if message.message_type is not MessageType.SIGNAL:
            return
        body: list[Any] = message.body
        path = f"/org/bluez/{self._name}"
        match message.member:
            case "NameOwnerChanged":
                self._became_void("bluetoothd restarted" if body[2] else "bluetoothd ended")
            case "InterfacesAdded" if body[0] == path and _ADAPTER in body[1]:
                self._became_void(f"{self._name} came back")
            case "InterfacesRemoved" if body[0] == path and _ADAPTER in body[1]:
                self._became_void(f"{self._name} was removed")
            case "PropertiesChanged" if message.path == path and "Powered" in body[1] and not self._resetting:
                self._became_void(f"{self._name} was switched {'on' if body[1]['Powered'].value else 'off'}")

    def _became_void(self, why: str) -> None:
        self._void = why
        self._lose_all()
        self._changed.set()

    def _lose_all(self) -> None:
        self._devices.clear()
        for peripheral in tuple(self._peripherals):
            peripheral.lose()

    async def _adapter_problem(self) -> str:
        """What a person must do before the adapter can be used; empty: it can. Raises LinkError without D-Bus."""
        bus = self._bus
        if bus is None or not bus.connected:
            raise LinkError("the connection to the system D-Bus is gone")
        try:
            async with asyncio.timeout(_CALL_S):
                reply = await self._call(bus, _BLUEZ, "/", "GetManagedObjects")
        except BleakDBusError as error:
            if error.dbus_error.endswith(".AccessDenied"):
                return "this user may not speak to BlueZ: add it to the group bluetooth, or try sudo"
            return f"no Bluetooth service ({error.dbus_error}): install bluez and start bluetooth.service"
        except FOREIGN as error:
            raise LinkError(f"no answer over D-Bus ({error!r}): are dbus and bluetoothd running?") from error
        adapters = {
            path.rpartition("/")[2]: unpack_variants(interfaces[_ADAPTER])
            for path, interfaces in sorted(reply.body[0].items())
            if _ADAPTER in interfaces
        }
        usable = [name for name, properties in adapters.items() if properties.get("Powered")]
        name = self._wanted or next(iter(usable or adapters), "")
        if name not in adapters:
            there = f"; there is {', '.join(adapters)}" if adapters else ""
            wanted = f" {self._wanted}" if self._wanted else ""
            return f"no Bluetooth adapter{wanted}{there}: is it plugged in, and not blocked (rfkill list)?"
        if name not in usable:
            return f"{name} is switched off: `bluetoothctl power on`, and `rfkill unblock bluetooth` if that is refused"
        if "central" not in adapters[name].get("Roles", ["central"]):
            return f"{name} cannot do Bluetooth Low Energy: use another adapter"
        self._name = name
        return ""

    async def _call(self, bus: MessageBus, service: str, path: str, member: str, *arguments: str) -> Message:
        interface = "org.freedesktop.DBus" if member == "AddMatch" else "org.freedesktop.DBus.ObjectManager"
        call = Message(
            destination=service,
            path=path,
            interface=interface,
            member=member,
            signature="s" * len(arguments),
            body=list(arguments),
        )
        return await self._answered(bus, call)

    @staticmethod
    async def _answered(bus: MessageBus, call: Message) -> Message:
        reply = await bus.call(call)
        if reply is None:
            raise EOFError("D-Bus connection ended")
        if reply.message_type is MessageType.ERROR:
            raise BleakDBusError(str(reply.error_name), reply.body)
        return reply


def _advertisement(address: str, device: BLEDevice, data: AdvertisementData) -> Advertisement:
    # BlueZ says `random`; of those only the static ones, whose two highest bits are set, stay for a battery's life
    random_kind = device.details["props"].get("AddressType") == "random"
    return Advertisement(
        address=address,
        name=data.local_name or "",
        rssi=data.rssi,
        service_data=data.service_data,
        manufacturer_data=data.manufacturer_data,
        stable_address=not random_kind or int(address[:2], 16) >> 6 == 0b11,
    )
