"""Pure: between points and what travels: requests out of reads and writes, values out of answers.

A write means engineering units (`Point.raw_of`), and what a register cannot hold exactly is rounded to the nearest
value that it can.
"""

from __future__ import annotations

import struct

from gateway.codec.words import Family, Word
from gateway.connectors.modbus.config import Spot
from gateway.connectors.modbus.planner import Item, Read, Table
from gateway.connectors.modbus.request import EXCEPTIONS, Function, Request
from gateway.model import Status, Value

_READ = {
    Table.COIL: Function.READ_COILS,
    Table.DISCRETE: Function.READ_DISCRETE_INPUTS,
    Table.HOLDING: Function.READ_HOLDING_REGISTERS,
    Table.INPUT: Function.READ_INPUT_REGISTERS,
}
_REGISTER = Word(Family.UINT, 2)
_ON, _OFF = b"\xff\x00", b"\x00\x00"  # of function 5 (V1.1b3 §6.5)


def read_request(unit: int, read: Read[Spot]) -> Request:
    return Request(unit, _READ[read.table], read.address, read.quantity)


def alone(spot: Spot) -> Read[Spot]:
    """A read of one point only."""
    return Read(spot.table, spot.address, spot.width, (Item(spot, spot.address, spot.width),))


def decoded(read: Read[Spot], data: bytes) -> tuple[tuple[Value | None, ...], tuple[Status, ...] | None]:
    """Raw values of all items in order, and their status; None when all are good."""
    values = _bits(read, data) if read.table.bits else _words(read, data)
    if None not in values:
        return tuple(values), None
    return tuple(values), tuple(Status.SENSOR_FAULT if value is None else Status.GOOD for value in values)


def _bits(read: Read[Spot], data: bytes) -> list[Value | None]:
    places = [item.address - read.address for item in read.items]
    return [bool(data[at // 8] >> at % 8 & 1) for at in places]


def _words(read: Read[Spot], data: bytes) -> list[Value | None]:
    registers = struct.unpack(f">{len(data) // 2}H", data)
    values: list[Value | None] = []
    for spot, address, width in read.items:
        at = address - read.address
        # most points are one register as it is, and there are many of them
        value = registers[at] if spot.word == _REGISTER else spot.word.decode(data[2 * at : 2 * (at + width)])
        values.append(None if value in spot.sentinels else value)
    return values


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
    data = spot.word.encode(raw)
    if spot.word.family is Family.STRING:
        data = data.ljust(2 * spot.width, b"\0")
    data = data.rjust(2 * spot.width, b"\0")  # a bool is the low byte of its register
    if spot.width == 1 and fc != Function.WRITE_MULTIPLE_REGISTERS:
        return Request(unit, Function.WRITE_SINGLE_REGISTER, spot.address, 1, data)
    return Request(unit, Function.WRITE_MULTIPLE_REGISTERS, spot.address, spot.width, data)


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
    if spot.table.bits or family is Family.BOOL:
        if raw not in (0, 1):
            raise ValueError(f"{raw!r} is neither true nor false")
        return bool(raw)
    return round(raw) if spot.word.integral else float(raw)


def reason_of(code: int) -> str:
    return f"{EXCEPTIONS.get(code, 'unknown exception')} (exception {code})"
