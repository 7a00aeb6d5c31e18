"""A Bluetooth adapter made of D-Bus messages: `org.bluez` on a private bus, for tests and the demo.

What it answers is what bluetoothd 5.66 answers on the same call, as far as bleak asks: the object tree, discovery,
advertisement monitors, connections, GATT. Devices speak only while somebody scans, as on the air. Errors are scripted
(`fail`, `hang`), so is a restart of the service. Nothing here touches the machine's own Bluetooth: the bus is private,
its address goes into DBUS_SYSTEM_BUS_ADDRESS.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from gateway.testing.process import end_with_parent

_CONFIG: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy>
</busconfig>
"""
_OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_ADAPTER: Final = "org.bluez.Adapter1"
_MONITORS: Final = "org.bluez.AdvertisementMonitorManager1"
_DEVICE: Final = "org.bluez.Device1"
_SERVICE: Final = "org.bluez.GattService1"
_CHARACTERISTIC: Final = "org.bluez.GattCharacteristic1"
_START_S: Final = 10.0

Properties = dict[str, Variant]
Interfaces = dict[str, Properties]


class PrivateBus:
    """A dbus-daemon of its own in `folder` (a short path: that of a socket has at most 107 characters)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemon: asyncio.subprocess.Process | None = None
        self.address = f"unix:path={folder / 'bus'}"
        """For DBUS_SYSTEM_BUS_ADDRESS; the same after every start."""

    async def start(self) -> None:
        config, socket = self._folder / "bus.conf", self._folder / "bus"
        socket.unlink(missing_ok=True)
        config.write_text(_CONFIG.format(socket=socket))
        with (self._folder / "bus.log").open("ab") as log:
            self._daemon = await asyncio.create_subprocess_exec(
                "dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1",
                stdout=asyncio.subprocess.PIPE, stderr=log, preexec_fn=end_with_parent,
            )  # fmt: skip
        assert self._daemon.stdout is not None
        async with asyncio.timeout(_START_S):
            if not await self._daemon.stdout.readline():
                raise RuntimeError(f"dbus-daemon did not start: see {self._folder / 'bus.log'}")

    async def stop(self) -> None:
        if self._daemon is not None and self._daemon.returncode is None:
            self._daemon.terminate()
            await self._daemon.wait()

    async def __aenter__(self) -> PrivateBus:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class FakeBluez:
    """One `org.bluez` with one adapter."""

    def __init__(self, address: str, adapter: str = "hci0", *, monitors: bool = True, powered: bool = True) -> None:
        self._bus_address = address
        self.adapter = f"/org/bluez/{adapter}"
        self._has_monitors = monitors
        self._powered = powered
        self._bus: MessageBus | None = None
        self._objects: dict[str, Interfaces] = {}
        self._gatt: dict[str, dict[str, tuple[bytes, list[str]]]] = {}
        self._failures: defaultdict[str, deque[tuple[str, str]]] = defaultdict(deque)
        self._hanging: set[str] = set()
        self._signals: set[asyncio.Task[None]] = set()
        self._scanning: set[str] = set()
        self.scan_began = asyncio.Event()
        """Somebody scans, for the first time."""
        self.calls: list[str] = []
        """Members called by clients, in order."""
        self.written: list[tuple[str, bytes, str]] = []
        """UUID, bytes and type (`request`: with response) of every write."""
        self.deaf = False
        """Devices advertise and nothing is told: a stalled controller."""
        self.forgets = False
        """A client asked to have only the data of the latest packet of each device."""
        self.reset_helps = False
        """Switching the adapter off and on ends being deaf."""
        self.read_only: set[str] = set()
        """UUIDs that swallow a write: the value stays."""
        self.most_connected = 0
        """Devices connected at the same time, at most so far."""

    # ── the service ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Takes the name and shows the adapter, as bluetoothd does: name first, adapter a moment later."""
        self._bus = await MessageBus(bus_address=self._bus_address).connect()
        self._bus.add_message_handler(self._serve)
        await self._bus.request_name("org.bluez")
        await self.plug()

    async def stop(self) -> None:
        """The service ends: the name is lost, and with it everything that it knew."""
        for task in self._signals:
            task.cancel()
        self._objects.clear()
        self._scanning.clear()
        if self._bus is not None:
            self._bus.disconnect()
            try:
                await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
            except (OSError, EOFError):
                pass  # the bus itself ended first
            self._bus = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def plug(self) -> None:
        """The adapter appears."""
        name = self.adapter.rpartition("/")[2]
        interfaces: Interfaces = {
            _ADAPTER: {
                "Address": Variant("s", "00:1A:7D:DA:71:13"),
                "Name": Variant("s", name),
                "Powered": Variant("b", self._powered),
                "Roles": Variant("as", ["central", "peripheral"]),
            }
        }
        if self._has_monitors:
            interfaces[_MONITORS] = {"SupportedMonitorTypes": Variant("as", ["or_patterns"])}
        await self._add(self.adapter, interfaces)

    async def unplug(self) -> None:
        """The adapter and everything on it disappears."""
        self._scanning.clear()
        for path in sorted(self._objects, reverse=True):
            await self._remove(path)

    async def power(self, on: bool) -> None:
        self._powered = on
        await self._change(self.adapter, _ADAPTER, {"Powered": Variant("b", on)})

    def fail(self, member: str, error: str, text: str = "", times: int = 1) -> None:
        """The next calls of `member` are answered with `org.bluez.Error.<error>`."""
        self._failures[member] += [(f"org.bluez.Error.{error}", text)] * times

    def hang(self, member: str) -> None:
        """Calls of `member` are accepted and never answered."""
        self._hanging.add(member)

    def heal(self, member: str) -> None:
        self._hanging.discard(member)
        self._failures.pop(member, None)

    def count(self, member: str) -> int:
        """How often clients called it."""
        return self.calls.count(member)

    @property
    def scanning(self) -> bool:
        return bool(self._scanning)

    # ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def path(self, address: str) -> str:
        return f"{self.adapter}/dev_{address.replace(':', '_')}"

    async def advertise(
        self,
        address: str,
        *,
        service_data: Mapping[str, bytes] | None = None,
        manufacturer_data: Mapping[int, bytes] | None = None,
        rssi: int = -60,
        name: str = "",
        address_type: str = "public",
    ) -> None:
        """A device sends one advertisement; nobody hears it unless somebody scans."""
        if not self._scanning or self.deaf:
            return
        properties: Properties = {"RSSI": Variant("n", rssi)}
        if service_data:
            properties["ServiceData"] = Variant("a{sv}", {k: Variant("ay", v) for k, v in service_data.items()})
        if manufacturer_data:
            properties["ManufacturerData"] = Variant(
                "a{qv}", {k: Variant("ay", v) for k, v in manufacturer_data.items()}
            )
        if name:
            properties["Name"] = Variant("s", name)
        path = self.path(address)
        if path in self._objects:
            self._remember(path, properties)
            await self._change(path, _DEVICE, properties)
            return
        properties |= {
            "Address": Variant("s", address),
            "AddressType": Variant("s", address_type),
            "Alias": Variant("s", name or address.replace(":", "-")),
            "Adapter": Variant("o", self.adapter),
            "Paired": Variant("b", False),
            "Connected": Variant("b", False),
            "ServicesResolved": Variant("b", False),
            "UUIDs": Variant("as", []),
        }
        await self._add(path, {_DEVICE: properties})

    def _remember(self, path: str, properties: Properties) -> None:
        """What was said before stays beside what is new, as long as nobody asked to forget it."""
        for name in ("ServiceData", "ManufacturerData"):
            before = self._objects[path][_DEVICE].get(name)
            if name in properties and before is not None and not self.forgets:
                properties[name] = Variant(before.signature, before.value | properties[name].value)

    async def fade(self, address: str) -> None:
        """BlueZ drops the signal strength of a device that it does not hear; nothing was received."""
        self._objects[self.path(address)][_DEVICE].pop("RSSI", None)
        body = [_DEVICE, {}, ["RSSI"]]
        await self._tell(self.path(address), _PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    async def vanish(self, address: str) -> None:
        """BlueZ forgets a device that it has not heard for long."""
        for path in sorted((p for p in self._objects if p.startswith(self.path(address))), reverse=True):
            await self._remove(path)

    def give_gatt(self, address: str, characteristics: Mapping[str, tuple[bytes, list[str]]]) -> None:
        """What a device has inside: UUID → value and flags (`read`, `notify`, …). It shows when it is connected."""
        self._gatt[address] = dict(characteristics)

    async def _link_up(self, address: str, connect: Message) -> None:
        """As BlueZ does it: `Connected`, the reply, then the objects, and when all are there `ServicesResolved`."""
        device, on = self.path(address), Variant("b", True)
        await self._change(device, _DEVICE, {"Connected": on})
        assert self._bus is not None, "served by it"
        await self._bus.send(Message.new_method_return(connect))
        service = f"{device}/service0001"
        if service not in self._objects:
            await self._add_service(address, service)
        await self._change(device, _DEVICE, {"ServicesResolved": on})

    async def _add_service(self, address: str, service: str) -> None:
        properties = {
            "UUID": Variant("s", "0000181a-0000-1000-8000-00805f9b34fb"),
            "Device": Variant("o", self.path(address)),
            "Primary": Variant("b", True),
        }
        await self._add(service, {_SERVICE: properties})
        for handle, (uuid, (value, flags)) in enumerate(self._gatt.get(address, {}).items(), start=2):
            properties = {
                "UUID": Variant("s", uuid),
                "Service": Variant("o", service),
                "Value": Variant("ay", value),
                "Flags": Variant("as", flags),
                "Notifying": Variant("b", False),
            }
            await self._add(f"{service}/char{handle:04x}", {_CHARACTERISTIC: properties})

    def connected(self, address: str) -> bool:
        device = self._objects.get(self.path(address), {}).get(_DEVICE, {})
        return bool(device) and bool(device["Connected"].value)

    def notifying(self, address: str, uuid: str) -> bool:
        path = self._characteristic(address, uuid)
        return path is not None and bool(self._objects[path][_CHARACTERISTIC]["Notifying"].value)

    async def set_value(self, address: str, uuid: str, value: bytes) -> None:
        """The device has a new value; whoever subscribed is notified."""
        path = self._characteristic(address, uuid)
        assert path is not None, f"{address} has no {uuid}"
        self._objects[path][_CHARACTERISTIC]["Value"] = Variant("ay", value)
        if self._objects[path][_CHARACTERISTIC]["Notifying"].value:
            await self._change(path, _CHARACTERISTIC, {"Value": Variant("ay", value)})

    async def drop(self, address: str) -> None:
        """The connection breaks."""
        for path, interfaces in self._objects.items():
            if path.startswith(self.path(address)) and _CHARACTERISTIC in interfaces:
                interfaces[_CHARACTERISTIC]["Notifying"] = Variant("b", False)
        off = Variant("b", False)
        await self._change(self.path(address), _DEVICE, {"Connected": off, "ServicesResolved": off})

    def _characteristic(self, address: str, uuid: str) -> str | None:
        for path, interfaces in self._objects.items():
            found = interfaces.get(_CHARACTERISTIC)
            if found and path.startswith(self.path(address)) and found["UUID"].value == uuid:
                return path
        return None

    # ── D-Bus ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _add(self, path: str, interfaces: Interfaces) -> None:
        self._objects[path] = interfaces
        await self._tell("/", _OBJECTS, "InterfacesAdded", "oa{sa{sv}}", [path, interfaces])

    async def _remove(self, path: str) -> None:
        interfaces = self._objects.pop(path)
        await self._tell("/", _OBJECTS, "InterfacesRemoved", "oas", [path, list(interfaces)])

    async def _change(self, path: str, interface: str, changed: Properties) -> None:
        self._objects[path][interface] |= changed
        await self._tell(path, _PROPERTIES, "PropertiesChanged", "sa{sv}as", [interface, changed, []])

    async def _tell(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        assert self._bus is not None, "start() first"
        # written before the next one is made: dbus-fast gives up on a full socket
        await self._bus.send(Message.new_signal(path, interface, member, signature, body))

    def _serve(self, message: Message) -> Message | bool | None:
        """Answers one call; True: taken, and never answered, or answered later."""
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        member, path = str(message.member), str(message.path)
        self.calls.append(member)
        if self._failures[member]:
            error, text = self._failures[member].popleft()
            if text == "le-connection-abort-by-local":
                # BlueZ reports the link up and down again around this error
                self._later(self.drop(_address(path)))
            return Message.new_error(message, error, text)
        if member in self._hanging:
            return True
        if member == "GetManagedObjects":
            return Message.new_method_return(message, "a{oa{sa{sv}}}", [self._objects])
        if path not in self._objects:
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownObject", f"no object {path}")
        serve = self._members().get(member)
        if serve is None or (member.endswith("Monitor") and not self._has_monitors):
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", f"no method {member}")
        return serve(message, path)

    def _members(self) -> dict[str, Callable[[Message, str], Message | bool]]:
        return {
            "SetDiscoveryFilter": self._filter,
            "StartDiscovery": self._scan_on,
            "RegisterMonitor": self._scan_on,
            "StopDiscovery": self._scan_off,
            "UnregisterMonitor": self._scan_off,
            "Connect": self._connect,
            "Disconnect": self._disconnect,
            "ReadValue": self._read,
            "WriteValue": self._write,
            "StartNotify": self._notify,
            "StopNotify": self._notify,
            "Set": self._set,
            "Pair": self._pair,
        }

    def _filter(self, message: Message, _: str) -> Message:
        wanted = message.body[0].get("DuplicateData")
        self.forgets = wanted is not None and bool(wanted.value)
        return Message.new_method_return(message)

    def _scan_on(self, message: Message, _: str) -> Message:
        self._scanning.add(str(message.sender))
        self.scan_began.set()
        return Message.new_method_return(message)

    def _scan_off(self, message: Message, _: str) -> Message:
        if str(message.sender) not in self._scanning:
            return Message.new_error(message, "org.bluez.Error.Failed", "No discovery started")
        self._scanning.discard(str(message.sender))
        return Message.new_method_return(message)

    def _connect(self, message: Message, path: str) -> bool:
        self._objects[path][_DEVICE]["Connected"] = Variant("b", True)
        devices = [interfaces[_DEVICE] for interfaces in self._objects.values() if _DEVICE in interfaces]
        self.most_connected = max(self.most_connected, sum(bool(device["Connected"].value) for device in devices))
        self._later(self._link_up(_address(path), message))
        return True

    def _set(self, message: Message, path: str) -> Message:
        interface, name, value = message.body
        if (interface, name) == (_ADAPTER, "Powered"):
            if not value.value:
                self._scanning.clear()
                self.deaf = self.deaf and not self.reset_helps
            self._powered = value.value
        self._later(self._change(path, interface, {name: value}))
        return Message.new_method_return(message)

    def _pair(self, message: Message, path: str) -> bool:
        self._later(self._change(path, _DEVICE, {"Paired": Variant("b", True)}))
        return self._connect(message, path)

    def _disconnect(self, message: Message, path: str) -> Message:
        self._later(self.drop(_address(path)))
        return Message.new_method_return(message)

    def _read(self, message: Message, path: str) -> Message:
        value = self._objects[path][_CHARACTERISTIC]["Value"].value
        return Message.new_method_return(message, "ay", [value])

    def _write(self, message: Message, path: str) -> Message:
        value, options = message.body
        uuid = self._objects[path][_CHARACTERISTIC]["UUID"].value
        self.written.append((uuid, bytes(value), options["type"].value))
        if uuid not in self.read_only:
            self._objects[path][_CHARACTERISTIC]["Value"] = Variant("ay", bytes(value))
        return Message.new_method_return(message)

    def _notify(self, message: Message, path: str) -> Message:
        self._objects[path][_CHARACTERISTIC]["Notifying"] = Variant("b", message.member == "StartNotify")
        return Message.new_method_return(message)

    def _later(self, signal: Coroutine[Any, Any, None]) -> None:
        """Sends a signal after the reply of the call that is being served."""
        task = asyncio.get_running_loop().create_task(signal, name="fake-bluez-signal")
        self._signals.add(task)
        task.add_done_callback(self._signals.discard)


def _address(path: str) -> str:
    """/org/bluez/hci0/dev_AA_BB… → AA:BB…"""
    return path.rpartition("/dev_")[2][:17].replace("_", ":")
