"""Machines that cost next to nothing, so that what is measured is the gateway: each a process of its own.

    loads.py publish PORT MESSAGES PER_SECOND BURST    a raw socket that publishes prebuilt MQTT packets, QoS 1
    loads.py number PORT PER_SECOND DEVICES            each device counts, one message a number, until the line `stop`
    loads.py modbus [HOSTS]                            a Modbus TCP server for any number of units, prebuilt answers, on
                                                       so many addresses (`modbus_host`) and one port

Both print one line of JSON when they are ready and one for each line that they are given: the publisher publishes and
tells when each message went out, or how far each device has counted; the server tells when it answered each unit.
Times are CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import socket
import sys
import time

MQTT_DEVICES = 20
REGISTERS = 100
_HOSTS = 50
_VARIANTS = 64


def packets(count: int) -> list[bytes]:
    """PUBLISH packets of QoS 1 (MQTT 3.1.1): 20 devices, JSON of about 115 bytes, values that drift and jitter."""
    dice = random.Random(1)
    drift = [dice.uniform(15, 30) for _ in range(MQTT_DEVICES)]
    made = []
    for i in range(count):
        device = i % MQTT_DEVICES
        drift[device] += dice.gauss(0, 0.05)
        payload = (
            f'{{"time": "2026-11-22T17:{i // 60 % 60:02}:{i % 60:02}Z", "temperature": {drift[device]:.2f}, '
            f'"humidity": {60 - drift[device] + dice.gauss(0, 0.5):.1f}, "battery": 97, "linkquality": 120}}'
        ).encode()
        topic = f"plant/device-{device:02}/state".encode()
        body = len(topic).to_bytes(2, "big") + topic + (i % 65_535 + 1).to_bytes(2, "big") + payload
        made.append(bytes((0x32, len(body) & 0x7F | 0x80, len(body) >> 7)) + body)
    return made


def publish(port: int, count: int, per_second: float, burst: int) -> None:
    """`per_second` 0: as fast as the broker takes them. `burst` messages go out together."""
    made = packets(count)
    with _connected(port) as broker:
        _tell("ready")
        for _ in sys.stdin:
            began = time.monotonic()
            sent = _paced(broker, made, per_second, burst) if per_second else _flat_out(broker, made)
            _tell({"began": began, "sent": sent})


def _connected(port: int) -> socket.socket:
    broker = socket.create_connection(("127.0.0.1", port))
    broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    broker.sendall(bytes((0x10, 15)) + b"\0\4MQTT\4\2\0\0\0\3pub")
    broker.recv(4)
    return broker


def number(port: int, per_second: float, devices: int) -> None:
    """Tells how far each device has counted when it is asked; after `stop` when the broker has acknowledged all."""
    counts = [0] * devices
    sent, acked_bytes, stopped = 0, 0, False
    with _connected(port) as broker:
        _tell("ready")
        due = time.monotonic()
        while not stopped:
            if select.select((sys.stdin,), (), (), max(0.0, due - time.monotonic()))[0]:
                word = sys.stdin.readline()
                stopped = word != "\n"
                if not stopped:
                    _tell(_named(counts))
                continue
            due += 1 / per_second
            device = sent % devices
            counts[device] += 1
            sent += 1
            topic = f"plant/device-{device:02}/state".encode()
            payload = b'{"n": %d}' % counts[device]
            body = len(topic).to_bytes(2, "big") + topic + (sent % 65_535 + 1).to_bytes(2, "big") + payload
            broker.sendall(bytes((0x32, len(body))) + body)
            try:
                acked_bytes += len(broker.recv(65_536, socket.MSG_DONTWAIT))
            except BlockingIOError:
                pass
        while acked_bytes < 4 * sent:
            acked_bytes += len(broker.recv(65_536))
        _tell(_named(counts))


def _named(counts: list[int]) -> dict[str, int]:
    return {f"device-{device:02}": count for device, count in enumerate(counts)}


def _paced(broker: socket.socket, made: list[bytes], per_second: float, burst: int) -> list[float]:
    sent: list[float] = []
    due, acked = time.monotonic(), 0
    for i in range(0, len(made), burst):
        time.sleep(max(0.0, due - time.monotonic()))
        due += burst / per_second
        some = made[i : i + burst]
        sent += [time.monotonic()] * len(some)
        broker.sendall(b"".join(some))
        try:
            acked += len(broker.recv(65_536, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
    while acked < 4 * len(made):
        acked += len(broker.recv(65_536))
    return sent


def _flat_out(broker: socket.socket, made: list[bytes]) -> list[float]:
    acked = 0
    for i in range(0, len(made), 200):
        broker.sendall(b"".join(made[i : i + 200]))
        while acked < 4 * (i - 2000):  # not so far ahead that the broker's socket fills in both directions
            acked += len(broker.recv(65_536))
    while acked < 4 * len(made):
        acked += len(broker.recv(65_536))
    return []


class ModbusUnit(asyncio.Protocol):
    """One connection: reads of holding registers, any unit, up to 100 registers from the first."""

    def __init__(self, answered: dict[int, list[float]], answers: list[bytes]) -> None:
        self._answered = answered
        self._answers = answers
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while len(data) >= 12:
            unit = data[6]
            times = self._answered.setdefault(unit, [])
            size = 2 * int.from_bytes(data[10:12], "big")
            answer = bytes((3, size)) + self._answers[len(times) % _VARIANTS][:size]
            times.append(time.monotonic())
            self._transport.write(data[:4] + (len(answer) + 1).to_bytes(2, "big") + data[6:7] + answer)
            data = data[12:]
        self._rest = data


def modbus_host(number: int) -> str:
    """Loopback is more than one address."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


async def modbus(hosts: int) -> None:
    dice = random.Random(1)
    answers = [
        b"".join((2000 + i + dice.randrange(50)).to_bytes(2, "big") for i in range(REGISTERS)) for _ in range(_VARIANTS)
    ]
    answered: dict[int, list[float]] = {}
    loop = asyncio.get_running_loop()
    first = await loop.create_server(lambda: ModbusUnit(answered, answers), modbus_host(0), 0)
    port = first.sockets[0].getsockname()[1]
    others = [modbus_host(number) for number in range(1, hosts)]
    if others:
        await loop.create_server(lambda: ModbusUnit(answered, answers), others, port)
    _tell(port)
    while await loop.run_in_executor(None, sys.stdin.readline):
        _tell(answered)


def _tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    if sys.argv[1] == "modbus":
        asyncio.run(modbus(int(sys.argv[2]) if len(sys.argv) > 2 else _HOSTS))
    elif sys.argv[1] == "number":
        number(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    else:
        publish(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))


if __name__ == "__main__":
    main()
