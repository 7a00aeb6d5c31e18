"""A broker that is gone, and payloads that make no sense: what a person is told."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Rig, eventually  # type: ignore[import-not-found]

from gateway.clock import SystemClock
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.errors import LinkError
from gateway.model import DeviceState, Status
from gateway.testing.broker import program

needs_broker = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")
BOILER = {"name": "boiler", "topic": "plant/boiler", "points": [{"name": "n"}]}
OFFLINE = (Status.DEVICE_OFFLINE,)


async def attempt(connector: MqttConnector, rig: Rig) -> None:
    """One try to connect, as the supervisor makes them."""
    with pytest.raises(LinkError):
        await connector.run(rig.store.emit)


@needs_broker
def test_points_of_a_broker_that_is_gone_become_bad_and_good_again_when_they_are_heard(rig: Rig) -> None:
    async def scenario() -> None:
        line = rig.line(BOILER, {"name": "{d}", "topic": "hall/{d}"}, offline_after=1.0)
        async with rig.running(line()) as task:
            await rig.publish("plant/boiler", '{"n": 1}')
            await rig.publish("hall/lamp", '{"w": 5}', retain=True)
            await eventually(lambda: rig.store.values() == [1, 5], "both are heard")
            rig.broker.kill()
            await eventually(task.done, "the link ends")
        assert rig.store.values() == [1, 5], "a moment is no reason"
        await asyncio.sleep(1.0)  # the outage itself
        await attempt(line(), rig)
        bad = {sample.device: (sample.points, sample.values, sample.status) for sample in rig.store.samples[2:]}
        assert bad == {"boiler": (("n",), (None,), OFFLINE), "lamp": (("w",), (None,), OFFLINE)}
        lost = [report for report in rig.reports if report[1] is DeviceState.OFFLINE]
        assert [(device, why) for device, _, why in lost] == [
            ("boiler", "the broker is out of reach"),
            ("lamp", "the broker is out of reach"),
        ]
        await attempt(line(), rig)
        assert len(rig.store.samples) == 6, "it goes on being told"
        assert len([report for report in rig.reports if report[1] is DeviceState.OFFLINE]) == 2, "but reported once"
        rig.broker.start()
        rig.close()
        rig._publisher = None
        async with rig.running(line()):
            assert [report for report in rig.reports if report[1] is DeviceState.WAITING]
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: rig.store.values("n")[-1] == 2, "the boiler speaks")
            assert rig.reports[-1][:2] == ("boiler", DeviceState.ONLINE)
            assert rig.store.samples[-1].status is None

    asyncio.run(scenario())


@needs_broker
def test_after_a_long_outage_the_stored_copies_are_asked_for_and_marked(rig: Rig) -> None:
    async def scenario() -> None:
        line = rig.line(BOILER, offline_after=1.0)
        await rig.publish("plant/boiler", '{"n": 1}', retain=True)
        first = line()
        async with rig.running(first):
            await eventually(lambda: rig.store.values() == [1], "the stored one")
        first._memory.gone_since = SystemClock().monotonic() - 5  # five seconds ago
        await first._out_of_reach(rig.store.emit)
        assert rig.store.values() == [1, None]
        async with rig.running(line()):
            await eventually(lambda: rig.store.values() == [1, None, 1], "the stored one again")
            assert rig.store.samples[-1].status == (Status.RETAINED,)
            assert not [r for r in rig.reports if r[1] is DeviceState.ONLINE], "a copy is no sign of life"

    asyncio.run(scenario())


@needs_broker
def test_a_broker_that_was_never_there_makes_configured_points_bad(rig: Rig) -> None:
    async def scenario() -> None:
        rig.broker.stop()
        line = rig.line(BOILER, offline_after=1.0)
        await attempt(line(), rig)
        assert rig.store.samples == []
        await asyncio.sleep(1.0)  # the outage itself
        await attempt(line(), rig)
        assert [sample.status for sample in rig.store.samples] == [OFFLINE]

    asyncio.run(scenario())


@needs_broker
def test_poison_is_handed_over_with_its_topic_and_its_reason(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(BOILER)):
            await rig.publish("plant/boiler", b"\xff{")
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "the good one")
        assert rig.poison == [("plant/boiler", b"\xff{", "boiler: not JSON: DecodeError")]

    asyncio.run(scenario())
