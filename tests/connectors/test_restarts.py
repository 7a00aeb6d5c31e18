"""The supervisor builds connectors anew for years: whatever way one ends, nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import tty
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest

from gateway.clock import SystemClock
from gateway.connectors.base import Connector, Tools
from gateway.connectors.modbus.config import ModbusDevice, RtuBus, TcpBus
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.connectors.mqtt.config import MqttBus, MqttDevice
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.connectors.serial.config import SerialBus, SerialDevice
from gateway.connectors.serial.connector import SerialConnector
from gateway.errors import LinkError
from gateway.model import Origin, Sample
from gateway.settings import read

RESTARTS = 200


class Ledger:
    """Has seen nothing."""

    def seen(self, origin: Origin) -> bool:
        return False

    def settled(self, origin: Origin) -> bool:
        return False

    def whole(self, session: bytes) -> bool:
        return True

    def forget(self, origins: Sequence[Origin]) -> None: ...

    def keep_only(self, session: bytes, origins: Collection[Origin]) -> None: ...


async def emit(samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None: ...


def built(connect: Any, bus: Any, device: Any, at: dict[str, Any], **said: Any) -> Connector:
    settings, mistakes = read(bus, {"name": "b", **at})
    assert settings is not None, mistakes
    table, mistakes = read(device, {"name": "d", "bus": "b", **said})
    assert table is not None, mistakes
    tools = Tools(SystemClock(), Ledger(), lambda _: None, lambda *_: None)
    connector: Connector = connect(settings, [table], tools)
    return connector


def on_tcp(kind: str, port: int) -> Connector:
    at = {"kind": kind, "host": "127.0.0.1", "tcp_port": port}
    if kind == "mqtt":
        return built(MqttConnector, MqttBus, MqttDevice, at, topic="a")
    return built(ModbusConnector, TcpBus, ModbusDevice, {**at, "timeout": "10ms"}, points=[{"name": "a", "address": 0}])


def on_port(kind: str, path: str) -> Connector:
    at = {"kind": kind, "port": path}
    if kind == "serial":
        return built(SerialConnector, SerialBus, SerialDevice, at, format="json")
    return built(ModbusConnector, RtuBus, ModbusDevice, {**at, "timeout": "10ms"}, points=[{"name": "a", "address": 0}])


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def babbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"\x20\x7f\x00\x00HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def holds(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.read(1024):
            pass
    finally:
        writer.close()


async def nothing_stays(life: Callable[[], Awaitable[None]]) -> None:
    """Lives it often and looks what is left."""

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())

    for _ in range(5):  # what is made once and kept: the resolver's thread, caches
        await life()
    await settled(lambda: held()[1] == 1)
    descriptors, tasks = held()  # an end that is just being closed may still be among them
    for _ in range(RESTARTS):
        await life()
    await settled(lambda: held()[0] <= descriptors and held()[1] <= tasks)


async def settled(condition: Callable[[], bool]) -> None:
    """The far ends of closed connections end a moment later."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (descriptors and terminals are no events)
            await asyncio.sleep(0.01)


async def ends(connector: Connector) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(LinkError):
            await connector.run(emit)


async def is_cancelled(connector: Connector, after_s: float) -> None:
    task = asyncio.create_task(connector.run(emit))
    await asyncio.sleep(after_s)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("kind", ["modbus-tcp", "mqtt"])
@pytest.mark.parametrize("peer", [closes, resets, babbles])
def test_a_peer_that_ends_every_connection_leaves_nothing_behind(kind: str, peer: Any) -> None:
    async def main() -> None:
        async with await asyncio.start_server(peer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await nothing_stays(lambda: ends(on_tcp(kind, port)))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["modbus-tcp", "mqtt"])
def test_cancelling_at_any_moment_of_a_connection_leaves_nothing_behind(kind: str) -> None:
    async def main() -> None:
        moments = random.Random(5)
        async with await asyncio.start_server(holds, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await nothing_stays(lambda: is_cancelled(on_tcp(kind, port), moments.random() * 0.02))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["modbus-rtu", "serial"])
def test_a_port_that_is_unplugged_again_and_again_leaves_nothing_behind(kind: str) -> None:
    async def life() -> None:
        far, near = os.openpty()
        tty.setraw(near)
        connector = on_port(kind, os.ttyname(near))
        task = asyncio.create_task(ends(connector))
        await settled(lambda: connector.status()["open"] or task.done())
        os.write(far, b"\x01\x03\x02half")
        os.close(near)
        os.close(far)
        await task

    asyncio.run(nothing_stays(life))


@pytest.mark.parametrize("kind", ["modbus-rtu", "serial"])
def test_a_port_that_is_not_there_leaves_nothing_behind(kind: str) -> None:
    asyncio.run(nothing_stays(lambda: ends(on_port(kind, "/dev/no-such-port"))))
