"""A message that a power cut makes come twice is marked, and no other: the real buffer between broker and sink."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Rig, device, eventually, parsed  # type: ignore[import-not-found]

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.mqtt.config import MqttBus
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.intake import Intake
from gateway.model import Lane, Status
from gateway.normalise.normaliser import Normaliser
from gateway.protocol import batch
from gateway.testing.broker import Mosquitto, program

pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")


class Gateway:
    """Connector, intake and buffer of one process after another; what a sink would get is looked at."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._port = port
        self.seen: list[tuple[int, Status]] = []

    async def start(self) -> None:
        for name in ("data", "run"):
            (self._home / name).mkdir(exist_ok=True)
        clock = SystemClock()
        self._executor = ThreadPoolExecutor(1)
        self.buffer = await Buffer.open(
            BufferSettings(commit_after=30.0), self._home / "data", clock, self._home / "run", self._executor
        )
        self.buffer.online(True)
        self._running = asyncio.create_task(self.buffer.run())
        self.intake = Intake(Normaliser({}, start_ns=0), self.buffer, clock)
        await self.connect()

    async def connect(self) -> None:
        raw = {"name": "b", "kind": "mqtt", "host": "127.0.0.1", "port": self._port, "client_id": "gw"}
        tools = Tools(SystemClock(), self.buffer.ledger, lambda _: None, lambda *_: None)
        rules = [device(name="d", topic="plant/n", points=[{"name": "n"}])]
        self.connector = MqttConnector(parsed(MqttBus, raw), rules, tools)
        self._task = asyncio.create_task(self.connector.run(self.intake.emit))
        await eventually(lambda: bool(self.connector.status()["open"]), "connected")

    async def disconnect(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def deliver(self) -> None:
        """The sink takes all and acks it, and the broker never hears of it."""
        self.buffer.close(Lane.LIVE)
        for offer in self.buffer.offers():
            for record in await self.buffer.fetch(offer.stream, offer.first, 1 << 20):
                for reading in batch.readings(batch.decode(record.body)):
                    assert isinstance(reading.value, int)
                    self.seen.append((reading.value, reading.status))
            self.buffer.ack("sink", offer.stream, offer.next - 1)

    async def end(self, *, power: bool) -> None:
        """Killed, or the machine is off: then the ring is gone."""
        await self.disconnect()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.buffer.release()
        self._executor.shutdown()
        if power:
            (self._home / "run" / "flight.ring").unlink()


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_a_second_delivery_after_a_power_cut_is_marked_and_after_a_kill_there_is_none(
    tmp_path: Path, version: str, power: bool
) -> None:
    async def scenario(rig: Rig, gateway: Gateway) -> None:
        await gateway.start()
        await rig.publish("plant/n", '{"n": 1}')
        await eventually(lambda: gateway.connector.status()["unacknowledged"] == 1, "it came, and is not acknowledged")
        await gateway.disconnect()  # the broker learns nothing of what follows
        await gateway.deliver()
        assert gateway.seen == [(1, Status.GOOD)]
        await gateway.end(power=power)
        await gateway.start()
        await rig.publish("plant/n", '{"n": 2}')
        await eventually(lambda: gateway.connector.status()["messages"] == 2, "the old one again, and a new one")
        await eventually(lambda: gateway.buffer.stats()["rows"] == (2 if power else 1), "in the buffer")
        await gateway.deliver()
        again = [(1, Status.REDELIVERED)] if power else []
        assert gateway.seen == [(1, Status.GOOD), *again, (2, Status.GOOD)]
        assert gateway.connector.status()["redelivered_marked"] == len(again)
        await gateway.end(power=False)

    with Mosquitto(tmp_path) as broker:
        rig = Rig(broker)
        asyncio.run(scenario(rig, Gateway(tmp_path, broker.port)))
        rig.close()


def test_after_an_ordinary_reconnect_nothing_is_marked(tmp_path: Path) -> None:
    async def scenario(rig: Rig, gateway: Gateway) -> None:
        await gateway.start()
        gate = asyncio.Event()
        append = gateway.buffer.append

        async def patient(*arguments: object, **more: object) -> None:
            await gate.wait()
            await append(*arguments, **more)  # type: ignore[arg-type]

        gateway.buffer.append = patient  # type: ignore[method-assign]
        await rig.publish("plant/n", '{"n": 1}')
        await eventually(lambda: gateway.connector.status()["messages"] == 1, "it came, and is not taken over")
        await gateway.disconnect()
        gate.set()
        await gateway.connect()
        await eventually(lambda: gateway.connector.status()["redelivered"] == 1, "it comes again")
        await eventually(lambda: gateway.buffer.stats()["rows"] == 1, "and is taken over")
        await gateway.deliver()
        assert gateway.seen == [(1, Status.GOOD)]
        await gateway.end(power=False)

    with Mosquitto(tmp_path) as broker:
        rig = Rig(broker)
        asyncio.run(scenario(rig, Gateway(tmp_path, broker.port)))
        rig.close()
