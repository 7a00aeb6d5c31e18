"""Pure: SwitchBot meters, motion and contact sensors.

As in the maker's BLE documents, https://github.com/OpenWonderLabs/SwitchBotAPI-BLE (meter, motion sensor, contact
sensor). The same document has the outdoor meter as a contribution of users; Theengs Decoder and pySwitchbot
(https://github.com/Danielhiversen/pySwitchbot) agree with it, and have the meter plus, which differs by its letter.

Service data of UUID 0xFD3D (0x0D00 in older firmware), sent in the scan response: a letter for the kind of device, a
byte of state, the battery, and what belongs to the kind. The outdoor meter sends its values as manufacturer data of
company 0x0969, behind its address.
"""

from __future__ import annotations

from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Nature, Quantity, mac, state, uuid16
from gateway.errors import DecodeError

NAME: Final = "switchbot"
UUID: Final = uuid16(0xFD3D)
OLD_UUID: Final = uuid16(0x0D00)
COMPANY: Final = 0x0969

_ENCRYPTED: Final = 0x80
_METERS: Final = frozenset(b"Tti")  # meter, the same while being added, meter plus
_OUTDOOR: Final = ord("w")
_MOTION: Final = frozenset(b"sS")
_CONTACT: Final = frozenset(b"dD")
_OPEN: Final = (False, True, True)
"""Closed, open, open for too long."""


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.service_data.get(UUID) or heard.service_data.get(OLD_UUID)
    if not payload:
        return None
    return decode(payload, heard.manufacturer_data.get(COMPANY, b""), heard.address)


def decode(payload: bytes, more: bytes, address: str) -> Decoded | None:
    """Service data, and manufacturer data of the maker. None: a device of another kind. Raises DecodeError."""
    kind = payload[0] & 0x7F
    if kind in _CONTACT and payload[0] & _ENCRYPTED:
        return Decoded(NAME, payload, (), encrypted=True)
    if kind in _METERS:
        return Decoded(NAME, payload, (*_climate(_exactly(payload, 6)[3:]), _battery(payload)))
    if kind == _OUTDOOR:
        if more[:6] != mac(address) or len(more) < 11 or len(payload) < 3:
            return None  # one half came without the other, and only both together tell
        return Decoded(NAME, payload + more, (*_climate(more[8:11]), _battery(payload)))
    if kind in _MOTION:
        return Decoded(NAME, payload, _motion(_exactly(payload, 6)))
    if kind in _CONTACT:
        return Decoded(NAME, payload, _contact(_exactly(payload, 9)))
    return None


def _climate(data: bytes) -> tuple[Quantity, ...]:
    """Tenths of a degree, whole degrees with a bit for "not below zero", humidity with a bit for the display."""
    tenths, humidity = data[0] & 0x0F, data[2] & 0x7F
    if tenths > 9 or humidity > 100:
        raise DecodeError(f"SwitchBot: {tenths} tenths of a degree with {humidity} %RH cannot be")
    degrees = (data[1] & 0x7F) + tenths / 10
    return (
        Quantity("temperature", degrees if data[1] & 0x80 or not degrees else -degrees, "Cel"),
        Quantity("humidity", humidity, "%RH"),
    )


def _battery(payload: bytes) -> Quantity:
    percent = payload[2] & 0x7F
    if percent > 100:
        raise DecodeError(f"SwitchBot: {percent} % of a battery cannot be", 2)
    return Quantity("battery", percent, "%EL")


def _motion(payload: bytes) -> tuple[Quantity, ...]:
    said = [state("motion", bool(payload[1] & 0x40)), _battery(payload)]
    light = payload[5] & 0x03
    if light in (1, 2):  # the others are reserved
        said.append(state("light", light == 2))
    return tuple(said)


def _contact(payload: bytes) -> tuple[Quantity, ...]:
    door = payload[3] >> 1 & 0x03
    if door >= len(_OPEN):
        raise DecodeError(f"SwitchBot: state {door} of a door is not known", 3)
    return (
        state("opening", _OPEN[door]),
        state("left_open", door == 2),
        state("motion", bool(payload[1] & 0x40)),
        state("light", bool(payload[3] & 0x01)),
        Quantity("button_counter", payload[8] & 0x0F, nature=Nature.STATE),
        _battery(payload),
    )


def _exactly(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise DecodeError(f"SwitchBot: {size} bytes expected of a {chr(payload[0] & 0x7F)!r}, not {len(payload)}")
    return payload
