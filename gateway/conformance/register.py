"""Pure: checks under the numbers of their requirements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.conformance.bench import Bench

Run = Callable[["Bench"], Awaitable[None]]


class Failed(GatewayError):
    """The server did not do what the specification says; the text is what it did instead."""


class Unseen(GatewayError):
    """It cannot be seen this time; the text says what it would take."""


class Check(NamedTuple):
    number: str
    run: Run


class Register:
    """`@checks("A5a")` over a function that returns when the requirement is kept and raises `Failed` when not."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def __call__(self, number: str) -> Callable[[Run], Run]:
        def under(run: Run) -> Run:
            self.checks.append(Check(number, run))
            return run

        return under
