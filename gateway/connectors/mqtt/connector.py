"""The MQTT connector: subscribes, maps, emits, and acknowledges what is stored.

The promise (QoS 1): a message is acknowledged to the broker when all its samples are on disk or at the sink, and not a
moment earlier. What each message goes through:

    arrives ── no device, no point, rejected ────────────────────────────────▶ PUBACK
       │
       ├── DUP, and the ledger has seen it ── held until the ledger says settled ──▶ PUBACK (not emitted again)
       ├── DUP, and the ledger may have lost it ── marked `redelivered`, and emitted ┐
       └── emitted with its origin ────────── `settled` is called ─────────────────▶ PUBACK
                                                                                       │
                           PINGREQ after the PUBACK … PINGRESP ──▶ the ledger may forget the origin

An origin names the session (a hash of broker and client id), the packet id, and the content. A packet id that comes
without DUP is a new message, whatever the ledger holds: the broker has used the number again, so it has seen the old
PUBACK or lost the old session. When a connection ends, `run` raises LinkError; the ledger carries what must survive to
the next connector, acknowledgements do not.

What is known of devices outlives connections too (`Memory`): what they announced, which points they have, who is
offline, since when the broker is out of reach. After `offline_after` of that every point is `bad:device_offline`, told
with the attempts to connect; when the broker is back it is asked for its stored copies again.

All messages of one read are mapped together and emitted in one call; they settle together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

import msgspec

from gateway.connectors.base import Emit, Tools
from gateway.connectors.mqtt.access import default_client_id
from gateway.connectors.mqtt.acks import Acks
from gateway.connectors.mqtt.config import MqttBus, MqttDevice
from gateway.connectors.mqtt.devices import Mapped
from gateway.connectors.mqtt.frames import Publish
from gateway.connectors.mqtt.link import Link, Session, connected, subscriptions
from gateway.connectors.mqtt.memory import Memory
from gateway.connectors.mqtt.sparkplug import REBIRTH
from gateway.connectors.mqtt.tahu import Type, encode
from gateway.errors import CommandError, LinkError
from gateway.model import Json, Origin, Outcome, Sample, Status, Value, Write

log = logging.getLogger(__name__)

_TICK_S = 1.0
_BEAT_S = 30.0
_HELD_POLL_S = 0.05
"""How often the ledger is asked for messages that an earlier connection handed over: one group commit apart."""
_HELD_BACK_S = 5.0
"""Without an acknowledgement for this long the broker is held back: somebody should know."""
_USUAL_WINDOW = 20
"""A broker may send less ahead than we would take: mosquitto's default, whatever was agreed."""
_PATIENCE_S = 0.05
"""Half of that waits and nothing moves for so long: it is not left to the acks of the uplink."""
_REPEAT_S = 60.0
"""How often is told again what is bad and goes on being so."""
_MOST_TOLD = 100
"""Different reasons in the log of one connection; all are counted."""
_MOST_TOPICS = 10_000
"""Of one connection: who announces without end is not listened to without end."""
_NO_SUBSCRIBER = 0x10
"""MQTT 5.0, 3.4.2.1: accepted, and nobody has subscribed."""


class Successors:
    """Builds the connectors of one bus, one after the other."""

    def __init__(self) -> None:
        self._memory: Memory | None = None

    def __call__(self, bus: MqttBus, devices: Sequence[MqttDevice], tools: Tools, /) -> MqttConnector:
        if self._memory is None:
            self._memory = Memory(devices)
        return MqttConnector(bus, devices, tools, self._memory)


