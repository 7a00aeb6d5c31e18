"""An RS-485 line in virtual time: every byte takes its time, and every device its own to think.

It is put in place of the serial port, below everything else: the connector, the schedule, the client and its timers are
the real ones. It insists on the standard's silence of 3.5 characters before a request and on one speaker at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.connectors.modbus import link
from gateway.connectors.modbus.framing import crc
from gateway.connectors.modbus.request import Function
from gateway.errors import LinkError
from gateway.testing.loop import VirtualClock

from .bench import Bench

_FIFO = 8
"""A UART hands over so many bytes at once, when the last of them has come."""


class SimulatedLine:
    """`thinks` says how many seconds a unit needs; one that is not named never answers."""

    def __init__(self, baud_rate: int, thinks: Mapping[int, float]) -> None:
        self.character_s = 10 / baud_rate
        self.thinks = dict(thinks)
        self.holes: set[int] = set()
        """Registers that do not exist."""
        self.longest = 125
        """Registers of the longest read that is not ignored."""
        self.restless = False
        """No register is what it was; else each holds its own address."""
        self.asked: list[tuple[float, bytes]] = []
        self.answered: Counter[int] = Counter()
        self._free_from = 0.0
        self._received: Callable[[bytes], None] = lambda _: None

    def put_in_place(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(link, "_Serial", self._medium)

    def _medium(self, bus: Any, received: Callable[[bytes], None], lost: Callable[[LinkError], None]) -> SimulatedLine:
        self._received = received
        return self

    async def open(self) -> None:
        return None

    def drain(self) -> None:
        return None

    def close(self) -> None:
        return None

    def seconds(self, characters: float) -> float:
        return characters * self.character_s

    def write(self, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        silence = max(self.seconds(3.5), 0.00175)
        assert now >= self._free_from + silence - 1e-9, "a request into a frame, or without the silence before it"
        assert frame[-2:] == crc(frame[:-2])
        self.asked.append((now, frame))
        sent = self._free_from = now + self.seconds(len(frame))
        thinks = self.thinks.get(frame[0])
        if thinks is not None and frame[4:6] <= self.longest.to_bytes(2, "big"):
            loop.call_at(sent + thinks, self._answer, frame)

    def _answer(self, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        answer = self._reply(frame)
        answer += crc(answer)
        for start in range(0, len(answer), _FIFO):
            some = answer[start : start + _FIFO]
            loop.call_at(loop.time() + self.seconds(start + len(some)), self._received, some)
        self._free_from = loop.time() + self.seconds(len(answer))

    def _reply(self, frame: bytes) -> bytes:
        if frame[1] == Function.WRITE_SINGLE_REGISTER:
            return frame[:-2]
        at, count = int.from_bytes(frame[2:4], "big"), int.from_bytes(frame[4:6], "big")
        registers = range(at, at + count)
        if not self.holes.isdisjoint(registers):
            return bytes([frame[0], frame[1] | 0x80, 2])
        self.answered[frame[0]] += 1
        moved = 7919 * self.answered[frame[0]] if self.restless else 0
        values = b"".join(((each + moved * each) & 0xFFFF).to_bytes(2, "big") for each in registers)
        return frame[:2] + bytes([2 * count]) + values


async def polled(bus: Mapping[str, Any], devices: list[dict[str, Any]], seconds: float) -> Bench:
    """A connector that ran for so long, in virtual time."""
    bench = Bench(bus, devices, VirtualClock())
    async with bench.running():
        await asyncio.sleep(seconds)
        bench.status = bench.connector.status()
    return bench
