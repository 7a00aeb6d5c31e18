"""What waits in a link is bounded: a broker that sends faster than we take is not read any further."""

from __future__ import annotations

import asyncio

import pytest
from conftest import eventually  # type: ignore[import-not-found]
from test_mqtt_link import linked, run  # type: ignore[import-not-found]

from gateway.connectors.mqtt import link as link_module

SMALL, LARGE = b"\x30\x03\0\x01t", b"\x30\x83\x80\x04\0\x01t" + bytes(65_536)
CHUNK = 256 * 1024
"""What asyncio reads at once."""


@pytest.mark.parametrize(
    ("packet", "count", "most"),
    [
        pytest.param(SMALL, 400_000, link_module._MAX_INBOX + CHUNK // len(SMALL), id="by number"),
        pytest.param(LARGE, 600, link_module._MAX_INBOX_BYTES // 65_536 + CHUNK // 65_536 + 1, id="by bytes"),
    ],
)
def test_what_nobody_takes_stays_with_the_broker_and_comes_whole_when_it_is_taken(
    packet: bytes, count: int, most: int
) -> None:
    async def scenario() -> None:
        async with linked() as (script, link):
            subscribing = asyncio.create_task(link.subscribe(["t"], 1))
            await eventually(lambda: script.got, "the subscription")
            script.say(b"\x90\x03" + script.got[2:4] + b"\x01")
            await subscribing
            for _ in range(count // 100):
                script.say(packet * 100)
            await eventually(lambda: link._paused, "it stops reading")
            held = len(link._inbox)
            await asyncio.sleep(0.2)
            assert len(link._inbox) == held <= most
            taken = 0
            while taken < count:
                messages = await link.receive()
                assert len(messages) <= most
                taken += len(messages)
            assert taken == count

    run(scenario)
