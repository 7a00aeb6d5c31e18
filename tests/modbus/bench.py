"""What the connector is run in: a supervisor's part reduced to what a test looks at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.clock import Clock, SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.modbus.config import AnyBus, ModbusDevice, RtuBus, TcpBus
from gateway.connectors.modbus.connector import ModbusConnector
from gateway.model import DeviceState, Origin, Sample, Status, Value
from gateway.settings import read


class NoLedger:
    """Modbus devices keep nothing for us."""

    def seen(self, origin: Origin) -> bool:
        return False

    def settled(self, origin: Origin) -> bool:
        return False

    def whole(self, session: bytes) -> bool:
        return True

    def forget(self, origins: Sequence[Origin]) -> None:
        return None


class Bench:
    """One connector and all that it said."""

    def __init__(
        self, bus: Mapping[str, Any], devices: Sequence[Mapping[str, Any]], clock: Clock | None = None
    ) -> None:
        table: type[AnyBus] = RtuBus if "port" in bus else TcpBus
        self.bus, mistakes = read(table, {"name": "bus", **bus})
        assert self.bus is not None, mistakes
        self.devices: list[ModbusDevice] = []
        for raw in devices:
            device, mistakes = read(ModbusDevice, {"bus": "bus", **raw})
            assert device is not None, mistakes
            self.devices.append(device)
        self.samples: list[Sample] = []
        self.reports: list[tuple[str, DeviceState, str]] = []
        self.news = asyncio.Event()
        self.clock = clock = clock or SystemClock()
        self.status: dict[str, Any] = {}
        self.connector = ModbusConnector(self.bus, self.devices, Tools(clock, NoLedger(), lambda _: None, self._report))

    def _report(self, device: str, state: DeviceState, why: str) -> None:
        self.reports.append((device, state, why))
        self.news.set()

    async def emit(self, samples: Sequence[Sample], *, settled: Callable[[], None] | None = None) -> None:
        self.samples += samples
        self.news.set()

    def values(self, device: str, point: str) -> list[Value]:
        return [
            value
            for sample in self.samples
            if sample.device == device
            for name, value in zip(sample.points, sample.values, strict=True)
            if name == point and value is not None
        ]

    def statuses(self, device: str, point: str) -> list[Status]:
        found = []
        for sample in self.samples:
            if sample.device == device and point in sample.points:
                at = sample.points.index(point)
                found.append(sample.status[at] if sample.status else Status.GOOD)
        return found

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.news.clear()
                try:
                    async with asyncio.timeout(0.02):  # some conditions look at the far end
                        await self.news.wait()
                except TimeoutError:
                    pass

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.connector.run(self.emit), name="connector")
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def rtu(path: object, **more: Any) -> dict[str, Any]:
    """With a short late window, which every start waits for; tests about late replies set their own."""
    line = {"kind": "modbus-rtu", "port": str(path), "baud_rate": 115200, "timeout": 0.3, "late_window": 0.05}
    return line | more


def device(name: str, unit: int = 1, *points: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "unit_id": unit, "points": list(points), **more}
