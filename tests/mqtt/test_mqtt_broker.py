"""How the connector meets brokers: versions, TLS, passwords, refusals, poison, retained messages, writes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import trustme
from conftest import Rig, eventually  # type: ignore[import-not-found]

from gateway.connectors.mqtt.access import default_client_id
from gateway.errors import CommandError, LinkError
from gateway.model import DeviceState, Outcome, Status, Write
from gateway.testing.broker import Mosquitto, program

PLANT = {"topic": "plant/boiler", "points": [{"name": "n"}]}
pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("asked", "spoken"), [("auto", "5"), ("5", "5"), ("3.1.1", "3.1.1")])
def test_versions(rig: Rig, asked: str, spoken: str) -> None:
    async def scenario() -> None:
        connector = rig.connector(PLANT, version=asked)
        async with rig.running(connector):
            assert connector.status()["version"] == spoken
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "the sample")

    run(scenario)


@asynccontextmanager
async def old_broker(port: int, hangs_up: bool) -> Any:
    """A real broker behind a door that knows nothing newer than MQTT 3.1.1."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4_096)
        if first[8] == 5:  # the protocol level of a CONNECT with a length of one byte
            writer.write(b"" if hangs_up else b"\x20\x02\x00\x01")
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        inner_writer.write(first)
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_broker_that_refuses_version_5_is_spoken_to_in_3_1_1(rig: Rig, hangs_up: bool) -> None:
    async def scenario() -> None:
        async with old_broker(rig.broker.port, hangs_up) as port:
            connector = rig.connector(PLANT, port=port)
            async with rig.running(connector):
                assert connector.status()["version"] == "3.1.1"
                await rig.publish("plant/boiler", '{"n": 1}')
                await eventually(lambda: rig.store.values() == [1], "the sample")
            with pytest.raises(LinkError):
                await rig.connector(PLANT, port=port, version="5").run(rig.store.emit)

    run(scenario)


def test_a_broker_that_says_taken_over_is_quoted(rig: Rig) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_096)
        writer.write(b"\x20\x03\x00\x00\x00")  # CONNACK, success, no properties
        subscribe = await reader.read(4_096)
        writer.write(b"\x90\x04" + subscribe[2:4] + b"\x00\x01")
        await asyncio.sleep(0.05)
        writer.write(b"\xe0\x02\x8e\x00")  # DISCONNECT, session taken over
        await writer.drain()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LinkError, match="session taken over: another client uses our client_id 'gw'"):
            await rig.connector(PLANT, port=port).run(rig.store.emit)
        server.close()

    run(scenario)


def test_the_watchdog_is_promised_as_much_time_as_connecting_and_the_post_mortem_may_take(rig: Rig) -> None:
    async def scenario() -> None:
        promised: list[float] = []
        rig._beat = promised.append  # type: ignore[method-assign]
        connector = rig.connector(*[{"name": f"d{i}", "topic": f"t/{i}"} for i in range(250)], connect_timeout="60s")
        async with rig.running(connector) as task:
            assert promised[0] >= (2 + 3) * 60  # two versions, three packets of subscriptions
            await asyncio.to_thread(rig.broker.stop)
            await eventually(task.done, "it ended")
            assert isinstance(task.exception(), LinkError)
            assert promised[-1] >= 60

    run(scenario)


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_tls_and_password(tmp_path: Path, version: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine = authority.issue_cert("127.0.0.1")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    passwords = tmp_path / "passwords"
    passwords.write_text("gw:secret word\nsensor:x\n")
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True, timeout=20)
    (tmp_path / "password").write_text("secret word\n")
    (tmp_path / "wrong").write_text("secret\n")
    options = {"cafile": tmp_path / "ca.pem", "keyfile": tmp_path / "key.pem", "certfile": tmp_path / "cert.pem"}

    async def scenario(rig: Rig) -> None:
        rig.options |= {"username": "gw", "version": version}
        good = {"password_file": str(tmp_path / "password"), "tls": {"cafile": str(tmp_path / "ca.pem")}}
        connector = rig.connector(PLANT, **good)
        async with rig.running(connector):
            sender = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
            sender.username_pw_set("sensor", "x")
            sender.tls_set(str(tmp_path / "ca.pem"))
            await asyncio.to_thread(sender.connect, "127.0.0.1", rig.broker.port)
            sender.publish("plant/boiler", '{"n": 1}', qos=1)
            sender.loop_start()
            await eventually(lambda: rig.store.values() == [1], "the sample")
            sender.disconnect()
            sender.loop_stop()
        with pytest.raises(LinkError, match=r"(?i)not authori[sz]ed"):
            await rig.connector(PLANT, **{**good, "password_file": str(tmp_path / "wrong")}).run(rig.store.emit)
        with pytest.raises(LinkError, match=r"(?i)certificate"):
            await rig.connector(PLANT, **{**good, "tls": {}}).run(rig.store.emit)
        with pytest.raises(LinkError, match="password_file"):
            await rig.connector(PLANT, **{**good, "password_file": str(tmp_path / "none")}).run(rig.store.emit)

    async def main() -> None:
        with Mosquitto(tmp_path, allow_anonymous=False, password_file=passwords, **options) as broker:
            await scenario(Rig(broker))

    run(main)


