"""Pure: numbers and texts as devices lay them out in bytes: type words and byte orders.

One vocabulary for every bus. A type is `int16`, `uint32`, `float64`, `bcd16`, `string`, `bit`, `bits`, `bool`, … in
any case. A byte order is written as letters, A being the most significant byte, in the order in which the bytes travel:
`ABCD`, `CDAB`, `BADC`, `DCBA` (and `AB`, `ABCDEFGH`, …), or in the words of others: `big`, `little`, and what Home
Assistant calls `swap`: `none`, `word`, `byte`, `word_byte`. An order given for a whole bus fits types of every width:

             16 bit   32 bit   64 bit
    big      AB       ABCD     ABCDEFGH
    word     AB       CDAB     GHEFCDAB     registers swapped, as most meters with "inverse" floats do
    byte     BA       BADC     BADCFEHG
    little   BA       DCBA     HGFEDCBA

Integers are exact to 64 bits. A mask takes some of an integer's bits, shifted down to the lowest of them; where the
type has a sign the highest bit of the mask is the sign. BCD has one decimal digit in each half byte, and what is no
digit is no value. A float32 is decoded as the shortest decimal that means the same float32: a device that says 21.1 is
read as 21.1, not as 21.100000381469727. NaN and infinity are a device's way to say that it has no value: they decode to
None.
"""

from __future__ import annotations

import math
import re
import struct
from enum import Enum

import msgspec

from gateway.errors import DecodeError
from gateway.model import Value

_LETTERS = "ABCDEFGH"
_NUMBER = re.compile(r"(int|uint|float|bcd|s|u)(\d+)([hl]?)(?:-ieee)?")
_FLOATS = {2: "e", 4: "f", 8: "d"}
# Significant decimals: so many always survive decimal → float → decimal (of numbers above the subnormal ones, the
# third), so many are always enough for float → decimal → float.
_DECIMALS = {2: (3, 5, 2.0**-14), 4: (6, 9, 2.0**-126)}
_ALIASES = {"float": "float32", "real": "float32", "double": "float64", "boolean": "bool", "text": "string"}
_SHORT = {"s": "int", "u": "uint"}  # as wb-mqtt-serial has them
_NAMES = "int8 … int64, uint8 … uint64, float16, float32, float64, bcd8 … bcd64, string, bit, bits, bool"


class Order(Enum):
    """How the bytes of one number travel; the value is its name for 32 bits."""

    BIG = "ABCD"
    WORD = "CDAB"
    BYTE = "BADC"
    LITTLE = "DCBA"

    def places(self, size: int) -> tuple[int, ...]:
        """For each byte from the most significant down: where it travels. Its own inverse, for every order."""
        if self is Order.LITTLE:
            return tuple(range(size - 1, -1, -1))
        if self is Order.WORD:
            return tuple(size - 2 - (i & ~1) + (i & 1) for i in range(size)) if size % 2 == 0 else tuple(range(size))
        if self is Order.BYTE:
            return tuple(i ^ 1 if (i ^ 1) < size else i for i in range(size))
        return tuple(range(size))


_WORDS = {
    "": Order.BIG,
    "big": Order.BIG,
    "none": Order.BIG,
    "word": Order.WORD,
    "byte": Order.BYTE,
    "little": Order.LITTLE,
    "word_byte": Order.LITTLE,
    # in reverse, so that the first of two orders that look alike on few bytes wins: `AB` is big, `BA` is byte
    **{"".join(_LETTERS[i] for i in o.places(size)): o for o in reversed(Order) for size in (2, 4, 6, 8)},
}


class Family(Enum):
    """What a word's bytes mean."""

    INT = "int"
    UINT = "uint"
    FLOAT = "float"
    BCD = "bcd"
    STRING = "string"
    BIT = "bit"
    BOOL = "bool"


