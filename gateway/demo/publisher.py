"""The demo's publisher: what a sensor does with a broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Publisher:
    """QoS 1; paho keeps a message until the broker has it."""

    def __init__(self, client: mqtt.Client) -> None:
        self._client = client

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)


@contextmanager
def publisher(port: int) -> Iterator[Publisher]:
    """Connected while the block runs."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="demo-sensor")
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield Publisher(client)
    finally:
        client.disconnect()
        client.loop_stop()
