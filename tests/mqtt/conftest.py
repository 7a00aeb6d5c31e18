"""A real broker, and a small honest buffer: it keeps samples, and settles when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.mqtt.config import MqttBus, MqttDevice
from gateway.connectors.mqtt.connector import MqttConnector, Successors
from gateway.model import DeviceState, Origin, Sample, Value
from gateway.settings import read
from gateway.testing.broker import Mosquitto, program

pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")


class Store:
    """Buffer and ledger in memory. It outlives connectors, as the real one outlives processes."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.known: dict[Origin, bool] = {}
        """Origin → settled."""
        self.settle_at_once = True
        self.is_whole = True
        self.gate = asyncio.Event()
        """Cleared: `emit` asks for patience."""
        self.gate.set()
        self._open: list[tuple[list[Origin], Callable[[], None]]] = []

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        await self.gate.wait()
        self.samples += samples
        origins = list(dict.fromkeys(sample.origin for sample in samples if sample.origin is not None))
        assert bool(origins) == (settled is not None)
        for origin in origins:
            assert origin not in self.known, "a message was handed over twice"
            self.known[origin] = False
        if settled is not None:
            self._open.append((origins, settled))
        if self.settle_at_once:
            self.settle()

    def settle(self) -> None:
        """All that waits is on disk now."""
        waiting, self._open = self._open, []
        for origins, settled in waiting:
            for origin in origins:
                self.known[origin] = True
            settled()

    def die(self) -> None:
        """The process is gone: nobody is told any more. What was handed over survives."""
        self._open = []

    def revive(self) -> None:
        """The next process has delivered what the ring held."""
        self.known = dict.fromkeys(self.known, True)

    def seen(self, origin: Origin) -> bool:
        return origin in self.known

    def settled(self, origin: Origin) -> bool:
        return self.known[origin]

    def whole(self, session: bytes) -> bool:
        return self.is_whole

    def forget(self, origins: Sequence[Origin]) -> None:
        for origin in origins:
            self.known.pop(origin, None)

    def keep_only(self, session: bytes, origins: Collection[Origin]) -> None:
        kept = set(origins)
        self.known = {o: done for o, done in self.known.items() if o.session != session or o in kept}

    def values(self, point: str | None = None) -> list[Value | None]:
        """The values in the order of arrival, of one point or of all."""
        pairs = [(n, v) for s in self.samples for n, v in zip(s.points, s.values, strict=True)]
        return [value for name, value in pairs if point in (None, name)]


class Rig:
    """A broker, a publisher, and connectors as the test wants them."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.store = Store()
        self.reports: list[tuple[str, DeviceState, str]] = []
        self.beats = 0
        self.poison: list[tuple[str, bytes, str]] = []
        """Where, payload, why."""
        self.hurry: Callable[[], None] = lambda: None
        self.options: dict[str, Any] = {"client_id": "gw"}
        self._publisher: mqtt.Client | None = None

    def connector(self, *devices: dict[str, Any], **bus: Any) -> MqttConnector:
        """The first of a process."""
        return self.line(*devices, **bus)()

    def line(self, *devices: dict[str, Any], **bus: Any) -> Callable[[], MqttConnector]:
        """Builds the connectors of one process, one after the other."""
        raw = {"name": "broker", "kind": "mqtt", "host": "127.0.0.1", "port": self.broker.port, **self.options, **bus}
        config, things, build = parsed(MqttBus, raw), [device(**each) for each in devices], Successors()
        return lambda: build(config, things, self.tools())

    def tools(self) -> Tools:
        return Tools(
            SystemClock(),
            self.store,
            self._beat,
            lambda *report: self.reports.append(report),
            self._hurry,
            set_aside=lambda *poison: self.poison.append(poison),
        )

    def _hurry(self) -> None:
        self.hurry()

    def _beat(self, seconds: float) -> None:
        self.beats += 1

    @asynccontextmanager
    async def running(self, connector: MqttConnector) -> AsyncIterator[asyncio.Task[None]]:
        """Runs it from subscribed to cancelled."""
        task = asyncio.create_task(connector.run(self.store.emit))
        try:
            await eventually(lambda: task.done() or connector.status()["open"], "connected")
            if task.done():
                task.result()
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def publish(self, topic: str, payload: str | bytes, qos: int = 1, retain: bool = False) -> None:
        """Returns when the broker has it."""
        if self._publisher is None:
            self._publisher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="sensor")
            self._publisher.max_inflight_messages_set(0)
            await asyncio.to_thread(self._publisher.connect, "127.0.0.1", self.broker.port)
            self._publisher.loop_start()
        await eventually(self._publisher.is_connected, "the publisher is connected")
        info = self._publisher.publish(topic, payload, qos, retain)
        await asyncio.to_thread(info.wait_for_publish, 20)
        assert info.is_published()

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.disconnect()
            self._publisher.loop_stop()


def parsed(table: Any, raw: dict[str, Any]) -> Any:
    found, mistakes = read(table, raw)
    assert not mistakes, mistakes
    return found


def device(**raw: Any) -> MqttDevice:
    found: MqttDevice = parsed(MqttDevice, {"name": "dev", "bus": "broker", **raw})
    return found


async def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Waits for a condition, with a bound that a slow machine keeps."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not in {seconds:g} s: {what}")


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    if program() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def rig(mosquitto: Mosquitto) -> Iterator[Rig]:
    async def make() -> Rig:
        return Rig(mosquitto)

    rig = asyncio.run(make())
    yield rig
    rig.close()
