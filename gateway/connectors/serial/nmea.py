"""Pure: NMEA 0183 sentences: `$GPGGA,123519,4807.038,N,…*47`.

A sentence counts only with the right checksum (exclusive or of all characters between `$` and `*`). An empty field
means that the instrument has no value, and so does every measurement in a sentence that calls itself void: the points
are then `None`, never a stale or made-up number. A GPS without a fix may well repeat its last position (JRC JLR-21,
instruction manual, GGA and RMC: "outputs last measured position data"); quality 0, status V or mode N say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

from gateway.connectors.serial.scalars import scalar
from gateway.errors import DecodeError
from gateway.model import Value


class Sentence(NamedTuple):
    """`fields[0]` is the address, as `GPGGA`; the standard counts the fields behind it from 1."""

    kind: str
    """Without the talker: `GGA`. Proprietary ones keep all of it: `PGRME`."""
    fields: tuple[str, ...]

    def field(self, index: int) -> str:
        return self.fields[index] if index < len(self.fields) else ""


class Field(NamedTuple):
    """One ready-made point of a sentence."""

    point: str
    number: int
    unit: str = ""
    read: Callable[[Sentence, int], Value | None] | None = None


def parse(line: str, checksum: bool = True) -> Sentence:
    """Raises DecodeError: it is no sentence, or its checksum is wrong or (with `checksum`) missing."""
    line = line.strip()
    if line[:1] not in ("$", "!"):
        raise DecodeError("a sentence begins with $ or !")
    body, star, given = line[1:].partition("*")
    if star:
        computed = reduce(lambda total, character: total ^ ord(character), body, 0)
        if given.upper() != f"{computed:02X}":
            raise DecodeError(f"checksum {given!r} is wrong, {computed:02X} is right")
    elif checksum:
        raise DecodeError("a sentence without checksum")
    fields = tuple(body.split(","))
    address = fields[0]
    if not address.isalnum() or len(address) < 4:
        raise DecodeError(f"{address[:10]!r} is no address of a sentence")
    return Sentence(address if address[0] == "P" else address[2:], fields)


def number(sentence: Sentence, index: int) -> Value | None:
    """A field as a number, or as text where it is none; None where it is empty."""
    return scalar(sentence.field(index)) if sentence.field(index) else None


def _position(sentence: Sentence, index: int) -> Value | None:
    """ddmm.mmmm and its hemisphere in the next field → degrees, south and west negative."""
    text, hemisphere = sentence.field(index), sentence.field(index + 1)
    if not text:
        return None
    whole, _, fraction = text.partition(".")
    if not (whole.isdecimal() and len(whole) >= 3 and (fraction or "0").isdecimal() and hemisphere in tuple("NSEW")):
        raise DecodeError(f"{text},{hemisphere} is no position")
    degrees = int(whole[:-2]) + float(f"{whole[-2:]}.{fraction or 0}") / 60
    return round(-degrees if hemisphere in ("S", "W") else degrees, 8)


_SENTENCES: dict[str, tuple[Field, ...]] = {
    "GGA": (
        Field("latitude", 2, "lat", _position),
        Field("longitude", 4, "lon", _position),
        Field("fix_quality", 6),
        Field("satellites", 7, "count"),
        Field("hdop", 8),
        Field("altitude", 9, "m"),
        Field("geoid_separation", 11, "m"),
    ),
    "RMC": (
        Field("latitude", 3, "lat", _position),
        Field("longitude", 5, "lon", _position),
        Field("speed_over_ground", 7, "kn"),
        Field("course_over_ground", 8, "deg"),
    ),
    "VTG": (Field("course_over_ground", 1, "deg"), Field("speed_over_ground", 5, "kn")),
    "DPT": (Field("depth", 1, "m"), Field("depth_offset", 2, "m")),
    "DBT": (Field("depth_below_transducer", 3, "m"),),
    "MTW": (Field("water_temperature", 1, "Cel"),),
    "HDT": (Field("heading_true", 1, "deg"),),
    "HDG": (Field("heading_magnetic", 1, "deg"),),
    "VHW": (Field("speed_through_water", 5, "kn"),),
}
_OF_ITSELF = {"RMC": (2,), "MWV": (5,), "GGA": (6, 7), "VTG": (9,)}
"""Sentence → fields that are true though it is void: they say that it is, and why."""
_WIND_UNITS = {"K": "km/h", "M": "m/s", "N": "kn", "S": "mph"}
_WIND_NAMES = {"R": "apparent_wind", "T": "true_wind"}


def known(kind: str) -> bool:
    """Is there a ready-made map for this sentence?"""
    return kind in _SENTENCES or kind == "MWV"


def void(sentence: Sentence) -> bool:
    """The instrument itself says that this sentence is not valid."""
    match sentence.kind:
        case "RMC":
            return sentence.field(2) != "A"
        case "MWV":
            return sentence.field(5) != "A"
        case "GGA":
            return sentence.field(6) in ("", "0")
        case "VTG":  # the mode came with NMEA 0183 2.3; before, the fields are empty
            return sentence.field(9) == "N"
    return False


def measured(
    sentence: Sentence, index: int, read: Callable[[Sentence, int], Value | None] | None = None
) -> Value | None:
    """A field as the instrument vouches for it: None where it does not. Raises DecodeError."""
    if void(sentence) and index not in _OF_ITSELF.get(sentence.kind, ()):
        return None
    return (read or number)(sentence, index)


def ready_made(sentence: Sentence) -> list[tuple[str, Value | None, str]]:
    """(point, value, unit) of a sentence that is `known`. Raises DecodeError."""
    fields = _wind(sentence) if sentence.kind == "MWV" else _SENTENCES[sentence.kind]
    return [(f.point, measured(sentence, f.number, f.read), f.unit) for f in fields]


def _wind(sentence: Sentence) -> tuple[Field, ...]:
    """MWV names its own reference (relative, true) and unit."""
    name, unit = _WIND_NAMES.get(sentence.field(2)), _WIND_UNITS.get(sentence.field(4))
    if name is None or unit is None:
        raise DecodeError(f"reference {sentence.field(2)!r} or unit {sentence.field(4)!r} of MWV is not known")
    return Field(f"{name}_angle", 1, "deg"), Field(f"{name}_speed", 3, unit)
