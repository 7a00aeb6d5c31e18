"""The link alone, against brokers that say what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from conftest import eventually, parsed  # type: ignore[import-not-found]

from gateway.connectors.mqtt.config import MqttBus
from gateway.connectors.mqtt.link import Link, Options
from gateway.errors import LinkError

PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"
CONNACK = b"\x20\x02\x00\x00"


class Script:
    """A broker whose every byte the test writes."""

    def __init__(self) -> None:
        self.port = 0
        self.got = b""
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_096)
        writer.write(CONNACK)
        self.writer = writer
        while data := await reader.read(4_096):
            self.got += data
        writer.close()

    def say(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)


@asynccontextmanager
async def linked(**keys: Any) -> AsyncIterator[tuple[Script, Link]]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = parsed(MqttBus, {"name": "b", "kind": "mqtt", "host": "127.0.0.1", "port": port, **keys})
    link = Link(bus, Options("me", None, five=False), lambda: 0)
    try:
        await link.connect()
        yield script, link
    finally:
        link.close()
        server.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_each_answer_settles_the_oldest_ping_whoever_sent_it() -> None:
    async def scenario() -> None:
        async with linked() as (script, link):
            answered: list[str] = []
            link._client._send_pingreq()  # paho's keepalive: older than our acknowledgements, so it proves nothing
            link.acknowledge([7])
            link.ping(lambda: answered.append("a"))
            link.acknowledge([8, 9])
            link.ping(lambda: answered.append("b"))
            sent = PINGREQ + b"\x40\x02\0\x07" + PINGREQ + b"\x40\x02\0\x08\x40\x02\0\x09" + PINGREQ
            await eventually(lambda: script.got == sent, "acknowledgements and pings in order")
            script.say(PINGRESP + b"\x30\x03\0\x01t")
            assert len(await link.receive()) == 1
            assert answered == []
            script.say(PINGRESP + b"\x30\x03\0\x01t")
            await link.receive()
            assert answered == ["a"]
            script.say(PINGRESP)
            await eventually(lambda: answered == ["a", "b"], "the second proof")

    run(scenario)


def test_messages_before_the_end_are_still_delivered_and_then_the_end() -> None:
    async def scenario() -> None:
        async with linked() as (script, link):
            script.say(b"\x30\x03\0\x01t")
            assert script.writer is not None
            script.writer.close()
            await eventually(lambda: link.failure, "the end is noticed")
            assert [message.topic for message in await link.receive()] == [b"t"]
            with pytest.raises(LinkError, match="closed the connection"):
                await link.receive()
            assert link.acknowledge([1]) is False
            with pytest.raises(LinkError):
                await link.publish("t", b"", 1, False)

    run(scenario)


def test_a_backlog_before_the_answer_to_the_subscription_does_not_lock_the_link() -> None:
    async def scenario() -> None:
        async with linked() as (script, link):
            script.say(b"\x30\x03\0\x01t" * 5_000)
            await eventually(lambda: len(link._inbox) == 5_000, "a resumed session sends at once")
            subscribing = asyncio.create_task(link.subscribe(["a"], 1))
            await eventually(lambda: script.got, "the subscription")
            script.say(b"\x30\x03\0\x01t" * 5_000 + b"\x90\x03" + script.got[2:4] + b"\x01")
            assert await subscribing == {}
            assert len(await link.receive()) == 10_000

    run(scenario)


def test_what_is_no_mqtt_ends_the_link() -> None:
    async def scenario() -> None:
        for garbage in (
            b"\xff\xff\xff\xff\xff\xff",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\x32\x03\0\x01t",
            b"\x00\x00",
        ):
            async with linked() as (script, link):
                script.say(garbage + b"\0" * 200)
                await eventually(lambda link=link: link.failure, repr(garbage))  # type: ignore[misc]

    run(scenario)


def test_a_broker_that_falls_silent_is_given_up_after_the_keepalive() -> None:
    async def scenario() -> None:
        async with linked(keepalive=1) as (script, link):
            ticks = 0
            while link.failure is None and ticks < 100:
                link.tick()
                ticks += 1
                await asyncio.sleep(0.1)
            assert link.failure is not None
            assert script.got == PINGREQ, "asked once, and nobody answered"

    run(scenario)


def test_a_subscription_that_nobody_answers_is_a_link_error() -> None:
    async def scenario() -> None:
        async with linked(connect_timeout=0.3) as (_, link):
            with pytest.raises(LinkError, match="subscription"):
                await link.subscribe(["a"], 1)

    run(scenario)
