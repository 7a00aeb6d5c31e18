"""One write, from the value that a person means to what became of it.

Invariants: nothing is sent before it is known whether the line echoes, for an echo looks like success. A write is sent
once; it is repeated only after exception 6, which says that it was not carried out. A reply that was lost is `unknown`,
unless reading the point back shows the value. A broadcast is `unknown` too, always: it is out, and who heard it does
not say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.config import Spot
from gateway.connectors.modbus.request import BUSY_PAUSE_S, Function, Request
from gateway.connectors.modbus.values import (
    alone,
    decoded,
    raw_of,
    read_request,
    reason_of,
    write_request,
)
from gateway.errors import CommandError
from gateway.model import Outcome, Value

BUSY_TRIES = 3
_BUSY = 6
_MAY_HAVE_ACTED = (5, 11)
"""Acknowledge: it still works on it. Gateway target silent: the target may have heard it."""

Ask = Callable[[Request], Awaitable[Reply]]


async def carry_out(
    ask: Ask,
    echo: Callable[[], bool | None],
    unit: int,
    target: Spot,
    value: Value,
    verify: bool,
    everybody: bool = False,
) -> Value | None:
    """Writes one point, of all units when `everybody`; returns what was read back, None when nothing was.

    Raises:
        CommandError: with the outcome that the caller shall see.
        ValueError: the point cannot hold the value; nothing was sent.
    """
    raw = raw_of(target, value)
    request = write_request(unit, target, raw)
    if everybody:
        if request.function is Function.READ_WRITE_MULTIPLE_REGISTERS:
            raise CommandError(Outcome.UNSUPPORTED, "function 23 reads back, and nobody answers a broadcast")
        await ask(request)
        raise CommandError(Outcome.UNKNOWN, "sent to every unit; nobody answers a broadcast")
    if echo() is None:
        await ask(read_request(unit, alone(target)))
        if echo() is None:
            raise CommandError(Outcome.UNAVAILABLE, f"unit {unit} does not answer")
    reply = await ask(request)
    for _ in range(BUSY_TRIES):
        if reply.code != _BUSY:
            break
        await asyncio.sleep(BUSY_PAUSE_S)
        reply = await ask(request)
    if reply.code and reply.code not in _MAY_HAVE_ACTED:
        raise CommandError(Outcome.FAILED, reason_of(reply.code))
    acknowledged = reply.data is not None
    if reply.data is not None and request.function is Function.READ_WRITE_MULTIPLE_REGISTERS:
        return _confirmed(target, request, reply.data, acknowledged)
    if verify:
        return _confirmed(target, request, await _read_back(ask, unit, target), acknowledged)
    if not acknowledged:
        raise CommandError(Outcome.UNKNOWN, reason_of(reply.code) if reply.code else f"unit {unit} did not answer")
    return None


async def _read_back(ask: Ask, unit: int, target: Spot) -> bytes:
    read = alone(target)
    reply = await ask(read_request(unit, read))
    if reply.doubtful:
        reply = await ask(read_request(unit, read))
    if reply.data is None:
        raise CommandError(Outcome.UNKNOWN, f"unit {unit} did not answer when the point was read back")
    return reply.data


def _confirmed(target: Spot, request: Request, data: bytes, acknowledged: bool) -> Value:
    read = alone(target)
    (found,), _ = decoded(read, data)
    # what the register holds of it: a float32 is not the float that was said
    if target.table.bits:
        wanted: Value | None = any(request.data)
    else:
        # of a mask write the second mask is the value
        written = request.data[2:] if request.function is Function.MASK_WRITE_REGISTER else request.data
        (wanted,), _ = decoded(read, written)
    value = target.point.value_of(found)
    if found == wanted and value is not None:
        return value
    outcome = Outcome.FAILED if acknowledged else Outcome.UNKNOWN
    raise CommandError(outcome, f"{target.point.name} reads back as {value}", value)
