"""Pure: the payload of Sparkplug B, as far as readings go. Sparkplug 3.0.0, 6.4; the fields are those of its
`sparkplug_b.proto`.

Protocol Buffers on the wire are pairs of a field number and a value of one of four shapes, so that a reader of two
messages (payload and metric) and the few properties that matter is small. Unknown fields are skipped, as the format
wants it. Data sets, templates, files and bytes are no readings: such a metric has its name and no value.

A signed integer travels as its two's complement in 32 or 64 bits; senders that cut it to its own width are understood.
A value that does not fit its datatype is `bad:decode`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from gateway.codec.words import parse
from gateway.errors import DecodeError
from gateway.model import Status, Value

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT32 = parse("float32")
_MAX_METRICS = 10_000
"""Of one message."""


class Type(IntEnum):
    """Datatypes of metrics, 6.4.16."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATE_TIME = 13
    TEXT = 14
    UUID = 15


_SIGNED = {Type.INT8: 8, Type.INT16: 16, Type.INT32: 32, Type.INT64: 64}
_UNSIGNED = {Type.UINT8: 8, Type.UINT16: 16, Type.UINT32: 32, Type.UINT64: 64, Type.DATE_TIME: 64}
_TEXTS = (Type.STRING, Type.TEXT, Type.UUID)
_TYPES = frozenset(Type)


class Metric(NamedTuple):
    """One metric as it stands in a payload; None: the payload does not say."""

    name: str | None = None
    alias: int | None = None
    timestamp_ms: int | None = None
    datatype: int | None = None
    historical: bool = False
    null: bool = False
    quality: int | None = None
    """The property `Quality`: 0 bad, 192 good, 500 stale (6.4.6.4)."""
    unit: str = ""
    """The property `engUnit`, which the specification does not know and many send."""
    raw: tuple[int, int | bytes] | None = None
    """The field that holds the value, and what is in it."""


class Payload(NamedTuple):
    timestamp_ms: int | None
    seq: int | None
    metrics: tuple[Metric, ...]


def decode(data: bytes) -> Payload:
    """Raises DecodeError."""
    timestamp = seq = None
    metrics: list[Metric] = []
    for field, found in _fields(data):
        if field == 1:
            timestamp = _number(found)
        elif field == 2:
            if len(metrics) == _MAX_METRICS:
                raise DecodeError(f"more than {_MAX_METRICS} metrics")
            metrics.append(_metric(_raw(found)))
        elif field == 3:
            seq = _number(found)
    return Payload(timestamp, seq, tuple(metrics))


def value(metric: Metric, datatype: int | None) -> tuple[Value | None, Status]:
    """What a metric says, read as `datatype`. Never raises, never makes one up."""
    if metric.null or metric.quality == 0:
        return None, Status.SENSOR_FAULT
    if metric.quality == 500:
        return None, Status.STALE
    if metric.raw is None or datatype not in _TYPES:
        return None, Status.DECODE
    field, raw = metric.raw
    kind = Type(datatype)
    if field in (10, 11) and isinstance(raw, int):
        return _integer(kind, raw)
    if field == 12 and kind is Type.FLOAT and isinstance(raw, bytes):
        return _float(_FLOAT32.decode(raw[::-1]))
    if field == 13 and kind is Type.DOUBLE and isinstance(raw, bytes):
        return _float(struct.unpack("<d", raw)[0])
    if field == 14 and kind is Type.BOOLEAN and isinstance(raw, int):
        return bool(raw), Status.GOOD
    if field == 15 and kind in _TEXTS and isinstance(raw, bytes):
        try:
            return raw.decode(), Status.GOOD
        except UnicodeDecodeError:
            return None, Status.DECODE
    return None, Status.DECODE


def _float(number: Value | None) -> tuple[Value | None, Status]:
    finite = isinstance(number, float) and math.isfinite(number)
    return (number, Status.GOOD) if finite else (None, Status.SENSOR_FAULT)


