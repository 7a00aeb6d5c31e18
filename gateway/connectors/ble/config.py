"""Pure: what the configuration says about a Bluetooth adapter and the devices around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from gateway.connectors.base import Connect, Kind, Tools
from gateway.connectors.ble import gatt
from gateway.connectors.ble.decoders import CHANGING, SEALED, DecoderName
from gateway.points import Bus, Device, Point, name_mistakes
from gateway.settings import Duration, Key, Mistake, Table

if TYPE_CHECKING:
    from gateway.connectors.ble.connector import BleConnector

_ADDRESS: Final = r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}"


class ScanMode(StrEnum):
    """How to listen."""

    AUTO = "auto"
    ACTIVE = "active"
    PASSIVE = "passive"


class ConnectMode(StrEnum):
    """How values of a connected device come."""

    NOTIFY = "notify"
    POLL = "poll"


class BleBus(Bus, frozen=True, kw_only=True):
    """One Bluetooth adapter, through BlueZ."""

    adapter: Annotated[
        str, Key("adapter as BlueZ names it; empty: the first that is powered", pattern=r"(?:hci\d+)?")
    ] = ""
    scan_mode: Annotated[
        ScanMode, Key("`passive` only listens; `active` also asks for scan responses; `auto`: passive where it works")
    ] = ScanMode.AUTO
    max_connections: Annotated[
        int, Key("devices connected at the same time; most adapters bear 3 to 5", min=1, max=10)
    ] = 3
    connect_timeout: Annotated[Duration, Key("give up one attempt to connect after", min=0.1, max=120)] = 20.0
    silence: Annotated[Duration, Key("start the scan again when nothing at all was heard for", min=0.1)] = 90.0


class BlePoint(Point, frozen=True, kw_only=True):
    """A quantity of an advertisement (by its name), or a characteristic of a connected device."""

    characteristic: Annotated[str, Key("UUID of the characteristic, 16 bits or in full", example='"2a6e"')] = ""
    field: Annotated[
        str, Key("which value of a standard characteristic with several; empty: its first", example='"energy_expended"')
    ] = ""
    type: Annotated[
        str, Key("type of a characteristic that the Bluetooth SIG does not fix: uint8 … float64, string")
    ] = ""
    byte_order: Annotated[str, Key("order of its bytes: little, big or letters as for Modbus")] = "little"

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        if not self.characteristic:
            if self.type or self.field:
                word = "type" if self.type else "field"
                yield Mistake((word,), f"`{word}` belongs to a `characteristic`, and there is none")
            if self.write is not None:
                yield Mistake(("write",), "only a point with a `characteristic` can be written")
            return
        uuid = gatt.full_uuid(self.characteristic)
        if uuid is None:
            yield Mistake(("characteristic",), f"{self.characteristic!r} is not a UUID such as 2a6e or 0000ff01-0000-…")
            return
        try:
            known = gatt.custom(self.type, self.byte_order) if self.type else gatt.fixed(uuid, self.field)
        except ValueError as error:
            yield Mistake(("type" if self.type else "field",), str(error))
            return
        if known is None:
            yield Mistake(
                ("characteristic",), f"`type` is needed: {self.characteristic} has no format that is known here"
            )
        elif self.write is not None and not self.type and gatt.measurement(uuid) is not None:
            yield Mistake(("write",), f"{self.characteristic} is measured by the device, and cannot be written")

    def format(self) -> gatt.Format:
        """How the bytes of the characteristic are read; only for points that have one."""
        if self.type:
            return gatt.custom(self.type, self.byte_order)
        known = gatt.fixed(self.uuid(), self.field)
        assert known is not None, "checked by mistakes()"
        return known

    def uuid(self) -> str:
        """In full and lower case; empty when the point comes from advertisements."""
        return gatt.full_uuid(self.characteristic) or ""


class ConnectTable(Table, frozen=True, kw_only=True):
    """Makes the gateway connect to the device instead of only listening."""

    mode: Annotated[ConnectMode, Key("`notify`: stay connected, the device speaks; `poll`: read every `interval`")]
    interval: Annotated[Duration, Key("time between reads; with `notify`, of what cannot notify", min=0.1)] = 300.0
    pair: Annotated[bool, Key("pair (bond) first, for a device that answers no stranger; without a code")] = False


class BleDevice(Device, frozen=True, kw_only=True):
    """A sensor or actuator in reach of the adapter."""

    address: Annotated[str, Key("Bluetooth address", pattern=_ADDRESS, example='"A4:C1:38:8D:18:B2"')]
    decoder: Annotated[DecoderName, Key("format of its advertisements")] = DecoderName.AUTO
    package: Annotated[
        str,
        Key(
            "decode with this package of the Bluetooth-Devices project instead (extra ble-decoders)",
            pattern=r"[a-z0-9]+(?:-[a-z0-9]+)*",
            example='"sensorpush-ble"',
        ),
    ] = ""
    bindkey_file: Annotated[
        Path | None,
        Key("file with the key of its encrypted advertisements, 32 hex digits", example='"/etc/gateway/fridge.key"'),
    ] = None
    irk_file: Annotated[
        Path | None,
        Key(
            "file with its identity resolving key, 32 hex digits: its address changes", example='"/etc/gateway/tag.irk"'
        ),
    ] = None
    min_interval: Annotated[Duration, Key("pass on its advertisements at most this often; a changed state always")] = (
        1.0
    )
    expire_after: Annotated[
        Duration | None, Key("without news for this long its points are bad:stale, where they say nothing else")
    ] = None
    connect: Annotated[ConnectTable | None, Key("connect to it", example='{ mode = "poll", interval = "5m" }')] = None
    points: Annotated[
        Literal["auto"] | tuple[BlePoint, ...], Key("auto: all quantities of its advertisements are passed on")
    ] = "auto"

    @property
    def named(self) -> tuple[BlePoint, ...]:
        """The points that the configuration names; none with `auto`."""
        return () if self.points == "auto" else self.points

    @property
    def characteristics(self) -> tuple[BlePoint, ...]:
        """Of the named points those that the device must be connected for."""
        return tuple(point for point in self.named if point.characteristic)

    @property
    def advertised(self) -> tuple[BlePoint, ...]:
        """The other ones."""
        return tuple(point for point in self.named if not point.characteristic)

    def mistakes(self) -> Iterable[Mistake]:
        yield from super().mistakes()
        yield from name_mistakes(self.named)
        for place, point in enumerate(self.named):
            if point.characteristic and self.connect is None and point.write is None:
                yield Mistake(("points", place, "characteristic"), "a characteristic needs `connect` (or `write`)")
        if self.package and self.decoder is not DecoderName.AUTO:
            yield Mistake(("decoder",), "`package` and `decoder` are two ways to say who decodes; keep one")
        if self.bindkey_file is not None and self.decoder is not DecoderName.AUTO and self.decoder not in SEALED:
            yield Mistake(("bindkey_file",), f"{self.decoder.value} is not encrypted in a way that is known here")
        if self.connect is not None and not self.characteristics:
            yield Mistake(("connect",), "nothing to connect for: no point has a `characteristic`")

    def stays_connected(self) -> bool:
        """True when the device holds one of the adapter's connections all the time."""
        connect = self.connect
        return connect is not None and (connect.mode is ConnectMode.NOTIFY or connect.interval < KEEP_LINK_BELOW_S)