def test_a_refused_subscription_is_told_and_the_others_work(rig: Rig) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_096)
        writer.write(b"\x20\x02\x00\x00")
        subscribe = await reader.read(4_096)
        writer.write(b"\x90\x04" + subscribe[2:4] + b"\x01\x80")
        message = b"\x00\x0cplant/boiler" + b'{"n": 1}'
        writer.write(bytes((0x30, len(message))) + message)
        await reader.read(4_096)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connector = rig.connector(PLANT, {"name": "x", "topic": "secret/#"}, port=port, version="3.1.1")
        async with rig.running(connector):
            assert connector.status()["refused_subscriptions"] == {"secret/#": "Unspecified error"}
            await eventually(lambda: rig.store.values() == [1], "the sample")
        server.close()

    run(scenario)


def test_retained_messages_are_marked_and_come_once(rig: Rig) -> None:
    async def scenario() -> None:
        await rig.publish("plant/boiler", '{"n": 1}', retain=True)
        line = rig.line(PLANT)
        async with rig.running(line()):
            await eventually(lambda: rig.store.values() == [1], "the stored message")
            assert rig.store.samples[0].status == (Status.RETAINED,)
            await rig.publish("plant/boiler", '{"n": 2}', retain=True)
            await eventually(lambda: rig.store.values() == [1, 2], "the same topic, live")
            assert rig.store.samples[1].status is None
        async with rig.running(line()):
            await rig.publish("plant/boiler", '{"n": 3}')
            await eventually(lambda: rig.store.values() == [1, 2, 3], "a resumed session: no stored message again")
        async with rig.running(rig.connector(PLANT)):
            await eventually(lambda: rig.store.values() == [1, 2, 3, 2], "another process knows nothing yet")
            assert rig.store.samples[3].status == (Status.RETAINED,)

    run(scenario)


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_poison_is_acknowledged_and_the_connector_survives(rig: Rig, version: str) -> None:
    async def scenario() -> None:
        connector = rig.connector(PLANT, version=version, receive_maximum=2)
        async with rig.running(connector) as task:
            for poison in (
                b"\xff\xfe",
                b"[" * 50_000,
                b"",
                b"\0" * 10_000_000,
                b"{",
                b'{"n": 1' + b" " * 300_000 + b"}",
            ):
                await rig.publish("plant/boiler", poison)
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "a good one after six bad ones")
            status = connector.status()
            assert status["rejected"] == 6
            assert 0 < len(status["last_rejects"]) <= 5
            assert status["devices"]["dev"]["rejected"] == 6
            assert not task.done()
        connector = rig.connector(PLANT, version=version)
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 2}')
            await eventually(lambda: rig.store.values() == [1, 2], "poison does not come again")
            assert connector.status()["redelivered"] == 0

    run(scenario)


def test_messages_without_device_or_point_do_not_fill_the_window(rig: Rig) -> None:
    async def scenario() -> None:
        rig.store.settle_at_once = False
        connector = rig.connector(
            {"name": "{d}", "topic": "plant/{d}/#", "points": [{"name": "n"}]}, receive_maximum=2, version="5"
        )
        async with rig.running(connector):
            for i in range(20):
                await rig.publish("plant/boiler/x", f'{{"other": {i}}}')
            await rig.publish("plant/boiler/x", '{"n": 1}')
            await eventually(lambda: rig.store.values() == [1], "the one with a point")
            assert rig.store.samples[0].device == "boiler"

    run(scenario)


def test_one_message_for_two_devices_is_acknowledged_once(rig: Rig) -> None:
    async def scenario() -> None:
        connector = rig.connector(
            {"name": "a", "topic": "plant/+", "points": [{"name": "n"}]},
            {"name": "b", "topic": "plant/boiler", "points": [{"name": "n"}]},
        )
        async with rig.running(connector):
            await rig.publish("plant/boiler", '{"n": 1}')
            await eventually(lambda: len(rig.store.samples) == 2, "both")
            assert rig.store.samples[0].origin == rig.store.samples[1].origin
            await eventually(lambda: not rig.store.known, "proved")
            assert connector.status()["messages"] == 1

    run(scenario)