def _integer(kind: Type, raw: int) -> tuple[Value | None, Status]:
    if kind in _UNSIGNED:
        return (raw, Status.GOOD) if raw < 1 << _UNSIGNED[kind] else (None, Status.DECODE)
    bits = _SIGNED.get(kind)
    if bits is None:
        return None, Status.DECODE
    for width in (64, 32, bits):  # as 64 bits, as 32, or cut to its own
        number = raw - (1 << width) if raw >= 1 << (width - 1) else raw
        if raw < 1 << width and -(1 << (bits - 1)) <= number < 1 << (bits - 1):
            return number, Status.GOOD
    return None, Status.DECODE


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def encode(name: str, datatype: int, written: Value, utc_ms: int) -> bytes:
    """A command with one metric. Raises ValueError: the value is none of this datatype."""
    kind = Type(datatype) if datatype in _TYPES else None
    stamp = max(utc_ms, 0)
    if kind is Type.BOOLEAN and isinstance(written, bool):
        content = _key(14, _VARINT) + _varint(written)
    elif kind in _TEXTS and isinstance(written, str):
        content = _packed(15, written.encode())
    elif kind is Type.FLOAT and _numeric(written):
        content = _key(12, _FIXED32) + _struct("<f", float(written))
    elif kind is Type.DOUBLE and _numeric(written):
        content = _key(13, _FIXED64) + _struct("<d", float(written))
    elif kind is not None and (kind in _SIGNED or kind in _UNSIGNED) and _numeric(written) and written == int(written):
        number = int(written)
        bits = _SIGNED.get(kind) or _UNSIGNED[kind]
        low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if kind in _SIGNED else (0, 1 << bits)
        if not low <= number < high:
            raise ValueError(f"{number} is no {kind.name.lower()}")
        content = _key(11 if bits == 64 else 10, _VARINT) + _varint(number % (1 << (64 if bits == 64 else 32)))
    else:
        raise ValueError(f"{written!r} is no value of its datatype")
    body = _packed(1, name.encode()) + _key(3, _VARINT) + _varint(stamp) + _key(4, _VARINT) + _varint(datatype)
    return _key(1, _VARINT) + _varint(stamp) + _packed(2, body + content)


def _numeric(written: Value) -> bool:
    return isinstance(written, int | float) and not isinstance(written, bool)


def _struct(form: str, number: float) -> bytes:
    try:
        return struct.pack(form, number)
    except OverflowError as error:
        raise ValueError(f"{number!r} is beyond its datatype") from error


def _packed(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _key(field: int, shape: int) -> bytes:
    return _varint(field << 3 | shape)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


# ── the wire format of Protocol Buffers ──────────────────────────────────────────────────────────────────────────────


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        shape = key & 7
        if shape == _VARINT:
            number, at = _read_varint(data, at)
            yield key >> 3, number
            continue
        if shape == _BYTES:
            size, at = _read_varint(data, at)
        elif shape in (_FIXED32, _FIXED64):
            size = 4 if shape == _FIXED32 else 8
        else:
            raise DecodeError("not Sparkplug B: no such wire type", at)
        if at + size > end:
            raise DecodeError("not Sparkplug B: it ends early", at)
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[at : at + 10]:
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise DecodeError("not Sparkplug B: a number without end", at)


def _number(found: int | bytes) -> int:
    if isinstance(found, bytes):
        raise DecodeError("not Sparkplug B: bytes where a number belongs")
    return found


def _raw(found: int | bytes) -> bytes:
    if isinstance(found, int):
        raise DecodeError("not Sparkplug B: a number where bytes belong")
    return found


def _text(found: int | bytes) -> str:
    try:
        return _raw(found).decode()
    except UnicodeDecodeError as error:
        raise DecodeError("not Sparkplug B: a name that is not UTF-8") from error


_WIDTHS = {10: 0, 11: 0, 12: 4, 13: 8, 14: 0}
"""Fields that hold a value → its bytes; 0: a varint."""


def _metric(data: bytes) -> Metric:
    name: str | None = None
    unit = ""
    numbers: dict[int, int] = {}
    quality: int | None = None
    raw: tuple[int, int | bytes] | None = None
    for field, found in _fields(data):
        if field == 1:
            name = _text(found)
        elif field in (2, 3, 4, 5, 7):
            numbers[field] = _number(found)
        elif field == 9:
            quality, unit = _properties(_raw(found))
        elif field in _WIDTHS:
            if (len(found) if isinstance(found, bytes) else 0) != _WIDTHS[field]:
                raise DecodeError("not Sparkplug B: a value of the wrong width")
            raw = field, found
        elif field >= 15:
            raw = field, _raw(found)
    return Metric(
        name, numbers.get(2), numbers.get(3), numbers.get(4), bool(numbers.get(5)), bool(numbers.get(7)),
        quality, unit, raw,
    )  # fmt: skip


def _properties(data: bytes) -> tuple[int | None, str]:
    keys: list[str] = []
    values: list[dict[int, int | bytes]] = []
    for field, found in _fields(data):
        if field == 1:
            keys.append(_text(found))
        elif field == 2:
            values.append(dict(_fields(_raw(found))))
    quality, unit = None, ""
    for key, held in zip(keys, values, strict=False):
        if key == "Quality" and isinstance(held.get(3), int):
            quality = _number(held[3])
        elif key in ("engUnit", "Engineering Unit") and isinstance(held.get(8), bytes):
            unit = _text(held[8])
    return quality, unit
