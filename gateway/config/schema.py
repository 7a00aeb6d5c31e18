"""Pure: the whole configuration, assembled from what each stage declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.buffer.config import BufferSettings
from gateway.connectors.base import AnyKind
from gateway.points import Bus, Device
from gateway.settings import ID_PATTERN, Key, Mistake, Table
from gateway.uplink.config import UplinkSettings

_SOCKET_FOLDER_BYTES = 107 - len("/control.sock")  # sun_path of unix(7), and its zero


class GatewaySettings(Table, frozen=True, kw_only=True):
    """The daemon itself."""

    name: Annotated[
        str, Key("what status and logs call this gateway; without it the host name", pattern=ID_PATTERN)
    ] = ""
    state_dir: Annotated[
        Path, Key("what must survive a reboot: buffer, command journal; under systemd its StateDirectory")
    ] = Path("/var/lib/gateway")
    runtime_dir: Annotated[
        Path, Key("what must survive a restart: flight ring, control socket; under systemd its RuntimeDirectory")
    ] = Path("/run/gateway")
    profiles_dir: Annotated[
        Path | None,
        Key("folder of your own profiles; default: profiles, beside this file", example='"/etc/gateway/profiles"'),
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Key("the least that is logged")] = "info"

    def mistakes(self) -> Iterable[Mistake]:
        if len(str(self.runtime_dir).encode()) > _SOCKET_FOLDER_BYTES:
            yield Mistake(("runtime_dir",), f"too long for the socket in it: {_SOCKET_FOLDER_BYTES} bytes at most")


TABLES: tuple[tuple[str, type[Table]], ...] = (
    ("gateway", GatewaySettings),
    ("buffer", BufferSettings),
    ("uplink", UplinkSettings),
)
"""The tables that exist once, in the order of the example file."""
LISTS = ("bus", "template", "device")
"""The tables that exist many times, each shaped by its kind of bus."""


class Brought(NamedTuple):
    """What a device did not say itself."""

    by: tuple[str, ...]
    """The templates and the profile, in a person's words."""
    points: int
    left_out: int


class BusConfig(msgspec.Struct, frozen=True):
    """One bus that is in use, and the devices in use on it."""

    kind: AnyKind
    bus: Any
    """The kind's own struct of the bus, a `Bus`."""
    devices: tuple[Any, ...]
    """The kind's own structs, each a `Device`."""

    @property
    def name(self) -> str:
        bus: Bus = self.bus
        return bus.name


class Config(msgspec.Struct, frozen=True):
    """All that the daemon is told. Buses and devices that are switched off are not in it."""

    gateway: GatewaySettings
    buffer: BufferSettings
    uplink: UplinkSettings
    buses: tuple[BusConfig, ...]
    brought: Mapping[str, Brought] = {}
    """By name of the device."""

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for bus in self.buses for device in bus.devices)
