"""Pure: MiBeacon version 2 to 5, the advertisements of Xiaomi's ecosystem.

As in Xiaomi's documents "BLE MiBeacon protocol" (v5) and "BLE object definition", https://iot.mi.com/new/doc, of which
https://github.com/pvvx/ATC_MiThermometer/tree/master/InfoMijiaBLE holds translations; xiaomi-ble and Passive BLE
Monitor agree on what is read here. Service data of UUID 0xFE95: frame control (two bytes), product, frame counter,
address and capability where frame control says so, then objects: id, length, value; all little-endian.

Encrypted from version 4 on: objects sealed with AES-CCM, three bytes that extend the frame counter to four, a tag of
four bytes. The nonce is the address reversed, product, frame counter and those three bytes.

Left out: objects whose meaning depends on the product (buttons, locks, the vendors' own from 0x2000 on), and the
encryption of versions 2 and 3, whose check of integrity receivers cannot verify: with a wrong key it yields numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, fault, mac, state, uuid16
from gateway.errors import DecodeError

NAME: Final = "xiaomi"
UUID: Final = uuid16(0xFE95)

_ENCRYPTED: Final = 1 << 3
_HAS_ADDRESS: Final = 1 << 4
_HAS_CAPABILITY: Final = 1 << 5
_HAS_OBJECT: Final = 1 << 6
_MESH: Final = 1 << 7
_CAPABILITY_HAS_IO: Final = 0x20
_HEADER_BYTES: Final = 5
_EXTENSION_BYTES: Final = 3
_TAG_BYTES: Final = 4
_ASSOCIATED: Final = b"\x11"
_LIGHT_FLAG_PRODUCTS: Final = frozenset({0x07F6, 0x098B})
"""Products (MJYD02YL, MCCGQ02HL) whose "illuminance" is 100 when it is light and not a number of lux."""

Read = Callable[[bytes], tuple[Quantity, ...]]


class _Object(NamedTuple):
    size: int
    read: Read


def _number(point: str, unit: str, size: int, denominator: int = 1, signed: bool = False, most: int = 0) -> _Object:
    """`most`: the largest raw value that the definition allows; 0: all."""

    def read(data: bytes) -> tuple[Quantity, ...]:
        raw = int.from_bytes(data, "little", signed=signed)
        if most and raw > most:
            raise DecodeError(f"MiBeacon: {raw} is more than {point} can be")
        return (Quantity(point, raw if denominator == 1 else raw / denominator, unit),)

    return _Object(size, read)


def _choice(point: str, *options: bool | str) -> _Object:
    def read(data: bytes) -> tuple[Quantity, ...]:
        if data[0] >= len(options):
            raise DecodeError(f"MiBeacon: {point} {data[0]} is not defined")
        return (state(point, options[data[0]]),)

    return _Object(1, read)


def _climate(data: bytes) -> tuple[Quantity, ...]:
    return (*_TEMPERATURE.read(data[:2]), *_HUMIDITY.read(data[2:]))


def _door(data: bytes) -> tuple[Quantity, ...]:
    """0xFF: abnormal."""
    return (fault("opening"),) if data[0] == 0xFF else _choice("opening", True, False).read(data)


def _contact(data: bytes) -> tuple[Quantity, ...]:
    """3 says that the device was reset, and nothing of the door."""
    match data[0]:
        case 0 | 2:
            return state("opening", True), state("left_open", data[0] == 2)
        case 1:
            return state("opening", False), state("left_open", False)
        case 3:
            return ()
    raise DecodeError(f"MiBeacon: opening {data[0]} is not defined")


_TEMPERATURE: Final = _number("temperature", "Cel", 2, 10, signed=True)
_HUMIDITY: Final = _number("humidity", "%RH", 2, 10, most=1000)
_ILLUMINANCE: Final = 0x1007

OBJECTS: Final[dict[int, _Object]] = {
    0x000A: _number("body_temperature", "Cel", 2, 100, signed=True),
    0x000C: _choice("flooding", False, True),
    0x000D: _choice("smoke", "normal", "alarm", "fault", "self_test", "simulated"),
    0x000E: _choice("gas", "normal", "leak", "fault", "expired", "preheating", "self_test", "simulated"),
    0x1004: _TEMPERATURE,
    0x1006: _HUMIDITY,
    _ILLUMINANCE: _number("illuminance", "lx", 3, most=120_000),
    0x1008: _number("moisture", "%", 1, most=100),
    0x1009: _number("conductivity", "uS/cm", 2, most=5000),
    0x100A: _number("battery", "%EL", 1, most=100),
    0x100D: _Object(4, _climate),
    0x100F: _Object(1, _door),
    0x1010: _number("formaldehyde", "mg/m3", 2, 100),
    0x1012: _choice("power_on", False, True),
    0x1013: _number("consumable", "%", 1, most=100),
    0x1014: _choice("flooding", False, True),
    0x1015: _choice("smoke", "normal", "alarm", "fault"),
    0x1016: _choice("gas", "normal", "leak"),
    0x1017: _number("idle_time", "s", 4),
    0x1018: _choice("light", False, True),
    0x1019: _Object(1, _contact),
    0x101A: _number("weight", "g", 2),
}
"""Object id → how it is read."""


def hear(heard: Advertisement, key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.service_data.get(UUID)
    return None if payload is None else decode(payload, heard.address, key)


def decode(payload: bytes, address: str, key: Key | None = None) -> Decoded | None:
    """One service data payload, without its UUID. None: it carries no object. Raises DecodeError."""
    if len(payload) < _HEADER_BYTES:
        raise DecodeError(f"MiBeacon: {len(payload)} bytes are too few")
    control = int.from_bytes(payload[:2], "little")
    version, product = control >> 12, int.from_bytes(payload[2:4], "little")
    if not 2 <= version <= 5 or control & _MESH:
        raise DecodeError(f"MiBeacon version {version}{' of a mesh' if control & _MESH else ''} is not known", 1)
    at = _after_address(payload, control, address)
    if not control & _HAS_OBJECT:
        return None
    if not control & _ENCRYPTED:
        return Decoded(NAME, payload, _objects(payload[at:], product), numbered=True)
    if version < 4:
        raise DecodeError(f"the encryption of MiBeacon version {version} cannot be checked, so it is not read", 1)
    return _unsealed(payload, at, address, product, key)


def _after_address(payload: bytes, control: int, address: str) -> int:
    """Where the objects begin."""
    at = _HEADER_BYTES
    if control & _HAS_ADDRESS:
        at += 6
        if payload[_HEADER_BYTES:at][::-1] != mac(address):
            raise DecodeError(f"MiBeacon: it says to come from another address than {address}", _HEADER_BYTES)
    if control & _HAS_CAPABILITY:
        if len(payload) <= at:
            raise DecodeError("MiBeacon: cut short before its capability", at)
        if payload[at] & _CAPABILITY_HAS_IO and control & _HAS_OBJECT:
            # one byte or two: documents and receivers disagree; it is sent before the device is bound only
            raise DecodeError("MiBeacon: objects behind an I/O capability are not read", at)
        at += 1
    return at


def _unsealed(payload: bytes, at: int, address: str, product: int, key: Key | None) -> Decoded:
    extension_at = len(payload) - _EXTENSION_BYTES - _TAG_BYTES
    if extension_at <= at:
        raise DecodeError("MiBeacon: an encrypted payload without objects", at)
    extension = payload[extension_at:-_TAG_BYTES]
    plain = None
    if key is not None:
        nonce = mac(address)[::-1] + payload[2:5] + extension
        plain = key.open(nonce, payload[at:extension_at] + payload[-_TAG_BYTES:], _ASSOCIATED)
    if plain is None:
        return Decoded(NAME, payload, (), encrypted=True)
    counter = int.from_bytes(payload[4:5] + extension, "little")
    return Decoded(NAME, payload, _objects(plain, product), numbered=True, sealed=True, counter=counter)


def _objects(data: bytes, product: int) -> tuple[Quantity, ...]:
    """What is known of the objects; of one that is not, the length is known all the same."""
    said: dict[str, Quantity] = {}
    at = 0
    while at < len(data):
        if len(data) < at + 3 or len(data) < at + 3 + data[at + 2]:
            raise DecodeError("MiBeacon: an object is cut short", at)
        number, value = int.from_bytes(data[at : at + 2], "little"), data[at + 3 : at + 3 + data[at + 2]]
        at += 3 + len(value)
        known = OBJECTS.get(number)
        if known is None:
            continue
        if len(value) != known.size:
            raise DecodeError(f"MiBeacon: object 0x{number:04x} has {known.size} bytes, not {len(value)}", at)
        if number == _ILLUMINANCE and product in _LIGHT_FLAG_PRODUCTS:
            said["light"] = state("light", int.from_bytes(value, "little") == 100)
        else:
            said |= {quantity.point: quantity for quantity in known.read(value)}
    return tuple(said.values())
