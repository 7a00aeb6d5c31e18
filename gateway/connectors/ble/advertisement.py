"""Pure: what is heard on the air, and what a decoder makes of it.

Decoders never guess: a payload that does not follow its format is a `DecodeError` as a whole, and a quantity for which
the device itself says "unknown" is `None` with a bad status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

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
    """Company identifier → payload; BlueZ adds to it and never takes away, unless it is asked to."""
    stable_address: bool = True
    """False: a random address, which may change with every battery or every quarter of an hour."""
    changed: frozenset[int] | None = None
    """Companies whose payload differs from what was heard before. None: nothing was heard before."""

    def newest(self, fits: Callable[[int], bool]) -> int | None:
        """Of the companies that fit, the one of this packet and not of an earlier one; None: that cannot be told.

        For devices that send a measurement where the company identifier belongs, and so leave one entry behind with
        every value.
        """
        fitting = [company for company in self.manufacturer_data if fits(company)]
        if len(fitting) > 1 and self.changed is not None:
            fitting = [company for company in fitting if company in self.changed]
        return fitting[0] if len(fitting) == 1 else None


class Key(Protocol):
    """The secret of one device."""

    def open(self, nonce: bytes, sealed: bytes, associated: bytes = b"") -> bytes | None:
        """The plain text of AES-128-CCM with a tag of four bytes at the end of `sealed`; None: it does not fit."""


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
    """There was something, and without the right key nobody can say what."""
    numbered: bool = False
    """The device numbers its packets, so the same payload is the same packet."""
    sealed: bool = False
    """It was encrypted, and the key fitted."""
    counter: int | None = None
    """What the device counts up with every packet that it seals; a smaller one is a recording."""


def uuid16(number: int) -> str:
    """A UUID of the Bluetooth SIG in full."""
    return f"0000{number:04x}-0000-1000-8000-00805f9b34fb"


def mac(address: str) -> bytes:
    """The six bytes of an address, in the order in which it is written."""
    return bytes.fromhex(address.replace(":", ""))


def state(point: str, value: bool | str) -> Quantity:
    """A quantity whose every change counts."""
    return Quantity(point, value, nature=Nature.STATE)


def fault(point: str, unit: str = "") -> Quantity:
    """A quantity that the device itself calls unknown."""
    return Quantity(point, None, unit, Status.SENSOR_FAULT)
