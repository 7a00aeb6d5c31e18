"""Pure: RuuviTag data format 5 (RAWv2), as specified at https://docs.ruuvi.com.

Manufacturer data of company 0x0499: 24 bytes, big-endian. Each field has its own value for "not available".
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.connectors.ble.advertisement import Decoded, Quantity
from gateway.errors import DecodeError
from gateway.model import Status

COMPANY: Final = 0x0499
NAME: Final = "ruuvi"

_FORMAT: Final = 5
# format, temperature, humidity, pressure, acceleration x y z, power, movements, sequence, address
_LAYOUT: Final = struct.Struct(">BhHHhhhHBH6s")
_NO_SIGNED: Final = -0x8000
_NO_16: Final = 0xFFFF
_NO_8: Final = 0xFF
_NO_VOLTAGE: Final = 0x7FF  # 11 bits
_NO_POWER: Final = 0x1F  # 5 bits


def decode(payload: bytes) -> Decoded:
    """One manufacturer data payload, without the company identifier.

    Raises:
        DecodeError: another format, or not 24 bytes.
    """
    if not payload or payload[0] != _FORMAT:
        raise DecodeError(f"Ruuvi data format {payload[0] if payload else 'missing'} is not known; known: {_FORMAT}", 0)
    if len(payload) != _LAYOUT.size:
        raise DecodeError(f"Ruuvi data format {_FORMAT} has {_LAYOUT.size} bytes, not {len(payload)}")
    _, temperature, humidity, pressure, x, y, z, power, movements, sequence, _ = _LAYOUT.unpack(payload)
    voltage, transmit = power >> 5, power & 0x1F
    quantities = (
        _quantity("temperature", "Cel", temperature, _NO_SIGNED, temperature * 5 / 1000),
        _quantity("humidity", "%RH", humidity, _NO_16, humidity * 25 / 10_000),
        _quantity("pressure", "Pa", pressure, _NO_16, pressure + 50_000),
        _quantity("acceleration_x", "gn", x, _NO_SIGNED, x / 1000),
        _quantity("acceleration_y", "gn", y, _NO_SIGNED, y / 1000),
        _quantity("acceleration_z", "gn", z, _NO_SIGNED, z / 1000),
        _quantity("battery_voltage", "V", voltage, _NO_VOLTAGE, (voltage + 1600) / 1000),
        _quantity("tx_power", "dBm", transmit, _NO_POWER, transmit * 2 - 40),
        _quantity("movement_counter", "", movements, _NO_8, movements),
        _quantity("measurement_sequence", "", sequence, _NO_16, sequence),
    )
    return Decoded(NAME, payload, quantities, numbered=sequence != _NO_16)


def _quantity(point: str, unit: str, raw: int, unknown: int, value: float) -> Quantity:
    if raw == unknown:
        return Quantity(point, None, unit, Status.SENSOR_FAULT)
    return Quantity(point, value, unit)
