"""Pure: ThermoPro TP357, TP358, TP359 and TP393.

ThermoPro publishes nothing. The fields are what Theengs Decoder (https://github.com/theengs/decoder) and Passive BLE
Monitor (https://github.com/custom-components/ble_monitor) agree on. On what the battery's byte means they and others
disagree, so it is left out.

The second byte of the company identifier is already part of the temperature, so the payload here is the identifier and
what follows: 0xC2, temperature 0.1 Cel, little-endian, humidity in percent, and more. Where identifiers of earlier
packets are kept, only what changed counts, and when it cannot be told which entry is new, nothing does.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, fault
from gateway.errors import DecodeError

NAME: Final = "thermopro"
MODELS: Final = ("TP357", "TP358", "TP359", "TP393")

_LAYOUT: Final = struct.Struct("<BhB")
_MIN_BYTES: Final = 6
_MARK: Final = 0xC2
_UNKNOWN: Final = b"\xff\xff\xff"


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    if not heard.name.startswith(MODELS):
        return None
    company = heard.newest(lambda each: each & 0xFF == _MARK)
    if company is None:
        return None
    return decode(company.to_bytes(2, "little") + heard.manufacturer_data[company])


def decode(payload: bytes) -> Decoded:
    """The company identifier as sent and what follows. Raises DecodeError."""
    if len(payload) < _MIN_BYTES:
        raise DecodeError(f"ThermoPro: at least {_MIN_BYTES} bytes expected, not {len(payload)}")
    mark, temperature, humidity = _LAYOUT.unpack_from(payload)
    if mark != _MARK:
        raise DecodeError(f"ThermoPro: it begins with 0x{mark:02x}, not 0x{_MARK:02x}", 0)
    if payload[1:4] == _UNKNOWN:
        return Decoded(NAME, payload, (fault("temperature", "Cel"), fault("humidity", "%RH")))
    if humidity > 100:
        raise DecodeError(f"ThermoPro: {humidity} %RH cannot be", 3)
    quantities = (Quantity("temperature", temperature / 10, "Cel"), Quantity("humidity", humidity, "%RH"))
    return Decoded(NAME, payload, quantities)
