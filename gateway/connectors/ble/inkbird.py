"""Pure: Inkbird IBS-TH, IBS-TH2 and IBS-P01B.

Inkbird publishes nothing. The fields are what Theengs Decoder (https://github.com/theengs/decoder) and Passive BLE
Monitor (https://github.com/custom-components/ble_monitor) agree on. Both skip two bytes; in every capture of their
tests these are the CRC-16 of Modbus over the five bytes before, so here they must be that.

The device puts the temperature where the company identifier belongs, so the payload here is the identifier and what
follows, nine bytes, little-endian: temperature 0.01 Cel, humidity 0.01 %, probe (0 inside, 1 outside), CRC, battery,
one unknown byte. Only the name says whose it is: `sps` measures humidity, `tps` does not. Where identifiers of earlier
packets are kept, only what changed counts, and when it cannot be told which entry is new, nothing does.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity
from gateway.errors import DecodeError

NAME: Final = "inkbird"
WITH_HUMIDITY: Final = "sps"
TEMPERATURE_ONLY: Final = "tps"

_LAYOUT: Final = struct.Struct("<hHBHBB")
_CHECKED_BYTES: Final = 5
_PROBES: Final = {0: "temperature", 1: "probe_temperature"}


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    if heard.name not in (WITH_HUMIDITY, TEMPERATURE_ONLY):
        return None
    company = heard.newest(lambda each: len(heard.manufacturer_data[each]) == _LAYOUT.size - 2)
    if company is None:
        return None
    return decode(company.to_bytes(2, "little") + heard.manufacturer_data[company], heard.name == WITH_HUMIDITY)


def decode(payload: bytes, with_humidity: bool) -> Decoded:
    """The company identifier as sent and what follows. Raises DecodeError."""
    if len(payload) != _LAYOUT.size:
        raise DecodeError(f"Inkbird: {_LAYOUT.size} bytes expected, not {len(payload)}")
    temperature, humidity, probe, crc, battery, _ = _LAYOUT.unpack(payload)
    if crc != _crc16(payload[:_CHECKED_BYTES]):
        raise DecodeError("Inkbird: the CRC does not fit", _CHECKED_BYTES)
    if probe not in _PROBES:
        raise DecodeError(f"Inkbird: probe {probe} is not known", 4)
    if battery > 100 or (with_humidity and humidity > 10_000):
        raise DecodeError(f"Inkbird: {humidity / 100:g} %RH with {battery} % of a battery cannot be")
    quantities = [Quantity(_PROBES[probe], temperature / 100, "Cel"), Quantity("battery", battery, "%EL")]
    if with_humidity:
        quantities.insert(1, Quantity("humidity", humidity / 100, "%RH"))
    return Decoded(NAME, payload, tuple(quantities))


def _crc16(data: bytes) -> int:
    """CRC-16 of Modbus: polynomial 0x8005 reflected, all ones to begin with."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc
