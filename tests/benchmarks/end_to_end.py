"""The whole gateway, measured from the source's socket to the sink's ack: `python tests/benchmarks/end_to_end.py`.

Every process is real: mosquitto, machines, `gateway run` with a configuration file, a sink. Beside the figures stand
the aims and, measured in the same run, what the libraries cost alone. `--rows` chooses, `--json` prints for programs.
Only ratios within one run mean anything on a shared machine; see README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import floors
import meters
from figures import Figure, doing, finish
from loads import MQTT_DEVICES, REGISTERS
from rig import Rig, Tool

from gateway.errors import GatewayError
from gateway.testing.broker import Mosquitto

STEADY_PER_S = 200
WARM_UP_S = 2.0


class Options(NamedTuple):
    seconds: float
    """Of each steady measurement."""
    messages: int
    """Of each flat-out measurement."""


Work = Callable[[Options], Coroutine[None, None, list[Figure]]]


@contextmanager
def mosquitto() -> Iterator[Mosquitto]:
    """Without the limits that would make it drop what we cannot take at once."""
    with (
        tempfile.TemporaryDirectory(prefix="gw-bench-") as folder,
        Mosquitto(Path(folder), max_queued_messages=0, max_inflight_messages=0, log_type="error") as broker,
    ):
        yield broker


def quantiles_ms(sent: dict[str, list[float]], batches: Sequence[tuple[float, int, dict[str, int]]],
                 since: float) -> tuple[float, float]:  # fmt: skip
    """p50 and p99 from sending to arrival: what a device gave away k-th is what arrived k-th of it."""
    arrived: dict[str, list[float]] = {}
    for at, _, rows in batches:
        for device, count in rows.items():
            arrived.setdefault(device, []).extend([at] * count)
    taken = [
        (there - here) * 1000
        for device, times in sent.items()
        for here, there in zip(times, arrived.get(device, ()), strict=False)
        if here >= since
    ]
    cuts = statistics.quantiles(taken, n=100)
    return cuts[49], cuts[98]


def by_device(sent: Sequence[float]) -> dict[str, list[float]]:
    return {f"device-{i:02}": list(sent[i::MQTT_DEVICES]) for i in range(MQTT_DEVICES)}


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def flat(options: Options) -> list[Figure]:
    """As fast as it goes, into the real ingest server: until all is committed there and acked."""
    with mosquitto() as broker:
        async with Rig("ingest") as rig, Tool("loads.py", "publish", broker.port, options.messages, 0, 1) as publisher:
            rig.mqtt(broker)
            await rig.start()
            before = meters.usage(rig.gateway.pid)
            said = asyncio.create_task(publisher.ask())
            await rig.stored(2 * options.messages)
            ended = time.monotonic()
            used = meters.usage(rig.gateway.pid).since(before)
            took_s = ended - (await said)["began"]
    with mosquitto() as broker:
        floor = await asyncio.to_thread(floors.paho_flat_out, broker, options.messages // 2)
    return [
        Figure("MQTT flat out: messages/s until acked", options.messages / took_s, ">= 12000",
               f"paho alone {floor.rate:,.0f}"),
        Figure("MQTT flat out: CPU-s per 100k readings", per_100k(used.cpu_s, 2 * options.messages), "<= 4.0",
               f"paho alone {floor.cpu_us * 0.05:.1f}"),
    ]  # fmt: skip


async def steady(options: Options) -> list[Figure]:
    """200 messages/s into the real ingest server: processor time, and what reaches the disk."""
    messages = int(STEADY_PER_S * (options.seconds + WARM_UP_S))
    with mosquitto() as broker:
        async with Rig("ingest") as rig, Tool("loads.py", "publish", broker.port, messages, STEADY_PER_S, 1) as source:
            rig.mqtt(broker)
            await rig.start()
            said = asyncio.create_task(source.ask())
            await asyncio.sleep(WARM_UP_S)
            used = await meters.by_the_second(rig.gateway.pid, options.seconds)
            await said
            await rig.stored(2 * messages)
            status = await rig.status()
        alone = await floors.bridge(broker, STEADY_PER_S, options.seconds)
    per_s, written = 2 * STEADY_PER_S, sum(each.written_bytes for each in used)
    rtt_ms, buffer = status["uplink"]["rtt_ms"], status["buffer"]
    return [
        Figure("200 messages/s: CPU-s per 100k readings, quietest second", quietest(used, per_s), "<= 15",
               f"paho + websockets alone {quietest(alone.used, per_s):.1f}"),
        Figure("200 messages/s: CPU-s per 100k readings, mean", mean(used, per_s), "",
               f"paho + websockets alone {mean(alone.used, per_s):.1f}"),
        Figure("200 messages/s: bytes to disk per reading", written / per_s / len(used), "<= 1",
               f"{buffer['commits']} commits, {buffer['committed_bytes']:,} bytes"),
        Figure("200 messages/s: from sending to the ack of `gateway ingest`, ms", rtt_ms),
    ]  # fmt: skip


async def latency(options: Options) -> list[Figure]:
    """200 messages/s into the counting sink: from the publisher's socket to the sink's, and the bytes in between."""
    messages = int(STEADY_PER_S * (options.seconds + WARM_UP_S))
    with mosquitto() as broker:
        async with (
            Rig("counting") as rig,
            Tool("loads.py", "publish", broker.port, messages, STEADY_PER_S, 1) as source,
        ):
            rig.mqtt(broker)
            await rig.start()
            said = await source.ask()
            await asyncio.sleep(0.5)
            batches = await rig.counting.ask()
        alone = statistics.quantiles((await floors.bridge(broker, STEADY_PER_S, options.seconds)).latencies_ms, n=100)
    p50, p99 = quantiles_ms(by_device(said["sent"]), batches, said["began"] + WARM_UP_S)
    wire, readings, per_batch = on_the_wire(batches, said["began"] + WARM_UP_S)
    return [
        Figure("200 messages/s: latency p50, ms", p50, "<= 1.5", f"paho + websockets alone {alone[49]:.2f}"),
        Figure("200 messages/s: latency p99, ms", p99, "<= 5", f"paho + websockets alone {alone[98]:.1f}"),
        Figure("200 messages/s: bytes per reading on the wire", wire / readings, "<= 12", f"{per_batch:.1f} per batch"),
        Figure("200 messages/s: readings lost", 2 * messages - arrived(batches, 2), "<= 0", counted=True),
    ]


async def grouped(options: Options) -> list[Figure]:
    """Batches of about 100 readings, as a path with a long way back makes them."""
    per_second, ack_after_s = 500, 0.3
    messages = int(per_second * (options.seconds / 2 + WARM_UP_S))
    with mosquitto() as broker:
        async with (
            Rig("counting", ack_after_s) as rig,
            Tool("loads.py", "publish", broker.port, messages, per_second, 1) as source,
        ):
            rig.mqtt(broker)
            await rig.start()
            said = await source.ask()
            await asyncio.sleep(1)
            batches = await rig.counting.ask()
    wire, readings, per_batch = on_the_wire(batches, said["began"] + WARM_UP_S)
    return [
        Figure("500 messages/s, acks after 300 ms: bytes per reading on the wire", wire / readings, "<= 5",
               f"{per_batch:.1f} per batch"),
    ]  # fmt: skip


async def modbus(options: Options) -> list[Figure]:
    """Modbus TCP, each device a host of its own."""
    return [
        *await _modbus(options, 10, "1s", 1.0, 0.9, 5),
        *await _modbus(options, 50, "250ms", 0.25, 0.8, 8),
    ]


async def _modbus(
    options: Options, devices: int, interval: str, interval_s: float, cpu_aim: float, latency_aim: float
) -> list[Figure]:
    async with Rig("counting") as rig, Tool("loads.py", "modbus") as machines:
        rig.modbus(machines.said, devices, interval)
        await rig.start()
        await asyncio.sleep(WARM_UP_S)
        since = time.monotonic()
        used = await meters.by_the_second(rig.gateway.pid, options.seconds)
        until = time.monotonic()
        answered, batches = await machines.ask(), await rig.counting.ask()
    window = [each for each in batches if since <= each[0] < until]
    readings = arrived(window, REGISTERS)
    p50, p99 = quantiles_ms({f"meter-{unit}": times for unit, times in answered.items()}, batches, since)
    asked = devices * REGISTERS / interval_s
    name = f"Modbus {devices} × {REGISTERS} each {interval}"
    return [
        Figure(f"{name}: readings/s", readings / (until - since), f">= {0.98 * asked:.0f}", f"asked for {asked:.0f}"),
        Figure(
            f"{name}: CPU-s per 100k readings, quietest second",
            quietest(used, asked),
            f"<= {cpu_aim}",
            f"mean {mean(used, asked):.2f}",
        ),
        Figure(f"{name}: latency p50, ms", p50, f"<= {latency_aim}", f"p99 {p99:.1f}"),
    ]


async def thousand(options: Options) -> list[Figure]:
    """A thousand Modbus TCP devices of ten registers, each read every second: behind four hosts, and each behind its
    own connection."""
    return [*await _thousand(options, 250, "4 hosts"), *await _thousand(options, 1, "1,000 hosts")]


async def _thousand(options: Options, units: int, behind: str) -> list[Figure]:
    devices, registers = 1000, 10
    async with Rig("counting") as rig, Tool("loads.py", "modbus", devices // units) as machines:
        rig.modbus(machines.said, devices, "1s", registers, units)
        await rig.start()
        await asyncio.sleep(2 * WARM_UP_S)
        since = time.monotonic()
        used = await meters.by_the_second(rig.gateway.pid, options.seconds)
        until = time.monotonic()
        batches, memory = await rig.counting.ask(), meters.memory(rig.gateway.pid)
    asked = devices * registers
    readings = arrived([each for each in batches if since <= each[0] < until], registers)
    name = f"Modbus {devices} × {registers} each 1s behind {behind}"
    return [
        Figure(f"{name}: readings/s", readings / (until - since), f">= {0.98 * asked:.0f}", f"asked for {asked}"),
        Figure(f"{name}: % of a core, quietest second", 100 * min(each.cpu_s for each in used), "",
               f"{quietest(used, asked):.1f} CPU-s per 100k readings, mean {mean(used, asked):.1f}"),
        Figure(f"{name}: memory PSS, MB", memory.pss_mb, "", f"RSS {memory.rss_mb:.0f}"),
    ]  # fmt: skip


async def memory(options: Options) -> list[Figure]:
    """Modbus and MQTT together, after having been flat out."""
    with mosquitto() as broker:
        async with (
            Rig("ingest") as rig,
            Tool("loads.py", "modbus") as machines,
            Tool("loads.py", "publish", broker.port, options.messages // 2, 0, 1) as publisher,
        ):
            rig.mqtt(broker)
            rig.modbus(machines.said, 10, "1s")
            await rig.start()
            at_first = meters.memory(rig.gateway.pid)
            await publisher.ask()
            await rig.stored(options.messages)
            after = meters.memory(rig.gateway.pid)
    return [
        Figure("memory PSS after the start, MB", at_first.pss_mb, "<= 45", f"RSS {at_first.rss_mb:.0f}"),
        Figure("memory PSS after flat out, MB", after.pss_mb, "<= 45", f"RSS {after.rss_mb:.0f}"),
    ]


async def start(options: Options) -> list[Figure]:
    """From the start of the process to the first reading at the sink; the best of three."""
    best = float("inf")
    for _ in range(3):
        with mosquitto() as broker:
            async with (
                Rig("counting") as rig,
                Tool("loads.py", "modbus") as machines,
                Tool("loads.py", "publish", broker.port, 1000, 100, 1) as source,
            ):
                rig.mqtt(broker)
                rig.modbus(machines.said, 1, "1s")
                rig.write()
                said = asyncio.create_task(source.ask())
                await asyncio.sleep(0.2)
                began = time.monotonic()
                await rig.gateway.start()
                await asyncio.sleep(4)
                best = min(best, (await rig.counting.ask())[0][0] - began)
                said.cancel()
    return [Figure("start → first reading at the sink, s", best, "<= 0.8", f"python alone {await _python_s():.2f}")]


async def _python_s() -> float:
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import asyncio, ssl")
    await process.wait()
    return time.monotonic() - began


async def idle(options: Options) -> list[Figure]:
    """A silent broker and one device that is read every 10 s."""
    with mosquitto() as broker:
        async with Rig("ingest") as rig, Tool("loads.py", "modbus") as machines:
            rig.mqtt(broker)
            rig.modbus(machines.said, 1, "10s")
            await rig.start()
            await asyncio.sleep(WARM_UP_S)
            before, began = meters.usage(rig.gateway.pid), time.monotonic()
            await asyncio.sleep(2 * options.seconds)
            used, took_s = meters.usage(rig.gateway.pid).since(before), time.monotonic() - began
    return [
        Figure("idle: % of a core", 100 * used.cpu_s / took_s, "<= 0.5"),
        Figure("idle: wake-ups/s", used.wakeups / took_s, "<= 20"),
    ]


async def bare(options: Options) -> list[Figure]:
    """Libraries alone: what there is to compare a whole gateway with."""
    small, many = await floors.websocket_send(2), await floors.websocket_send(100)
    rows_s = await asyncio.to_thread(floors.sqlite_insert, 1000)
    return [
        Figure("websockets alone: CPU-s per 100k readings, 2 per batch", small[0], "", f"{small[1]:,.0f} frames/s"),
        Figure("websockets alone: CPU-s per 100k readings, 100 per batch", many[0], "", f"{many[1]:,.0f} frames/s"),
        Figure("SQLite alone: rows/s, 1,000 per commit", rows_s),
    ]


ROWS: dict[str, Work] = {
    work.__name__: work for work in (flat, steady, latency, grouped, modbus, thousand, memory, start, idle, bare)
}


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────────


def per_100k(cpu_s: float, readings: float) -> float:
    return cpu_s / readings * 1e5 if readings else float("nan")


def quietest(used: Sequence[meters.Usage], readings_per_s: float) -> float:
    """CPU-s per 100k readings in the second in which the machine's other work disturbed least."""
    return per_100k(min(each.cpu_s for each in used), readings_per_s)


def mean(used: Sequence[meters.Usage], readings_per_s: float) -> float:
    return per_100k(statistics.fmean(each.cpu_s for each in used), readings_per_s)


def arrived(batches: Sequence[tuple[float, int, dict[str, int]]], width: int) -> int:
    return width * sum(sum(rows.values()) for _, _, rows in batches)


def on_the_wire(batches: Sequence[tuple[float, int, dict[str, int]]], since: float) -> tuple[int, int, float]:
    """Bytes, readings, readings per batch after the warm-up."""
    first = bisect_left(batches, since, key=lambda each: each[0])
    readings = arrived(batches[first + 1 :], 2)
    return batches[-1][1] - batches[first][1], readings, readings / (len(batches) - first - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="of: %(default)s")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each steady measurement [%(default)s]")
    parser.add_argument("--messages", type=int, default=60_000, help="of each flat-out measurement [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    options = Options(arguments.seconds, arguments.messages)
    figures: list[Figure] = []
    failed = False
    for name in arguments.rows.split(","):
        doing(name)
        try:
            figures += asyncio.run(ROWS[name](options))
        except GatewayError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    finish(figures, arguments.json, failed)


if __name__ == "__main__":
    main()
