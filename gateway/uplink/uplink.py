"""The way out: keeps sessions with the endpoints as `Failover` decides; tells the buffer what became of its records.

One task for each connection, one that keeps the time of the state machine. Everything between them happens on the event
loop without awaiting, so no state is seen half changed.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.clock import Clock
from gateway.codec.path import Path as JsonPath
from gateway.model import Json, Lane, Trust
from gateway.protocol.client import ClientSession
from gateway.protocol.manifest import Manifest
from gateway.protocol.outputs import MoveAsked, Welcomed
from gateway.protocol.watch import ABANDON_AFTER_S
from gateway.protocol.watch import Watch as SessionWatch
from gateway.uplink.config import AckPath, Speech, UplinkSettings, promise
from gateway.uplink.connections import Action, Activate, Connect, Retire, Spending, State
from gateway.uplink.failover import Failover
from gateway.uplink.meter import SAVE_EVERY_S, Meter
from gateway.uplink.plain import PlainSession
from gateway.uplink.ports import Commands, Outbox
from gateway.uplink.reactions import Reaction
from gateway.uplink.servertime import ServerTime
from gateway.uplink.session import Carrier, Self, Session
from gateway.uplink.watch import Watch

LIVE_FIRST_RECORDS: Final = 200
LIVE_FIRST_AGE_S: Final = 5.0
LIVE_FIRST_EVERY_S: Final = 60.0
STATS_EVERY_S: Final = 60.0
LOOK_AT_FILES_EVERY_S: Final = 10.0
_log = logging.getLogger(__name__)


class About(NamedTuple):
    """What the cloud side is told of this gateway."""

    software: str
    devices: Mapping[str, Mapping[str, str]] = {}
    """Device → tags."""
    writable: Mapping[str, Sequence[str]] = {}
    """Device → points that accept a write."""
    stats: Callable[[], dict[str, Json]] = dict
    """Once a minute."""
    name: str = ""
    """Of this gateway, for endpoints that do not know it from the handshake."""


class _Trouble:
    """The failures of one endpoint, told once and then counted."""

    def __init__(self) -> None:
        self.reason = ""
        self.count = 0
        self.since = 0.0


class Uplink:
    """See the module. `run` for ever; `random` gives numbers in [0, 1)."""

    def __init__(
        self,
        settings: UplinkSettings,
        outbox: Outbox,
        commands: Commands,
        clock: Clock,
        about: About,
        random: Callable[[], float] = _random.random,
        state_dir: Path | None = None,
    ) -> None:
        self._endpoints = settings.endpoint
        self._outbox = outbox
        self._commands = commands
        self._clock = clock
        self._about = about
        self._process = secrets.token_hex(16)
        self._manifest = Manifest()
        self._failover = Failover([e.metered for e in settings.endpoint], settings.standby, random)
        self._carriers: dict[int, Carrier] = {}
        self._active: Carrier | None = None
        self._before: Carrier | None = None
        """The active one waits until this one, of another sink, has nothing in flight."""
        self._active_since = clock.monotonic()
        self._held: dict[str, dict[int, int]] = {}
        """Stream → connection → number up to which it has the stream in flight."""
        self._online = self._patient = False
        self._stopping = False
        """A connection may end in the very moment in which we are told to."""
        self._sealed_at: float | None = None
        self._trouble = [_Trouble() for _ in settings.endpoint]
        self._patience_s = [0.0 for _ in settings.endpoint]
        """Endpoint → how long its next session waits for the first ack, when the last one waited in vain."""
        self._meter = Meter(settings.endpoint, state_dir, clock.monotonic())
        self._server_time = ServerTime() if settings.use_server_time else None
        self._watches = [Watch(each) for each in settings.endpoint]
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Until cancelled; then every session says bye."""
        self._outbox.listen(self._wake)
        self._commands.listen(self._wake_results)
        self._outbox.online(False)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._report_stats(), name="uplink stats")
                self._tasks.create_task(self._keep_budgets(), name="uplink budgets")
                try:
                    await self._keep_time()
                finally:
                    self._stopping = True
        finally:
            self._outbox.online(False)
            self._meter.close(self._clock.monotonic())

    async def _keep_time(self) -> None:
        while True:
            now = self._clock.monotonic()
            utc_s = self._utc_s()
            for index, watch in enumerate(self._watches):
                self._act(self._failover.renewed(index, watch.look(utc_s), now))
            self._act(self._failover.tick(now))
            self._hold_to_budgets(now, utc_s)
            at_work = [stream for carrier in self._carriers.values() for stream in carrier.session.streams]
            self._manifest.keep({*self._outbox.holds(), *self._held, *at_work})
            self._manifest.learn(self._outbox.offers())  # before one is sealed that no session has seen open
            self._changed.clear()  # nothing was awaited above: whatever has set it is in this deadline
            deadline = self._failover.deadline(now)
            wait_s = LOOK_AT_FILES_EVERY_S if deadline is None else min(deadline - now, LOOK_AT_FILES_EVERY_S)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _hold_to_budgets(self, now: float, utc_s: float | None) -> None:
        for index, spending in self._meter.look(now, None if utc_s is None else int(utc_s * 1000)).items():
            if self._failover.state(index).spending is spending:
                continue
            self._act(self._failover.spent(index, spending, now))
            for carrier in self._carriers.values():
                if carrier.endpoint is self._endpoints[index]:
                    carrier.allow(readings=spending is Spending.WITHIN)
        self._tell_buffer()

    async def _keep_budgets(self) -> None:
        """By itself: a disk that hangs holds up no connection."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self._meter.keep(self._clock.monotonic())

    def _utc_s(self) -> float | None:
        """None while nobody knows it."""
        clock = self._clock.state()
        return None if clock.trust is Trust.UNSYNCED else self._clock.boot_ns() / 1e9 + clock.offset_ms / 1e3

    async def _report_stats(self) -> None:
        while True:
            await asyncio.sleep(STATS_EVERY_S)
            if self._active is not None:
                self._active.stats(self._about.stats())

    # ── what the state machine wants ─────────────────────────────────────────────────────────────────────────────

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Connect(number, index, standby):
                    self._connect(number, index, standby)
                case Activate(number):
                    self._activate(self._carriers[number])
                case Retire(number, reason):
                    self._retire(self._carriers[number], reason)
        self._tell_buffer()
        self._changed.set()

    def _connect(self, number: int, index: int, standby: bool) -> None:
        if self._stopping:
            return
        endpoint = self._endpoints[index]
        about: dict[str, Json] = {"devices": self._about.devices, "writable": self._about.writable}
        carrier = Carrier(
            number,
            endpoint,
            self._session(index, standby),
            standby,
            self._outbox,
            self._commands,
            self._clock,
            Self(self._process, self._about.software, about),
            self,
        )
        carrier.readings = self._failover.state(index).spending is Spending.WITHIN
        self._carriers[number] = carrier
        self._tasks.create_task(self._carry(carrier, index), name=f"uplink to {endpoint.label}")

    def _session(self, index: int, standby: bool) -> Session:
        endpoint = self._endpoints[index]
        watch = SessionWatch(endpoint.ping_s, self._patience_s[index])
        if endpoint.protocol is Speech.GATEWAY:
            return ClientSession(self._manifest, endpoint.label, standby, watch)
        ack = JsonPath.of(endpoint.ack.path) if isinstance(endpoint.ack, AckPath) else endpoint.ack
        return PlainSession(self._manifest, endpoint.url, self._about.name, ack, watch)

    async def _carry(self, carrier: Carrier, index: int) -> None:
        reaction = await carrier.run()
        del self._carriers[carrier.number]
        for stream in [stream for stream, held in self._held.items() if carrier.number in held]:
            self.hold(carrier.number, stream, 0)
        if carrier is self._active:
            self._active = None
            self._active_since = self._clock.monotonic()
        self._hand_over()
        if carrier.session.suspect:
            self._patience_s[index] = carrier.session.ack_timeout_s + ABANDON_AFTER_S
        if not carrier.retired:
            self._tell_failure(index, reaction)
        self._act(self._failover.failed(carrier.number, reaction, carrier.version, self._clock.monotonic()))

    def _activate(self, carrier: Carrier) -> None:
        if self._active is carrier:
            return  # it was suspect, and nobody had taken over
        # one that has not begun has nothing in flight, but the one that it waits for has
        before, self._active = self._before or self._active, carrier
        self._active_since = self._clock.monotonic()
        _log.info("uplink: sending to %s, %s", carrier.endpoint.label, promise(carrier.endpoint))
        if before is not None:
            before.pause()
            elsewhere = before.session.sink != carrier.session.sink and not before.session.suspect
            if elsewhere and before.session.in_flight.records:
                self._before = before  # its acks are a round trip away; sent now, what it stores would be stored twice
                return
        self._begin(carrier)

    def _begin(self, carrier: Carrier) -> None:
        self._before = None
        carrier.activate()
        carrier.stats(self._about.stats())

    def _hand_over(self) -> None:
        """As soon as what the one before had in flight has landed, or it is gone."""
        before = self._before
        if before is not None and (before.number not in self._carriers or not before.session.in_flight.records):
            self._before = None
            if self._active is not None:
                self._begin(self._active)

    def _retire(self, carrier: Carrier, reason: str) -> None:
        doing = "leaving" if carrier is self._active else "closing the spare session with"
        _log.info("uplink: %s %s: %s", doing, carrier.endpoint.label, reason)
        carrier.retire(reason)
        if carrier is self._active:
            self._active = None

    # ── what the connections tell ────────────────────────────────────────────────────────────────────────────────

    def welcomed(self, number: int, welcome: Welcomed) -> None:
        carrier = self._carriers[number]
        trouble = self._trouble[self._index(carrier)]
        if trouble.count:
            attempts = "one failed attempt" if trouble.count == 1 else f"{trouble.count} failed attempts"
            _log.info("uplink: %s is back after %s", carrier.endpoint.label, attempts)
            trouble.count = 0
        self._learn_time(carrier, welcome)
        self._act(self._failover.opened(number, welcome.sink, self._clock.monotonic(), carrier.version))

    def _learn_time(self, carrier: Carrier, welcome: Welcomed) -> None:
        if self._server_time is None or not welcome.utc_ms or not carrier.endpoint.trusted_time:
            return
        boot_s = self._clock.boot_ns() / 1e9
        heard = self._server_time.heard(self._index(carrier), welcome.utc_ms, welcome.waited_s, boot_s)
        if heard.complaint:
            _log.warning("uplink: the time of %s is not believed: %s", carrier.endpoint.label, heard.complaint)
        if heard.error_ms is not None:
            self._clock.learn(heard.offset_ms, heard.error_ms)

    def _index(self, carrier: Carrier) -> int:
        return self._endpoints.index(carrier.endpoint)

    def cost(self, number: int, size: int) -> None:
        if number in self._carriers:
            self._meter.count(self._index(self._carriers[number]), size)
            self._hold_to_budgets(self._clock.monotonic(), self._utc_s())

    def acked(self, number: int) -> None:
        self._patience_s[self._index(self._carriers[number])] = 0.0
        self._failover.acked(number, self._clock.monotonic())

    def hold(self, number: int, stream: str, upto: int) -> None:
        held = self._held.setdefault(stream, {})
        if upto:
            held[number] = upto
        else:
            held.pop(number, None)
        self._outbox.hold(stream, max(held.values(), default=0))
        if not held:
            del self._held[stream]
        self._hand_over()

    def suspect(self, number: int) -> None:
        _log.warning("uplink: acks of %s are overdue", self._carriers[number].endpoint.label)
        self._act(self._failover.suspect(number, self._clock.monotonic()))

    def recovered(self, number: int) -> None:
        _log.info("uplink: %s is no longer suspect", self._carriers[number].endpoint.label)
        self._act(self._failover.recovered(number, self._clock.monotonic()))

    def move(self, number: int, asked: MoveAsked) -> None:
        _log.info("uplink: %s asks us to move: %s", self._carriers[number].endpoint.label, asked.reason[:200])
        self._act(self._failover.move(number, asked.deadline_s, asked.spread_s, self._clock.monotonic()))

    def live_first(self) -> None:
        records, age_s = self._outbox.waiting()
        now = self._clock.monotonic()
        lately = self._sealed_at is not None and now - self._sealed_at < LIVE_FIRST_EVERY_S
        if (records > LIVE_FIRST_RECORDS or age_s > LIVE_FIRST_AGE_S) and not lately:
            self._sealed_at = now
            self._outbox.seal(Lane.LIVE)

    # ── the buffer and the commands ──────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        if self._active is not None:
            self._active.wake()

    def _wake_results(self) -> None:
        if self._active is not None:
            self._active.wake_results()

    def _tell_buffer(self) -> None:
        active = self._active
        up = active is not None and active.readings and not active.session.suspect
        patient = active is not None and active.endpoint.metered
        if (up, patient) != (self._online, self._patient):
            self._online, self._patient = up, patient
            self._outbox.online(up, patient)

    # ── for people ───────────────────────────────────────────────────────────────────────────────────────────────

    def _tell_failure(self, index: int, reaction: Reaction) -> None:
        trouble, label = self._trouble[index], self._endpoints[index].label
        if reaction.reason != trouble.reason or not trouble.count:
            _log.warning("uplink: %s: %s", label, reaction.reason)
            trouble.since = self._clock.monotonic()
        trouble.reason = reaction.reason
        trouble.count += 1

    @property
    def online(self) -> bool:
        """A session takes records at present."""
        return self._online

    def status(self) -> dict[str, Json]:
        """Where records go, and for each endpoint what is wrong and what is being done about it."""
        now = self._clock.monotonic()
        active = self._active
        records, size = active.session.in_flight if active is not None else (0, 0)
        return {
            "active": active.endpoint.label if active is not None else None,
            "since_s": round(now - self._active_since, 1),
            "rtt_ms": round(active.session.srtt_s * 1000, 1) if active is not None else None,
            "in_flight": {"records": records, "bytes": size},
            "endpoints": [self._endpoint_status(index, now) for index in range(len(self._endpoints))],
        }

    def sentence(self) -> str:
        """Where records go, in a few words."""
        if self._active is not None:
            return f"sending to {self._active.endpoint.label}"
        tried = any(trouble.count for trouble in self._trouble)
        return "no endpoint reachable" if tried else "connecting"

    def _endpoint_status(self, index: int, now: float) -> dict[str, Json]:
        state, trouble = self._failover.state(index), self._trouble[index]
        words = [each.value for each in sorted(set(state.states), key=list(State).index, reverse=True)]
        wait_s = max(0.0, state.not_before - now)
        if not words:
            words = ["resting" if state.resting else "waiting" if wait_s else "unused"]
        return {
            "name": self._endpoints[index].label,
            "url": self._endpoints[index].url,
            "promise": promise(self._endpoints[index]),
            "budget": self._meter.status(index),
            "state": ", ".join(words),
            "last_error": trouble.reason or None,
            "failures": trouble.count,
            "credentials": self._watches[index].status(),
            "next_attempt_s": round(wait_s, 1) if wait_s and not state.states else None,
        }
