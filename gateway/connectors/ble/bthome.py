"""Pure: BTHome v2, as specified at https://bthome.io/format and https://bthome.io/encryption.

Service data of UUID 0xFCD2: one byte of device information, then objects, each an id and its value, little-endian.
The specification asks senders to keep ids in ascending order and receivers to stop at the first id that they do not
know (its length is unknown too); what came before it counts. Ids out of order are tolerated. An object that is cut
short makes the whole payload a `DecodeError`.

Several objects of one property are numbered in their order: `temperature_1`, `temperature_2`.

Encrypted, the objects are AES-CCM with a tag of four bytes; behind them stand a counter of four bytes, little-endian,
that grows with every advertisement, and the tag. The nonce is address, UUID as sent, device information, counter.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from gateway.connectors.ble.advertisement import Advertisement, Decoded, Key, Nature, Quantity, mac, uuid16
from gateway.errors import DecodeError
from gateway.model import Status

UUID: Final = uuid16(0xFCD2)
NAME: Final = "bthome"

_VERSION: Final = 2
_ENCRYPTED: Final = 0x01
_COUNTER_BYTES: Final = 4
_TAG_BYTES: Final = 4
_PACKET_ID: Final = 0x00


class _Number(NamedTuple):
    """value = raw × numerator / denominator: a division rounds to the decimal that the sensor means."""

    property: str
    size: int
    signed: bool
    numerator: int
    denominator: int
    unit: str


def _unsigned(name: str, size: int, unit: str = "", denominator: int = 1, numerator: int = 1) -> _Number:
    return _Number(name, size, False, numerator, denominator, unit)


def _signed(name: str, size: int, unit: str = "", denominator: int = 1, numerator: int = 1) -> _Number:
    return _Number(name, size, True, numerator, denominator, unit)


NUMBERS: Final = {
    0x01: _unsigned("battery", 1, "%EL"),
    0x02: _signed("temperature", 2, "Cel", 100),
    0x03: _unsigned("humidity", 2, "%RH", 100),
    0x04: _unsigned("pressure", 3, "hPa", 100),
    0x05: _unsigned("illuminance", 3, "lx", 100),
    0x06: _unsigned("mass", 2, "kg", 100),
    0x07: _unsigned("mass", 2, "lb", 100),
    0x08: _signed("dewpoint", 2, "Cel", 100),
    0x09: _unsigned("count", 1),
    0x0A: _unsigned("energy", 3, "kWh", 1000),
    0x0B: _unsigned("power", 3, "W", 100),
    0x0C: _unsigned("voltage", 2, "V", 1000),
    0x0D: _unsigned("pm2_5", 2, "ug/m3"),
    0x0E: _unsigned("pm10", 2, "ug/m3"),
    0x12: _unsigned("co2", 2, "ppm"),
    0x13: _unsigned("tvoc", 2, "ug/m3"),
    0x14: _unsigned("moisture", 2, "%", 100),
    0x2E: _unsigned("humidity", 1, "%RH"),
    0x2F: _unsigned("moisture", 1, "%"),
    0x3D: _unsigned("count", 2),
    0x3E: _unsigned("count", 4),
    0x3F: _signed("rotation", 2, "deg", 10),
    0x40: _unsigned("distance", 2, "mm"),
    0x41: _unsigned("distance", 2, "m", 10),
    0x42: _unsigned("duration", 3, "s", 1000),
    0x43: _unsigned("current", 2, "A", 1000),
    0x44: _unsigned("speed", 2, "m/s", 100),
    0x45: _signed("temperature", 2, "Cel", 10),
    0x46: _unsigned("uv_index", 1, "", 10),
    0x47: _unsigned("volume", 2, "l", 10),
    0x48: _unsigned("volume", 2, "ml"),
    0x49: _unsigned("volume_flow_rate", 2, "m3/h", 1000),
    0x4A: _unsigned("voltage", 2, "V", 10),
    0x4B: _unsigned("gas", 3, "m3", 1000),
    0x4C: _unsigned("gas", 4, "m3", 1000),
    0x4D: _unsigned("energy", 4, "kWh", 1000),
    0x4E: _unsigned("volume", 4, "l", 1000),
    0x4F: _unsigned("water", 4, "l", 1000),
    0x50: _unsigned("timestamp", 4, "s"),
    0x51: _unsigned("acceleration", 2, "m/s2", 1000),
    0x52: _unsigned("gyroscope", 2, "deg/s", 1000),
    0x55: _unsigned("volume_storage", 4, "l", 1000),
    0x56: _unsigned("conductivity", 2, "uS/cm"),
    0x57: _signed("temperature", 1, "Cel"),
    0x58: _signed("temperature", 1, "Cel", 100, 35),
    0x59: _signed("count", 1),
    0x5A: _signed("count", 2),
    0x5B: _signed("count", 4),
    0x5C: _signed("power", 4, "W", 100),
    0x5D: _signed("current", 2, "A", 1000),
    0x5E: _unsigned("direction", 2, "deg", 100),
    0x5F: _unsigned("precipitation", 2, "mm", 10),
    0x60: _unsigned("channel", 1),
    0x61: _unsigned("rotational_speed", 2, "1/min"),
    0x62: _signed("speed", 4, "m/s", 1_000_000),
    0x63: _signed("acceleration", 4, "m/s2", 1_000_000),
    0x65: _unsigned("settings_revision", 1),
}
"""Object id → number. `timestamp` is whole seconds since 1970, UTC."""

STATES: Final = {
    0x0F: "generic",
    0x10: "power_on",
    0x11: "opening",
    0x15: "battery_low",
    0x16: "battery_charging",
    0x17: "carbon_monoxide",
    0x18: "cold",
    0x19: "connectivity",
    0x1A: "door",
    0x1B: "garage_door",
    0x1C: "gas_detected",
    0x1D: "heat",
    0x1E: "light",
    0x1F: "unlocked",
    0x20: "moisture_detected",
    0x21: "motion",
    0x22: "moving",
    0x23: "occupancy",
    0x24: "plug",
    0x25: "presence",
    0x26: "problem",
    0x27: "running",
    0x28: "safety",
    0x29: "smoke",
    0x2A: "sound",
    0x2B: "tamper",
    0x2C: "vibration",
    0x2D: "window",
}
"""Object id → binary state. Where a number has the same name in the specification, the state is named for what it
means when true; `lock` is true when unlocked, so it is called that."""

_ABOUT_THE_DEVICE: Final = {0xF0: 2, 0xF1: 4, 0xF2: 3}
"""Device type and firmware version: object id → size. Nothing that is measured."""
_PRESSES: Final = {
    0x01: "press",
    0x02: "double_press",
    0x03: "triple_press",
    0x04: "long_press",
    0x05: "long_double_press",
    0x06: "long_triple_press",
    0x80: "hold_press",
}
_TURNS: Final = {0x01: "rotate_left", 0x02: "rotate_right"}
_COMMANDS: Final = {0x00: "off", 0x01: "on", 0x02: "toggle", 0x03: "step_up", 0x04: "step_down"}
_COMMAND_LENGTH_BITS: Final = 0x1F  # the high 3 bits are reserved


def hear(heard: Advertisement, key: Key | None) -> Decoded | None:
    """What the advertisement says in this format; None: nothing. Raises DecodeError."""
    payload = heard.service_data.get(UUID)
    return None if payload is None else decode(payload, heard.address, key)


def decode(payload: bytes, address: str = "", key: Key | None = None) -> Decoded:
    """One service data payload, without its UUID.

    Raises:
        DecodeError: not BTHome v2, or an object is cut short.
    """
    if not payload:
        raise DecodeError("BTHome: empty payload", 0)
    version = payload[0] >> 5
    if version != _VERSION:
        raise DecodeError(f"BTHome version {version} is not known; known: {_VERSION}", 0)
    if payload[0] & _ENCRYPTED:
        return _unsealed(payload, address, key)
    quantities, numbered = _objects(payload, 1)
    return Decoded(NAME, payload, quantities, numbered=numbered)


def _unsealed(payload: bytes, address: str, key: Key | None) -> Decoded:
    sealed, counter, tag = payload[1 : -_COUNTER_BYTES - _TAG_BYTES], payload[-8:-_TAG_BYTES], payload[-_TAG_BYTES:]
    if not sealed:
        raise DecodeError("BTHome: an encrypted payload without objects", len(payload))
    nonce = mac(address) + b"\xd2\xfc" + payload[:1] + counter if key is not None else b""
    objects = None if key is None else key.open(nonce, sealed + tag)
    if objects is None:
        return Decoded(NAME, payload, (), encrypted=True)
    quantities, _ = _objects(objects, 0)
    return Decoded(NAME, payload, quantities, numbered=True, sealed=True, counter=int.from_bytes(counter, "little"))


def _objects(data: bytes, at: int) -> tuple[tuple[Quantity, ...], bool]:
    """The quantities of all objects from there on, and whether the packet is numbered."""
    reader = _Reader(data, at)
    objects: list[_Object] = []
    numbered = False
    while reader.more():
        object_id = reader.byte()
        if object_id == _PACKET_ID:
            reader.byte()
            numbered = True
        elif object_id in _ABOUT_THE_DEVICE:
            reader.take(_ABOUT_THE_DEVICE[object_id])
        else:
            item = _object(object_id, reader)
            if item is None:
                break
            objects.append(item)
    return _named(objects), numbered


class _Object(NamedTuple):
    """One object: its property, and what it says, named relative to the property (`""`, `"_steps"`)."""

    property: str
    says: tuple[Quantity, ...]


def _named(objects: list[_Object]) -> tuple[Quantity, ...]:
    """Full names; an event "none" says nothing, yet takes its number: the second button stays the second."""
    total = Counter(item.property for item in objects)
    seen: Counter[str] = Counter()
    quantities = []
    for item in objects:
        seen[item.property] += 1
        number = f"_{seen[item.property]}" if total[item.property] > 1 else ""
        quantities += [said._replace(point=f"{item.property}{number}{said.point}") for said in item.says]
    return tuple(quantities)


def _object(object_id: int, reader: _Reader) -> _Object | None:
    """The object after its id; None when the id is not known."""
    if (number := NUMBERS.get(object_id)) is not None:
        raw = int.from_bytes(reader.take(number.size), "little", signed=number.signed)
        scaled = raw * number.numerator
        value = scaled if number.denominator == 1 else scaled / number.denominator
        return _Object(number.property, (Quantity("", value, number.unit),))
    if (state := STATES.get(object_id)) is not None:
        return _Object(state, (_choice((False, True), reader.byte()),))
    match object_id:
        case 0x64:
            return _Object("light_level", (_choice(("dark", "twilight", "bright"), reader.byte()),))
        case 0x53:
            return _Object("text", (_text(reader.take(reader.byte())),))
        case 0x54:
            return _Object("raw", (Quantity("", reader.take(reader.byte()).hex()),))
        case 0x3A:
            return _Object("button", _event(_PRESSES, reader.byte()))
        case 0x3B:
            arguments = reader.byte() & _COMMAND_LENGTH_BITS
            says = _event(_COMMANDS, reader.byte(), steps=reader.take(arguments), none=None)
            return _Object("command", says)
        case 0x3C:
            return _Object("dimmer", _event(_TURNS, reader.byte(), steps=reader.take(1)))
    return None


def _choice(options: tuple[bool | str, ...], raw: int) -> Quantity:
    if raw >= len(options):
        return Quantity("", None, status=Status.DECODE, nature=Nature.STATE)
    return Quantity("", options[raw], nature=Nature.STATE)


def _text(data: bytes) -> Quantity:
    try:
        return Quantity("", data.decode())
    except UnicodeDecodeError:
        return Quantity("", None, status=Status.DECODE)


def _event(names: dict[int, str], event: int, steps: bytes = b"", none: int | None = 0x00) -> tuple[Quantity, ...]:
    """What happened and by how many steps; an event that the specification does not name yet is told by its number."""
    if event == none:
        return ()
    happened = Quantity("", names.get(event, f"0x{event:02x}"), nature=Nature.EVENT)
    if len(steps) != 1:
        return (happened,)
    return happened, Quantity("_steps", steps[0], nature=Nature.EVENT)


class _Reader:
    """Walks through a payload and refuses to step over its end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise DecodeError(f"BTHome: an object needs {end - len(self._data)} bytes more than there are", self._at)
        chunk, self._at = self._data[self._at : end], end
        return chunk

    def byte(self) -> int:
        return self.take(1)[0]
