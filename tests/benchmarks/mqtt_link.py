"""What one QoS 1 message costs on its way in: `python tests/benchmarks/mqtt_link.py [messages] [--formats]`.

Processor time of the receiving process, side by side in one run, each with a fresh mosquitto: paho's own loop as its
documentation shows it (`loop_read` on add_reader, automatic PUBACK), our link (PUBACK in groups), and the whole
connector (mapping of two points, origins, emit, settled, proof). A process of its own publishes from memory.

`--formats`: the whole connector for each convention, with payloads as the documents show them and `points = "auto"`,
beside paho, which receives the same and looks into none of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.mqtt.config import MqttBus, MqttDevice, MqttPoint
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.connectors.mqtt.link import Link, Options
from gateway.connectors.mqtt.tahu import Type, encode
from gateway.model import Origin, Sample
from gateway.settings import read
from gateway.testing.broker import Mosquitto

PAYLOAD = b'{"time": "2026-11-22T17:00:00Z", "temperature": 21.53, "humidity": 48.2, "battery": 97, "linkquality": 120}'
POINTS = (MqttPoint(name="temperature", unit="Cel"), MqttPoint(name="humidity", unit="%RH"))
DEVICES = 20


class Talk(NamedTuple):
    """How devices of one convention speak."""

    topic: str
    """Published; `{}` is the number of the device."""
    payload: bytes
    rule: dict[str, Any]
    before: tuple[tuple[str, bytes], ...] = ()
    """Said once by each device, before it is measured."""


_UPLINK = {
    "end_device_ids": {"device_id": "d", "dev_addr": "00BCB929"},
    "received_at": "2026-11-22T15:15:45.787Z",
    "uplink_message": {
        "session_key_id": "AXA50", "f_cnt": 12, "f_port": 10, "frm_payload": "AWcBNg==",
        "decoded_payload": {"temperature": 21.53, "humidity": 48.2, "battery": 97},
        "rx_metadata": [{"gateway_ids": {"gateway_id": "gtw1"}, "rssi": -35, "snr": 5.2}],
        "settings": {"data_rate": {"lora": {"bandwidth": 125000, "spreading_factor": 7}}},
        "received_at": "2026-11-22T15:15:45.123Z",
    },
}  # fmt: skip
_SHELLY = {
    "src": "plug", "dst": "plug/events", "method": "NotifyStatus",
    "params": {"ts": 1.0, "switch:0": {"id": 0, "apower": 8.9, "voltage": 230.1, "current": 0.05}},
}  # fmt: skip
_TASMOTA = {
    "Time": "2026-11-22T17:00:00", "AM2301": {"Temperature": 21.3, "Humidity": 55.1}, "TempUnit": "C",
    "ENERGY": {"Total": 12.5, "Power": 12, "Voltage": 231},
}  # fmt: skip
_AIR = {
    "state_topic": "air/{}", "value_template": "{{ value_json.temperature }}", "unit_of_measurement": "°C",
    "device": {"identifiers": ["air-{}"]},
}  # fmt: skip
_WET = {**_AIR, "value_template": "{{ value_json.humidity | round(1) }}", "unit_of_measurement": "%"}


def _announced(said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode()


TALKS = {
    "json": Talk("plant/d{}/state", PAYLOAD, {"name": "{d}", "topic": "plant/{d}/state"}),
    "json, four devices in a list": Talk(
        "plant/g{}/all",
        json.dumps([{"id": f"s{i}", "t": 21.5 + i} for i in range(4)]).encode(),
        {"name": "{g}-{id}", "topic": "plant/{g}/all", "id": "id"},
    ),
    "value": Talk("level/d{}", b"21.53", {"name": "{d}", "topic": "level/{d}", "format": "value"}),
    "zigbee2mqtt": Talk(
        "zigbee2mqtt/d{}", PAYLOAD, {"name": "{d}", "topic": "zigbee2mqtt/{d}", "format": "zigbee2mqtt"}
    ),
    "tasmota": Talk(
        "tele/d{}/SENSOR",
        json.dumps(_TASMOTA).encode(),
        {"name": "{d}", "topic": "tele/{d}/SENSOR", "format": "tasmota"},
    ),
    "shelly": Talk(
        "d{}/events/rpc",
        json.dumps(_SHELLY).encode(),
        {"name": "{d}", "topic": "{d}/events/rpc", "format": "shelly", "availability": ""},
    ),
    "shelly-gen1": Talk(
        "shellies/d{}/relay/0/power",
        b"23.51",
        {"name": "{d}", "topic": "shellies/{d}/#", "format": "shelly-gen1"},
    ),
    "esphome": Talk(
        "kitchen{}/sensor/t/state",
        b"21.53",
        {"name": "{d}", "topic": "{d}/+/+/state", "format": "esphome", "availability": ""},
    ),
    "ttn": Talk(
        "v3/app@ttn/devices/d{}/up",
        json.dumps(_UPLINK).encode(),
        {"name": "{d}", "topic": "v3/app@ttn/devices/{d}/up", "format": "ttn"},
    ),
    "sparkplug, metrics by name": Talk(
        "spBv1.0/Plant/DDATA/edge/d{}",
        encode("temperature", Type.FLOAT, 21.53, 1_795_000_000_000),
        {"name": "{d}", "topic": "spBv1.0/Plant/+/{n}/{d}", "format": "sparkplug"},
    ),
    "homeassistant": Talk(
        "air/{}",
        PAYLOAD,
        {"name": "{id}", "topic": "homeassistant/#", "format": "homeassistant"},
        (
            ("homeassistant/sensor/air{}/t/config", _announced(_AIR)),
            ("homeassistant/sensor/air{}/h/config", _announced(_WET)),
        ),
    ),
}


class Cost(NamedTuple):
    """Of one receiver."""

    name: str
    cpu_us: float
    """Processor time per message."""
    rate: float
    """Messages per second."""


def bus(port: int) -> MqttBus:
    return MqttBus(name="bench", kind="mqtt", host="127.0.0.1", tcp_port=port, client_id="bench", version="5")


def packets(count: int, topic: str = "plant/device-{}/state", payload: bytes = PAYLOAD) -> bytes:
    """PUBLISH packets of QoS 1 (MQTT 3.1.1), over 20 topics. An uplink has a number of its own: a repetition would be
    recognised as such."""
    parts = []
    for i in range(count):
        where = topic.format(i % DEVICES).encode()
        said = payload.replace(b'"f_cnt": 12', b'"f_cnt": %d' % i)
        body = len(where).to_bytes(2, "big") + where + (i % 65_535 + 1).to_bytes(2, "big") + said
        parts.append(bytes((0x32, len(body) & 0x7F | 0x80, len(body) >> 7)) + body)
    return b"".join(parts)


PUBLISHER = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from mqtt_link import TALKS, packets
talk = TALKS.get(sys.argv[4])
data = packets(count, talk.topic, talk.payload) if talk else packets(count)
with socket.create_connection(("127.0.0.1", port)) as broker:
    broker.sendall(bytes((0x10, 15)) + b"\\0\\4MQTT\\4\\2\\0\\0\\0\\3pub")
    broker.recv(4)
    sent, acked = 0, 0
    broker.setblocking(False)
    import select
    while acked < 4 * count:
        wants = [broker] if sent < len(data) else []
        readable, writable, _ = select.select([broker], wants, [])
        if writable:
            sent += broker.send(data[sent : sent + 65536])
        if readable:
            acked += len(broker.recv(65536))
"""


