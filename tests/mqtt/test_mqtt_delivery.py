"""Nothing is lost and nothing comes twice: the connector against a real broker."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Rig, eventually  # type: ignore[import-not-found]

from gateway.connectors.mqtt import acks
from gateway.connectors.mqtt import connector as connector_module
from gateway.errors import LinkError
from gateway.model import Origin

PLANT = {"topic": "plant/boiler", "points": [{"name": "n"}]}


def test_a_message_becomes_a_sample_and_is_acknowledged_when_stored(rig: Rig) -> None:
    async def scenario() -> None:
        connector = rig.connector(PLANT)
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 7, "other": 1}')
            await eventually(lambda: rig.store.values() == [7], "the sample")
            sample = rig.store.samples[0]
            assert (sample.device, sample.points, sample.status) == ("dev", ("n",), None)
            assert sample.origin is not None
            assert len(sample.origin.session) == 8
            assert len(sample.origin.fingerprint) == 16
            await eventually(lambda: not rig.store.known, "the proof, after which the ledger forgets")
            assert connector.status()["unacknowledged"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("version", "window"), [("3.1.1", 20), ("5", 30)])
def test_nothing_is_acknowledged_before_it_is_settled(rig: Rig, version: str, window: int) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        connector = rig.connector(PLANT, version=version, receive_maximum=30)
        async with rig.running(connector):
            for n in range(50):
                await rig.publish("plant/boiler", f'{{"n": {n}}}')
            await eventually(lambda: len(rig.store.samples) == window, "a full window")
            # a round trip through the broker: had it been told of one message, the next would be here
            await rig.publish("plant/boiler", '{"n": 50}')
            await asyncio.sleep(0.2)
            assert rig.store.values() == list(range(window))
            assert connector.status()["unacknowledged"] == window
            rig.store.settle_at_once = True
            rig.store.settle()
            await eventually(lambda: rig.store.values() == list(range(51)), "the rest")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_when_half_a_window_waits_the_buffer_is_asked_to_hurry(rig: Rig, version: str) -> None:
    """The broker holds a thousand messages beyond its window and drops the rest."""

    async def scenario() -> None:
        rig.store.settle_at_once = False
        hurries = 0

        def hurry() -> None:
            nonlocal hurries
            hurries += 1
            rig.store.settle()

        rig.hurry = hurry
        connector = rig.connector(PLANT, version=version)
        async with rig.running(connector):
            for n in range(9):
                await rig.publish("plant/boiler", f'{{"n": {n}}}')
            await eventually(lambda: len(rig.store.samples) == 9, "less than half a window")
            await asyncio.sleep(0.2)
            assert hurries == 0
            for n in range(9, 100):
                await rig.publish("plant/boiler", f'{{"n": {n}}}')
            await eventually(lambda: rig.store.values() == list(range(100)), "all of them, by hurrying alone")
            await eventually(lambda: hurries, "a broker with a large window sends them all before our patience ends")

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_what_was_received_but_not_handed_over_comes_again_and_is_emitted_once(rig: Rig, version: str) -> None:
    async def scenario() -> None:
        rig.store.gate.clear()
        connector = rig.connector(PLANT, version=version)
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: connector.status()["messages"] == 1, "the message is in our hands")
        assert rig.store.values() == []
        rig.store.gate.set()
        connector = rig.connector(PLANT, version=version)
        async with rig.running(connector):
            await eventually(lambda: rig.store.values() == [1], "redelivered")
            assert connector.status()["redelivered"] == 1
            assert connector.status()["redelivered_dropped"] == 0
            await eventually(lambda: not rig.store.known, "proved")

    asyncio.run(scenario())


def test_what_was_handed_over_comes_again_and_is_not_emitted_twice(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        async with rig.running(rig.connector(PLANT)):
            for n in range(5):
                await rig.publish("plant/boiler", f'{{"n": {n}}}')
            await eventually(lambda: len(rig.store.samples) == 5, "handed over")
        rig.store.die()
        connector = rig.connector(PLANT)
        async with rig.running(connector):
            await eventually(lambda: connector.status()["redelivered_dropped"] == 5, "recognised")
            # seen, and not settled: the broker must go on waiting
            assert connector.status()["unacknowledged"] == 5
            rig.store.revive()
            await eventually(lambda: connector.status()["unacknowledged"] == 0, "acknowledged once settled")
            await eventually(lambda: not rig.store.known, "proved")
        connector = rig.connector(PLANT)
        rig.store.settle_at_once = True
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 5}')
            await eventually(lambda: len(rig.store.samples) == 6, "life goes on")
            assert connector.status()["redelivered"] == 0
        assert rig.store.values() == [0, 1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_an_acknowledgement_after_the_end_of_its_connection_is_void(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        async with rig.running(rig.connector(PLANT)):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.samples, "handed over")
        rig.store.settle()
        connector = rig.connector(PLANT)
        async with rig.running(connector):
            await eventually(lambda: connector.status()["redelivered_dropped"] == 1, "the broker was not told")
            await eventually(lambda: not rig.store.known, "told now")
        assert rig.store.values() == [1]

    asyncio.run(scenario())


def test_equal_messages_are_two_messages(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)):
            for _ in range(3):
                await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1, 1, 1], "all three")

    asyncio.run(scenario())


def test_a_number_that_the_broker_uses_again_is_a_new_message(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        async with rig.running(rig.connector(PLANT, session_expiry=0)):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: len(rig.store.samples) == 1, "handed over")
        stale = dict(rig.store.known)
        connector = rig.connector(PLANT, session_expiry=0)
        async with rig.running(connector):
            assert not rig.store.known, "a new session: nothing of the old one comes again"
            rig.store.known = stale  # as if the process had died before it could say so
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: len(rig.store.samples) == 2, "same number, same content, another message")

    asyncio.run(scenario())


def test_a_broker_that_lost_its_session_is_subscribed_again(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)) as task:
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "before")
            rig.broker.kill()
            await eventually(task.done, "the connector says that its broker is gone")
            with pytest.raises(LinkError, match="the broker"):
                task.result()
        rig.broker.start()
        async with rig.running(rig.connector(PLANT)):
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: rig.store.values() == [1, 2], "after")

    asyncio.run(scenario())


def test_messages_of_the_time_between_two_connectors_wait_at_the_broker(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)):
            pass
        for n in range(30):
            await rig.publish("plant/boiler", f'{{"n": {n}}}')
        async with rig.running(rig.connector(PLANT)):
            await eventually(lambda: rig.store.values() == list(range(30)), "all of them, in order")

    asyncio.run(scenario())


def test_a_second_client_with_our_id_is_named_as_the_culprit(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT, version="5")) as first:  # noqa: SIM117 - one after the other
            async with rig.running(rig.connector(PLANT, version="5")):
                await eventually(first.done, "thrown out")
                # this broker gives no reason; the connector looks whether the broker still lives
                with pytest.raises(LinkError, match=r"session taken over\? Who else has client_id 'gw'"):
                    first.result()

    asyncio.run(scenario())


def test_a_message_that_waits_for_the_buffer_keeps_the_time_of_its_arrival(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.gate.clear()
        connector = rig.connector(PLANT)
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: connector.status()["messages"] == 1, "the first one waits")
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: connector._link._inbox, "the second one is here")
            opened_ns = rig.tools().clock.boot_ns()
            rig.store.gate.set()
            await eventually(lambda: rig.store.values() == [1, 2], "both")
            assert rig.store.samples[1].at_ns < opened_ns

    asyncio.run(scenario())


def test_a_broker_that_is_not_there_is_a_link_error(rig: Rig) -> None:
    async def scenario() -> None:
        rig.broker.stop()
        with pytest.raises(LinkError, match=r"127\.0\.0\.1"):
            await asyncio.wait_for(rig.connector(PLANT).run(rig.store.emit), 20)

    asyncio.run(scenario())


def test_quality_of_service_0_has_no_origin(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)):
            await rig.publish("plant/boiler", '{"n": 1}', qos=0)
            await eventually(lambda: rig.store.values() == [1], "the sample")
            assert rig.store.samples[0].origin is None

    asyncio.run(scenario())


def test_quality_of_service_2_arrives_once_as_1(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT, qos=2)):
            await rig.publish("plant/boiler", '{"n": 1}', qos=2)
            await eventually(lambda: rig.store.values() == [1], "the sample")
            assert rig.store.samples[0].origin is not None

    asyncio.run(scenario())


def test_a_buffer_that_asks_for_patience_stops_the_reading_and_not_the_keepalive(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.gate.clear()
        connector = rig.connector(PLANT, keepalive=1)
        async with rig.running(connector) as task:
            for n in range(2_500):
                await rig.publish("plant/boiler", f'{{"n": {n}}}', qos=0)
            await eventually(lambda: not connector._link._transport.is_reading(), "not reading any more")
            pings = rig.broker.log().count("Received PINGREQ from gw")
            # three of them take longer than the keepalive, and their answers lie unread
            await eventually(lambda: rig.broker.log().count("Received PINGREQ from gw") >= pings + 3, "pings")
            assert not task.done()
            rig.store.gate.set()
            await eventually(lambda: rig.store.values()[-1:] == [2_499], "everything came")

    asyncio.run(scenario())


def test_a_connector_that_is_kept_waiting_excludes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes again may be among that which it has not looked at."""
    monkeypatch.setattr(acks, "_ALL_AGAIN_S", 0.3)
    monkeypatch.setattr(connector_module, "_TICK_S", 0.02)

    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.samples and not rig.store.known, "the first, proved")
        session = rig.store.samples[0].origin.session
        acknowledged = Origin(session, 77, bytes(16))
        rig.store.known = {acknowledged: True}
        rig.store.gate.clear()
        async with rig.running(rig.connector(PLANT)) as task:
            await rig.publish("plant/boiler", '{"n": 2}')
            await asyncio.sleep(1.5)
            assert not task.done()
            assert acknowledged in rig.store.known
            rig.store.gate.set()
            await eventually(lambda: acknowledged not in rig.store.known, "it never came again")

    asyncio.run(scenario())
