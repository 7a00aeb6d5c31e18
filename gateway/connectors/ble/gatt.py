"""Pure: characteristics whose format the Bluetooth SIG fixes (GATT Specification Supplement).

Little-endian integers of a fixed size; value = raw × 1 / denominator; where the supplement reserves a raw value for
"value is not known", that is a sensor fault. Encoding is the inverse, for characteristics that accept a write.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

from gateway.codec import words
from gateway.connectors.ble.measurements import MEASUREMENTS, Field, Measurement
from gateway.errors import DecodeError
from gateway.model import Status, Value

_BASE: Final = "-0000-1000-8000-00805f9b34fb"
_SHORT: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{4}|[0-9a-fA-F]{8})")
_FULL: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Format(Protocol):
    """How the bytes of one characteristic are read and written, or one of the fields that it has."""

    @property
    def unit(self) -> str:
        """What the format itself says; empty: nothing."""

    def decode(self, data: bytes) -> tuple[Value | None, Status] | None:
        """None: these bytes say nothing of it. Raises DecodeError when they do not fit."""

    def encode(self, value: Value) -> bytes:
        """Raises DecodeError when the value does not fit."""


class Characteristic(NamedTuple):
    """One characteristic with a fixed format."""

    name: str
    size: int
    signed: bool
    denominator: int
    unit: str
    unknown: int | None = None
    """The raw value, read as unsigned, that means: value is not known."""

    def decode(self, data: bytes) -> tuple[Value | None, Status]:
        """Raises DecodeError when the size does not fit."""
        if len(data) != self.size:
            raise DecodeError(f"{self.name} has {self.size} bytes, not {len(data)}")
        if int.from_bytes(data, "little") == self.unknown:
            return None, Status.SENSOR_FAULT
        raw = int.from_bytes(data, "little", signed=self.signed)
        return (raw if self.denominator == 1 else raw / self.denominator), Status.GOOD

    def encode(self, value: Value) -> bytes:
        """Raises DecodeError when the value does not fit, or would be the reserved one."""
        if isinstance(value, str):
            raise DecodeError(f"{self.name} is a number, not text")
        try:
            data = round(value * self.denominator).to_bytes(self.size, "little", signed=self.signed)
        except (OverflowError, ValueError) as error:
            raise DecodeError(f"{value} does not fit into {self.name}") from error
        if int.from_bytes(data, "little") == self.unknown:
            raise DecodeError(f"{value} is what {self.name} reserves for an unknown value")
        return data


STANDARD: Final = {
    0x2A19: Characteristic("battery_level", 1, False, 1, "%EL"),
    0x2A6C: Characteristic("elevation", 3, True, 100, "m"),
    0x2A6D: Characteristic("pressure", 4, False, 10, "Pa"),
    0x2A6E: Characteristic("temperature", 2, True, 100, "Cel", 0x8000),
    0x2A6F: Characteristic("humidity", 2, False, 100, "%RH", 0xFFFF),
    0x2A70: Characteristic("true_wind_speed", 2, False, 100, "m/s"),
    0x2A71: Characteristic("true_wind_direction", 2, False, 100, "deg"),
    0x2A72: Characteristic("apparent_wind_speed", 2, False, 100, "m/s"),
    0x2A73: Characteristic("apparent_wind_direction", 2, False, 100, "deg"),
    0x2A74: Characteristic("gust_factor", 1, False, 10, ""),
    0x2A75: Characteristic("pollen_concentration", 3, False, 1, "1/m3"),
    0x2A76: Characteristic("uv_index", 1, False, 1, ""),
    0x2A77: Characteristic("irradiance", 2, False, 10, "W/m2"),
    0x2A78: Characteristic("rainfall", 2, False, 1, "mm"),
    0x2A79: Characteristic("wind_chill", 1, True, 1, "Cel"),
    0x2A7A: Characteristic("heat_index", 1, True, 1, "Cel"),
    0x2A7B: Characteristic("dew_point", 1, True, 1, "Cel"),
    0x2AEE: Characteristic("electric_current", 2, False, 100, "A", 0xFFFF),
    0x2AFB: Characteristic("illuminance", 3, False, 100, "lx", 0xFFFFFF),
    0x2B18: Characteristic("voltage", 2, False, 64, "V", 0xFFFF),
    0x2B8C: Characteristic("co2_concentration", 2, False, 1, "ppm", 0xFFFF),
}
"""Environmental Sensing and Battery, and their neighbours in the supplement; by 16-bit UUID."""


class Custom(NamedTuple):
    """A characteristic of the maker's own, laid out as the configuration says."""

    word: words.Word
    unit: str = ""

    def decode(self, data: bytes) -> tuple[Value | None, Status]:
        """Raises DecodeError when the size does not fit."""
        text = self.word.family is words.Family.STRING
        if not text and len(data) != self.word.size:
            raise DecodeError(f"{self.word} has {self.word.size} bytes, not {len(data)}")
        value = self.word.decode(data[: self.word.size].ljust(self.word.size, b"\0") if text else data)
        return value, Status.GOOD if value is not None else Status.SENSOR_FAULT

    def encode(self, value: Value) -> bytes:
        """Raises DecodeError when the value does not fit."""
        try:
            data = self.word.encode(value)
        except ValueError as error:
            raise DecodeError(str(error)) from error
        return data.rstrip(b"\0") if self.word.family is words.Family.STRING else data


MAX_TEXT_BYTES: Final = 512
"""The longest value that an attribute can have (Core Specification, Vol 3, Part F, 3.2.9)."""


def custom(type_word: str, byte_order: str) -> Custom:
    """Raises ValueError with a sentence about what does not fit."""
    text = type_word.strip().lower() in ("string", "text")
    return Custom(words.parse(type_word, byte_order, length=MAX_TEXT_BYTES if text else 0))


def full_uuid(written: str) -> str | None:
    """`2a6e`, `0x2A6E`, `00002A6E` or a full UUID → the full form in lower case; None when it is none of these."""
    if (short := _SHORT.fullmatch(written)) is not None:
        return f"{short[1].lower():0>8}{_BASE}"
    return written.lower() if _FULL.fullmatch(written) else None


def standard(uuid: str) -> Characteristic | None:
    """The fixed format behind a full UUID, if the SIG fixes one that is known here."""
    return STANDARD.get(int(uuid[:8], 16)) if uuid.endswith(_BASE) else None


def measurement(uuid: str) -> Measurement | None:
    """The same for a characteristic of several fields."""
    return MEASUREMENTS.get(int(uuid[:8], 16)) if uuid.endswith(_BASE) else None


def fixed(uuid: str, field: str = "") -> Format | None:
    """How a characteristic that the SIG fixes is read; of one with several fields, the first or the one named.

    Raises:
        ValueError: it has no such field; says which it has.
    """
    several = measurement(uuid)
    if several is None:
        if field:
            raise ValueError("this characteristic has no fields")
        return standard(uuid)
    if field and field not in several.units:
        raise ValueError(f"{several.name} has no field {field!r}; it has {', '.join(several.units)}")
    return Field(several, field or next(iter(several.units)))
