"""The line of one bus through all its lives: opened, closed when nobody needs it, opened again where that may help.

A TCP peer that closed a connection which worked is simply connected to again, and a connection that breaks under a
request counts as silence. Everything else that takes the medium away is a `LinkError`.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.connectors.base import Tools
from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.config import AnyBus, TcpBus
from gateway.connectors.modbus.link import Acquired, Line
from gateway.connectors.modbus.request import Request
from gateway.connectors.modbus.tally import BusyTime
from gateway.errors import LinkError
from gateway.model import Status


class Keeper:
    """See the module. `wake` is called when the medium goes, `beat` before anything that takes long."""

    def __init__(self, bus: AnyBus, tools: Tools, wake: Callable[[], None], beat: Callable[[], None]) -> None:
        self._bus = bus
        self._tools = tools
        self._wake = wake
        self._beat = beat
        self._line: Line | None = None
        self._heard = False
        self._late: dict[int, int] = {}
        self.hangs_up = isinstance(bus, TcpBus) and bus.close_after_poll
        """While nothing is due; then being closed is no fault."""
        self.unanswered = 0
        """Requests in a row, to whomever."""
        self.reopened = 0
        self.busy = BusyTime(tools.clock.monotonic())

    @property
    def is_open(self) -> bool:
        return self._line is not None

    @property
    def echo(self) -> bool | None:
        """Does the line return what is sent? None: not known."""
        return self._line.client.echo if self._line else None

    def free_at(self, unit: int) -> float:
        """When a unit may be asked, but for the silence before it: on a line that is never silent for long a unit that
        needs more of it than others would have to wait for ever. `ask` keeps it."""
        return self._line.client.free_at(unit, 0.0) if self._line else 0.0

    def late_discarded(self) -> dict[int, int]:
        """By unit, of all lines so far."""
        total = dict(self._late)
        for unit, count in (self._line.client.late_discarded if self._line else {}).items():
            total[unit] = total.get(unit, 0) + count
        return total

    async def open(self) -> None:
        """Raises LinkError."""
        self._beat()
        line = Line(self._bus, self._tools.clock, self._wake, self._tools.tap)
        try:
            await line.open()
        except BaseException:
            line.close()
            raise
        self._line, self._heard, self.unanswered = line, False, 0

    def close(self) -> None:
        if self._line is not None:
            self._late = self.late_discarded()
            self._line.close()
            self._line = None

    async def keep(self, silent: bool) -> None:
        """Opens the line again if it was lost, or if it is `silent`: everybody was asked and nobody answered.

        Raises:
            LinkError: it is gone for good.
        """
        if self._line is None:
            return  # it hung up, and is needed when something is asked
        lost = self._line.lost
        if lost is not None and not (isinstance(self._bus, TcpBus) and self._heard):
            raise lost
        if lost is not None or silent:
            self.close()
            self.reopened += 1
            await self.open()

    async def ask(self, request: Request, gap_s: float, timeout_s: float) -> Acquired:
        """One transaction.

        Raises:
            LinkError: the medium is gone.
        """
        if self._line is None:
            await self.open()
        assert self._line is not None
        clock = self._tools.clock
        self._beat()
        before = clock.monotonic()
        try:
            acquired = await self._line.ask(request, gap_s, timeout_s)
        except LinkError:
            if not (isinstance(self._bus, TcpBus) and self._heard):
                raise
            acquired = Acquired(Reply(None, fault=Status.COMM_TIMEOUT), clock.boot_ns())
        finally:
            self.busy.spent(before, clock.monotonic())
        if acquired.reply.heard:
            self._heard, self.unanswered = True, 0
        elif acquired.reply.fault:
            self.unanswered += 1
        return acquired
