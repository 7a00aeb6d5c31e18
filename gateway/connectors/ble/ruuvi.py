"""Pure: RuuviTag and Ruuvi Air, as specified at https://docs.ruuvi.com/communication/bluetooth-advertisements.

Manufacturer data of company 0x0499, big-endian: data format 3 (RAWv1), 5 (RAWv2), 6 and E1 (extended v1, which only an
adapter with Bluetooth 5 hears). Each field has its own value for "not available", but for format 3, which has none.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, fault, state
from gateway.errors import DecodeError

COMPANY: Final = 0x0499
NAME: Final = "ruuvi"

# format, humidity, temperature (sign and magnitude), its hundredths, pressure, acceleration x y z, battery
_RAW_V1: Final = struct.Struct(">BBBBHhhhH")
# format, temperature, humidity, pressure, acceleration x y z, power, movements, sequence, address
_RAW_V2: Final = struct.Struct(">BhHHhhhHBH6s")
# format, temperature, humidity, pressure, PM 2.5, CO2, VOC, NOX, luminosity, reserved, sequence, flags, address
_FORMAT_6: Final = struct.Struct(">BhHHHHBBBBBB3s")
# format, temperature, humidity, pressure, PM 1, 2.5, 4, 10, CO2, VOC, NOX, luminosity, reserved, sequence, flags, …
_FORMAT_E1: Final = struct.Struct(">BhHHHHHHHBB3s3s3sB5s6s")
_NO_SIGNED: Final = -0x8000
_NO_24: Final = 0xFFFFFF
_NO_16: Final = 0xFFFF
_NO_9: Final = 0x1FF
_NO_8: Final = 0xFF
_NO_VOLTAGE: Final = 0x7FF  # 11 bits
_NO_POWER: Final = 0x1F  # 5 bits
_LUX_STEP: Final = math.log(65_536) / 254
"""Format 6: lux + 1 = e to the power of code × this."""


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.manufacturer_data.get(COMPANY)
    return None if payload is None else decode(payload)


def decode(payload: bytes) -> Decoded:
    """One manufacturer data payload, without the company identifier.

    Raises:
        DecodeError: another format, or not its length.
    """
    known = _FORMATS.get(payload[0]) if payload else None
    if known is None:
        found = f"{payload[0]:02X}" if payload else "missing"
        raise DecodeError(f"Ruuvi data format {found} is not known; known: {', '.join(f'{n:X}' for n in _FORMATS)}", 0)
    layout, read = known
    if len(payload) != layout.size:
        raise DecodeError(f"Ruuvi data format {payload[0]:X} has {layout.size} bytes, not {len(payload)}")
    return read(payload)


def _raw_v1(payload: bytes) -> Decoded:
    _, humidity, whole, hundredths, pressure, x, y, z, battery = _RAW_V1.unpack(payload)
    if hundredths > 99:
        raise DecodeError(f"Ruuvi data format 3: {hundredths} hundredths of a degree", 3)
    temperature = ((whole & 0x7F) * 100 + hundredths) / (-100 if whole & 0x80 else 100)
    quantities = (
        Quantity("temperature", temperature, "Cel"),
        Quantity("humidity", humidity / 2, "%RH"),
        Quantity("pressure", pressure + 50_000, "Pa"),
        Quantity("acceleration_x", x / 1000, "gn"),
        Quantity("acceleration_y", y / 1000, "gn"),
        Quantity("acceleration_z", z / 1000, "gn"),
        Quantity("battery_voltage", battery / 1000, "V"),
    )
    return Decoded(NAME, payload, quantities)


def _raw_v2(payload: bytes) -> Decoded:
    _, temperature, humidity, pressure, x, y, z, power, movements, sequence, _ = _RAW_V2.unpack(payload)
    voltage, transmit = power >> 5, power & 0x1F
    quantities = (
        *_climate(temperature, humidity, pressure),
        _quantity("acceleration_x", "gn", x, _NO_SIGNED, x / 1000),
        _quantity("acceleration_y", "gn", y, _NO_SIGNED, y / 1000),
        _quantity("acceleration_z", "gn", z, _NO_SIGNED, z / 1000),
        _quantity("battery_voltage", "V", voltage, _NO_VOLTAGE, (voltage + 1600) / 1000),
        _quantity("tx_power", "dBm", transmit, _NO_POWER, transmit * 2 - 40),
        _quantity("movement_counter", "", movements, _NO_8, movements),
        _quantity("measurement_sequence", "", sequence, _NO_16, sequence),
    )
    return Decoded(NAME, payload, quantities, numbered=sequence != _NO_16)


def _format_6(payload: bytes) -> Decoded:
    _, temperature, humidity, pressure, pm2_5, co2, voc, nox, code, _, sequence, flags, _ = _FORMAT_6.unpack(payload)
    quantities = (
        *_climate(temperature, humidity, pressure),
        _quantity("pm2_5", "ug/m3", pm2_5, _NO_16, pm2_5 / 10),
        *_gases(co2, voc, nox, flags),
        _quantity("illuminance", "lx", code, _NO_8, round(math.exp(code * _LUX_STEP) - 1, 2)),
        Quantity("measurement_sequence", sequence),
        state("calibrating", bool(flags & 1)),
    )
    return Decoded(NAME, payload, quantities, numbered=True)


def _format_e1(payload: bytes) -> Decoded:
    fields = _FORMAT_E1.unpack(payload)
    _, temperature, humidity, pressure, pm1, pm2_5, pm4, pm10, co2, voc, nox, lux, _, count, flags, _, _ = fields
    illuminance, sequence = int.from_bytes(lux, "big"), int.from_bytes(count, "big")
    quantities = (
        *_climate(temperature, humidity, pressure),
        _quantity("pm1", "ug/m3", pm1, _NO_16, pm1 / 10),
        _quantity("pm2_5", "ug/m3", pm2_5, _NO_16, pm2_5 / 10),
        _quantity("pm4", "ug/m3", pm4, _NO_16, pm4 / 10),
        _quantity("pm10", "ug/m3", pm10, _NO_16, pm10 / 10),
        *_gases(co2, voc, nox, flags),
        _quantity("illuminance", "lx", illuminance, _NO_24, illuminance / 100),
        _quantity("measurement_sequence", "", sequence, _NO_24, sequence),
        state("calibrating", bool(flags & 1)),
    )
    return Decoded(NAME, payload, quantities, numbered=sequence != _NO_24)


_FORMATS: Final[dict[int, tuple[struct.Struct, Callable[[bytes], Decoded]]]] = {
    0x03: (_RAW_V1, _raw_v1),
    0x05: (_RAW_V2, _raw_v2),
    0x06: (_FORMAT_6, _format_6),
    0xE1: (_FORMAT_E1, _format_e1),
}


def _climate(temperature: int, humidity: int, pressure: int) -> tuple[Quantity, ...]:
    return (
        _quantity("temperature", "Cel", temperature, _NO_SIGNED, temperature * 5 / 1000),
        _quantity("humidity", "%RH", humidity, _NO_16, humidity * 25 / 10_000),
        _quantity("pressure", "Pa", pressure, _NO_16, pressure + 50_000),
    )


def _gases(co2: int, voc: int, nox: int, flags: int) -> tuple[Quantity, ...]:
    """The indices have nine bits; their lowest stands in bit 6 and bit 7 of the flags."""
    voc, nox = voc << 1 | flags >> 6 & 1, nox << 1 | flags >> 7
    return (
        _quantity("co2", "ppm", co2, _NO_16, co2),
        _quantity("voc_index", "", voc, _NO_9, voc),
        _quantity("nox_index", "", nox, _NO_9, nox),
    )


def _quantity(point: str, unit: str, raw: int, unknown: int, value: float) -> Quantity:
    return fault(point, unit) if raw == unknown else Quantity(point, value, unit)
