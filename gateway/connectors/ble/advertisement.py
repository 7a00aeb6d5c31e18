"""Pure: what is heard on the air, and what a decoder makes of it.

Decoders never guess: a payload that does not follow its format is a `DecodeError` as a whole, and a quantity for which
the device itself says "unknown" is `None` with a bad status.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from gateway.model import Status, Value


class Advertisement(NamedTuple):
    """One advertisement (and its scan response, where the scan was active)."""

    address: str
    """As the adapter shows it: `A4:C1:38:8D:18:B2`."""
    name: str
    """Empty: it did not say."""
    rssi: int
    """dBm"""
    service_data: Mapping[str, bytes]
    """UUID in full, lower case → payload."""
    manufacturer_data: Mapping[int, bytes]
    """Company identifier → payload."""
    stable_address: bool = True
    """False: a random address, which may change with every battery or every quarter of an hour."""


class Nature(Enum):
    """How a quantity may be thinned out."""

    MEASUREMENT = "measurement"
    """The next one will do."""
    STATE = "state"
    """A change must not be lost: a door, a leak."""
    EVENT = "event"
    """Happened once; hearing the same packet again is not a second press."""


class Quantity(NamedTuple):
    """One value of a payload."""

    point: str
    value: Value | None
    unit: str = ""
    status: Status = Status.GOOD
    nature: Nature = Nature.MEASUREMENT


class Decoded(NamedTuple):
    """What one payload says."""

    decoder: str
    payload: bytes
    quantities: tuple[Quantity, ...]
    encrypted: bool = False
    """There was something, and without the key nobody can say what."""
    numbered: bool = False
    """The device numbers its packets, so the same payload is the same packet."""