class Word(msgspec.Struct, frozen=True):
    """One value's layout."""

    family: Family
    size: int
    """Bytes."""
    order: Order = Order.BIG
    bit: int = 0
    mask: int = 0
    """Of an integer: only these bits, moved down by `shift`; 0 means all."""
    shift: int = 0

    @property
    def registers(self) -> int:
        """16-bit registers that hold it; a single byte takes a whole one."""
        return (self.size + 1) // 2

    @property
    def integral(self) -> bool:
        return self.family in (Family.INT, Family.UINT, Family.BCD)

    @property
    def whole(self) -> bool:
        """It has its bytes for itself: writing it undoes nothing of a neighbour."""
        return self.family is not Family.BIT and not self.mask

    @property
    def span(self) -> int:
        """How many different values an integer can have."""
        if self.family is Family.BCD:
            return int(10 ** (2 * self.size))
        return 1 << (self.mask.bit_length() - self.shift if self.mask else 8 * self.size)

    @property
    def low(self) -> int:
        """The smallest integer; the largest is `low + span - 1`."""
        return -(self.span // 2) if self.family is Family.INT else 0

    def decode(self, data: bytes) -> Value | None:
        """The value, or None for NaN, infinity and what is no BCD.

        `data` has `size` bytes. A single byte or a text may also come as whole registers: the byte is then the low
        one (with a swapped byte order the high one), and what is behind the text does not count.

        Raises:
            DecodeError: another number of bytes.
        """
        if len(data) != self.size:
            padded = self.size == 1 or self.family is Family.STRING
            if not padded or len(data) != 2 * self.registers:
                raise DecodeError(f"{len(data)} bytes where {self} has {self.size}")
            if self.size == 1 and self.family is not Family.BOOL:
                data = data[:1] if self._swapped else data[1:]
        if self.family is Family.STRING:
            return self._swap(data)[: self.size].split(b"\0", 1)[0].decode("utf-8", "replace").rstrip()
        if self.family is Family.BOOL:
            return any(data)
        if self.order is not Order.BIG:
            data = bytes([data[i] for i in self.order.places(self.size)])
        if self.family is Family.FLOAT:
            return _shortest(data)
        if self.family is Family.BCD:
            digits = data.hex()
            return int(digits) if digits.isdecimal() else None
        if self.mask:
            return self._masked(int.from_bytes(data, "big"))
        number = int.from_bytes(data, "big", signed=self.family is Family.INT)
        return bool(number >> self.bit & 1) if self.family is Family.BIT else number

    def _masked(self, bits: int) -> int:
        field = (bits & self.mask) >> self.shift
        return field - self.span if field >= self.low + self.span else field

    def encode(self, value: Value) -> bytes:
        """`size` bytes that decode to this value again (a float: to the nearest one that fits).

        Raises:
            ValueError: the value is out of range or of another kind; the text says which.
        """
        if self.family is Family.STRING:
            text = str(value).encode()
            if not isinstance(value, str) or len(text) > self.size:
                raise ValueError(f"{value!r} is not a text of at most {self.size} bytes")
            padded = text.ljust(2 * self.registers if self._swapped else self.size, b"\0")
            return self._swap(padded)[: self.size]
        if isinstance(value, str):
            raise ValueError(f"{value!r} is not a number")
        if self.family is Family.BOOL:
            return bytes([bool(value)])
        if not self.whole:
            raise ValueError("single bits cannot be written without their neighbours")
        data = self._float(value) if self.family is Family.FLOAT else self._integer(value)
        return bytes([data[i] for i in self.order.places(self.size)])

    def overlay(self, value: Value) -> tuple[int, int]:
        """Which bits of its one register are its own, and what they must be to have this value.

        Raises:
            ValueError: as for `encode`.
        """
        if self.whole and (self.size > 1 or self.family is Family.BOOL):
            return 0xFFFF, int.from_bytes(self.encode(value).rjust(2, b"\0"), "big")
        if isinstance(value, str) or (self.family is Family.BIT and value not in (0, 1)):
            raise ValueError(f"{value!r} is no value of a {self}")
        if self.family is Family.BIT:
            own, bits = 1 << self.bit, int(value) << self.bit
        else:
            own = self.mask or 0xFF
            bits = int.from_bytes(self._integer(value), "big") << self.shift & own
            if self.mask and self._masked(bits) != value:
                raise ValueError(f"{value!r} has bits that are not in {self}")
        if self._swapped:
            own, bits = (each >> 8 | (each & 0xFF) << 8 for each in (own, bits))
        return own, bits

    def _float(self, value: float) -> bytes:
        try:
            if math.isfinite(value):
                return struct.pack(f">{_FLOATS[self.size]}", value)
        except OverflowError:
            pass
        raise ValueError(f"{value!r} does not fit into {self}")

    def _integer(self, value: float) -> bytes:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{value!r} is not a whole number")
        number = int(value)
        if not self.low <= number < self.low + self.span:
            raise ValueError(f"{number} does not fit into {self}: {self.low} … {self.low + self.span - 1}")
        if self.family is Family.BCD:
            return bytes.fromhex(f"{number:0{2 * self.size}}")
        return number.to_bytes(self.size, "big", signed=self.family is Family.INT)

    @property
    def _swapped(self) -> bool:
        """Within a register the low byte travels first. Only `byte` says so of texts: `little` is about numbers."""
        return self.order is Order.BYTE or (self.order is Order.LITTLE and self.family is not Family.STRING)

    def _swap(self, data: bytes) -> bytes:
        return bytes([data[i] for i in Order.BYTE.places(len(data))]) if self._swapped else data

    def __str__(self) -> str:
        numeric = self.integral or self.family is Family.FLOAT
        name = f"{self.family.value}{8 * self.size}" if numeric else self.family.value
        return f"{name} & {self.mask:#x}" if self.mask else name


def parse(
    name: str,
    byte_order: str = "",
    *,
    length: int = 0,
    bit: int | None = None,
    bits: int | None = None,
    mask: int = 0,
    shift: int | None = None,
) -> Word:
    """`parse("float32", "CDAB")`, `parse("string", length=8)`, `parse("bit", bit=3)`, `parse("bits", bit=4, bits=3)`.

    `length` is the bytes of a string, `bit` counts from the least significant, `bits` says how many from there on,
    `shift` is by default as far as the lowest bit of `mask`.

    Raises:
        ValueError: a finished sentence about what does not fit.
    """
    lower = name.strip().lower()
    lower = _ALIASES.get(lower, lower)
    order = parse_order(byte_order)
    if lower == "string" and length < 1:
        raise ValueError("a string needs `length`, its bytes")
    if length and lower != "string":
        raise ValueError(f"`length` is for strings; {name} knows its own")
    if bit is not None and lower not in ("bit", "bits"):
        raise ValueError(f'`bit` goes with type = "bit" or "bits", not with {name}')
    if bits is not None and lower != "bits":
        raise ValueError(f'`bits` goes with type = "bits", not with {name}')
    if shift is not None and not mask:
        raise ValueError("`shift` goes with `mask`")
    if lower in ("bit", "bits"):
        word = _bits(lower, bit, bits, order)
    elif lower == "string":
        word = Word(Family.STRING, length, order)
    elif lower == "bool":
        word = Word(Family.BOOL, 1, order)
    else:
        word = _number(name, lower, byte_order, order)
    if not mask:
        return word
    if word.family not in (Family.INT, Family.UINT) or word.mask:
        raise ValueError(f"`mask` goes with an integer, not with {name}")
    shift = (mask & -mask).bit_length() - 1 if shift is None else shift
    if not 0 < mask < word.span or mask >> shift == 0:
        raise ValueError(f"nothing of mask {mask:#x} is left in {name}{f' shifted by {shift}' if shift else ''}")
    return Word(word.family, word.size, order, mask=mask, shift=shift)


def _bits(name: str, bit: int | None, bits: int | None, order: Order) -> Word:
    if bit is None or not 0 <= bit <= 15:
        raise ValueError(f"type {name} needs `bit`, 0 (least significant) to 15")
    if name == "bit":
        return Word(Family.BIT, 2, order, bit)
    if bits is None or not 1 <= bits <= 16 - bit:
        raise ValueError(f"type bits needs `bits`, how many from bit {bit} on: 1 to {16 - bit}")
    return Word(Family.UINT, 2, order, mask=((1 << bits) - 1) << bit, shift=bit)


def _number(name: str, lower: str, byte_order: str, order: Order) -> Word:
    match = _NUMBER.fullmatch(lower)
    family = Family(_SHORT.get(match[1], match[1])) if match else Family.INT
    size, half = (int(match[2]) // 8, match[3]) if match else (0, "")
    sizes = tuple(_FLOATS) if family is Family.FLOAT else range(1, 9)
    if match is None or size not in sizes or int(match[2]) % 8 or (half and size != 1):
        raise ValueError(f"unknown type {name!r}; known: {_NAMES}")
    if half:  # telegraf's INT8H and INT8L: which half of a register
        order = Order.BYTE if half == "h" else Order.BIG
    if byte_order.strip().upper() == "BA" and size > 2:
        raise ValueError(f"byte order BA does not say how the registers of {name} follow: write BADC or DCBA")
    return Word(family, size, order)


def parse_order(text: str) -> Order:
    """Letters or words to an order; see the module.

    Raises:
        ValueError: unknown.
    """
    order = _WORDS.get(text.strip().lower(), _WORDS.get(text.strip().upper()))
    if order is None:
        raise ValueError(f"unknown byte order {text!r}; known: ABCD, CDAB, BADC, DCBA, big, little, word, byte")
    return order


def _shortest(data: bytes) -> float | None:
    """The shortest decimal that the same float is the nearest to."""
    code = _FLOATS[len(data)]
    value: float = struct.unpack(f">{code}", data)[0]
    if not math.isfinite(value):
        return None
    if code == "d":
        return value  # Python's own float: repr is already shortest
    sure, enough, normal = _DECIMALS[len(data)]
    for digits in range(sure if abs(value) >= normal else 1, enough):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.pack(f">{code}", short) == data:
                return short
        except OverflowError:
            continue  # rounded up past the largest one
    return float(f"{value:.{enough}g}")
