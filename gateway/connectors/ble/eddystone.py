"""Pure: Eddystone, as specified at https://github.com/google/eddystone/blob/master/protocol-specification.md.

Service data of UUID 0xFEAA. The first byte says which frame it is: UID (who), URL, TLM (telemetry), EID. A telemetry
frame that is encrypted needs the beacon's identity key, and an EID is meant for its owner's server: neither is read.
All numbers are big-endian; where the specification has a value for "not supported", the quantity is left out.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Quantity, uuid16
from gateway.errors import DecodeError

NAME: Final = "eddystone"
UUID: Final = uuid16(0xFEAA)

_UID: Final = 0x00
_URL: Final = 0x10
_TLM: Final = 0x20
_TLM_PLAIN: Final = 0x00
_TLM_ENCRYPTED: Final = 0x01
_EID: Final = 0x30
# frame, version, mV, temperature in 1/256 Cel, count of advertisements, tenths of a second since power-up
_TELEMETRY: Final = struct.Struct(">BBHhII")
_NO_TEMPERATURE: Final = -0x8000
_NO_VOLTAGE: Final = 0
_UID_BYTES: Final = (18, 20)
"""Without and with two reserved bytes; the specification tolerates both."""
_SCHEMES: Final = ("http://www.", "https://www.", "http://", "https://")
_ENDINGS: Final = (".com", ".org", ".edu", ".net", ".info", ".biz", ".gov")
_MAX_URL_BYTES: Final = 17


def hear(heard: Advertisement, _key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.service_data.get(UUID)
    return None if payload is None else decode(payload)


def decode(payload: bytes) -> Decoded | None:
    """One service data payload, without its UUID. Raises DecodeError."""
    frame = payload[0] if payload else -1
    if frame == _EID:
        return None
    if frame == _TLM:
        return _telemetry(payload)
    if frame == _UID:
        if len(payload) not in _UID_BYTES:
            raise DecodeError(f"Eddystone-UID has {_UID_BYTES[0]} or {_UID_BYTES[1]} bytes, not {len(payload)}")
        said = (Quantity("namespace", payload[2:12].hex()), Quantity("instance", payload[12:18].hex()))
        return Decoded(NAME, payload, (*said, _power(payload)))
    if frame == _URL:
        return Decoded(NAME, payload, (Quantity("url", _url(payload)), _power(payload)))
    raise DecodeError("Eddystone: no such frame" if payload else "Eddystone: empty payload", 0)


def _telemetry(payload: bytes) -> Decoded:
    version = payload[1] if len(payload) > 1 else -1
    if version == _TLM_ENCRYPTED:
        return Decoded(NAME, payload, (), encrypted=True)
    if version != _TLM_PLAIN or len(payload) != _TELEMETRY.size:
        raise DecodeError(f"Eddystone-TLM of version {version} with {len(payload)} bytes is not known", 1)
    _, _, millivolts, temperature, sent, tenths = _TELEMETRY.unpack(payload)
    said = [Quantity("advertisements", sent), Quantity("uptime", tenths / 10, "s")]
    if temperature != _NO_TEMPERATURE:
        said.insert(0, Quantity("temperature", temperature / 256, "Cel"))
    if millivolts != _NO_VOLTAGE:
        said.insert(0, Quantity("battery_voltage", millivolts / 1000, "V"))
    return Decoded(NAME, payload, tuple(said))


def _power(payload: bytes) -> Quantity:
    """Signal strength at the beacon."""
    return Quantity("tx_power", int.from_bytes(payload[1:2], "big", signed=True), "dBm")


def _url(payload: bytes) -> str:
    if not 4 <= len(payload) <= 3 + _MAX_URL_BYTES or payload[2] >= len(_SCHEMES):
        raise DecodeError(f"Eddystone-URL: {len(payload)} bytes, or an unknown scheme")
    text = [_SCHEMES[payload[2]]]
    for byte in payload[3:]:
        if byte < 2 * len(_ENDINGS):
            text.append(_ENDINGS[byte % len(_ENDINGS)] + ("/" if byte < len(_ENDINGS) else ""))
        elif 0x20 < byte < 0x7F:
            text.append(chr(byte))
        else:
            raise DecodeError(f"Eddystone-URL: byte 0x{byte:02x} is reserved")
    return "".join(text)