KEEP_LINK_BELOW_S: Final = 60.0
"""Polled more often than this, staying connected costs the device less than connecting anew (1 to 3 s each time)."""


def _check(bus: BleBus, devices: Sequence[BleDevice]) -> Sequence[str]:
    warnings = []
    staying = [device.name for device in devices if device.stays_connected()]
    others = any(device.characteristics for device in devices if not device.stays_connected())
    if len(staying) + others > bus.max_connections:
        warnings.append(
            f"{', '.join(staying)} stay connected, and max_connections is {bus.max_connections}:"
            " for the others no connection is left"
        )
    changing = [device.name for device in devices if device.decoder in CHANGING]
    if changing and bus.scan_mode is ScanMode.PASSIVE:
        warnings.append(
            f"{', '.join(changing)}: of these a passive scan tells only values that were not heard before;"
            ' scan_mode "auto" or "active" tells all'
        )
    addresses: dict[str, str] = {}
    for device in devices:
        other = addresses.setdefault(device.address.upper(), device.name)
        if other != device.name:
            warnings.append(
                f"{other} and {device.name} have the same address {device.address.upper()}:"
                f" only {device.name} is served"
            )
    return warnings


def _plan(bus: BleBus, devices: Sequence[BleDevice]) -> Sequence[str]:
    lines = []
    for device in devices:
        heard = [point.name for point in device.advertised]
        if device.connect is None or heard:
            lines.append(f"{device.name}: listens for {', '.join(heard) or 'everything that it advertises'}")
        if device.connect is not None:
            read = [point.name for point in device.characteristics]
            lines.append(f"{device.name}: connects ({device.connect.mode.value}) for {', '.join(read)}")
    return lines


def _load() -> Connect[BleBus, BleDevice]:
    from gateway.connectors.ble.connector import BleConnector
    from gateway.connectors.ble.link import BleakRadio

    def connect(bus: BleBus, devices: Sequence[BleDevice], tools: Tools, /) -> BleConnector:
        return BleConnector(bus, devices, tools, BleakRadio(bus.adapter))

    return connect


BLE: Final = Kind("ble", BleBus, BleDevice, _load, _check, _plan)
