"""What one QoS 1 message costs on its way in: `python tests/benchmarks/mqtt_link.py [messages]`.

Processor time of the receiving process, side by side in one run, each with a fresh mosquitto: paho's own loop as its
documentation shows it (`loop_read` on add_reader, automatic PUBACK), our link (PUBACK in groups), and the whole
connector (mapping of two points, origins, emit, settled, proof). A process of its own publishes from memory.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import NamedTuple

import paho.mqtt.client as mqtt

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.mqtt.config import MqttBus, MqttDevice, MqttPoint
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.connectors.mqtt.link import Link, Options
from gateway.model import Origin, Sample
from gateway.testing.broker import Mosquitto

PAYLOAD = b'{"time": "2026-11-22T17:00:00Z", "temperature": 21.53, "humidity": 48.2, "battery": 97, "linkquality": 120}'
POINTS = (MqttPoint(name="temperature", unit="Cel"), MqttPoint(name="humidity", unit="%RH"))
DEVICES = 20


class Cost(NamedTuple):
    """Of one receiver."""

    name: str
    cpu_us: float
    """Processor time per message."""
    rate: float
    """Messages per second."""


def bus(port: int) -> MqttBus:
    return MqttBus(name="bench", kind="mqtt", host="127.0.0.1", tcp_port=port, client_id="bench", version="5")


def packets(count: int) -> bytes:
    """PUBLISH packets of QoS 1 (MQTT 3.1.1), over 20 topics."""
    parts = []
    for i in range(count):
        topic = f"plant/device-{i % DEVICES:02}/state".encode()
        body = len(topic).to_bytes(2, "big") + topic + (i % 65_535 + 1).to_bytes(2, "big") + PAYLOAD
        parts.append(bytes((0x32, len(body) & 0x7F | 0x80, len(body) >> 7)) + body)
    return b"".join(parts)


PUBLISHER = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from mqtt_link import packets
data = packets(count)
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


async def measured(name: str, port: int, count: int, seen: Callable[[], int]) -> Cost:
    """Publishes and waits until `seen()` says that all have come."""
    before = seen()
    cpu, wall = time.process_time(), time.perf_counter()
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PUBLISHER, str(port), str(count), str(Path(__file__).parent)
    )
    while seen() - before < count:  # noqa: ASYNC110 - an event per message would be part of what is measured
        await asyncio.sleep(0.02)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await sender.wait()
    return Cost(name, cpu / count * 1e6, count / wall)


async def bare_paho(port: int, count: int) -> Cost:
    loop = asyncio.get_running_loop()
    got = 0
    ready = loop.create_future()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="bare", clean_session=True)

    def on_message(client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        nonlocal got
        got += 1

    client.on_connect = lambda *_: client.subscribe("plant/#", 1)
    client.on_subscribe = lambda *_: ready.set_result(None)
    client.on_message = on_message
    client.on_socket_open = lambda c, u, s: loop.add_reader(s, client.loop_read)
    client.on_socket_close = lambda c, u, s: loop.remove_reader(s)
    client.on_socket_register_write = lambda c, u, s: loop.add_writer(s, client.loop_write)
    client.on_socket_unregister_write = lambda c, u, s: loop.remove_writer(s)
    client.connect("127.0.0.1", port)
    await ready
    cost = await measured("paho's loop, automatic ack", port, count, lambda: got)
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


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{'receiving QoS 1, 107-byte JSON':34}{'CPU µs/message':>16}{'messages/s':>12}")
    for cost in costs(count):
        print(f"{cost.name:34}{cost.cpu_us:16.1f}{cost.rate:12,.0f}")


if __name__ == "__main__":
    main()
