"""One network connection to a broker, from CONNECT to the end. With `sockets`, all that knows paho.

paho does what is rare and intricate: connecting, properties and reason codes of both versions, subscribing,
publishing, keepalive. Its "socket" is ours: asyncio owns the real one (TLS and name resolution never block), `Cutter`
takes the messages out of each read of up to 256 KiB and only the other packets go through paho. Everything that is to
be sent during one turn of the event loop leaves in one write. No thread.

A link lives once: after an error every method raises LinkError, and a new link resumes the session. Acknowledgements
of an old link are void: the broker sends those messages again, and whoever holds the ledger knows them by then.

Proof. The broker works off our packets in order, so the answer to a PINGREQ proves that it has seen every PUBACK sent
before. paho pings too, when the line is quiet; answers come in the order of the questions, so all pings, ours and
paho's, take a place in one queue, and each answer settles the oldest.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.connectors.hosts import UNREACHABLE, unanswered, unreachable
from gateway.connectors.mqtt.access import context, password
from gateway.connectors.mqtt.config import MqttBus
from gateway.connectors.mqtt.frames import PING, PINGREQ, Cutter, Publish, pubacks
from gateway.connectors.mqtt.sockets import Client, Wire
from gateway.errors import DecodeError, LinkError

_MAX_INBOX = 2_000
_MAX_INBOX_BYTES = 8_388_608  # 8 MiB: a few of the largest messages, or thousands of the usual ones
"""Above either the socket is not read: the broker keeps what it has for us."""
_FILTERS = 100
"""Of one subscription: brokers limit the size of a packet."""
_UNSUPPORTED_VERSION = "Unsupported protocol version"
_TAKEN_OVER = "Session taken over"


class Refused(LinkError):
    """The broker does not speak this version of the protocol."""


class _HungUp(LinkError):
    """The connection ended without a word."""


class Session(NamedTuple):
    """What the broker said to our CONNECT."""

    present: bool
    """It still knows us: un-acknowledged messages come again."""
    window: int
    """Messages that it sends ahead of our acknowledgements."""
    version: str


class Options(NamedTuple):
    """What differs between a connector's link and a scan's."""

    client_id: str
    password: str | None
    five: bool
    persistent: bool = True


def _nothing() -> None:
    """A ping that proves nothing that anybody waits for."""


class Link(asyncio.Protocol):
    """One connection. Use: `session = await connect(…)`, then `receive` in a loop; `close` at the end."""

    def __init__(self, bus: MqttBus, options: Options, boot_ns: Callable[[], int]) -> None:
        self._bus = bus
        self._options = options
        self._boot_ns = boot_ns
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket
        self._cutter = Cutter(properties=options.five)
        self._out: list[bytes] = []
        self._pings: deque[Callable[[], None]] = deque()
        self._inbox: list[Publish] = []
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._paused = False
        self._subscribed = False
        """Until then nobody receives: who stops reading now never reads the SUBACK behind a backlog."""
        self._failure: LinkError | None = None
        self._connack: asyncio.Future[Session] = self._loop.create_future()
        self._subacks: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._publishes: dict[int, asyncio.Future[ReasonCode]] = {}
        self._last_ping = self._loop.time()
        version = MQTTProtocolVersion.MQTTv5 if options.five else MQTTProtocolVersion.MQTTv311
        clean: dict[str, Any] = {} if options.five else {"clean_session": not options.persistent}
        wire = Wire(self._queue, self._hang_up)
        self._client = Client(wire, client_id=options.client_id, protocol=version, **clean)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message

    # --- for the connector

    @property
    def failure(self) -> LinkError | None:
        """Why the link ended; None while it lives."""
        return self._failure

    async def connect(self) -> Session:
        """Raises LinkError, Refused; closed then, as when cancelled."""
        bus = self._bus
        session = None
        try:
            async with asyncio.timeout(bus.connect_timeout):
                await self._loop.create_connection(lambda: self, bus.host, bus.broker_port, ssl=context(bus))
                self._hello()
                session = await asyncio.shield(self._connack)
                return session
        except TimeoutError as error:
            raise unanswered(bus.host, bus.broker_port, bus.connect_timeout) from error
        except UNREACHABLE as error:
            raise unreachable(bus.host, bus.broker_port, error) from error
        finally:
            if session is None:
                self.close()

    async def subscribe(self, filters: Sequence[str], qos: int, stored: bool = False) -> dict[str, str]:
        """Returns the filters that the broker refused, with its reason. `stored`: what is retained comes in any case,
        not with a new subscription only (with MQTT 3.1.1 it always does)."""
        refused: dict[str, str] = {}
        self._resume()  # a SUBACK behind a backlog that nobody reads would never come
        for i in range(0, len(filters), _FILTERS):
            some = filters[i : i + _FILTERS]
            answer: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
            if self._options.five:
                new, always = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB, SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
                kind = always if stored else new
                _, mid = self._client.subscribe([(f, SubscribeOptions(qos=qos, retainHandling=kind)) for f in some])
            else:
                _, mid = self._client.subscribe([(each, qos) for each in some])
            if mid is None:
                raise self._gone()
            self._subacks[mid] = answer
            try:
                async with asyncio.timeout(self._bus.connect_timeout):
                    codes = await answer
            except TimeoutError as error:
                raise LinkError("the broker does not answer a subscription") from error
            refused |= {each: str(code) for each, code in zip(some, codes, strict=True) if code.is_failure}
        self._subscribed = True
        return refused

    async def receive(self) -> list[Publish]:
        """What came since the last call, at least one message, in order. Cancelling loses nothing. Raises LinkError."""
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        messages, self._inbox, self._inbox_bytes = self._inbox, [], 0
        self._resume()
        return messages

    def _resume(self) -> None:
        if self._paused and self._transport is not None and self._failure is None:
            self._paused = False
            self._transport.resume_reading()

    def acknowledge(self, packet_ids: list[int]) -> bool:
        """PUBACKs, in this order. False: the link is gone, and they are void."""
        if self._failure is not None:
            return False
        if packet_ids:
            self._queue(pubacks(packet_ids))
        return True

    def ping(self, answered: Callable[[], None]) -> None:
        """`answered` is called when the broker proves that it has worked off all that was sent before."""
        if self._failure is None:
            self._queue(PING, answered)

    def tell(self, topic: str, payload: bytes) -> None:
        """Publishes with QoS 0: nobody waits for it."""
        if self._failure is None:
            self._client.publish(topic, payload, 0)

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> ReasonCode | None:
        """Returns the broker's reason code; None for QoS 0. Raises LinkError, TimeoutError."""
        if self._failure is not None:
            raise self._failure
        info = self._client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"not published: {mqtt.error_string(info.rc)}")
        if qos == 0:
            return None
        answer: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._publishes[info.mid] = answer
        try:
            async with asyncio.timeout(self._bus.write_timeout):
                return await answer
        finally:
            self._publishes.pop(info.mid, None)

    async def diagnosed(self) -> LinkError:
        """Why the link ended, with a second look where the broker gave no reason.

        mosquitto 2.0 says nothing to a client whose session another client takes over; it just closes. A broker that
        closes one connection and accepts the next is alive, and meant it.
        """
        failure = self._failure or LinkError("the broker is gone")
        if not isinstance(failure, _HungUp):
            return failure
        try:
            async with asyncio.timeout(self._bus.connect_timeout):
                _, writer = await asyncio.open_connection(self._bus.host, self._bus.broker_port)
        except (OSError, TimeoutError):
            return failure
        writer.close()
        whose = self._options.client_id
        return LinkError(f"the broker closed the connection: session taken over? Who else has client_id {whose!r}?")

    def tick(self) -> None:
        """Keepalive; call it about once a second."""
        if self._failure is not None:
            return
        if not self._paused:
            self._client.loop_misc()
        elif self._loop.time() - self._last_ping > self._bus.keepalive / 2:
            # while we do not read we cannot see an answer, but the broker shall not think that we are gone
            self._queue(PING)

    def give_up(self, failure: LinkError) -> None:
        """The end, for a reason that the link itself does not see."""
        self._fail(failure)

    def close(self) -> None:
        """Says good-bye; the session stays for as long as the broker keeps it."""
        if self._failure is None and self._client.is_connected():
            self._client.disconnect()
        self._fail(LinkError("closed"))

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        # Brokers leave Nagle's algorithm on: the next message waits until TCP acknowledges this one. Our PUBACK takes
        # as long as the way to the sink and back, and the kernel alone would wait 40 ms. Linux forgets this option.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            cut = self._cutter.feed(data, self._boot_ns())
        except DecodeError as error:
            self._fail(LinkError(f"the broker sends no MQTT: {error}"))
            return
        if cut.others:
            self._client.wire.inbound += cut.others
            while self._client.wire.inbound and self._client.socket() is not None:
                self._client.loop_read()
            if self._failure is None and self._client.want_write():
                self._client.loop_write()
        for _ in range(cut.pongs):
            if self._pings:
                self._pings.popleft()()
        if cut.messages:
            self._inbox += cut.messages
            self._inbox_bytes += sum(len(message.payload) for message in cut.messages)
            self._arrived.set()
            full = len(self._inbox) > _MAX_INBOX or self._inbox_bytes > _MAX_INBOX_BYTES
            # a SUBACK is waited for at the end of a backlog, but not of any backlog
            waits = self._subacks and self._inbox_bytes <= 4 * _MAX_INBOX_BYTES
            if (
                full
                and self._subscribed
                and not waits
                and not self._paused
                and self._transport is not None
                and self._failure is None
            ):
                self._paused = True
                self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        text = f"the broker is gone: {error}" if error else "the broker closed the connection"
        # an old broker hangs up on a CONNECT that it does not understand
        self._fail(_HungUp(text) if self._connack.done() else Refused(text))

    # --- paho's side

    def _hello(self) -> None:
        bus, options = self._bus, self._options
        if bus.username is not None:
            self._client.username_pw_set(bus.username, options.password)
        properties = None
        if options.five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.ReceiveMaximum = bus.receive_maximum
            if options.persistent:
                properties.SessionExpiryInterval = int(bus.session_expiry)
        self._client.connect_async(
            bus.host,
            bus.broker_port,
            int(bus.keepalive),
            clean_start=not options.persistent if options.five else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        self._client.reconnect()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            kind = Refused if str(reason) == _UNSUPPORTED_VERSION else LinkError
            self._fail(kind(f"the broker refuses us: {reason}"))
        elif not self._connack.done():
            five = self._options.five
            window = self._bus.receive_maximum if five else 20  # mosquitto's default, and a common one
            self._connack.set_result(Session(flags.session_present, window, "5" if five else "3.1.1"))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server and str(reason) == _TAKEN_OVER:
            whose = self._options.client_id
            self._fail(LinkError(f"session taken over: another client uses our client_id {whose!r}"))
        else:
            self._fail(LinkError(f"the broker ends the connection: {reason}"))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, codes: list[ReasonCode], properties: Any) -> None:
        answer = self._subacks.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(codes)

    def _on_publish(self, client: Any, userdata: Any, mid: int, code: ReasonCode, properties: Any) -> None:
        answer = self._publishes.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(code)

    def _on_message(self, client: Any, userdata: Any, message: mqtt.MQTTMessage) -> None:
        """QoS 2, which we never subscribe with: left over from another life of this session. paho has answered it."""
        topic = message._topic
        self._inbox.append(Publish(topic, bytes(message.payload), 0, message.dup, message.retain, self._boot_ns()))
        self._arrived.set()

    def _gone(self) -> LinkError:
        return self._failure or LinkError("the broker is gone")

    def _queue(self, data: bytes, answered: Callable[[], None] = _nothing) -> None:
        if data[0] == PINGREQ:
            self._last_ping = self._loop.time()
            self._pings.append(answered)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _hang_up(self) -> None:
        """paho closes its socket; what it said last shall still go out."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _fail(self, failure: LinkError) -> None:
        """The end, once: everybody who waits hears of it."""
        if self._failure is not None:
            return
        self._failure = failure
        self._arrived.set()
        if not self._connack.done():
            self._connack.set_exception(failure)
            self._connack.exception()  # it is no scandal when nobody waits any more
        waiting: list[asyncio.Future[Any]] = [*self._subacks.values(), *self._publishes.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(failure)
        self._hang_up()


def subscriptions(filters: int) -> int:
    """How many packets, each answered within `connect_timeout`, so many filters take."""
    return -(-filters // _FILTERS)


async def connected(bus: MqttBus, client_id: str, persistent: bool, boot_ns: Callable[[], int]) -> tuple[Link, Session]:
    """A link in the newest version that configuration and broker allow; `boot_ns` stamps what arrives.

    Raises LinkError; cancelling is safe.
    """
    secret = password(bus)
    link = Link(bus, Options(client_id, secret, bus.version != "3.1.1", persistent), boot_ns)
    try:
        return link, await link.connect()
    except Refused:
        if bus.version != "auto":
            raise
    link = Link(bus, Options(client_id, secret, False, persistent), boot_ns)
    return link, await link.connect()