async def measured(name: str, port: int, count: int, seen: Callable[[], int], talk: str = "") -> Cost:
    """Publishes and waits until `seen()` says that all have come."""
    before = seen()
    cpu, wall = time.process_time(), time.perf_counter()
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUBLISHER, str(port), str(count), str(Path(__file__).parent), talk
    )
    while seen() - before < count:  # noqa: ASYNC110 - an event per message would be part of what is measured
        await asyncio.sleep(0.02)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await sender.wait()
    return Cost(name, cpu / count * 1e6, count / wall)


async def bare_paho(port: int, count: int, talk: str = "") -> Cost:
    loop = asyncio.get_running_loop()
    got = 0
    ready = loop.create_future()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="bare", clean_session=True)

    def on_message(client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        nonlocal got
        got += 1

    client.on_connect = lambda *_: client.subscribe("#", 1)
    client.on_subscribe = lambda *_: ready.set_result(None)
    client.on_message = on_message
    client.on_socket_open = lambda c, u, s: loop.add_reader(s, client.loop_read)
    client.on_socket_close = lambda c, u, s: loop.remove_reader(s)
    client.on_socket_register_write = lambda c, u, s: loop.add_writer(s, client.loop_write)
    client.on_socket_unregister_write = lambda c, u, s: loop.remove_writer(s)
    client.connect("127.0.0.1", port)
    await ready
    cost = await measured("paho's loop, automatic ack", port, count, lambda: got, talk)
    client.disconnect()
    return cost


async def our_link(port: int, count: int) -> Cost:
    got = 0
    link = Link(bus(port), Options("link", None, five=True, persistent=False), SystemClock().boot_ns)
    await link.connect()
    await link.subscribe(["plant/#"], 1)

    async def pump() -> None:
        nonlocal got
        while True:
            messages = await link.receive()
            got += len(messages)
            link.acknowledge([message.packet_id for message in messages])

    task = asyncio.create_task(pump())
    cost = await measured("our link, acks in groups", port, count, lambda: got)
    task.cancel()
    link.close()
    return cost


class Sink:
    """Takes everything and settles it in groups, as a buffer with an uplink does."""

    def __init__(self) -> None:
        self.samples = 0
        self._known: set[Origin] = set()

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        self.samples += len(samples)
        self._known.update(sample.origin for sample in samples if sample.origin)
        if settled is not None:
            asyncio.get_running_loop().call_soon(settled)

    def seen(self, origin: Origin) -> bool:
        return origin in self._known

    def settled(self, origin: Origin) -> bool:
        return True

    def whole(self, session: bytes) -> bool:
        return True

    def forget(self, origins: Sequence[Origin]) -> None:
        self._known.difference_update(origins)

    def keep_only(self, session: bytes, origins: Collection[Origin]) -> None:
        self._known.intersection_update(origins)


async def whole_connector(port: int, count: int) -> Cost:
    sink = Sink()
    tools = Tools(SystemClock(), sink, lambda seconds: None, lambda device, state, why: None)
    device = MqttDevice(name="{device}", bus="bench", topic="plant/{device}/state", points=POINTS)
    connector = MqttConnector(bus(port), [device], tools)
    task = asyncio.create_task(connector.run(sink.emit))
    while not connector.status()["open"]:  # noqa: ASYNC110 - status is all that a connector tells
        await asyncio.sleep(0.01)
    cost = await measured("whole connector", port, count, lambda: sink.samples)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return cost


RECEIVERS: tuple[Callable[[int, int], Coroutine[None, None, Cost]], ...] = (bare_paho, our_link, whole_connector)


def costs(count: int = 20_000, rounds: int = 3) -> list[Cost]:
    """The best of some rounds of each receiver, in turns, so that a noisy moment hits them all."""
    found: dict[str, Cost] = {}
    for _ in range(rounds):
        for receiver in RECEIVERS:
            with (
                tempfile.TemporaryDirectory() as folder,
                Mosquitto(Path(folder), max_queued_messages=0, max_inflight_messages=0) as broker,
            ):
                cost = asyncio.run(receiver(broker.port, count))
            if cost.name not in found or cost.cpu_us < found[cost.name].cpu_us:
                found[cost.name] = cost
    return list(found.values())


async def convention(port: int, count: int, name: str) -> Cost:
    """The whole connector with one rule of this convention."""
    talk = TALKS[name]
    sink = Sink()
    tools = Tools(SystemClock(), sink, lambda seconds: None, lambda device, state, why: None)
    rule, mistakes = read(MqttDevice, {"bus": "bench", **talk.rule})
    assert rule is not None, mistakes
    connector = MqttConnector(bus(port), [rule], tools)
    task = asyncio.create_task(connector.run(sink.emit))
    while not connector.status()["open"]:  # noqa: ASYNC110 - status is all that a connector tells
        await asyncio.sleep(0.01)
    if talk.before:
        await asyncio.to_thread(_say, port, talk)
        while not sink.samples:  # noqa: ASYNC110 - until what is announced is subscribed
            await asyncio.sleep(0.1)
    before = connector.status()["messages"]
    cost = await measured(name, port, count, lambda: connector.status()["messages"] - before, name)
    assert sink.samples >= count, f"{name}: {sink.samples} samples of {count} messages"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return cost


def _say(port: int, talk: Talk) -> None:
    """What devices announce, and a stored message of each."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="announcer")
    client.connect("127.0.0.1", port)
    client.loop_start()
    for number in range(DEVICES):
        for topic, payload in (*talk.before, (talk.topic, talk.payload)):
            said = payload.replace(b"{}", str(number).encode())
            client.publish(topic.format(number), said, 1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def formats(count: int = 20_000, rounds: int = 2) -> list[tuple[Cost, Cost]]:
    """Each convention, and paho with the same messages; the best of some rounds."""
    found = []
    for name in TALKS:
        ours, bare = [], []
        for _ in range(rounds):
            for receiver, costs_ in ((convention, ours), (bare_paho, bare)):
                with (
                    tempfile.TemporaryDirectory() as folder,
                    Mosquitto(Path(folder), max_queued_messages=0, max_inflight_messages=0) as broker,
                ):
                    costs_.append(asyncio.run(receiver(broker.port, count, name)))
        found.append((min(ours, key=lambda cost: cost.cpu_us), min(bare, key=lambda cost: cost.cpu_us)))
    return found


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--formats"]
    count = int(words[0]) if words else 20_000
    if "--formats" in sys.argv:
        print(f"{'receiving QoS 1':34}{'bytes':>7}{'CPU µs/message':>16}{'bare paho':>11}{'messages/s':>12}")
        for ours, bare in formats(count):
            size = len(TALKS[ours.name].payload)
            print(f"{ours.name:34}{size:7}{ours.cpu_us:16.1f}{bare.cpu_us:11.1f}{ours.rate:12,.0f}")
        return
    print(f"{'receiving QoS 1, 107-byte JSON':34}{'CPU µs/message':>16}{'messages/s':>12}")
    for cost in costs(count):
        print(f"{cost.name:34}{cost.cpu_us:16.1f}{cost.rate:12,.0f}")


if __name__ == "__main__":
    main()
