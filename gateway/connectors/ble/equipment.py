"""What a device needs beside its configuration: its secrets from their files, and the package that decodes it.

Reading and importing block, so it is done once, in a thread, before the scan begins. What is missing concerns one
device only: it is told as the reason why that one has no values, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from gateway.connectors.ble.advertisement import Advertisement, Decoded
from gateway.connectors.ble.cipher import BindKey, ResolvingKey, read_secret
from gateway.connectors.ble.config import BleDevice
from gateway.connectors.ble.decoders import decode
from gateway.connectors.ble.foreign import Foreign
from gateway.errors import DeviceError


class Equipment(NamedTuple):
    """How the advertisements of one device are read."""

    hear: Callable[[Advertisement], Decoded | None]
    """Raises DecodeError."""
    keyed: bool = False
    """It has a key, so what is not sealed is not believed."""
    problem: str = ""
    """What is missing, for a person."""


class Equipped(NamedTuple):
    """All devices of an adapter."""

    devices: dict[str, Equipment]
    """By name."""
    resolving_keys: dict[str, ResolvingKey]
    """By configured address."""


def equip(devices: Sequence[BleDevice]) -> Equipped:
    """Blocks where a device has a secret or a package."""
    equipped = Equipped({}, {})
    for device in devices:
        equipment = _of_one(device)
        if device.irk_file is not None:
            try:
                equipped.resolving_keys[device.address.upper()] = ResolvingKey(read_secret(device.irk_file))
            except DeviceError as error:
                equipment = equipment._replace(problem=equipment.problem or str(error))
        equipped.devices[device.name] = equipment
    return equipped


def _of_one(device: BleDevice) -> Equipment:
    try:
        secret = read_secret(device.bindkey_file) if device.bindkey_file is not None else None
        if device.package:
            return Equipment(Foreign(device.package, secret).hear)
        key = BindKey(secret) if secret is not None else None
    except DeviceError as error:
        return Equipment(_nothing if device.package else partial(decode, device.decoder), problem=str(error))
    return Equipment(partial(decode, device.decoder, key=key), keyed=key is not None)


def _nothing(_heard: Advertisement) -> None: ...
