"""A scripted Modbus slave, RTU or ASCII, on a pseudo-terminal, with all the bad manners of the field.

It works in a thread of its own and strictly in order: while it "thinks" about one request the next ones wait in its
input, as they do in a real device. That is what makes late replies possible. A register holds its own address (input
registers: plus 5000), so a value tells where it was read.
"""

from __future__ import annotations

import os
import random
import select
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.connectors.modbus.framing import ASCII, RTU, Framing, crc


class Slave:
    """`units` answer; `delays` are used up by the requests in the order of their arrival, then there is none."""

    def __init__(
        self, folder: Path, units: Iterable[int] = (1,), delays: Iterable[float] = (), framing: Framing = RTU
    ) -> None:
        self.framing = framing
        self.path = folder / "bus"
        self.units = set(units)
        self.delays = list(delays)
        self.echo = False
        self.prefix = b""
        self.suffix = b""
        self.split: random.Random | None = None
        self.corrupt: Callable[[int], bool] = lambda number: False
        """Spoil the reply to the n-th request."""
        self.silent_after_write = False
        self.holes: set[int] = set()
        """Holding registers that do not exist: exception 2 for every read that touches one."""
        self.min_gap_s = 0.0
        """Requests that come sooner after the last byte are ignored, as simple devices do."""
        self.exceptions: list[int] = []
        """Codes given instead of an answer, used up in order."""
        self.registers: dict[tuple[int, int], int] = {}
        self.coils: dict[tuple[int, int], bool] = {}
        self.identities: dict[tuple[int, int], bytes] = {}
        """What a unit says to function 17 or 43, as a PDU; else it does not know the function."""
        self.requests: list[tuple[float, bytes]] = []
        """When each came, and unit and PDU with the checksum of RTU."""
        self._unplugged = True
        self.plug()

    def plug(self) -> None:
        """A new pseudo-terminal behind the same symlink, as udev does it for an adapter."""
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))
        self._stop_r, self._stop_w = os.pipe()
        self._unplugged = False
        self._thread = threading.Thread(target=self._serve, name="slave")
        self._thread.start()

    def unplug(self) -> None:
        if self._unplugged:
            return
        self._unplugged = True
        # as udev does it; a link that stayed would soon lead to the pseudo-terminal of another test
        self.path.unlink(missing_ok=True)
        os.write(self._stop_w, b"x")
        self._thread.join(20)
        for fd in (self.master, self._slave, self._stop_r, self._stop_w):
            os.close(fd)

    close = unplug

    def __enter__(self) -> Slave:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def asked(self, unit: int) -> int:
        return sum(frame[0] == unit for _, frame in self.requests)

    def _serve(self) -> None:
        buffer, last = b"", 0.0
        while True:
            ready, _, _ = select.select([self.master, self._stop_r], [], [])
            if self._stop_r in ready:
                return
            now = time.monotonic()
            buffer += os.read(self.master, 4096)
            while True:
                frame, buffer = self._line(buffer) if self.framing is ASCII else self._frame(buffer)
                if not frame:
                    break
                self.requests.append((now, frame))
                if now - last >= self.min_gap_s:
                    if not self._answer(frame):
                        return
                    last = time.monotonic()

    @staticmethod
    def _frame(buffer: bytes) -> tuple[bytes, bytes]:
        """The first request that is whole, and what is behind it."""
        if len(buffer) < 4:
            return b"", buffer
        size = {17: 4, 22: 10, 43: 7}.get(buffer[1], 8)
        if (counted := {15: 6, 16: 6, 23: 10}.get(buffer[1])) is not None:
            size = counted + 3 + (buffer[counted] if len(buffer) > counted else 0)
        if len(buffer) < size:
            return b"", buffer
        frame = buffer[:size]
        return (frame, buffer[size:]) if frame[-2:] == crc(frame[:-2]) else (b"", b"")

    @staticmethod
    def _line(buffer: bytes) -> tuple[bytes, bytes]:
        line, end, rest = buffer.partition(b"\r\n")
        if not end:
            return b"", buffer
        body = bytes.fromhex(line[1:].decode())
        assert line[:1] == b":"
        assert sum(body) % 256 == 0
        return body[:-1] + crc(body[:-1]), rest

    def _answer(self, frame: bytes) -> bool:
        """False when the port was unplugged meanwhile."""
        number = len(self.requests) - 1
        if self.echo:
            os.write(self.master, self.framing.frame(frame[0], frame[1:-2], 0))
        delay = self.delays.pop(0) if self.delays else 0.0
        if delay and select.select([self._stop_r], [], [], delay)[0]:
            return False
        unit = frame[0]
        if unit == 0:
            for each in self.units:
                self._pdu(each, frame[1:-2])
        if unit not in self.units:
            return True
        pdu = self._pdu(unit, frame[1:-2])
        if pdu is None:
            return True
        reply = self.framing.frame(unit, pdu, 0)
        if self.corrupt(number):
            reply = reply[:-3] + bytes([reply[-3] ^ 0xFF]) + reply[-2:]
        self._send(self.prefix + reply + self.suffix)
        return True

    def _send(self, data: bytes) -> None:
        while data:
            size = self.split.randint(1, 4) if self.split else len(data)
            os.write(self.master, data[:size])
            data = data[size:]
            if self.split:
                time.sleep(self.split.random() * 0.003)

    def _pdu(self, unit: int, pdu: bytes) -> bytes | None:
        if self.exceptions:
            return bytes([pdu[0] | 0x80, self.exceptions.pop(0)])
        if pdu[0] in (17, 43):
            return self.identities.get((unit, pdu[0]), bytes([pdu[0] | 0x80, 1]))
        fc, address, number = struct.unpack(">BHH", pdu[:5])
        if fc in (3, 4):
            if fc == 3 and self.holes & set(range(address, address + number)):
                return bytes([fc | 0x80, 2])
            default = 5000 if fc == 4 else 0
            values = [self.registers.get((unit, a), a + default) & 0xFFFF for a in range(address, address + number)]
            return bytes([fc, 2 * number]) + struct.pack(f">{number}H", *values)
        if fc in (1, 2):
            bits = [self.coils.get((unit, a), a % 3 == 0) for a in range(address, address + number)]
            packed = [sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, number, 8)]
            return bytes([fc, len(packed), *packed])
        if fc == 5:
            self.coils[unit, address] = number == 0xFF00
        elif fc == 6:
            self.registers[unit, address] = number
        elif fc == 15:
            for i in range(number):
                self.coils[unit, address + i] = bool(pdu[6 + i // 8] >> i % 8 & 1)
        elif fc == 16:
            for i, value in enumerate(struct.unpack(f">{number}H", pdu[6:])):
                self.registers[unit, address + i] = value
        elif fc == 22:
            mask, bits = struct.unpack(">HH", pdu[3:7])
            before = self.registers.get((unit, address), address)
            self.registers[unit, address] = before & mask | bits & ~mask
            return None if self.silent_after_write else pdu[:7]
        elif fc == 23:
            self._pdu(unit, bytes([16]) + pdu[5:])
            return None if self.silent_after_write else bytes([fc]) + (self._pdu(unit, b"\3" + pdu[1:5]) or b"")[1:]
        else:
            return bytes([fc | 0x80, 1])
        return None if self.silent_after_write else pdu[:5]
