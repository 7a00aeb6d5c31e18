"""A device whose map, types and byte order come from a seed: what a stranger's device is to who has no manual.

Its quantities are those of meters and climate sensors, with the relations that they have in the world: three phases
are alike but not the same, power is voltage times current, counters grow, all of it moves. What lies between them is
what lies between them in devices: nothing, zeros, addresses that are refused.

Run as a program it serves one over TCP: `python -m modbus.shuffled SEED FILE`. It prints the port, and writes the truth
into FILE, for who wants to compare afterwards.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from gateway.codec.words import Order, Word, parse

STYLES = ("float", "integer", "mixed")
SIZES = {"int16": 1, "uint16": 1, "int32": 2, "uint32": 2, "float32": 2, "int64": 4, "uint64": 4, "float64": 4}


class Truth(NamedTuple):
    """A point as the manual of the device would list it."""

    name: str
    address: int
    type: str
    order: Order
    scale: float

    @property
    def word(self) -> Word:
        return parse(self.type, self.order.value)


class Signal(NamedTuple):
    """A quantity over time, in its unit; and how an integer would hold it."""

    name: str
    at: Callable[[float], float]
    signed: bool
    scale: float
    wide: bool = False
    """Does not fit into 16 bits."""


class Shuffled:
    """The device. `registers(t)` is what it holds `t` seconds after it began; any other address is refused."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        pick = self._random
        self.order = pick.choice(list(Order))
        self.style = pick.choice(STYLES)
        self.table = pick.choice(("holding", "input"))
        self.unit = pick.randint(1, 247)
        self.base = pick.choice((0, 1, 10, 100, 256, 999, 3000)) + pick.randint(0, 20)
        self.points: list[Truth] = []
        self._signals: list[Signal] = []
        self._fixed: dict[int, int] = {}
        self._decimals = pick.choice((None, None, 1, 2, 3))
        """Floats that were computed keep all their digits; others are rounded before."""
        groups = self._groups()
        pick.shuffle(groups)
        address = self.base
        for group in groups[: pick.randint(3, len(groups))]:
            kind = self._type(group)
            for signal in group:
                self.points.append(Truth(signal.name, address, kind, self.order, self._scale(kind, signal)))
                self._signals.append(signal)
                address += SIZES[kind]
            address = self._between(address)
        self.end = max(point.address + SIZES[point.type] for point in self.points)

    def _between(self, address: int) -> int:
        pick = self._random
        what, size = pick.choice(("nothing", "nothing", "zeros", "refused", "state")), pick.randint(1, 12)
        if what == "nothing":
            return address
        if what == "zeros":
            self._fixed.update(dict.fromkeys(range(address, address + size), 0))
        if what == "state":
            size = 1
            self.points.append(Truth("state", address, "uint16", self.order, 1))
            state = float(pick.randint(0, 5))
            self._signals.append(Signal("state", lambda t: state, False, 1))
        return address + size

    def _type(self, group: list[Signal]) -> str:
        pick = self._random
        floating = self.style == "float" or (self.style == "mixed" and pick.random() < 0.5)
        if floating:
            return "float64" if pick.random() < 0.12 else "float32"
        signed, wide = any(signal.signed for signal in group), any(signal.wide for signal in group)
        wider = pick.random() < (0.2 if wide else 0.35)
        bits = 16 << wide << wider
        return f"{'' if signed else 'u'}int{bits}"

    @staticmethod
    def _scale(kind: str, signal: Signal) -> float:
        return 1.0 if kind.startswith("float") else signal.scale

    def _groups(self) -> list[list[Signal]]:
        pick, noise = self._random, self._noise
        volts = pick.choice((230.0, 230.0, 230.0, 120.0))
        phases = pick.choice((1, 3, 3))
        voltage = [noise(f"voltage l{n + 1}", pick.gauss(volts, 3), 0.4, scale=0.1) for n in range(phases)]
        amperes = [math.exp(pick.gauss(1.2, 1.3)) for _ in range(phases)]
        feeds = -1 if pick.random() < 0.2 else 1
        factor = [pick.uniform(0.75, 1.0) for _ in range(phases)]
        watts = [feeds * volts * a * f for a, f in zip(amperes, factor, strict=True)]
        grows = pick.choice((0.01, 0.1))
        kwh = [math.exp(pick.gauss(7, 2)) for _ in range(pick.choice((1, 2, 4)))]
        return [
            voltage,
            [noise(f"current l{n + 1}", a, a * 0.02, scale=pick.choice((0.01, 0.001))) for n, a in enumerate(amperes)],
            [noise(f"power l{n + 1}", w, abs(w) * 0.02, True) for n, w in enumerate(watts)],
            [noise("power", sum(watts), abs(sum(watts)) * 0.02, True, 0.1, True)],
            [noise(f"power factor l{n + 1}", feeds * f, 0.002, True, 0.001) for n, f in enumerate(factor)],
            [noise("frequency", pick.choice((50.0, 50.0, 60.0)), 0.015, scale=0.01)],
            [self._counter(f"energy {n + 1}", each, pick.uniform(0.001, 0.02), grows) for n, each in enumerate(kwh)],
            [noise(f"temperature {n + 1}", pick.gauss(20, 9), 0.05, True, 0.1) for n in range(pick.randint(1, 4))],
            [
                noise("humidity", pick.uniform(25, 75), 0.1, scale=0.1),
                noise("co2", pick.uniform(420, 1500), 4, scale=1),
            ],
            [noise("pressure", pick.gauss(1013, 8), 0.05, scale=0.1)],
            [self._counter("hours", pick.uniform(10, 40_000), 1 / 3600, 1)],
        ]

    def _noise(
        self, name: str, mean: float, spread: float, signed: bool = False, scale: float = 1.0, wide: bool = False
    ) -> Signal:
        phases = [(self._random.uniform(0, 6.28), self._random.uniform(0.3, 3)) for _ in range(3)]
        return Signal(
            name,
            lambda t: mean + spread * sum(math.sin(phase + pace * t) for phase, pace in phases) / 1.2,
            signed,
            scale,
            wide or abs(mean) / scale > 30_000,
        )

    @staticmethod
    def _counter(name: str, start: float, rate: float, scale: float) -> Signal:
        return Signal(name, lambda t: start + rate * t, False, scale, True)

    def registers(self, t: float = 0.0) -> dict[int, int]:
        held = dict(self._fixed)
        for point, signal in zip(self.points, self._signals, strict=True):
            value = signal.at(t)
            if point.type.startswith("float"):
                raw: float = value if self._decimals is None else round(value, self._decimals)
            else:
                raw = round(value / point.scale)
            data = point.word.encode(raw)
            words = struct.unpack(f">{len(data) // 2}H", data)
            held.update({point.address + at: word for at, word in enumerate(words)})
        return held