class MqttConnector:
    """One broker."""

    def __init__(self, bus: MqttBus, devices: Sequence[MqttDevice], tools: Tools, memory: Memory | None = None) -> None:
        self._bus = bus
        self._tools = tools
        self._memory = memory or Memory(devices)
        self._mapper = self._memory.mapper
        self._link: Link | None = None
        self._session: Session | None = None
        self._session_id = b""
        self._acks = Acks(tools.ledger, b"")
        self._redelivered = self._dropped = self._doubtful = 0
        self._told: set[str] = set()
        self._refused: dict[str, str] = {}
        self._announced: dict[str, None] = {}
        """Topics that devices have announced and nobody has subscribed yet."""
        self._listening: set[str] = set()
        self._news = asyncio.Event()
        self._held_back = False
        self._emits_since: float | None = None
        self._patience: asyncio.TimerHandle | None = None

    # --- the contract of a connector

    async def run(self, emit: Emit) -> None:
        """Raises LinkError. Cancelling is safe: what is not acknowledged comes again, and is recognised."""
        client_id = self._bus.client_id or default_client_id(self._bus.name)
        self._session_id = blake2b(
            f"{self._bus.host}:{self._bus.broker_port}\0{client_id}".encode(), digest_size=8
        ).digest()
        failure: LinkError | None = None
        try:
            link = await self._connect(client_id)
            async with asyncio.TaskGroup() as group:
                works = {"tick": self._tick(link), "repeat": self._repeat(emit), "widen": self._widen(link)}
                tasks = [group.create_task(work, name=f"mqtt-{self._bus.name}-{name}") for name, work in works.items()]
                try:
                    await self._pump(link, emit)
                except LinkError:
                    self._tools.beat(_BEAT_S + self._bus.connect_timeout)
                    failure = await link.diagnosed()
                finally:
                    for task in tasks:
                        task.cancel()
        except LinkError as error:
            failure = error
        finally:
            if self._link is not None:
                self._link.close()
        if failure is not None:
            await self._out_of_reach(emit)
            raise failure

    async def execute(self, write: Write) -> Value | None:
        """Publishes; done when the broker has it. Raises CommandError."""
        heard = self._mapper.devices.get(write.device)
        if heard is None:
            raise CommandError(Outcome.UNAVAILABLE, f"{write.device} has not been heard of yet")
        if write.verify:
            raise CommandError(Outcome.UNSUPPORTED, "MQTT has no read: a write cannot be verified")
        try:
            message = self._mapper.publication(heard, write.point, write.value, self._utc_ms())
        except ValueError as error:
            raise CommandError(Outcome.REJECTED, str(error)) from error
        link = self._link
        if link is None or self._session is None or link.failure is not None:
            raise CommandError(Outcome.UNAVAILABLE, "not connected to the broker")
        asked = heard.rule.device.qos
        try:
            qos = min(self._bus.qos, 1) if asked is None else asked
            code = await link.publish(message.topic, message.payload, qos, message.retain)
        except (LinkError, TimeoutError) as error:
            raise CommandError(Outcome.UNKNOWN, "the broker did not acknowledge it") from error
        if code is not None and code.is_failure:
            raise CommandError(Outcome.FAILED, f"the broker refuses it: {code}")
        if code is not None and code.value == _NO_SUBSCRIBER and not message.retain:
            raise CommandError(Outcome.UNAVAILABLE, "nobody has subscribed to this topic")
        return None

    def status(self) -> dict[str, Json]:
        now_ns = self._tools.clock.boot_ns()
        session = self._session
        return {
            "open": session is not None and self._link is not None and self._link.failure is None,
            "version": session.version if session else None,
            "messages": self._memory.messages,
            "unmatched": self._memory.unmatched,
            "rejected": self._memory.rejected,
            "last_rejects": list(self._memory.last_rejects),
            "not_read": list(self._memory.refused),
            "redelivered": self._redelivered,
            "redelivered_dropped": self._dropped,
            "redelivered_marked": self._doubtful,
            "unacknowledged": self._acks.waiting,
            "window": session.window if session else None,
            "held_back": self._held_back,
            "refused_subscriptions": dict(self._refused),
            "devices": {
                heard.id: {
                    "last_seen_s": round((now_ns - heard.last_ns) / 1e9, 3) if heard.last_ns else None,
                    "messages": heard.messages,
                    "rejected": heard.rejected,
                    "offline": heard.offline or heard.cut,
                }
                for heard in self._mapper.devices.values()
            },
        }

    # --- the connection

    async def _connect(self, client_id: str) -> Link:
        bus = self._bus
        # in the newest version, in the older one, and so many subscriptions; each within its time
        steps = 2 + subscriptions(len(self._mapper.filters))
        self._tools.beat(_BEAT_S + steps * bus.connect_timeout)
        self._link, session = await connected(bus, client_id, True, self._tools.clock.boot_ns)
        self._acks = Acks(self._tools.ledger, self._session_id)
        self._acks.connected(session.present, self._now())
        memory = self._memory
        stored = memory.cut_off or not memory.listened
        filters = self._mapper.filters
        self._listening.update(filters)
        self._refused = await self._link.subscribe(filters, min(bus.qos, 1), stored)
        self._session = session
        if memory.cut_off:
            for change in self._mapper.reachable():
                self._tools.report(*change)
        memory.gone_since, memory.cut_off, memory.listened = None, False, True
        known = "the broker kept our session" if session.present else "new session"
        log.info("%s: connected with MQTT %s, %s", bus.name, session.version, known)
        for topic, reason in self._refused.items():
            log.warning("%s: the broker refuses the subscription %s: %s", bus.name, topic, reason)
        return self._link

    async def _out_of_reach(self, emit: Emit) -> None:
        """The broker is gone, perhaps for long."""
        memory, now = self._memory, self._now()
        if memory.gone_since is None:
            memory.gone_since = now
        if now - memory.gone_since < self._bus.offline_after:
            return
        mapped = self._mapper.cut_off(self._tools.clock.boot_ns())
        memory.cut_off = True
        for change in mapped.changes:
            self._tools.report(*change)
        if mapped.samples:
            await emit(mapped.samples)

    async def _repeat(self, emit: Emit) -> None:
        """What is bad is told again; how often it is stored is the normaliser's affair."""
        while True:
            await asyncio.sleep(_REPEAT_S)
            samples = self._mapper.tick(self._tools.clock.boot_ns())
            if samples:
                await emit(samples)

    async def _widen(self, link: Link) -> None:
        """Subscribes what devices announce, in groups."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_HELD_POLL_S)
            self._news.clear()
            topics, self._announced = list(self._announced), {}
            try:
                refused = await link.subscribe(topics, min(self._bus.qos, 1), True)
            except LinkError as error:
                link.give_up(error)  # whoever receives raises it
                return
            for topic, reason in refused.items():
                self._refused[topic] = reason
                log.warning("%s: the broker refuses the subscription %s: %s", self._bus.name, topic, reason)

    async def _tick(self, link: Link) -> None:
        """Everything that time brings: keepalive, held messages, proofs, the watchdog."""
        next_s = 0.0
        while True:
            now = self._now()
            link.acknowledge(self._acks.poll(now))
            if now >= next_s:
                next_s = now + _TICK_S
                self._tools.beat(_BEAT_S)
                if self._emits_since is not None and now - self._emits_since >= _TICK_S:
                    self._acks.unread(now)
                link.tick()
                if self._acks.unproved or self._acks.exclusion_due(now):
                    link.ping(self._acks.asked(now))
                self._watch(self._acks.stalled_s(now) > _HELD_BACK_S)
            await asyncio.sleep(_HELD_POLL_S if self._acks.held else next_s - now)

    def _watch(self, held_back: bool) -> None:
        if held_back != self._held_back:
            self._held_back = held_back
            if held_back:
                log.warning("%s: nothing is stored, %d messages wait, the broker is held back", *self._waiting())
            else:
                log.info("%s: storing again, %d messages wait", *self._waiting())

    def _waiting(self) -> tuple[str, int]:
        return self._bus.name, self._acks.waiting

    # --- messages

    async def _pump(self, link: Link, emit: Emit) -> None:
        while True:
            messages = await link.receive()
            samples, origins, done = self._sort(messages)
            link.acknowledge(done)
            if not samples:
                continue
            self._emits_since = self._now()  # what comes meanwhile is not looked at
            if origins:
                self._acks.emitted(origins, self._now())
                self._bear()
                await emit(samples, settled=partial(self._settled, link, origins))
            else:
                await emit(samples)
            self._emits_since = None

    def _bear(self) -> None:
        """Brokers drop what they cannot send: when half of what they send ahead waits, it shall not wait for long."""
        if self._patience is None and self._acks.waiting * 2 >= min(self._bus.receive_maximum, _USUAL_WINDOW):
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._hurry)

    def _hurry(self) -> None:
        self._patience = None
        if self._acks.stalled_s(self._now()) >= _PATIENCE_S:
            self._tools.hurry()
        else:
            self._bear()

    def _settled(self, link: Link, origins: list[Origin]) -> None:
        now = self._now()
        if (
            link.acknowledge(self._acks.settled(origins, now))
            and len(self._acks.unproved) >= self._bus.receive_maximum / 2
        ):
            link.ping(self._acks.asked(now))

    def _now(self) -> float:
        return self._tools.clock.monotonic()

    def _sort(self, messages: list[Publish]) -> tuple[list[Sample], list[Origin], list[int]]:
        """Samples to emit, their origins, and packet ids that nothing waits for."""
        samples: list[Sample] = []
        origins: list[Origin] = []
        done: list[int] = []
        self._memory.messages += len(messages)
        for message in messages:
            origin = self._origin(message) if message.packet_id else None
            if origin is not None and self._known(message, origin):
                continue
            mapped = self._mapper.map(message.topic, message.payload, message.retained, message.at_ns, origin)
            self._memory.unmatched += not mapped.matched
            for reason in mapped.rejected:
                self._reject(reason, message)
            if mapped.subscribe or mapped.refused or mapped.rebirths:
                self._announcement(mapped)
            for device, state, why in mapped.changes:
                self._tools.report(device, state, why)
            doubtful = origin is not None and message.again and not self._tools.ledger.whole(origin.session)
            self._doubtful += doubtful
            samples += map(_redelivered, mapped.samples) if doubtful else mapped.samples
            if origin is not None:
                if mapped.samples:
                    origins.append(origin)
                else:
                    done.append(message.packet_id)
        return samples, origins, done

    def _origin(self, message: Publish) -> Origin:
        # a topic holds no NUL, so the two cannot run into each other
        digest = blake2b(b"%b\0%b" % (message.topic, message.payload), digest_size=16).digest()
        return Origin(self._session_id, message.packet_id, digest)

    def _known(self, message: Publish, origin: Origin) -> bool:
        """Whether this very message was handed over before, so that it only waits to be acknowledged."""
        ledger = self._tools.ledger
        if not message.again:
            if ledger.seen(origin):
                self._acks.reused(origin)
            return False
        self._redelivered += 1
        if self._acks.awaits(origin):
            self._dropped += 1
            return True
        if not ledger.seen(origin):
            return False
        self._dropped += 1
        self._acks.hold(origin, self._now())
        return True

    def _announcement(self, mapped: Mapped) -> None:
        """What devices say of themselves has consequences."""
        if mapped.subscribe:
            fresh = [each for each in self._mapper.uncovered(mapped.subscribe) if each not in self._listening]
            if len(self._listening) + len(fresh) > _MOST_TOPICS:
                self._refused["…"] = f"more than {_MOST_TOPICS} topics are announced"
                fresh = []
            self._listening.update(fresh)
            self._announced.update(dict.fromkeys(fresh))
            if fresh:
                self._news.set()
        for sentence in mapped.refused:
            if sentence not in self._memory.refused and len(self._memory.refused) < _MOST_TOLD:
                self._memory.refused[sentence] = None
                log.warning("%s: %s", self._bus.name, sentence)
        link = self._link
        for group, node in mapped.rebirths:
            if link is not None and link.failure is None:
                log.info("%s: %s/%s is asked for a birth", self._bus.name, group, node)
                command = encode(REBIRTH, Type.BOOLEAN, True, self._utc_ms())
                link.tell(f"spBv1.0/{group}/NCMD/{node}", command)

    def _utc_ms(self) -> int:
        clock = self._tools.clock
        return clock.boot_ns() // 1_000_000 + clock.state().offset_ms

    def _reject(self, reason: str, message: Publish) -> None:
        self._memory.rejected += 1
        self._tools.set_aside(message.topic.decode(errors="replace"), message.payload, reason)
        if reason not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(reason)
            log.warning("%s: message rejected: %s", self._bus.name, reason)
        self._memory.last_rejects.append(reason)


def _redelivered(sample: Sample) -> Sample:
    """Perhaps its second delivery. What is uncertain or bad already stays as it is."""
    said = sample.status or (Status.GOOD,) * len(sample.values)
    marked = tuple([Status.REDELIVERED if status is Status.GOOD else status for status in said])
    return msgspec.structs.replace(sample, status=marked)
