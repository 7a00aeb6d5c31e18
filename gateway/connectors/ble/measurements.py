"""Pure: characteristics that carry several values at once, as the Bluetooth SIG fixes them (GATT Specification
Supplement): Temperature Measurement, Heart Rate Measurement, Weight Measurement, CSC Measurement (cycling speed and
cadence) and Cycling Power Measurement. They are notified or indicated and can mostly not be read.

Flags at the beginning say which fields follow, so a packet need not carry every field: what it does not carry, it does
not say. A device that speaks Fahrenheit, pounds or inches is converted, for a point has one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gateway.errors import DecodeError
from gateway.model import Status, Value

_GOOD: Final = Status.GOOD
_KG_PER_LB: Final = 0.45359237
_M_PER_INCH: Final = 0.0254
_TIME_BYTES: Final = 7
_NO_WEIGHT: Final = 0xFFFF
_NOT_FINITE: Final = frozenset({0x7FFFFE, 0x7FFFFF, 0x800000, 0x800001, 0x800002})
"""Mantissas of IEEE 11073-20601 that are not numbers: infinities, not a number, not at this resolution, reserved."""

Said = Mapping[str, tuple[Value | None, Status]]


class Measurement(NamedTuple):
    """One characteristic."""

    name: str
    units: Mapping[str, str]
    """Field → unit; the first field is the one that is meant when none is named."""
    read: Callable[[_Bytes], Said]


class Field(NamedTuple):
    """One field of a measurement; a `Format` that may have nothing to say."""

    measurement: Measurement
    field: str

    @property
    def unit(self) -> str:
        return self.measurement.units[self.field]

    def decode(self, data: bytes) -> tuple[Value | None, Status] | None:
        """None: this packet does not carry the field. Raises DecodeError."""
        return self.measurement.read(_Bytes(self.measurement.name, data)).get(self.field)

    def encode(self, value: Value) -> bytes:
        raise DecodeError(f"{self.measurement.name} cannot be written, not even {value!r}")


class _Bytes:
    """Walks through a value, little-endian, and refuses to step over its end."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._data = data
        self._at = 0

    def more(self) -> bool:
        return self._at < len(self._data)

    def unsigned(self, size: int) -> int:
        end = self._at + size
        if end > len(self._data):
            raise DecodeError(f"{self._name} needs {end - len(self._data)} bytes more than there are", self._at)
        chunk, self._at = self._data[self._at : end], end
        return int.from_bytes(chunk, "little")

    def signed(self, size: int) -> int:
        raw = self.unsigned(size)
        return raw - (1 << 8 * size) if raw >> (8 * size - 1) else raw

    def float32(self) -> float | None:
        """The FLOAT of IEEE 11073-20601: a mantissa of 24 bits and a decimal exponent; None: not a number."""
        mantissa, exponent = self.unsigned(3), self.signed(1)
        if mantissa in _NOT_FINITE:
            return None
        mantissa -= 1 << 24 if mantissa >> 23 else 0
        return mantissa / 10**-exponent if exponent < 0 else float(mantissa * 10**exponent)


def _temperature(data: _Bytes) -> Said:
    fahrenheit = data.unsigned(1) & 1
    degrees = data.float32()
    if degrees is None:
        return {"temperature": (None, Status.SENSOR_FAULT)}
    return {"temperature": (round((degrees - 32) * 5 / 9, 3) if fahrenheit else degrees, _GOOD)}


def _heart_rate(data: _Bytes) -> Said:
    flags = data.unsigned(1)
    said: dict[str, tuple[Value | None, Status]] = {"heart_rate": (data.unsigned(2 if flags & 0x01 else 1), _GOOD)}
    if flags & 0x04:
        said["contact"] = (bool(flags & 0x02), _GOOD)
    if flags & 0x08:
        said["energy_expended"] = (data.unsigned(2), _GOOD)
    while flags & 0x10 and data.more():
        said["rr_interval"] = (data.unsigned(2) / 1024, _GOOD)
    return said


def _weight(data: _Bytes) -> Said:
    flags = data.unsigned(1)
    imperial, raw = flags & 0x01, data.unsigned(2)
    weight = round(raw / 100 * _KG_PER_LB, 3) if imperial else raw * 5 / 1000
    said: dict[str, tuple[Value | None, Status]] = {"weight": (weight, _GOOD)}
    if raw == _NO_WEIGHT:
        said["weight"] = (None, Status.SENSOR_FAULT)
    if flags & 0x02:
        data.unsigned(_TIME_BYTES)
    if flags & 0x04:
        said["user"] = (data.unsigned(1), _GOOD)
    if flags & 0x08:
        said["bmi"] = (data.unsigned(2) / 10, _GOOD)
        tall = data.unsigned(2)
        said["height"] = (round(tall / 10 * _M_PER_INCH, 3) if imperial else tall / 1000, _GOOD)
    return said


def _speed_and_cadence(data: _Bytes) -> Said:
    flags = data.unsigned(1)
    return {**(_wheel(data, 1024) if flags & 0x01 else {}), **(_crank(data) if flags & 0x02 else {})}


def _power(data: _Bytes) -> Said:
    flags = data.unsigned(2)
    said: dict[str, tuple[Value | None, Status]] = {"power": (data.signed(2), _GOOD)}
    if flags & 0x01:
        said["balance"] = (data.unsigned(1) / 2, _GOOD)
    if flags & 0x04:
        said["torque"] = (data.unsigned(2) / 32, _GOOD)
    if flags & 0x10:
        said |= _wheel(data, 2048)
    if flags & 0x20:
        said |= _crank(data)
    return said


def _wheel(data: _Bytes, ticks_per_s: int) -> Said:
    revolutions, ticks = data.unsigned(4), data.unsigned(2)
    return {"wheel_revolutions": (revolutions, _GOOD), "wheel_time": (ticks / ticks_per_s, _GOOD)}


def _crank(data: _Bytes) -> Said:
    revolutions, ticks = data.unsigned(2), data.unsigned(2)
    return {"crank_revolutions": (revolutions, _GOOD), "crank_time": (ticks / 1024, _GOOD)}


_TURNS: Final = {"wheel_revolutions": "", "wheel_time": "s", "crank_revolutions": "", "crank_time": "s"}
"""Counters, and the time of the last turn, which begins anew after 64 s (32 s for the wheel of a power meter)."""
_CELSIUS: Final = {"temperature": "Cel"}
_HEART: Final = {"heart_rate": "1/min", "contact": "", "energy_expended": "kJ", "rr_interval": "s"}

MEASUREMENTS: Final = {
    0x2A1C: Measurement("temperature_measurement", _CELSIUS, _temperature),
    0x2A1E: Measurement("intermediate_temperature", _CELSIUS, _temperature),
    0x2A37: Measurement("heart_rate_measurement", _HEART, _heart_rate),
    0x2A5B: Measurement("csc_measurement", _TURNS, _speed_and_cadence),
    0x2A63: Measurement("cycling_power_measurement", {"power": "W", "balance": "%", "torque": "N.m"} | _TURNS, _power),
    0x2A9D: Measurement("weight_measurement", {"weight": "kg", "bmi": "kg/m2", "height": "m", "user": ""}, _weight),
}
"""By 16-bit UUID."""
