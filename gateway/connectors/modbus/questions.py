"""Questions of a person about a bus in use: one between two polls, and only such as change nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.request import BITS_MAX, REGISTERS_MAX, Function, Request
from gateway.errors import GatewayError
from gateway.model import Json

_MAX = 16
_HARMLESS = (
    Function.READ_COILS,
    Function.READ_DISCRETE_INPUTS,
    Function.READ_HOLDING_REGISTERS,
    Function.READ_INPUT_REGISTERS,
)


class Question(NamedTuple):
    """What is asked, and who waits for it; one whose caller has gone is `done`."""

    request: Request
    done: asyncio.Future[Reply]

    def answer(self, reply: Reply) -> None:
        if not self.done.done():
            self.done.set_result(reply)


class Questions:
    """See the module."""

    def __init__(self) -> None:
        self._waiting: deque[Question] = deque()
        self._poll_first = False
        self._asked: Question | None = None

    def add(self, request: Request) -> asyncio.Future[Reply]:
        """
        Raises:
            GatewayError: too many wait.
        """
        if len(self._waiting) >= _MAX:
            raise GatewayError(f"{_MAX} questions wait already")
        question = Question(request, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        return question.done

    def take(self, now: float, free_at: Callable[[int], float]) -> Question | None:
        """The next one, when a poll has had its turn since the last."""
        if self._poll_first:
            self._poll_first = False
            return None
        while self._waiting and self._waiting[0].done.done():
            self._waiting.popleft()
        if not self._waiting or free_at(self._waiting[0].request.unit) > now:
            return None
        self._poll_first = True
        self._asked = self._waiting.popleft()
        return self._asked

    def next_at(self, free_at: Callable[[int], float]) -> float:
        """When the first one may be asked."""
        return free_at(self._waiting[0].request.unit) if self._waiting else float("inf")

    def refuse_all(self, why: str) -> None:
        for question in (*self._waiting, *([self._asked] if self._asked else [])):
            if not question.done.done():
                question.done.set_exception(GatewayError(why))


def read(question: Mapping[str, Json]) -> Request:
    """
    Raises:
        GatewayError: it is no read.
    """
    unit, function, address, quantity = (_whole(question, key) for key in ("unit", "function", "address", "quantity"))
    most = BITS_MAX if function in (1, 2) else REGISTERS_MAX
    within = 0 <= unit <= 255 and 1 <= quantity <= most and 0 <= address <= 65536 - quantity
    if function not in _HARMLESS or not within:
        raise GatewayError("only reads of functions 1 to 4 may be asked for")
    return Request(unit, Function(function), address, quantity)


def _whole(question: Mapping[str, Json], key: str) -> int:
    number = question.get(key)
    if not isinstance(number, int) or isinstance(number, bool):
        raise GatewayError(f"{key} is a whole number, not {number!r}")
    return number


def told(reply: Reply) -> Json:
    """A reply as it goes through the control socket."""
    data = None if reply.data is None else reply.data.hex()
    return {"data": data, "code": reply.code, "fault": reply.fault.value if reply.fault else None}
