"""Simulated machines that keep count of what they gave away.

Every machine has a point `sequence`: 1, 2, 3 … each number handed out exactly once, by the machine itself. What the
cloud side stores can therefore be compared with what was really produced, without asking the gateway.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
import tty
from collections.abc import Callable
from typing import Protocol

from gateway.connectors.modbus.framing import crc

_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS = 1, 2
_REGISTERS = 10
"""0-1 sequence, 2-3 power, 4-5 energy, 6 temperature × 10, 7 set point × 10, 8-9 unused."""


class Machine(Protocol):
    """Something that produces readings until it is told to stop."""

    name: str
    produced: int
    """How many sequence numbers were given away."""


class Registers:
    """The memory of a Modbus device; reading the sequence takes the next number."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.produced = 0
        self.setpoint = 215

    def answer(self, pdu: bytes) -> bytes:
        """One request to one reply (Modbus Application Protocol V1.1b3 §6.3, §6.6)."""
        function = pdu[0]
        if function == 3 and len(pdu) == 5:
            address, count = struct.unpack(">HH", pdu[1:])
            if address + count > _REGISTERS or not count:
                return bytes((function | 0x80, _ILLEGAL_ADDRESS))
            return bytes((function, 2 * count)) + self._image(address == 0)[2 * address : 2 * (address + count)]
        if function == 6 and len(pdu) == 5:
            address, value = struct.unpack(">HH", pdu[1:])
            if address != 7:
                return bytes((function | 0x80, _ILLEGAL_ADDRESS))
            self.setpoint = value
            return pdu
        return bytes((function | 0x80, _ILLEGAL_FUNCTION))

    def _image(self, counted: bool) -> bytes:
        self.produced += counted
        n = self.produced
        power = 1500 + 400 * math.sin(n / 20)
        return struct.pack(">IfIhH4x", n, power, 10_000 + n, int(self.setpoint + 20 * math.sin(n / 7)), self.setpoint)


class ModbusTcp:
    """A Modbus TCP server on a port of loopback."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def run(self) -> None:
        async with self._server:
            await self._server.serve_forever()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                transaction, protocol, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                reply = self.registers.answer(await reader.readexactly(length - 1))
                writer.write(struct.pack(">HHHB", transaction, protocol, len(reply) + 1, unit) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


class Pty:
    """One end of a pseudo-terminal; `path` is the other end, which the gateway opens like a serial port."""

    def __init__(self) -> None:
        self.fd, far = os.openpty()
        tty.setraw(far)
        os.set_blocking(self.fd, False)
        self.path = os.ttyname(far)
        self._far = far  # kept open: without a reader the near end would hang up

    def listen(self, received: Callable[[bytes], None]) -> None:
        asyncio.get_running_loop().add_reader(self.fd, lambda: received(os.read(self.fd, 4096)))

    def write(self, data: bytes) -> bool:
        """False when nobody reads and the line's buffer is full."""
        try:
            return os.write(self.fd, data) == len(data)
        except BlockingIOError:
            return False

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.fd)
        os.close(self.fd)
        os.close(self._far)


class ModbusRtu:
    """A Modbus RTU device on a pseudo-terminal."""

    def __init__(self, registers: Registers, unit: int = 7) -> None:
        self.registers = registers
        self.unit = unit
        self.pty = Pty()
        self._pending = b""

    def start(self) -> None:
        self.pty.listen(self._received)

    def _received(self, data: bytes) -> None:
        self._pending = (self._pending + data)[-256:]
        if len(self._pending) < 8:
            return
        frame, self._pending = self._pending[:8], self._pending[8:]
        if crc(frame[:6]) == frame[6:] and frame[0] == self.unit:
            reply = bytes((self.unit,)) + self.registers.answer(frame[1:6])
            self.pty.write(reply + crc(reply))


class Scale:
    """A weighing scale that talks by itself: one line of text for every weight, after a greeting.

    Who begins to listen in the middle of a line drops it: the greeting is there for that.
    """

    name = "scale"

    def __init__(self) -> None:
        self.produced = 0
        self.pty = Pty()

    def step(self) -> None:
        n = self.produced + 1
        if n == 1:
            self.pty.write(b"READY\r\n")
        if self.pty.write(f"ST,GS,seq={n},net={12.5 + math.sin(n / 9):.3f}kg\r\n".encode()):
            self.produced = n


class Zigbee:
    """A climate sensor as zigbee2mqtt publishes it; `publish(topic, payload)` is the broker."""

    name = "office"
    topic = "zigbee2mqtt/office"

    def __init__(self, publish: Callable[[str, bytes], None]) -> None:
        self.produced = 0
        self._publish = publish

    def step(self) -> None:
        n = self.produced = self.produced + 1
        state = {
            "temperature": round(21 + math.sin(n / 15), 2),
            "humidity": round(45 + 5 * math.sin(n / 11), 1),
            "linkquality": 120,
            "sequence": n,
        }
        self._publish(self.topic, json.dumps(state).encode())


class Ruuvi:
    """A RuuviTag. Its data format 5 carries a 16-bit measurement number."""

    name = "fridge"
    address = "F0:12:34:56:78:9A"
    company = 0x0499
    readings = 10

    def __init__(self) -> None:
        self.produced = 0

    def step(self) -> bytes:
        """The manufacturer data of the next advertisement.

        https://docs.ruuvi.com/communication/bluetooth-advertisements/data-format-5-rawv2
        """
        n = self.produced = self.produced + 1
        temperature, humidity, pressure_pa = 4 + math.sin(n / 12), 60 + math.sin(n / 8), 101_325
        acceleration_mg, battery_mv, power_dbm, movements = (0, 0, 1000), 2950, 4, 1
        return struct.pack(
            ">BhHHhhhHBH6s",
            5,
            round(temperature / 0.005),
            round(humidity / 0.0025),
            pressure_pa - 50_000,
            *acceleration_mg,
            (battery_mv - 1600) << 5 | (power_dbm + 40) // 2,
            movements,
            n,
            bytes.fromhex(self.address.replace(":", "")),
        )
