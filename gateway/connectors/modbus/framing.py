"""Pure: how a PDU is wrapped on the wire, and how one is cut out of what came: RTU, TCP, ASCII.

Where a frame begins is nowhere certain: noise, or the late frame of another unit, may stand before it. So every place
at which an expected frame could begin is tried, and it is one only if its length fits and its checksum (on TCP its
header) proves it. The first place that is right so far is waited for; at the end of the time (`last_call`) what never
became whole is passed over, so a length that noise invented costs a wait and no answer.

Modbus over Serial Line V1.02; Modbus Messaging on TCP/IP V1.0b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from binascii import Error as NoHex
from binascii import hexlify, unhexlify
from collections.abc import Iterable
from typing import NamedTuple

from gateway.connectors.modbus.request import PDU_BYTES_MAX, Shape


class Pattern(NamedTuple):
    """A frame that is waited for: what to look for in the buffer, and what must stand there."""

    mark: bytes
    unit: int
    shape: Shape


class Found(NamedTuple):
    """A frame in the buffer, from `start` to `end`; without a PDU one that has begun and is not whole yet."""

    start: int
    end: int
    pdu: bytes
    pattern: Pattern


class Framing(ABC):
    """One way to wrap."""

    frame_bytes_max: int
    serial = True
    """Frames carry no number, unit 0 is everybody, and there may be noise and echoes."""

    @abstractmethod
    def frame(self, unit: int, pdu: bytes, transaction: int) -> bytes:
        """The bytes to send."""

    @abstractmethod
    def size(self, pdu_bytes: int) -> int:
        """Bytes on the wire of a frame with such a PDU."""

    @abstractmethod
    def pattern(self, unit: int, shape: Shape, transaction: int) -> Pattern:
        """What a frame with such a PDU looks like."""

    @abstractmethod
    def cut(self, buffer: bytearray, start: int, pattern: Pattern) -> Found | None:
        """What begins at a mark; None when it cannot be a frame."""

    def folded(self, data: bytes) -> bytes:
        """What came, in the one way to write it."""
        return data

    def first(self, buffer: bytearray, patterns: Iterable[Pattern], last_call: bool) -> Found | None:
        """The first place at which one of them stands, or may yet."""
        best: Found | None = None
        for pattern in patterns:
            start = buffer.find(pattern.mark)
            while start >= 0 and (best is None or start < best.start):
                found = self.cut(buffer, start, pattern)
                if found is not None and (found.pdu or not last_call):
                    best = found
                start = buffer.find(pattern.mark, start + 1)
        return best


class _Rtu(Framing):
    frame_bytes_max = 1 + PDU_BYTES_MAX + 2

    def frame(self, unit: int, pdu: bytes, transaction: int) -> bytes:
        frame = bytes([unit]) + pdu
        return frame + crc(frame)

    def size(self, pdu_bytes: int) -> int:
        return pdu_bytes + 3

    def pattern(self, unit: int, shape: Shape, transaction: int) -> Pattern:
        return Pattern(bytes([unit]) + shape.head, unit, shape)

    def cut(self, buffer: bytearray, start: int, pattern: Pattern) -> Found | None:
        shape = pattern.shape
        size = shape.size
        if shape.tells is not None:
            told = shape.tells(bytes(buffer[start + 1 : start + 1 + PDU_BYTES_MAX]))
            if told is None:
                return None
            size = told
        end = start + size + 3
        if end > len(buffer):
            return Found(start, end, b"", pattern)
        body = bytes(buffer[start : end - 2])
        return Found(start, end, body[1:], pattern) if crc(body) == buffer[end - 2 : end] else None


class _Tcp(Framing):
    frame_bytes_max = 7 + PDU_BYTES_MAX
    serial = False

    def frame(self, unit: int, pdu: bytes, transaction: int) -> bytes:
        return transaction.to_bytes(2, "big") + b"\0\0" + (1 + len(pdu)).to_bytes(2, "big") + bytes([unit]) + pdu

    def size(self, pdu_bytes: int) -> int:
        return pdu_bytes + 7

    def pattern(self, unit: int, shape: Shape, transaction: int) -> Pattern:
        return Pattern(transaction.to_bytes(2, "big") + b"\0\0", unit, shape)

    def cut(self, buffer: bytearray, start: int, pattern: Pattern) -> Found | None:
        if len(buffer) < start + 8:
            return Found(start, start + 8, b"", pattern)
        size = int.from_bytes(buffer[start + 4 : start + 6], "big") - 1
        if not 2 <= size <= PDU_BYTES_MAX or buffer[start + 6] != pattern.unit:
            return None
        end = start + 7 + size
        pdu = bytes(buffer[start + 7 : end])
        if len(pdu) < size:
            return Found(start, end, b"", pattern) if buffer[start + 7] == pattern.shape.head[0] else None
        fits = pdu.startswith(pattern.shape.head) and pattern.shape.size_of(pdu) == size
        return Found(start, end, pdu, pattern) if fits else None


class _Ascii(Framing):
    """Two hexadecimal digits for each byte, between a colon and CR LF (Serial Line V1.02 §2.5.2)."""

    frame_bytes_max = 1 + 2 * (1 + PDU_BYTES_MAX + 1) + 2

    def frame(self, unit: int, pdu: bytes, transaction: int) -> bytes:
        body = bytes([unit]) + pdu
        return b":" + _digits(body + bytes([lrc(body)])) + b"\r\n"

    def size(self, pdu_bytes: int) -> int:
        return 2 * pdu_bytes + 7

    def pattern(self, unit: int, shape: Shape, transaction: int) -> Pattern:
        return Pattern(b":" + _digits(bytes([unit]) + shape.head), unit, shape)

    def cut(self, buffer: bytearray, start: int, pattern: Pattern) -> Found | None:
        line = bytes(buffer[start + 1 : start + self.frame_bytes_max]).partition(b"\r")[0]
        try:
            body = unhexlify(line[: len(line) & ~1])
        except NoHex:
            return None  # a broken line: the next colon begins another
        size = pattern.shape.size_of(body[1:])
        if size is None:
            return None
        end = start + self.size(size)
        if end > len(buffer):
            return Found(start, end, b"", pattern) if buffer.find(b"\n", start) < 0 else None
        whole = len(line) == 2 * (size + 2) and buffer[end - 2 : end] == b"\r\n" and lrc(body[:-1]) == body[-1]
        return Found(start, end, body[1:-1], pattern) if whole else None

    def folded(self, data: bytes) -> bytes:
        return data.upper()  # the standard says capitals, and some devices do not


RTU: Framing = _Rtu()
TCP: Framing = _Tcp()
ASCII: Framing = _Ascii()


def _digits(data: bytes) -> bytes:
    return hexlify(data).upper()


def lrc(data: bytes) -> int:
    """The sum of all bytes and this is 0 modulo 256 (Serial Line V1.02 §6.2.1)."""
    return -sum(data) & 0xFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(_crc_of(byte) for byte in range(256))


def crc(data: bytes) -> bytes:
    """CRC-16/MODBUS as it travels, low byte first (Serial Line V1.02 §6.2.2)."""
    value = 0xFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value.to_bytes(2, "little")
