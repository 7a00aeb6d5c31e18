"""A Modbus server of pymodbus: `tcp`, `rtu-over-tcp`, `ascii-over-tcp`, `rtu PATH` or `ascii PATH`. Same contents as
the libmodbus one.

Prints the port that it listens on, or `ready`, and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import sys

from pymodbus import FramerType
from pymodbus.pdu.device import ModbusDeviceIdentification
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

SIZE = 2000
IDENTITY = {0: "ACME", 1: "M-7", 2: "V2.1", 3: "http://acme.example", 4: "Meter", 0x80: "x" * 200, 0x81: "y" * 100}
"""More than one answer holds."""


def device() -> SimDevice:
    bits = [i % 3 == 0 for i in range(SIZE)]
    return SimDevice(
        0,
        simdata=(
            [SimData(0, values=list(bits), datatype=DataType.BITS)],
            [SimData(0, values=list(bits), datatype=DataType.BITS)],
            [SimData(0, values=list(range(SIZE)), datatype=DataType.REGISTERS)],
            [SimData(0, values=[i + 5000 for i in range(SIZE)], datatype=DataType.REGISTERS)],
        ),
    )


async def main(how: str, path: str = "") -> None:
    server: ModbusSerialServer | ModbusTcpServer
    framer = {"tcp": FramerType.SOCKET, "rtu": FramerType.RTU, "ascii": FramerType.ASCII}[how.split("-")[0]]
    identity = ModbusDeviceIdentification(info=IDENTITY)
    if path:
        server = ModbusSerialServer(device(), framer=framer, identity=identity, port=path, baudrate=115200)
        await server.serve_forever(background=True)
        print("ready", flush=True)
    else:
        server = ModbusTcpServer(device(), framer=framer, identity=identity, address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        print(server.transport.sockets[0].getsockname()[1], flush=True)  # type: ignore[union-attr]
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
