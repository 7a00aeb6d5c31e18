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


def equip(device: BleDevice) -> Equipment:
    """Blocks."""
    secret, problem = None, ""
    try:
        secret = read_secret(device.bindkey_file) if device.bindkey_file is not None else None
        if device.package:
            return Equipment(Foreign(device.package, secret).hear)
        key = BindKey(secret) if secret is not None else None
        return Equipment(lambda heard: decode(device.decoder, heard, key), keyed=key is not None)
    except DeviceError as error:
        problem = str(error)
    return Equipment(_nothing if device.package else partial(decode, device.decoder), problem=problem)


def _nothing(_heard: Advertisement) -> None: ...


class Keys(NamedTuple):
    """Identity resolving keys by configured address."""

    usable: dict[str, ResolvingKey]
    problems: dict[str, str]
    """Why there is none, by name of the device."""


def resolving_keys(devices: Sequence[BleDevice]) -> Keys:
    """Blocks."""
    keys = Keys({}, {})
    for device in devices:
        if device.irk_file is not None:
            try:
                keys.usable[device.address.upper()] = ResolvingKey(read_secret(device.irk_file))
            except DeviceError as error:
                keys.problems[device.name] = str(error)
    return keys
