"""Reads a range of addresses that nobody has described: what exists, what it holds, and again to see what moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.identity import Ask
from gateway.connectors.modbus.planner import Table
from gateway.connectors.modbus.request import BITS_MAX, BUSY, BUSY_PAUSE_S, GATEWAY, REGISTERS_MAX, Function, Request
from gateway.connectors.modbus.sweep import Bite, Sweep
from gateway.connectors.modbus.values import READ, reason_of

_BUSY_TRIES = 10
_TRIES = 3
"""For an answer that does not come; some devices are silent about what they do not have."""
_SILENCES = 8
"""So many bites in a row without an answer: the unit is gone."""


class Reading:
    """A range under way; `values` and `missing` hold what is known so far."""

    def __init__(self, ask: Ask, unit: int, table: Table, address: int, count: int) -> None:
        self._ask_unit = ask
        self._unit = unit
        self.table = table
        self._sweep = Sweep(address, count, BITS_MAX if table.bits else REGISTERS_MAX)
        self._bites: list[Bite] = []
        self.heard = False
        """The unit lives."""
        self.ended = ""
        """Why it ended before it had seen all."""

    @property
    def values(self) -> Mapping[int, int]:
        return self._sweep.values

    @property
    def missing(self) -> list[int]:
        return self._sweep.missing

    async def run(self, progress: Callable[[float, str], None], stop: asyncio.Event) -> None:
        """Until all is known, the unit refuses everything, or `stop` is set; cancelling it leaves the line in the
        middle of a question.

        Raises:
            LinkError: the medium is gone.
        """
        silences = 0
        while not self.ended and not stop.is_set() and (bite := self._sweep.bite()) is not None:
            progress(self._sweep.share, f"{self.table.value} {bite.address}")
            reply = await self._patiently(bite, stop)
            if stop.is_set() and not reply.heard:
                return
            if not self.heard and not reply.heard:
                # silent about this, or not there at all? Everybody has an answer to the question for one register
                self.heard = _lives(await self._ask_unit(Request(self._unit, Function.READ_HOLDING_REGISTERS)))
            silences = 0 if reply.heard else silences + 1
            if reply.data is not None:
                self._sweep.answered(_values(self.table, bite, reply.data))
                self._bites.append(bite)
            elif self._hopeless(reply, silences):
                self.ended = self._why(reply, bite)
            else:
                self._sweep.refused()
            self.heard = self.heard or _lives(reply)

    def _hopeless(self, reply: Reply, silences: int) -> bool:
        if reply.code:
            return reply.code == 1 or reply.code in GATEWAY
        return not self.heard or silences >= _SILENCES

    def _why(self, reply: Reply, bite: Bite) -> str:
        if reply.code == 1:
            return f"unit {self._unit} has no {self.table.value} registers: {reason_of(1)}"
        if reply.code:
            return f"unit {self._unit}: {reason_of(reply.code)}"
        at = f" any more, from {self.table.value} {bite.address} on" if self.heard else ""
        return f"unit {self._unit} does not answer{at}"

    async def look(self) -> dict[int, int]:
        """What exists, again; what is not answered now is left out.

        Raises:
            LinkError: the medium is gone.
        """
        seen: dict[int, int] = {}
        for bite in _joined(self._bites):
            reply = await self._patiently(bite, asyncio.Event())
            if reply.data is not None:
                seen.update(enumerate(_values(self.table, bite, reply.data), bite.address))
        return seen

    async def _patiently(self, bite: Bite, stop: asyncio.Event) -> Reply:
        request = Request(self._unit, READ[self.table], bite.address, bite.quantity)
        reply = await self._ask_unit(request)
        for _ in range(_BUSY_TRIES):
            if reply.code not in BUSY or stop.is_set():
                break
            await asyncio.sleep(BUSY_PAUSE_S)
            reply = await self._ask_unit(request)
        for _ in range(_TRIES - 1):
            if reply.data is not None or reply.code or stop.is_set():
                break
            reply = await self._ask_unit(request)
        return reply


def _lives(reply: Reply) -> bool:
    """The unit has spoken, and not a gateway in its place."""
    return reply.heard and reply.code not in GATEWAY


def _joined(bites: list[Bite]) -> list[Bite]:
    """The bites that were answered, without those that only asked whether something is given alone."""
    kept: list[Bite] = []
    for bite in sorted(bites, key=lambda each: (each.address, -each.quantity)):
        if not kept or bite.address >= kept[-1].address + kept[-1].quantity:
            kept.append(bite)
    return kept


def _values(table: Table, bite: Bite, data: bytes) -> list[int]:
    if table.bits:
        return [data[at // 8] >> at % 8 & 1 for at in range(bite.quantity)]
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