def test_a_last_will_takes_the_device_offline(rig: Rig) -> None:
    async def scenario() -> None:
        thing = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="thing")
        thing.will_set("tele/boiler/LWT", "Offline", qos=1, retain=True)
        await asyncio.to_thread(thing.connect, "127.0.0.1", rig.broker.port, 60)
        thing.loop_start()
        thing.publish("tele/boiler/LWT", "Online", qos=1, retain=True)
        points = [{"name": "power", "path": "ENERGY.Power"}]
        async with rig.running(rig.connector({"topic": "tele/boiler/SENSOR", "format": "tasmota", "points": points})):
            thing.publish("tele/boiler/SENSOR", '{"ENERGY": {"Power": 5}}', qos=1)
            await eventually(lambda: rig.store.values() == [5], "alive")
            thing.socket().shutdown(2)  # the cable is cut: no DISCONNECT
            thing.loop_stop()
            await eventually(lambda: rig.store.values() == [5, None], "dead")
            assert rig.store.samples[1].status == (Status.DEVICE_OFFLINE,)
        assert [report[1] for report in rig.reports] == [DeviceState.ONLINE, DeviceState.OFFLINE]

    run(scenario)


def test_a_write_is_published_and_ends_with_the_brokers_acknowledgement(rig: Rig) -> None:
    point = {"name": "sp", "scale": 0.1, "write": {"min": 5, "max": 35}}

    async def scenario() -> None:
        got: list[tuple[str, bytes, bool]] = []
        machine = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="machine")
        machine.on_message = lambda c, u, m: got.append((m.topic, m.payload, m.retain))
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        machine.on_subscribe = lambda *_: loop.call_soon_threadsafe(ready.set)
        await asyncio.to_thread(machine.connect, "127.0.0.1", rig.broker.port)
        machine.loop_start()
        connector = rig.connector({"topic": "p/b", "command_topic": "p/b/set", "points": [point]})
        with pytest.raises(CommandError) as refused:
            await connector.execute(Write("dev", "sp", 21.5))
        assert refused.value.outcome is Outcome.UNAVAILABLE
        async with rig.running(connector):
            with pytest.raises(CommandError, match="nobody") as refused:
                await connector.execute(Write("dev", "sp", 21.5))
            assert refused.value.outcome is Outcome.UNAVAILABLE
            machine.subscribe("p/b/set", 1)
            await asyncio.wait_for(ready.wait(), 20)
            assert await connector.execute(Write("dev", "sp", 21.5)) is None
            await eventually(lambda: got == [("p/b/set", b"215", False)], "the machine hears of it")
            for write, outcome in (
                (Write("dev", "other", 1), Outcome.REJECTED),
                (Write("stranger", "sp", 1), Outcome.UNAVAILABLE),
                (Write("dev", "sp", 1, verify=True), Outcome.UNSUPPORTED),
            ):
                with pytest.raises(CommandError) as refused:
                    await connector.execute(write)
                assert refused.value.outcome is outcome
        machine.disconnect()
        machine.loop_stop()

    run(scenario)


def test_a_write_that_is_not_acknowledged_is_unknown(rig: Rig) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_096)
        writer.write(b"\x20\x02\x00\x00")
        subscribe = await reader.read(4_096)
        writer.write(b"\x90\x03" + subscribe[2:4] + b"\x01")
        while await reader.read(4_096):
            pass  # and never a PUBACK
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        device = {"topic": "p/b", "command_topic": "p/b/set", "points": [{"name": "sp", "write": {}}]}
        connector = rig.connector(device, port=port, version="3.1.1", write_timeout=0.2)
        async with rig.running(connector):
            with pytest.raises(CommandError) as unknown:
                await connector.execute(Write("dev", "sp", 1))
            assert unknown.value.outcome is Outcome.UNKNOWN
        server.close()

    run(scenario)


def test_the_default_client_id_is_stable_and_of_this_machine() -> None:
    assert default_client_id("hall") == default_client_id("hall")
    assert default_client_id("hall").startswith("gateway-hall")
    assert default_client_id("hall") != default_client_id("yard")


def test_the_watchdog_hears_a_beat(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.running(rig.connector(PLANT)):
            before = rig.beats
            await eventually(lambda: rig.beats > before, "a beat")

    run(scenario)
