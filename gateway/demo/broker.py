"""A real mosquitto for the demo, on a free port of loopback, with a publisher beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import paho.mqtt.client as mqtt

from gateway.demo.child import until

_PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
"""Debian puts brokers where an ordinary user's PATH does not look."""
_START_S = 10.0


def find() -> str | None:
    """The path of mosquitto, or None."""
    return shutil.which("mosquitto", path=_PLACES)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """The running broker: its port, and a way to publish."""

    def __init__(self, port: int, client: mqtt.Client) -> None:
        self.port = port
        self._client = client

    def publish(self, topic: str, payload: bytes) -> None:
        """QoS 1; paho keeps it until the broker has it."""
        self._client.publish(topic, payload, qos=1)


@asynccontextmanager
async def running(program: str, folder: Path) -> AsyncIterator[Broker]:
    """Starts mosquitto, stops it at the end."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="demo-sensor")
    try:
        await until(lambda: _listens(port), _START_S, "mosquitto listens")
        await asyncio.to_thread(client.connect, "127.0.0.1", port)
        client.loop_start()
        yield Broker(port, client)
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
