"""Drives one connection: opens the link, lets `ClientSession` decide, carries out what it says, in order.

Three tasks: one reads, one sends (the only one that fetches from the buffer), one keeps time. Whatever ends the
connection comes out of `run` as one `Reaction`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.clock import Clock
from gateway.errors import AuthError, LinkError, LocalProtocolError, RemoteProtocolError, StoreError
from gateway.model import Json, Lane, Record
from gateway.protocol import outputs
from gateway.protocol.client import ClientSession
from gateway.protocol.messages import MAX_MESSAGE_BYTES, decode_from_server
from gateway.uplink import reactions
from gateway.uplink.auth import Credentials
from gateway.uplink.config import Endpoint
from gateway.uplink.link import Link, open_link
from gateway.uplink.metering import Throttle
from gateway.uplink.plain import PlainSession
from gateway.uplink.ports import Commands, Outbox
from gateway.uplink.reactions import Kind, Reaction, Refused

RETIRE_WITHIN_S: Final = 10.0
"""For the acks of what is in flight, when another session has taken over."""
DRAIN_WITHIN_S: Final = 30.0
"""The socket took nothing for so long: longer than every other limit, the last to speak."""
READ_AGAIN_S: Final = 1.0
SIP_BYTES: Final = 16 * 1024
"""Of a backlog that is held to a rate, at a time."""
Session = ClientSession | PlainSession
_log = logging.getLogger(__name__)


class House(Protocol):
    """What a carrier tells the uplink."""

    def welcomed(self, number: int, welcome: outputs.Welcomed) -> None: ...

    def cost(self, number: int, size: int) -> None:
        """So many bytes more on the wire."""

    def acked(self, number: int) -> None: ...

    def hold(self, number: int, stream: str, upto: int) -> None: ...

    def suspect(self, number: int) -> None: ...

    def recovered(self, number: int) -> None: ...

    def move(self, number: int, asked: outputs.MoveAsked) -> None: ...

    def live_first(self) -> None:
        """A session is about to carry records: let new ones overtake a backlog."""


class Self(NamedTuple):
    """What a hello says of this gateway."""

    process: str
    software: str
    about: Mapping[str, Json]
    """`devices` and `writable`."""


class Carrier:
    """One connection, from the attempt to its end."""

    def __init__(
        self,
        number: int,
        endpoint: Endpoint,
        session: Session,
        standby: bool,
        outbox: Outbox,
        commands: Commands,
        clock: Clock,
        who: Self,
        house: House,
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self._credentials = Credentials(endpoint)
        self.version = self._credentials.version()
        """Of the credentials; taken before they are read, so that a change in between counts as one that follows."""
        self.session = session
        self._standby = standby
        self._outbox = outbox
        self._commands = commands
        self._clock = clock
        self._who = who
        self._house = house
        self._link: Link | None = None
        self._wake = asyncio.Event()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.readings = True
        self._throttle = Throttle(endpoint.backfill_rate, clock.monotonic()) if endpoint.backfill_rate else None
        self._go_on: asyncio.TimerHandle | None = None
        """When the rate allows more."""
        self._backlog: set[str] = set()
        """Sealed streams of readings."""
        self._counted = 0
        self._results_due = False
        self._unreadable: set[str] = set()
        """Streams that are left out until the disk is asked again."""
        self._complained = False
        self._retiring: tuple[str, float] | None = None
        self._tasks: asyncio.TaskGroup

    @property
    def retired(self) -> bool:
        """Its end is our own wish."""
        return self._retiring is not None

    # ── from the uplink ──────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """There is something new to fetch or to close."""
        self._wake.set()

    def wake_results(self) -> None:
        self._results_due = True
        self._wake.set()

    def activate(self) -> None:
        self._house.live_first()
        self.session.update(self._outbox.offers())
        for output in self.session.activate(self._clock.monotonic()):
            self._at_once(output)
        self.wake_results()

    def pause(self) -> None:
        """Another session has taken over while this one is suspect: acks still count."""
        self.session.retire()

    def retire(self, reason: str) -> None:
        """Ends politely as soon as nothing is in flight any more; before the welcome: now."""
        self.session.retire()
        self._retiring = reason, self._clock.monotonic() + RETIRE_WITHIN_S
        asyncio.get_running_loop().call_later(RETIRE_WITHIN_S, self._wake.set)
        self._wake.set()

    def allow(self, readings: bool) -> None:
        """Whether there is budget for more than alarms and results."""
        if readings is not self.readings:
            self.readings = readings
            if readings and self.session.active:
                self._house.live_first()
            self._wake.set()

    def stats(self, values: dict[str, Json]) -> None:
        for output in self.session.stats(values):
            self._at_once(output)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> Reaction:
        """Returns how it ended. Cancelling says bye."""
        try:
            self._link = await open_link(self.endpoint, self._credentials.read())
        except Refused as error:
            return error.reaction
        except AuthError as error:
            return Reaction(Kind.REST, str(error), reactions.QUARTER_HOUR_S)
        try:
            return await self._ended(await self._converse())
        except asyncio.CancelledError:
            await self._leave("stopping")
            raise
        finally:
            for timer in (self._timer, self._go_on):
                if timer is not None:
                    timer.cancel()
            self._count()
            self._link.abort()

    async def _converse(self) -> Exception:
        """From hello to the end; returns what ended it."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._pump(), name=f"send to {self.endpoint.label}")
                self._tasks.create_task(self._keep_time(), name=f"timers of {self.endpoint.label}")
                await self._open()
                await self._read()
        except* (Refused, RemoteProtocolError, LocalProtocolError, LinkError, StoreError) as group:
            ended = _first(group)
        return ended

    async def _ended(self, error: Exception) -> Reaction:
        assert self._link is not None
        match error:
            case Refused():
                return error.reaction
            case RemoteProtocolError() | LocalProtocolError():
                _log.warning("%s: closing with %d: %s", self.endpoint.label, error.code, error)
                await self._link.close(error.code, str(error))
                return reactions.to_close(error.code, str(error))
            case _:
                return Reaction(Kind.RETRY, str(error))

    async def _open(self) -> None:
        if not self._standby:
            self._house.live_first()
        offers, clock = self._outbox.offers(), self._clock.state()
        who, now = self._who, self._clock.monotonic()
        said = self.session.hello(who.process, who.software, clock, offers, self._about(), now)
        await self._perform(said)

    def _about(self) -> Mapping[str, Json]:
        """Thousands of devices may not fit into one message; then the sink lives without their tags."""
        if len(msgspec.json.encode(self._who.about)) <= MAX_MESSAGE_BYTES // 2:
            return self._who.about
        _log.warning("tags and writable points of the devices do not fit into one message: the sink is not told them")
        return {}

    async def _leave(self, reason: str) -> None:
        if self._link is not None:
            for output in self.session.bye(reason):
                self._at_once(output)
            await self._link.close(1000, reason)

    # ── the three tasks ──────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self) -> None:
        assert self._link is not None
        while True:
            frame = await self._link.receive()
            now = self._clock.monotonic()
            if isinstance(self.session, PlainSession):
                said = self.session.receive(frame, now)
            else:
                said = self.session.receive(decode_from_server(frame), now)
            await self._perform(said)
            self._wake.set()
            if self._link.full and any(isinstance(output, outputs.Send) for output in said):
                await self._drain(self._link)  # who does not read our answers is not listened to

    async def _pump(self) -> None:
        """Everything that is to be sent goes through here, as fast as the window lets it."""
        assert self._link is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send_results()
            while not self._link.ended and (fetch := self._want()) is not None:
                await self._send_records(fetch)
                if self._link.full:
                    await self._drain(self._link)
                await asyncio.sleep(0)  # a backlog in memory, on a path that takes it all, waits for nothing
                await self._send_results()  # nor does it end soon
                self._count()
            self._count()
            if self._retiring is not None:
                await self._retire(*self._retiring)

    async def _send_results(self) -> None:
        if self._results_due:
            self._results_due = False
            await self._perform(self.session.results(self._commands.results()))

    async def _send_records(self, fetch: outputs.Fetch) -> None:
        assert self._link is not None
        try:
            records = await self._outbox.fetch(fetch.stream, fetch.seq, fetch.max_bytes)
            if self._link.ended:
                return  # where the sending counts as delivered, these would be lost
            said = self.session.fetched(fetch, records, self._clock.monotonic())
            self._spend(fetch, records, said)
            await self._perform(said)
        except StoreError:  # the buffer says so, and turns what is lost into a gap
            self._leave_out(fetch.stream)

    def _want(self) -> outputs.Fetch | None:
        """Closes what nothing stands in the way of, then asks what to send next."""
        session = self.session
        if not session.active:
            return None
        news = self._wake.is_set()
        for lane in (Lane.ALARM, Lane.LIVE):
            if session.idle(lane) and (lane is Lane.ALARM or not self.endpoint.metered):
                self._outbox.close(lane)
        if not news:
            self._wake.clear()  # what was closed here is among the offers below: it need not wake us again
        offers = self._outbox.offers()
        session.update(offers)
        if self._throttle is None:
            return session.want(self.readings, but=self._unreadable)
        self._backlog = {offer.stream for offer in offers if offer.sealed and offer.lane is Lane.LIVE}
        wait_s = self._throttle.wait_s(self._clock.monotonic()) if self._backlog else 0.0
        loop = asyncio.get_running_loop()
        if wait_s and (self._go_on is None or self._go_on.when() <= loop.time()):
            self._go_on = loop.call_later(wait_s, self._wake.set)
        fetch = session.want(self.readings, not wait_s, self._unreadable)
        if fetch is not None and fetch.stream in self._backlog:
            return fetch._replace(max_bytes=min(fetch.max_bytes, SIP_BYTES))
        return fetch

    def _spend(self, fetch: outputs.Fetch, records: Sequence[Record], said: Iterable[outputs.Output]) -> None:
        if self._throttle is not None and fetch.stream in self._backlog:
            held = [output.upto for output in said if isinstance(output, outputs.Hold) and output.upto]
            sent = [record.readings for record in records if not held or record.upto <= max(held)]
            self._throttle.spend(sum(sent))

    def _count(self) -> None:
        """Tells what this connection has cost since it was last asked."""
        if self._link is not None and self.endpoint.daily_budget is not None:
            cost = self._link.wire_bytes
            if cost > self._counted:
                self._house.cost(self.number, cost - self._counted)
                self._counted = cost

    def _leave_out(self, stream: str) -> None:
        """The disk does not give it: the others go on, above all those that are in memory."""

        def again() -> None:
            self._unreadable.discard(stream)
            self._wake.set()

        self._unreadable.add(stream)
        asyncio.get_running_loop().call_later(READ_AGAIN_S, again)

    async def _drain(self, link: Link) -> None:
        try:
            async with asyncio.timeout(DRAIN_WITHIN_S):
                await link.drain()
        except TimeoutError as error:
            raise LinkError(f"the socket took nothing for {DRAIN_WITHIN_S:g} s") from error

    async def _retire(self, reason: str, until: float) -> None:
        if self.session.in_flight[0] and self._clock.monotonic() < until:
            return
        await self._leave(reason)
        raise Refused(Reaction(Kind.RETRY, reason))

    async def _keep_time(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            now = self._clock.monotonic()
            deadline = self.session.deadline()
            if deadline is not None and now >= deadline:
                await self._perform(self.session.tick(now))
                self._count()
            self._arm()

    def _arm(self) -> None:
        """One timer that is allowed to come too early: acks move the deadline with every record."""
        deadline = self.session.deadline()
        loop = asyncio.get_running_loop()
        if deadline is None:
            return
        when = loop.time() + max(0.0, deadline - self._clock.monotonic())
        if self._timer is not None and self._timer.when() <= when and self._timer.when() > loop.time():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._due.set)

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _perform(self, wanted: Iterable[outputs.Output]) -> None:
        for output in wanted:
            match output:
                case outputs.Fill(stream, lane, first, last):
                    assert isinstance(self.session, ClientSession)
                    elsewhere = await self._outbox.fill(self.session.sink, stream, lane, first, last)
                    self.session.filled(stream, elsewhere)
                case outputs.Distrust(stream):
                    _log.error(
                        "%s has more of stream %s than was ever sent: a copy of this gateway lives or lived; "
                        "what is not acknowledged moves to a new stream",
                        self.endpoint.label,
                        stream,
                    )
                    await self._outbox.distrust(stream)
                case outputs.Ping(number):
                    self._tasks.create_task(self._ping(number), name=f"ping {self.endpoint.label}")
                case outputs.Dead(reason):
                    raise Refused(Reaction(Kind.RETRY, reason))
                case _:
                    self._at_once(output)
        self._arm()

    def _at_once(self, output: outputs.Output) -> None:
        """Those that need no waiting."""
        match output:
            case outputs.Send(frame):
                if self._link is not None:
                    self._link.send(frame)
            case outputs.Acked(stream, seq):
                self._outbox.ack(self.session.sink, stream, seq)
                self._house.acked(self.number)
            case outputs.Hold(stream, upto):
                self._house.hold(self.number, stream, upto)
            case outputs.Seal(lane):
                self._outbox.seal(lane)
            case outputs.Welcomed():
                self._house.welcomed(self.number, output)
            case outputs.Suspect():
                self._house.suspect(self.number)
            case outputs.Recovered():
                self._house.recovered(self.number)
            case outputs.MoveAsked():
                self._house.move(self.number, output)
            case outputs.Complaint(reason):
                if not self._complained:  # it closes next; one that goes on talking is not listened to
                    _log.warning("%s says: %s", self.endpoint.label, reason[:500])
                self._complained = True
            case outputs.Execute(command):
                self._commands.receive(command)
            case outputs.Missing(ids):
                self._commands.missing(ids)
                self.wake_results()
            case outputs.ResultStored(command_id):
                self._commands.acked(command_id)
            case _:
                raise LocalProtocolError(f"{output!r} cannot be done at once")

    async def _ping(self, number: int) -> None:
        assert self._link is not None
        await self._link.ping(number)
        await self._perform(self.session.pong(self._clock.monotonic(), number))
        if number:
            self._wake.set()  # an ack: there is room for more


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first leaf: tasks that failed after it failed because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
