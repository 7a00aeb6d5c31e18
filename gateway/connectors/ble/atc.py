"""Pure: the custom firmwares of Xiaomi thermometers, as their authors document them.

`atc1441`: https://github.com/atc1441/ATC_MiThermometer#advertising-format-of-the-custom-firmware; `custom`:
https://github.com/pvvx/ATC_MiThermometer#bluetooth-advertising-formats, and for both encrypted forms the interface in
the same repository, with which Passive BLE Monitor agrees. Service data of UUID 0x181A; the length tells which:

    13  atc1441            address, 0.1 Cel, %, battery %, mV, counter; big-endian
    15  custom             address reversed, 0.01 Cel, 0.01 %, mV, battery %, counter, flags; little-endian
    11  custom, encrypted  counter, sealed (0.01 Cel, 0.01 %, battery %, flags), tag
     8  atc1441, encrypted counter, sealed (half degrees from -40, half percents, battery %), tag

The nonce is the address reversed, the four bytes of the advertising element before the payload, and the counter. That
counter has one byte: it starts over every 256 packets, so a recording cannot be told from the present.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, mac, state, uuid16
from gateway.errors import DecodeError

NAME: Final = "atc"
UUID: Final = uuid16(0x181A)

_ATC1441: Final = struct.Struct(">6shBBHB")
_CUSTOM: Final = struct.Struct("<6shHHBBB")
_CUSTOM_SEALED: Final = struct.Struct("<hHBB")
_CUSTOM_ENCRYPTED_BYTES: Final = 11
_ATC1441_ENCRYPTED_BYTES: Final = 8
_ASSOCIATED: Final = b"\x11"
_SERVICE_DATA_16: Final = b"\x16\x1a\x18"
"""Type of the advertising element and UUID as they are sent; its length stands before."""


def hear(heard: Advertisement, key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.service_data.get(UUID)
    return None if payload is None else decode(payload, heard.address, key)


def decode(payload: bytes, address: str, key: Key | None = None) -> Decoded:
    """One service data payload, without its UUID. Raises DecodeError."""
    size = len(payload)
    if size == _CUSTOM.size:
        sender, temperature, humidity, millivolts, battery, _, flags = _CUSTOM.unpack(payload)
        _check_sender(sender[::-1], address)
        quantities = (
            *_climate(temperature / 100, humidity / 100, battery),
            Quantity("battery_voltage", millivolts / 1000, "V"),
            *_flags(flags),
        )
        return Decoded(NAME, payload, quantities, numbered=True)
    if size == _ATC1441.size:
        sender, temperature, humidity, battery, millivolts, _ = _ATC1441.unpack(payload)
        _check_sender(sender, address)
        voltage = Quantity("battery_voltage", millivolts / 1000, "V")
        return Decoded(NAME, payload, (*_climate(temperature / 10, humidity, battery), voltage), numbered=True)
    if size not in (_CUSTOM_ENCRYPTED_BYTES, _ATC1441_ENCRYPTED_BYTES):
        raise DecodeError(f"ATC: {size} bytes, and no format has so many")
    return _unsealed(payload, address, key)


def _unsealed(payload: bytes, address: str, key: Key | None) -> Decoded:
    plain = None
    if key is not None:
        element_bytes = len(payload) + len(_SERVICE_DATA_16)
        nonce = mac(address)[::-1] + bytes((element_bytes,)) + _SERVICE_DATA_16 + payload[:1]
        plain = key.open(nonce, payload[1:], _ASSOCIATED)
    if plain is None:
        return Decoded(NAME, payload, (), encrypted=True)
    if len(payload) == _CUSTOM_ENCRYPTED_BYTES:
        temperature, humidity, battery, flags = _CUSTOM_SEALED.unpack(plain)
        quantities = (*_climate(temperature / 100, humidity / 100, battery), *_flags(flags))
    else:
        quantities = _climate(plain[0] / 2 - 40, plain[1] / 2, plain[2] & 0x7F)
    return Decoded(NAME, payload, quantities, numbered=True, sealed=True)


def _check_sender(sender: bytes, address: str) -> None:
    if sender != mac(address):
        raise DecodeError(f"ATC: it says to come from {sender.hex(':').upper()}, and it comes from {address}")


def _climate(temperature: float, humidity: float, battery: int) -> tuple[Quantity, ...]:
    if humidity > 100 or battery > 100:
        raise DecodeError(f"ATC: {humidity:g} %RH with {battery} % of a battery cannot be")
    return (
        Quantity("temperature", temperature, "Cel"),
        Quantity("humidity", humidity, "%RH"),
        Quantity("battery", battery, "%EL"),
    )


def _flags(flags: int) -> tuple[Quantity, ...]:
    """The reed contact, and the pin that the firmware switches."""
    return state("reed_input", bool(flags & 1)), state("gpio_output", bool(flags & 2))
