"""Pure: iBeacon, as in Apple's Proximity Beacon Specification (https://developer.apple.com/ibeacon/).

Manufacturer data of company 0x004C: 0x02, 0x15, a UUID of 16 bytes, major and minor, big-endian, and the signal
strength at one metre. It says who is near, not what is measured, so the strength of this packet is told with it. Many
sensors send an iBeacon besides their values; so `auto` does not take it, and it must be asked for.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity
from gateway.errors import DecodeError

NAME: Final = "ibeacon"
COMPANY: Final = 0x004C

_LAYOUT: Final = struct.Struct(">2s16sHHb")
_MARK: Final = b"\x02\x15"


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.manufacturer_data.get(COMPANY, b"")
    return decode(payload, heard.rssi) if payload.startswith(_MARK) else None


def decode(payload: bytes, rssi: int) -> Decoded:
    """One manufacturer data payload, without the company identifier. Raises DecodeError."""
    if len(payload) != _LAYOUT.size:
        raise DecodeError(f"iBeacon: {_LAYOUT.size} bytes expected, not {len(payload)}")
    _, proximity, major, minor, power = _LAYOUT.unpack(payload)
    quantities = (
        Quantity("uuid", str(uuid.UUID(bytes=proximity))),
        Quantity("major", major),
        Quantity("minor", minor),
        Quantity("measured_power", power, "dBm"),
        Quantity("rssi", rssi, "dBm"),
    )
    return Decoded(NAME, payload, quantities)
