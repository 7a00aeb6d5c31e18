"""Random register images on somebody else's server, read as every type in every order, and what others make of them."""

from __future__ import annotations

import asyncio
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pymodbus.client.mixin import ModbusClientMixin

from gateway.clock import SystemClock
from gateway.connectors.modbus.config import ModbusDevice, Spot, TcpBus, spot
from gateway.connectors.modbus.forecast import reads
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import Function, Request
from gateway.connectors.modbus.values import Block, alone, decoded, raw_of, read_request, write_request
from gateway.model import Value
from gateway.settings import read

REGISTERS: Final = 64
PER_LAYOUT: Final = 25
ORDERS: Final = ("ABCD", "CDAB", "BADC", "DCBA")
TYPES: Final = {
    "int16": 1, "uint16": 1, "int32": 2, "uint32": 2, "int64": 4, "uint64": 4, "float32": 2, "float64": 4,
}  # fmt: skip
_ODD: Final = (0x0000, 0x8000, 0xFFFF, 0x7FFF, 0x7FC0, 0xFF80, 0x7F80, 0x8001)
"""Words that make sentinels, infinities and NaN."""
_CODES: Final = {"float32": ">f", "float64": ">d"}

Said = Callable[[], Mapping[str, Sequence[Any]]]
"""For "type order" the values from each address on; None where there is none."""


class Images:
    """A server on this port, and what it says itself of its registers, if it can."""

    def __init__(self, port: int, seed: int, said: Said | None = None) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._said = said
        self._bus = TcpBus(name="s", kind="modbus-tcp", host="127.0.0.1", tcp_port=port, timeout=5)

    def compare(self, layouts: int) -> None:
        for _ in range(layouts):
            device = self._layout()
            image = asyncio.run(self._images(device))
            if shutil.which("mbpoll"):
                self._second_client(image)

    def _layout(self) -> ModbusDevice:
        """Every type in every order somewhere, and limits that cut the reads now here, now there."""
        points = [
            {
                "name": f"{type_}-{order}",
                "type": type_,
                "byte_order": order,
                "address": self._dice.randrange(REGISTERS - width + 1),
                "write": {},
            }
            for type_, width in TYPES.items()
            for order in ORDERS
        ]
        limits = {"max_gap": self._dice.choice([0, 8]), "max_read": self._dice.choice([4, 10, 125])}
        device, mistakes = read(ModbusDevice, {"name": "d", "bus": "s", "points": points, **limits})
        assert device is not None, mistakes
        return device

    async def _images(self, device: ModbusDevice) -> list[int]:
        line = Line(self._bus, SystemClock(), lambda: None)
        await line.open()
        try:
            blocks = [Block(each) for _, each in reads(self._bus, device)]
            for _ in range(PER_LAYOUT):
                image = [self._dice.choice(_ODD) if self._dice.random() < 0.2 else self._dice.getrandbits(16)
                         for _ in range(REGISTERS)]  # fmt: skip
                await self._write(line, 0, b"".join(each.to_bytes(2, "big") for each in image))
                await self._read_as_everything(line, blocks, image)
                image = await self._write_one(line, spot("", device, self._dice.choice(device.points)), image)
        finally:
            line.close()
        return image

    async def _write(self, line: Line, address: int, data: bytes) -> None:
        request = Request(1, Function.WRITE_MULTIPLE_REGISTERS, address, len(data) // 2, data)
        assert (await line.ask(request)).reply.data is not None

    async def _registers(self, line: Line) -> list[int]:
        data = (await line.ask(Request(1, Function.READ_HOLDING_REGISTERS, 0, REGISTERS))).reply.data
        assert data is not None
        return list(struct.unpack(f">{REGISTERS}H", data))

    async def _read_as_everything(self, line: Line, blocks: Sequence[Block], image: list[int]) -> None:
        said = self._said() if self._said else None
        for block in blocks:
            data = (await line.ask(read_request(1, block.read))).reply.data
            assert data is not None
            for item, value in zip(block.read.items, block.decode(data)[0], strict=True):
                type_, order = item.key.point.name.split("-")
                at = item.key.address
                same(type_, value, pymodbus_says(type_, order, image[at : at + TYPES[type_]]))
                if said is not None:
                    same(type_, value, said[f"{type_} {order}"][at])

    async def _write_one(self, line: Line, target: Spot, image: list[int]) -> list[int]:
        """What is written as a value is read as that value by the others too."""
        type_, order = target.point.name.split("-")
        value = decoded(alone(target), self._dice.randbytes(2 * target.width))[0][0]
        if value is None:
            return image
        request = write_request(1, target, raw_of(target, value))
        assert (await line.ask(request)).reply.data is not None
        image = await self._registers(line)
        same(type_, value, pymodbus_says(type_, order, image[target.address : target.address + target.width]))
        return image

    def _second_client(self, image: list[int]) -> None:
        """mbpoll shows the same registers, and as 32 bits the same numbers; `-B`: high word first."""
        assert [int(text, 16) for text in self._mbpoll("4:hex", REGISTERS)] == image
        for kind, type_ in (("4:int", "int32"), ("4:float", "float32")):
            for order, more in (("ABCD", ["-B"]), ("CDAB", [])):
                for number, text in enumerate(self._mbpoll(kind, REGISTERS // 2, *more)):
                    value = ours(type_, order, image[2 * number : 2 * number + 2])
                    said = None if "nan" in text or "inf" in text else text
                    assert shown(type_, value) == said, (type_, order, number)

    def _mbpoll(self, kind: str, count: int, *more: str) -> list[str]:
        command = ["mbpoll", "-p", str(self._port), "-0", "-r", "0", "-c", str(count), "-t", kind, "-1", *more]
        done = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, timeout=30, check=True)
        lines = [line.split(":", 1)[1] for line in done.stdout.splitlines() if line.startswith("[")]
        assert len(lines) == count, done.stdout
        return [line.split("(")[0].strip() for line in lines]


def ours(type_: str, order: str, registers: Sequence[int]) -> Value | None:
    device, _ = read(
        ModbusDevice,
        {"name": "d", "bus": "s", "points": [{"name": "p", "address": 0, "type": type_, "byte_order": order}]},
    )
    assert device is not None
    data = b"".join(each.to_bytes(2, "big") for each in registers)
    return decoded(alone(spot("", device, device.points[0])), data)[0][0]


def shown(type_: str, value: Value | None) -> str | None:
    """As C prints it: of a float its six digits, not the fewest that will do."""
    if type_ == "float32" and value is not None:
        return f"{struct.unpack('>f', struct.pack('>f', value))[0]:g}"
    return None if value is None else str(value)


def pymodbus_says(type_: str, order: str, registers: Sequence[int]) -> Value:
    if order in ("BADC", "DCBA"):  # it knows no order within a register
        registers = [each >> 8 | (each & 0xFF) << 8 for each in registers]
    said = ModbusClientMixin.convert_from_registers(
        list(registers), ModbusClientMixin.DATATYPE[type_.upper()], "little" if order in ("CDAB", "DCBA") else "big"
    )
    assert isinstance(said, int | float)
    return said


def same(type_: str, value: Value | None, theirs: Any) -> None:
    """A float32 that is written with fewer digits is the same float32; NaN and infinity are no value."""
    code = _CODES.get(type_)
    if code is None:
        assert value == int(theirs)
    elif value is None:
        assert theirs is None or abs(theirs) == float("inf") or theirs != theirs
    else:
        assert struct.pack(code, value) == struct.pack(code, float(theirs))
