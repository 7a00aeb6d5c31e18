"""What the libraries cost alone, in the shortest possible loop: below this no gateway built on them can come."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ingest_sqlite
import meters
import mqtt_link
import paho.mqtt.client as mqtt
from rig import Tool
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from gateway.model import ClockState, Lane, Record, RecordKind, Row, Shape, Trust
from gateway.protocol import batch
from gateway.protocol.messages import SUBPROTOCOL, encode_record
from gateway.testing.broker import Mosquitto

_CLOCK = ClockState("b" * 32, 1_700_000_000_000, 5, Trust.SYNCED)


def paho_flat_out(broker: Mosquitto, messages: int) -> mqtt_link.Cost:
    """paho's own loop, QoS 1, automatic PUBACK, messages thrown away."""
    return asyncio.run(mqtt_link.bare_paho(broker.port, messages))


def frames(count: int, readings: int) -> list[bytes]:
    """Batches as the gateway would send them: two points, 20 devices."""
    shapes = [Shape(f"device-{i:02}", ("temperature", "humidity"), ("Cel", "%RH")) for i in range(20)]
    made = []
    for seq in range(1, count + 1):
        rows = [
            Row(shapes[(seq + i) % 20], seq * 5 + i, (20 + (seq * 7 + i) % 100 / 100, 45 + seq % 50 / 10))
            for i in range(readings // 2)
        ]
        made.append(
            encode_record(Record("1" * 32, Lane.LIVE, seq, RecordKind.BATCH, batch.encode(rows, _CLOCK), readings))
        )
    return made


async def websocket_send(readings: int, count: int = 5000) -> tuple[float, float]:
    """CPU-s per 100k readings and frames/s of the WebSocket library alone, with compression, batches ready made."""
    made = frames(count, readings)
    async with (
        Tool("counting_sink.py") as sink,
        connect(f"ws://127.0.0.1:{sink.said}/", subprotocols=[Subprotocol(SUBPROTOCOL)], ping_interval=None) as link,
    ):

        async def read() -> None:
            async for _ in link:
                pass

        reader = asyncio.create_task(read())
        cpu, wall = time.process_time(), time.perf_counter()
        for frame in made:
            await link.send(frame, text=True)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        reader.cancel()
    return cpu / (count * readings) * 1e5, count / wall


class Bridge(NamedTuple):
    """paho and the WebSocket library in one loop: a ready-made frame for each message, nothing else."""

    used: list[meters.Usage]
    """In each second."""
    latencies_ms: list[float]


async def bridge(broker: Mosquitto, per_second: float, seconds: float) -> Bridge:
    """What the libraries cost and how long they take, at this pace."""
    count = int(per_second * seconds)
    made = iter(frames(count, 2))
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    ended = asyncio.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="bridge", clean_session=True)
    async with (
        Tool("counting_sink.py") as sink,
        Tool("loads.py", "publish", broker.port, count, per_second, 1) as publisher,
        connect(f"ws://127.0.0.1:{sink.said}/", subprotocols=[Subprotocol(SUBPROTOCOL)], ping_interval=None) as link,
    ):
        left = count

        def on_message(client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
            nonlocal left
            link.protocol.send_text(next(made))
            link.send_data()
            left -= 1
            if not left:
                ended.set()

        async def read() -> None:
            async for _ in link:
                pass

        client.on_connect = lambda *_: client.subscribe("plant/#", 1)
        client.on_subscribe = lambda *_: ready.set_result(None)
        client.on_message = on_message
        client.on_socket_open = lambda c, u, s: loop.add_reader(s, client.loop_read)
        client.on_socket_close = lambda c, u, s: loop.remove_reader(s)
        client.on_socket_register_write = lambda c, u, s: loop.add_writer(s, client.loop_write)
        client.on_socket_unregister_write = lambda c, u, s: loop.remove_writer(s)
        client.connect("127.0.0.1", broker.port)
        await ready
        reader = asyncio.create_task(read())
        said = asyncio.create_task(publisher.ask())
        await asyncio.sleep(0.5)
        used = await meters.by_the_second(os.getpid(), seconds - 1)
        await ended.wait()
        sent = (await said)["sent"]
        arrived = [at for at, _, _ in await sink.ask()]
        reader.cancel()
        client.disconnect()
    return Bridge(used, [(there - here) * 1000 for here, there in zip(sent, arrived, strict=True)])


def sqlite_insert(per_commit: int, readings: int = 100_000) -> float:
    """Rows per second through a bare `executemany`, WAL, synchronous=FULL."""
    rows: list[tuple[object, ...]] = [
        (i + 1, i % 40, 1_700_000_000_000 + i, 20 + i % 100 / 10, 0, 0) for i in range(readings)
    ]
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder:
        began = time.perf_counter()
        ingest_sqlite.floor(Path(folder), rows, per_commit)
        return readings / (time.perf_counter() - began)