def answered(held: Mapping[int, int], table: str, pdu: bytes) -> bytes:
    """What the device says to a request."""
    function = pdu[0]
    if function != {"holding": 3, "input": 4}[table] or len(pdu) != 5:
        return bytes([function | 0x80, 1])
    address, number = struct.unpack(">HH", pdu[1:])
    asked = range(address, address + number)
    if not 1 <= number <= 125 or not all(each in held for each in asked):
        return bytes([function | 0x80, 2])
    return bytes([function, 2 * number]) + struct.pack(f">{number}H", *(held[each] for each in asked))


async def serve(device: Shuffled) -> None:
    began = time.monotonic()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readexactly(7))[2:4] == b"\0\0" and head[4:6] >= b"\0\3":
                pdu = await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
                if head[6] == device.unit:
                    said = answered(device.registers(time.monotonic() - began), device.table, pdu)
                else:
                    said = bytes([pdu[0] | 0x80, 11])
                writer.write(head[:4] + (1 + len(said)).to_bytes(2, "big") + head[6:7] + said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    told = Shuffled(int(sys.argv[1]) if sys.argv[1] != "any" else random.SystemRandom().randrange(2**32))
    truth = [{**point._asdict(), "order": point.order.value} for point in told.points]
    Path(sys.argv[2]).write_text(json.dumps({"unit": told.unit, "table": told.table, "points": truth}))
    asyncio.run(serve(told))
