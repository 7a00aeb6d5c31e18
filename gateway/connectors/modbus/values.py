"""Pure: between points and what travels: requests out of reads and writes, values out of answers.

A write means engineering units (`Point.raw_of`), and what a register cannot hold exactly is rounded to the nearest
value that it can.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gateway.codec.words import Family, Word
from gateway.connectors.modbus.config import Spot
from gateway.connectors.modbus.planner import Read, Table
from gateway.connectors.modbus.request import EXCEPTIONS, Function, Request
from gateway.model import Status, Value

READ = {
    Table.COIL: Function.READ_COILS,
    Table.DISCRETE: Function.READ_DISCRETE_INPUTS,
    Table.HOLDING: Function.READ_HOLDING_REGISTERS,
    Table.INPUT: Function.READ_INPUT_REGISTERS,
}
_REGISTER = Word(Family.UINT, 2)
_TENS: tuple[int, ...] = tuple(10**power for power in range(11))  # as far as SunSpec's scale factors go ("sunssf")
_ON, _OFF = b"\xff\x00", b"\x00\x00"  # of function 5 (V1.1b3 §6.5)


def read_request(unit: int, read: Read[Spot]) -> Request:
    return Request(unit, READ[read.table], read.address, read.quantity)


def alone(spot: Spot) -> Read[Spot]:
    """A read of one point only."""
    item = spot.item
    return Read(spot.table, item.address, item.width, (item,))


class Block:
    """One read, and what its answer means. Compiled once, for it is answered a thousand times."""

    def __init__(self, read: Read[Spot]) -> None:
        self.read = read
        self.names = tuple(item.key.point.name for item in read.items)
        self.unanswered: int | None = 0
        """How often in vain; None once it was answered."""
        spots = [item.key for item in read.items]
        at = [spot.address - read.address for spot in spots]
        # most points are registers as they are, side by side, and there are many of them
        self._plain = not read.table.bits and at == [*range(read.quantity)] and all(map(_is_plain, spots))
        self._places = [*zip(at, spots, strict=True)]

    def decode(self, data: bytes) -> tuple[tuple[Value | None, ...], tuple[Status, ...] | None]:
        """Raw values of all points in order, and their status; None when all are good."""
        if self._plain:
            return struct.unpack(f">{len(data) // 2}H", data), None
        values = tuple(self._bits(data) if self.read.table.bits else self._words(data))
        if None not in values:
            return values, None
        return values, tuple([Status.SENSOR_FAULT if value is None else Status.GOOD for value in values])

    def _bits(self, data: bytes) -> Iterator[Value]:
        return (bool(data[at // 8] >> at % 8 & 1) for at, _ in self._places)

    def _words(self, data: bytes) -> Iterator[Value | None]:
        for at, spot in self._places:
            value = spot.word.decode(data[2 * at : 2 * (at + spot.word.registers)])
            if value in spot.sentinels:
                yield None
            elif spot.scale_at is None:
                yield value
            else:
                where = 2 * (spot.scale_at - self.read.address)
                yield _times_ten_to(value, int.from_bytes(data[where : where + 2], "big", signed=True))


def _is_plain(spot: Spot) -> bool:
    return spot.word == _REGISTER and not spot.sentinels and spot.scale_at is None


def _times_ten_to(value: Value | None, power: int) -> Value | None:
    """SunSpec's sunssf: -10 to 10; anything else, above all 0x8000, says that there is no value."""
    if not isinstance(value, int) or abs(power) >= len(_TENS):
        return None
    return value * _TENS[power] if power >= 0 else value / _TENS[-power]


def decoded(read: Read[Spot], data: bytes) -> tuple[tuple[Value | None, ...], tuple[Status, ...] | None]:
    """What one answer means; see `Block`."""
    return Block(read).decode(data)


def write_request(unit: int, spot: Spot, raw: Value) -> Request:
    """
    Raises:
        ValueError: the point cannot hold the value.
    """
    fc: int | None = spot.point.write.fc if spot.point.write else None
    if spot.table is Table.COIL:
        on = bool(raw)
        if fc == Function.WRITE_MULTIPLE_COILS:
            return Request(unit, Function.WRITE_MULTIPLE_COILS, spot.address, 1, bytes([on]))
        return Request(unit, Function.WRITE_SINGLE_COIL, spot.address, 1, _ON if on else _OFF)
    if fc == Function.MASK_WRITE_REGISTER:
        own, bits = spot.word.overlay(raw)
        masks = (0xFFFF & ~own).to_bytes(2, "big") + bits.to_bytes(2, "big")
        return Request(unit, Function.MASK_WRITE_REGISTER, spot.address, 1, masks)
    data = spot.word.encode(raw)
    if spot.word.family is Family.STRING:
        data = data.ljust(2 * spot.width, b"\0")
    data = data.rjust(2 * spot.width, b"\0")  # a bool is the low byte of its register
    many = Function(fc) if fc else Function.WRITE_MULTIPLE_REGISTERS
    if spot.width == 1 and fc in (None, Function.WRITE_SINGLE_REGISTER):
        return Request(unit, Function.WRITE_SINGLE_REGISTER, spot.address, 1, data)
    return Request(unit, many, spot.address, spot.width, data)


def raw_of(spot: Spot, value: Value) -> Value:
    """What the registers shall hold when a person says `value`.

    Raises:
        ValueError: it means nothing for this point.
    """
    raw, family = spot.point.raw_of(value), spot.word.family
    if family is Family.STRING:
        return raw
    if isinstance(raw, str):
        raise ValueError(f"{raw!r} is not a number")
    if spot.table.bits or family in (Family.BOOL, Family.BIT):
        if raw not in (0, 1):
            raise ValueError(f"{raw!r} is neither true nor false")
        return bool(raw)
    return round(raw) if spot.word.integral else float(raw)


def reason_of(code: int) -> str:
    return f"{EXCEPTIONS.get(code, 'unknown exception')} (exception {code})"
