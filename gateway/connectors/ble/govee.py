"""Pure: thermometers and air monitors of Govee.

Govee publishes nothing. What stands here is what two independent open implementations agree on: the device definitions
of Theengs Decoder (https://github.com/theengs/decoder) and the parser of Passive BLE Monitor
(https://github.com/custom-components/ble_monitor). Models that only one of them knows are left out.

Manufacturer data, which some models send in the scan response only. Companies 0xEC88 and 0x8801 are used by nobody
else, and the length tells the layout. Company 0x0001 belongs to another maker and covers several layouts: there the
model in the name (`GVH5102_CB9B`) decides, and without a name nothing is decoded.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, fault
from gateway.errors import DecodeError

NAME: Final = "govee"
COMPANY: Final = 0xEC88
COMPANY_H5179: Final = 0x8801
_SHARED_COMPANY: Final = 0x0001

_MODEL: Final = re.compile(r"(?:GV|Govee_)(H\d{4})")
_DIGITS_MODELS: Final = frozenset({"H5100", "H5101", "H5102", "H5104", "H5105", "H5174", "H5177"})
_PLAIN: Final = struct.Struct("<hHB")  # hundredths of a degree, hundredths of a percent, battery
_GLUED: Final = b"INTELLI_ROCKS"
_GLUED_BYTES: Final = 25
"""Some models send their iBeacon in the same breath, and it sticks to the end of the payload."""
_LOWEST_CEL: Final = -40.0
_HIGHEST_CEL: Final = 100.0


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    said = _MODEL.match(heard.name)
    model = said[1] if said else ""
    if (payload := heard.manufacturer_data.get(COMPANY)) is not None:
        return _own_company(_unglued(payload), model)
    if (payload := heard.manufacturer_data.get(COMPANY_H5179)) is not None and model in ("", "H5179"):
        return _h5179(payload)
    if model and (payload := heard.manufacturer_data.get(_SHARED_COMPANY)) is not None:
        payload = _unglued(payload)
        if model in _DIGITS_MODELS:
            return _digits(payload, _exactly(payload, 6)[2:])
        if model == "H5106":
            return _h5106(payload)
    return None


def _own_company(payload: bytes, model: str) -> Decoded | None:
    if len(payload) == 6 and model in ("", "H5072", "H5075"):
        return _digits(payload, payload[1:5])
    if len(payload) == 7 and model in ("", "H5074"):
        return _plain(payload, payload[1:6])
    if model in ("", "H5072", "H5074", "H5075"):
        raise DecodeError(f"Govee: {len(payload)} bytes, and no model with so many is known")
    return None


def _digits(payload: bytes, data: bytes) -> Decoded:
    """Sign, then tenths of a degree and tenths of a percent as decimal digits of one number, in three bytes; then the
    battery, with a bit that says that the sensor has failed."""
    raw, battery = int.from_bytes(data[:3], "big"), data[3]
    tenths, humidity = divmod(raw & 0x7FFFFF, 1000)
    if battery & 0x80:
        climate = (fault("temperature", "Cel"), fault("humidity", "%RH"))
    else:
        climate = _climate((-tenths if raw & 0x800000 else tenths) / 10, humidity / 10)
    return Decoded(NAME, payload, (*climate, _battery(battery & 0x7F)))


def _plain(payload: bytes, data: bytes) -> Decoded:
    temperature, humidity, battery = _PLAIN.unpack(data)
    return Decoded(NAME, payload, (*_climate(temperature / 100, humidity / 100), _battery(battery)))


def _h5179(payload: bytes) -> Decoded:
    return _plain(payload, _exactly(payload, 9)[4:])


def _h5106(payload: bytes) -> Decoded:
    """Sign, then tenths of a degree, tenths of a percent and micrograms, each of three digits, in four bytes."""
    raw = int.from_bytes(_exactly(payload, 6)[2:], "big")
    tenths, rest = divmod(raw & 0x7FFFFFFF, 1_000_000)
    humidity, pm2_5 = divmod(rest, 1000)
    climate = _climate((-tenths if raw & 0x80000000 else tenths) / 10, humidity / 10)
    return Decoded(NAME, payload, (*climate, Quantity("pm2_5", pm2_5, "ug/m3")))


def _unglued(payload: bytes) -> bytes:
    return payload[:-_GLUED_BYTES] if len(payload) > _GLUED_BYTES and _GLUED in payload else payload


def _exactly(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise DecodeError(f"Govee: {size} bytes expected, not {len(payload)}")
    return payload


def _climate(temperature: float, humidity: float) -> tuple[Quantity, Quantity]:
    if not _LOWEST_CEL <= temperature <= _HIGHEST_CEL or humidity > 100:
        raise DecodeError(f"Govee: {temperature:g} Cel and {humidity:g} %RH cannot be")
    return Quantity("temperature", temperature, "Cel"), Quantity("humidity", humidity, "%RH")


def _battery(percent: int) -> Quantity:
    if percent > 100:
        raise DecodeError(f"Govee: {percent} % of a battery cannot be")
    return Quantity("battery", percent, "%EL")
