"""Prints what one transaction costs, against libmodbus over TCP: `python measure.py SERVER`.

SERVER is the built `libmodbus_server.c`. Processor time is the client's alone.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from gateway.clock import SystemClock
from gateway.connectors.modbus.config import TcpBus
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import Function, Request

ROUNDS = 3000


async def measure(port: int) -> None:
    line = Line(TcpBus(name="m", kind="modbus-tcp", host="127.0.0.1", tcp_port=port), SystemClock(), lambda: None)
    await line.open()
    for quantity in (10, 100):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(ROUNDS):
            reply = (await line.ask(Request(1, Function.READ_HOLDING_REGISTERS, 0, quantity))).reply
            assert reply.data is not None
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{quantity:3} registers: {1e6 * cpu / ROUNDS:.0f} us CPU, {1e6 * wall / ROUNDS:.0f} us wall")
    line.close()


with subprocess.Popen([sys.argv[1], "tcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout is not None
    asyncio.run(measure(int(server.stdout.readline())))
    server.kill()
