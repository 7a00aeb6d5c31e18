"""What has gone wrong in the field with MQTT, and must not here. Each through a real broker.

30  an exception in a callback ends the client's thread, and nobody notices
31  a crash between receiving and storing
32  a retained old value is taken for a new one
33  a broker that restarts has lost the session, and nobody subscribes again
34  a device that tells what has changed is taken to have told all
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from conftest import Rig, eventually  # type: ignore[import-not-found]
from test_mqtt_many import UPLINK  # type: ignore[import-not-found]

from gateway.model import Status
from gateway.testing.broker import program

pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")

BOILER = {"topic": "plant/boiler", "points": [{"name": "n"}]}
POISON = {
    "not UTF-8": b"\xff\xfe{",
    "deep": b"[" * 50_000,
    "large": b"\0" * 10_000_000,
    "cut": b'{"n": 1',
    "a number beyond floats": b'{"n": 1e999}',
    "a lone surrogate": b'{"n": "\\ud800"}',
}


@pytest.mark.parametrize("form", ["json", "zigbee2mqtt", "tasmota", "value", "shelly", "ttn", "homeassistant"])
def test_row_30_no_payload_ends_the_connector_and_what_makes_no_sense_is_kept(rig: Rig, form: str) -> None:
    async def scenario() -> None:
        good = {"value": b"7", "ttn": json.dumps(UPLINK).encode()}.get(form, b'{"n": 7}')
        topic = {"shelly": "p/status/x:0", "ttn": "v3/a/devices/p/up", "homeassistant": "plant/p"}.get(form, "plant/p")
        where = "homeassistant/#" if form == "homeassistant" else topic
        connector = rig.connector({"topic": where, "format": form})
        async with rig.running(connector) as task:
            if form == "homeassistant":
                said = {"state_topic": topic, "value_template": "{{ value_json.n }}", "state_class": "measurement"}
                await rig.publish("homeassistant/sensor/p/n/config", json.dumps(said))
                await rig.publish(topic, good, retain=True)
                await eventually(lambda: rig.store.samples, "subscribed")
            for poison in POISON.values():
                await rig.publish(topic, poison)
            before = connector.status()["messages"]
            await rig.publish(topic, good)
            await eventually(lambda: connector.status()["messages"] > before, "the good one behind all the bad ones")
            await eventually(lambda: rig.store.values() and rig.store.values()[-1] is not None, "and it is read")
            assert not task.done()
            assert connector.status()["rejected"] == len(rig.poison) >= 2
            assert connector.status()["unacknowledged"] == 0, "poison does not fill the window"
            for value, status in (
                (v, s) for x in rig.store.samples for v, s in zip(x.values, x.status or (), strict=False)
            ):
                assert (value is None) == (status.quality == "bad")

    asyncio.run(scenario())


def test_row_31_what_was_not_stored_comes_again_and_what_was_is_not_told_twice(rig: Rig) -> None:
    """One of each, by hand; `test_mqtt_crash.py` and `test_mqtt_campaign.py` kill real processes thousands of times."""

    async def scenario() -> None:
        rig.store.settle_at_once = False
        async with rig.running(rig.connector(BOILER)):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "handed over, not stored")
            assert not any(rig.store.known.values())
        rig.store.die()
        rig.store.revive()
        rig.store.settle_at_once = True
        connector = rig.connector(BOILER)
        async with rig.running(connector):
            await eventually(lambda: connector.status()["redelivered_dropped"] == 1, "it comes again")
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: rig.store.values() == [1, 2], "and is not told twice")
            await eventually(lambda: not rig.store.known, "the broker knows it now")

    asyncio.run(scenario())


def test_row_32_a_retained_message_of_last_week_is_old_or_says_its_time(rig: Rig) -> None:
    async def scenario() -> None:
        week_ago = int(time.time()) - 7 * 86_400
        await rig.publish("plant/silent", '{"n": 1}', retain=True)
        await rig.publish("plant/dated", json.dumps({"n": 2, "ts": week_ago}), retain=True)
        rules = [
            {"name": "silent", "topic": "plant/silent", "points": [{"name": "n"}]},
            {"name": "dated", "topic": "plant/dated", "points": [{"name": "n"}], "timestamp": {"path": "ts"}},
        ]
        async with rig.running(rig.connector(*rules)):
            await eventually(lambda: len(rig.store.samples) == 2, "both")
            told = {sample.device: (sample.status, sample.source_ms) for sample in rig.store.samples}
            assert told == {"silent": ((Status.RETAINED,), None), "dated": (None, week_ago * 1000)}

    asyncio.run(scenario())


def test_row_33_a_broker_that_lost_the_session_is_subscribed_again(rig: Rig) -> None:
    async def scenario() -> None:
        line = rig.line(BOILER)
        async with rig.running(line()) as task:
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "before")
            rig.close()
            rig._publisher = None
            rig.broker.restart()  # its sessions are in memory only
            await eventually(task.done, "the link ends")
        async with rig.running(line()):
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: rig.store.values() == [1, 2], "after")

    asyncio.run(scenario())


# recorded from a plug of the second generation, "Notifications" of its documentation
FRAMES = [
    {"ts": 1631186545.04, "switch:0": {"id": 0, "apower": 8.9, "output": True}},
    {"ts": 1631186546.1, "switch:0": {"id": 0, "aenergy": {"by_minute": [0.1, 0, 0], "minute_ts": 1, "total": 11.679}}},
    {"ts": 1631186547.2, "switch:0": {"id": 0, "output": False, "source": "HTTP"}},
]


def test_row_34_only_what_a_frame_holds_becomes_a_reading(rig: Rig) -> None:
    async def scenario() -> None:
        points = [{"name": "power", "path": "switch:0.apower"}, {"name": "on", "path": "switch:0.output"}]
        points += [{"name": "energy", "path": "switch:0.aenergy.total"}]
        async with rig.running(rig.connector({"topic": "plug/events/rpc", "format": "shelly", "points": points})):
            for number, params in enumerate(FRAMES, start=1):
                frame = {"src": "plug", "method": "NotifyStatus", "params": params}
                await rig.publish("plug/events/rpc", json.dumps(frame))
                await eventually(lambda n=number: len(rig.store.samples) == n, "a frame")  # type: ignore[misc]
            assert [dict(zip(s.points, s.values, strict=True)) for s in rig.store.samples] == [
                {"power": 8.9, "on": True},
                {"energy": 11.679},
                {"on": False},
            ]

    asyncio.run(scenario())
