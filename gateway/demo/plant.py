"""The demo's plant: machines on their transports, and the configuration that a person would write for them.

What is not there (no broker, no D-Bus) is left out and said in one line; the rest runs.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.demo.machines import ModbusRtu, ModbusTcp, Registers, Ruuvi, Scale, Zigbee
from gateway.demo.publisher import publisher
from gateway.testing import broker
from gateway.testing.bluez import FakeBluez, PrivateBus

_PACE_S = 0.2


class Counter(NamedTuple):
    """A machine, as the proof sees it: what it gave away under which name."""

    device: str
    point: str
    """Where its numbers arrive."""
    readings: int
    """How many readings come with each number."""
    produced: Callable[[], int]


class Plant:
    """Everything below the gateway."""

    def __init__(self, pace_s: float = _PACE_S) -> None:
        """`pace_s`: how often machines speak, and how often the fast ones are asked."""
        self.pace_s = pace_s
        self.toml = ""
        """The buses and devices of the gateway's configuration file."""
        self.notes: list[str] = []
        """What is simulated how, and what had to be left out."""
        self.counters: list[Counter] = []
        self.environment: dict[str, str] = {}
        """What the gateway's process needs to find the simulated transports."""
        self.mqtt_port: int | None = None
        self.bluez: FakeBluez | None = None
        self._talking = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def talk(self) -> None:
        """Lets the machines that speak by themselves begin: the gateway listens now."""
        self._talking.set()

    def hush(self) -> None:
        """They fall silent; machines that are asked go on answering."""
        self._talking.clear()

    def work(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Runs something until the plant closes."""
        self._tasks.append(asyncio.create_task(work, name=name))

    async def talking(self) -> None:
        """Returns when the machines may speak."""
        await self._talking.wait()

    async def every(self, step: Callable[[], None]) -> None:
        """Speaks while the plant talks."""
        while True:
            await self.talking()
            step()
            await asyncio.sleep(self.pace_s)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def running(folder: Path, pace_s: float = _PACE_S) -> AsyncIterator[Plant]:
    """The plant, at work while the block runs."""
    plant = Plant(pace_s)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(plant.close)
        await _inverter(plant)
        _meter(plant, stack)
        _scale(plant, stack)
        _office(plant, stack, folder)
        await _fridge(plant, stack, folder)
        yield plant


async def _inverter(plant: Plant) -> None:
    registers = Registers("inverter")
    machine = ModbusTcp(registers)
    await machine.listen()
    plant.work("inverter", machine.run())
    plant.counters.append(Counter("inverter", "sequence", 3, lambda: registers.produced))
    plant.toml += f"""
[[bus]]
name = "plant-net"
kind = "modbus-tcp"
host = "127.0.0.1"
tcp_port = {machine.port}
timeout = "5s"

[[device]]
name = "inverter"
bus = "plant-net"
unit_id = 1
interval = "{plant.pace_s * 1000:g}ms"
points = [
  {{ name = "sequence", register = "holding", address = 0, type = "uint32" }},
  {{ name = "power", register = "holding", address = 2, type = "float32", unit = "W", digits = 1 }},
  {{ name = "energy", register = "holding", address = 4, type = "uint32", unit = "Wh" }},
]
"""


def _meter(plant: Plant, stack: AsyncExitStack) -> None:
    registers = Registers("meter")
    machine = ModbusRtu(registers)
    stack.callback(machine.pty.close)
    machine.start()
    plant.counters.append(Counter("meter", "sequence", 3, lambda: registers.produced))
    plant.toml += f"""
[[bus]]
name = "rs485"
kind = "modbus-rtu"
port = "{machine.pty.path}"
baud_rate = 19200
timeout = "2s"
late_window = "1s"

[[device]]
name = "meter"
bus = "rs485"
unit_id = {machine.unit}
interval = "{plant.pace_s * 2500:g}ms"
points = [
  {{ name = "sequence", register = "holding", address = 0, type = "uint32" }},
  {{ name = "temperature", register = "holding", address = 6, type = "int16", scale = 0.1, unit = "Cel" }},
  {{ name = "setpoint", register = "holding", address = 7, type = "uint16", scale = 0.1, unit = "Cel", write = {{ min = 5, max = 35, verify = true }} }},
]
"""  # noqa: E501


def _scale(plant: Plant, stack: AsyncExitStack) -> None:
    machine = Scale()
    stack.callback(machine.pty.close)
    plant.work("scale", plant.every(machine.step))
    plant.counters.append(Counter("scale", "sequence", 2, lambda: machine.produced))
    plant.toml += f"""
[[bus]]
name = "scale-line"
kind = "serial"
port = "{machine.pty.path}"
baud_rate = 9600

[[device]]
name = "scale"
bus = "scale-line"
format = "regex"
pattern = 'ST,GS,seq=(?P<sequence>\\d+),net=(?P<weight>[0-9.]+)kg'
points = [ {{ name = "sequence" }}, {{ name = "weight", unit = "kg" }} ]
"""


def _office(plant: Plant, stack: AsyncExitStack, folder: Path) -> None:
    if broker.program() is None:
        plant.notes.append("MQTT: left out, mosquitto is not installed (apt-get install mosquitto)")
        return
    mosquitto = stack.enter_context(broker.Mosquitto(folder))
    plant.mqtt_port = mosquitto.port
    machine = Zigbee(stack.enter_context(publisher(mosquitto.port)).publish)
    plant.work("office", plant.every(machine.step))
    plant.counters.append(Counter("office", "sequence", 4, lambda: machine.produced))
    plant.toml += f"""
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
port = {mosquitto.port}

[[device]]
name = "office"
bus = "broker"
format = "zigbee2mqtt"
topic = "{machine.topic}"
points = "auto"
"""


async def _fridge(plant: Plant, stack: AsyncExitStack, folder: Path) -> None:
    if shutil.which("dbus-daemon") is None:
        plant.notes.append("BLE: left out, dbus-daemon is not installed (apt-get install dbus)")
        return
    bus = PrivateBus(folder)
    await bus.start()
    stack.push_async_callback(bus.stop)
    plant.bluez = bluez = FakeBluez(bus.address)
    await bluez.start()
    stack.push_async_callback(bluez.stop)
    machine = Ruuvi()

    async def advertise() -> None:
        while True:
            await plant.talking()
            if bluez.scanning:
                await bluez.advertise(machine.address, manufacturer_data={machine.company: machine.step()})
            await asyncio.sleep(plant.pace_s)

    plant.work("fridge", advertise())
    plant.notes.append("BLE: replayed, a RuuviTag's advertisements through a simulated BlueZ on a private D-Bus")
    plant.environment["DBUS_SYSTEM_BUS_ADDRESS"] = bus.address
    plant.counters.append(Counter("fridge", "measurement_sequence", Ruuvi.readings, lambda: machine.produced))
    plant.toml += f"""
[[bus]]
name = "hci0"
kind = "ble"
adapter = "hci0"
scan_mode = "active"

[[device]]
name = "fridge"
bus = "hci0"
address = "{machine.address}"
decoder = "ruuvi"
min_interval = "0s"
"""
