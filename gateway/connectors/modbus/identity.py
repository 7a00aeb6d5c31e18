"""What a unit says of itself: its identification objects (function 43/14) and its server id (function 17).

A device tells its objects in pieces, each saying with which one the next begins. Only a piece that goes on where the
last one ended is followed, so a device that repeats itself ends the reading and no answer can make it endless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import NamedTuple

from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.request import IDENTIFICATION, INDIVIDUAL, Function, Request

OBJECTS = {0: "vendor", 1: "product code", 2: "revision", 3: "vendor URL", 4: "product", 5: "model", 6: "application"}
"""Names of the objects that the standard knows (V1.1b3 §6.21)."""
_ILLEGAL_VALUE = 3
_MORE = 0xFF

Ask = Callable[[Request], Awaitable[Reply]]


class Access(IntEnum):
    """How much is asked for; each includes those before it."""

    BASIC = 1
    REGULAR = 2
    EXTENDED = 3


class Piece(NamedTuple):
    """One answer to function 43/14."""

    objects: Mapping[int, bytes]
    next_object: int | None
    """Where the next piece begins; None: this was the last."""


def identification(unit: int, access: Access, first_object: int = 0) -> Request:
    """Asks for a run of objects."""
    return Request(unit, Function.ENCAPSULATED, data=bytes([IDENTIFICATION, access, first_object]))


def single_object(unit: int, object_id: int) -> Request:
    """Asks for one object."""
    return Request(unit, Function.ENCAPSULATED, data=bytes([IDENTIFICATION, INDIVIDUAL, object_id]))


def server_id(unit: int) -> Request:
    """Asks for the server id: bytes whose meaning the vendor alone knows."""
    return Request(unit, Function.REPORT_SERVER_ID)


def piece(data: bytes) -> Piece:
    """Reads the answer to either question of function 43/14; its lengths are those that the framing proved."""
    _conformity, more, next_object, count = data[:4]
    objects, at = {}, 4
    for _ in range(count):
        size = data[at + 1]
        objects[data[at]] = data[at + 2 : at + 2 + size]
        at += 2 + size
    return Piece(objects, next_object if more == _MORE else None)


async def identify(ask: Ask, unit: int, access: Access = Access.EXTENDED) -> dict[int, bytes]:
    """All objects that the unit tells, by id; none when it does not know the function or does not answer.

    A unit that is asked for more than it has answers with what it has, or refuses the value; then less is asked for.
    """
    for level in reversed([each for each in Access if each <= access]):
        objects, code = await _run(ask, unit, level)
        if objects or code != _ILLEGAL_VALUE:
            return objects
    return {}


async def _run(ask: Ask, unit: int, access: Access) -> tuple[dict[int, bytes], int]:
    objects: dict[int, bytes] = {}
    first: int | None = 0
    while first is not None:
        reply = await ask(identification(unit, access, first))
        if reply.doubtful:
            reply = await ask(identification(unit, access, first))
        if reply.data is None:
            return objects, reply.code
        told = piece(reply.data)
        objects |= told.objects
        goes_on = told.next_object is not None and told.next_object > max(told.objects, default=255) >= first
        first = told.next_object if goes_on else None
    return objects, 0


def text(data: bytes) -> str:
    """An object as its device meant it: ASCII, or hexadecimal where it is none."""
    words = data.rstrip(b"\0 ")
    return words.decode("ascii") if words.isascii() and words.decode("ascii").isprintable() else data.hex(" ")
