"""Pure: what is asked of a unit, and what its answer must look like (Modbus Application Protocol V1.1b3 §6, §7).

A PDU is the function code and what follows it, without the frame around it. Most answers have a length that the
question implies. Those of functions 17 and 43/14 tell theirs as they go: `Shape.size_of` believes no more of it than
fits into a PDU, and what ends there is an answer only if the frame's checksum proves it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

PDU_BYTES_MAX = 253  # 256 of an RTU frame, less unit and CRC
IDENTIFICATION = 14  # the type of function 43 that reads device identification
INDIVIDUAL = 4  # its code for one object by its id


class Function(IntEnum):
    """Function codes."""

    READ_COILS = 1
    READ_DISCRETE_INPUTS = 2
    READ_HOLDING_REGISTERS = 3
    READ_INPUT_REGISTERS = 4
    WRITE_SINGLE_COIL = 5
    WRITE_SINGLE_REGISTER = 6
    WRITE_MULTIPLE_COILS = 15
    WRITE_MULTIPLE_REGISTERS = 16
    REPORT_SERVER_ID = 17
    MASK_WRITE_REGISTER = 22
    READ_WRITE_MULTIPLE_REGISTERS = 23
    ENCAPSULATED = 43
    """With MEI type 14: read device identification."""


EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge, still working",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}

GATEWAY = (10, 11)
"""Exceptions by which a gateway speaks for a unit that it does not reach."""
BUSY = (5, 6)
"""Exceptions that ask for patience."""
BUSY_PAUSE_S = 0.2
"""Before who said so is asked again; 100 to 500 ms are usual."""
REGISTERS_MAX = 125
"""Of one read: 253 bytes of PDU less 2, halved (§6.3)."""
BITS_MAX = 2000
"""Of one read (§6.1)."""

_BITS = (Function.READ_COILS, Function.READ_DISCRETE_INPUTS)
_ECHOED_WHOLE = (Function.WRITE_SINGLE_COIL, Function.WRITE_SINGLE_REGISTER, Function.MASK_WRITE_REGISTER)
_ECHOED_HEAD = (Function.WRITE_MULTIPLE_COILS, Function.WRITE_MULTIPLE_REGISTERS)
_WRITES = (*_ECHOED_WHOLE, *_ECHOED_HEAD, Function.READ_WRITE_MULTIPLE_REGISTERS)


class Shape(NamedTuple):
    """What the PDU of an answer begins with, and where it ends."""

    head: bytes
    size: int
    """Bytes of the PDU; the most that it can have when its content tells."""
    tells: Callable[[bytes], int | None] | None = None
    """See `size_of`."""

    def size_of(self, pdu: bytes) -> int | None:
        """Bytes that a PDU which begins like this has at least; None when it is none. With so many it is whole."""
        return self.size if self.tells is None else self.tells(pdu)


class Request(NamedTuple):
    """One question.

    `data` is what is written: register bytes, coils packed eight to a byte, for function 22 the two masks. For the
    functions without an address (17 and 43) it is all that follows the function code.
    """

    unit: int
    function: Function
    address: int = 0
    quantity: int = 1
    data: bytes = b""

    @property
    def writes(self) -> bool:
        return self.function in _WRITES

    def pdu(self) -> bytes:
        head = bytes([self.function])
        if self.function in (Function.REPORT_SERVER_ID, Function.ENCAPSULATED):
            return head + self.data
        address, quantity = self.address.to_bytes(2, "big"), self.quantity.to_bytes(2, "big")
        if self.function in _ECHOED_WHOLE:
            return head + address + self.data
        if self.function is Function.READ_WRITE_MULTIPLE_REGISTERS:
            head += address + quantity  # what is read back is what was written
        head += address + quantity
        return head + bytes([len(self.data)]) + self.data if self.writes else head

    def answer(self) -> Shape:
        """A good answer."""
        function = self.function
        if function in _ECHOED_WHOLE:
            return Shape(whole := self.pdu(), len(whole))
        if function in _ECHOED_HEAD:
            return Shape(self.pdu()[:5], 5)
        if function is Function.REPORT_SERVER_ID:
            return Shape(bytes([function]), PDU_BYTES_MAX, _server_id_size)
        if function is Function.ENCAPSULATED:
            tells = partial(_object_size, self.data[2]) if self.data[1] == INDIVIDUAL else _identification_size
            return Shape(bytes([function]) + self.data[:2], PDU_BYTES_MAX, tells)
        count = -(-self.quantity // 8) if function in _BITS else 2 * self.quantity
        return Shape(bytes([function, count]), 2 + count)

    def refusal(self) -> Shape:
        """An exception."""
        return Shape(bytes([self.function | 0x80]), 2)

    def payload(self, pdu: bytes) -> bytes:
        """What a good answer says beyond what was asked: nothing for most writes."""
        if self.function in (*_ECHOED_WHOLE, *_ECHOED_HEAD):
            return b""
        return pdu[3:] if self.function is Function.ENCAPSULATED else pdu[2:]


def _server_id_size(pdu: bytes) -> int | None:
    """Function 17: a count and so many bytes (§6.13)."""
    if len(pdu) < 2:
        return 2
    return 2 + pdu[1] if 1 <= pdu[1] <= PDU_BYTES_MAX - 2 else None


def _identification_size(pdu: bytes) -> int | None:
    """Function 43/14: conformity, more follows, next object, count, and so many times id, length, bytes (§6.21)."""
    if len(pdu) < 7:
        return 7
    if pdu[4] not in (0x00, 0xFF):
        return None
    size = 7
    for _ in range(pdu[6]):
        if len(pdu) < size + 2:
            return size + 2
        size += 2 + pdu[size + 1]
        if size > PDU_BYTES_MAX:
            return None
    return size


def _object_size(wanted: int, pdu: bytes) -> int | None:
    """The same for one object, which says its id."""
    if len(pdu) > 7 and (pdu[6] != 1 or pdu[7] != wanted):
        return None
    return _identification_size(pdu)
