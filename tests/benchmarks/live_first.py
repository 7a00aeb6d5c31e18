"""New readings after an outage of an hour: `python tests/benchmarks/live_first.py`.

The backlog is made by the real buffer in virtual time: 1,000 readings a second (10 devices of 100 registers), for an
hour, committed as a gateway without a sink commits. Then `gateway run` finds it on its disk, reads 10 registers of the
same 10 devices every 100 ms, over Modbus TCP, and has no sink for some seconds; then a front door (`door.py`) opens
before a real `gateway ingest`.

    reconnect    from the moment in which the door accepts the connection to the first ack of a reading that was
                 acquired after it
    unlimited    the whole backlog as fast as it goes, store included
    limited      the same with `backfill_rate = 20000`; beside it the latency without a backlog, in the same run

Latency is from acquisition, as its stamp says, to the moment in which the door hands the ack to the gateway's socket.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import meters
from figures import Figure, doing, finish
from loads import REGISTERS
from rig import Rig, Tool

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.demo.child import until
from gateway.demo.world import free_port
from gateway.errors import LinkError
from gateway.model import Row, Shape
from gateway.testing.loop import VirtualClock
from gateway.testing.loop import run as run_virtually

DEVICES: Final = 10
PER_SECOND: Final = DEVICES * REGISTERS
LIMIT: Final = 20_000
_AWAY_S: Final = 3.0


class Prefilled(NamedTuple):
    readings: int
    records: int
    bytes: int


def prefill(folder: Path, runtime: Path, seconds: int) -> Prefilled:
    """An outage of so many seconds."""

    async def work() -> Prefilled:
        clock = VirtualClock()
        buffer = await Buffer.open(BufferSettings(), folder, clock, runtime)
        committing = asyncio.create_task(buffer.run())
        shapes = [
            Shape(f"meter-{unit}", tuple(f"r{i}" for i in range(REGISTERS)), ("",) * REGISTERS)
            for unit in range(1, DEVICES + 1)
        ]
        dice = random.Random(1)
        values = [tuple(2000 + i + dice.randrange(50) for i in range(REGISTERS)) for _ in range(64)]
        for k in range(seconds * DEVICES):
            await buffer.append((Row(shapes[k % DEVICES], clock.boot_ns() // 1_000_000, values[k % 64]),))
            await asyncio.sleep(1 / DEVICES)
        await buffer.drain()
        stats = buffer.stats()
        committing.cancel()
        await buffer.release()
        return Prefilled(seconds * PER_SECOND, stats["records"], stats["disk_bytes"])

    return run_virtually(work())


class Live(NamedTuple):
    """New readings of one moment."""

    acquired: float
    acked: float
    count: int


class Site:
    """One gateway with the backlog, from before the reconnection on."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._door: Tool | None = None
        self._acks: list[tuple[float, dict[str, int]]] = []
        self.accepted = 0.0

    async def reconnect(self) -> None:
        """Some seconds without a sink, then the door opens."""
        self.rig.entrance = free_port()
        self.rig.write()
        await self.rig.gateway.start()
        await until(self._reads, 30, "the gateway reads its devices")
        await asyncio.sleep(_AWAY_S)
        self._door = Tool("door.py", "127.0.0.1", self.rig.entrance, self.rig.sink_port)
        await self._door.__aenter__()

        async def connected() -> bool:
            await self.hear()
            return bool(self.accepted and self._acks)

        await until(connected, 90, "the gateway is back")

    async def _reads(self) -> bool:
        try:
            status = await self.rig.status()
        except LinkError:
            return False
        return all(bus["bus"].get("open") for bus in status["buses"].values())

    async def hear(self) -> None:
        assert self._door is not None
        said = await self._door.ask()
        self._acks += [(at, marks) for at, marks in said["acks"]]
        if said["accepted"] and not self.accepted:
            self.accepted = said["accepted"][0]

    async def watch(self, seconds: float) -> None:
        """Lets it work, and takes notes."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            await asyncio.sleep(0.25)
            await self.hear()

    def backfilled(self) -> int:
        """Readings of the backlog that are stored: its stamps are a year old."""
        return int(self._query("SELECT total(readings) FROM batch WHERE sent_trust = 'synced' AND boot = ?",
                               ("0" * 31 + "1",))[0][0])  # fmt: skip

    def live(self, since: float, until: float) -> list[Live]:
        """What was acquired between these moments."""
        to_utc_s = time.time() - time.monotonic()
        rows = self._query(
            "SELECT s.name, b.seq, r.ts_ms, count(*) FROM reading r"
            " JOIN batch b ON b.first = (SELECT first FROM batch WHERE first <= r.id ORDER BY first DESC LIMIT 1)"
            " JOIN stream s ON s.id = b.stream WHERE r.ts_ms BETWEEN ? AND ?"
            " GROUP BY s.name, b.seq, r.ts_ms",
            (int((since + to_utc_s) * 1000), int((until + to_utc_s) * 1000)),
        )
        acked = self._acked()
        found = []
        for stream, seq, ts_ms, count in rows:
            at = next((at for at, mark in acked.get(stream, ()) if mark >= seq), None)
            if at is not None:
                found.append(Live(ts_ms / 1000 - to_utc_s, at, count))
        return found

    def _acked(self) -> dict[str, list[tuple[float, int]]]:
        found: dict[str, list[tuple[float, int]]] = {}
        for at, marks in self._acks:
            for stream, mark in marks.items():
                found.setdefault(stream, []).append((at, mark))
        return found

    def _query(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        db = sqlite3.connect(f"file:{self.rig.folder / 'cloud' / 'ingest.db'}?mode=ro", uri=True, timeout=30)
        try:
            return db.execute(sql, parameters).fetchall()
        finally:
            db.close()

    async def close(self) -> None:
        await self.rig.gateway.end()
        if self._door is not None:
            await self._door.__aexit__(None, None, None)


def quantiles_ms(live: list[Live]) -> tuple[float, float]:
    """p50 and p99."""
    taken = [1000 * (each.acked - each.acquired) for each in live for _ in range(each.count)]
    cuts = statistics.quantiles(taken, n=100)
    return cuts[49], cuts[98]


async def unlimited(state: Path, made: Prefilled) -> list[Figure]:
    async with Rig("ingest") as rig, Tool("loads.py", "modbus") as machines:
        shutil.copytree(state, rig.folder / "state")
        rig.modbus(machines.said, DEVICES, "100ms", REGISTERS // 10)
        site = Site(rig)
        await site.reconnect()
        before = [meters.usage(each.pid).cpu_s for each in (rig.gateway, rig.ingest)]
        give_up = time.monotonic() + 30 + made.readings / 10_000
        while (stored := site.backfilled()) < made.readings and time.monotonic() < give_up:
            doing(f"unlimited: {stored:,} of {made.readings:,}")
            await site.watch(0.5)
        ended = time.monotonic()
        took_s = ended - site.accepted
        after = [meters.usage(each.pid).cpu_s for each in (rig.gateway, rig.ingest)]
        await site.watch(1.0)
        live = site.live(site.accepted, ended - 0.5)
        await site.close()
    p50, p99 = quantiles_ms(live)
    first_s = min(each.acked for each in live) - site.accepted
    gateway_s, ingest_s = ((now - then) / stored * 1e5 for then, now in zip(before, after, strict=True))
    return [
        Figure("reconnect → first ack of a reading that is newer, s", first_s, "<= 1.0",
               f"{made.records:,} batches wait, {made.bytes:,} bytes on disk"),
        Figure("unlimited: readings/s, store included", stored / took_s, ">= 100000", f"{took_s:.1f} s"),
        Figure("unlimited: CPU-s per 100k readings, store included", gateway_s + ingest_s, "",
               f"gateway {gateway_s:.2f}, ingest {ingest_s:.2f}: the processor's own limit on two cores is "
               f"{1e5 / max(gateway_s, ingest_s):,.0f} readings/s"),
        Figure("unlimited: readings of the backlog that are not stored", made.readings - stored, "<= 0", "", True),
        Figure("unlimited: live p99 meanwhile, ms", p99, "", f"p50 {p50:.1f}"),
    ]  # fmt: skip


async def limited(state: Path, made: Prefilled, window_s: float) -> list[Figure]:
    async with Rig("ingest") as rig, Tool("loads.py", "modbus") as machines:
        rig.modbus(machines.said, DEVICES, "100ms", REGISTERS // 10)
        doing("live readings without a backlog")
        site = Site(rig)
        await site.reconnect()
        await site.watch(2 + window_s)
        alone = quantiles_ms(site.live(site.accepted + 2, site.accepted + 1 + window_s))
        await site.close()
    async with Rig("ingest") as rig, Tool("loads.py", "modbus") as machines:
        shutil.copytree(state, rig.folder / "state")
        rig.endpoint += f"backfill_rate = {LIMIT}\n"
        rig.modbus(machines.said, DEVICES, "100ms", REGISTERS // 10)
        doing(f"live readings beside a backlog at {LIMIT:,} readings/s")
        site = Site(rig)
        await site.reconnect()
        await site.watch(2)
        before, began = site.backfilled(), time.monotonic()
        await site.watch(window_s)
        per_s = (site.backfilled() - before) / (time.monotonic() - began)
        await site.watch(1)
        beside = quantiles_ms(site.live(began, began + window_s))
        await site.close()
    aim_ms = max(3 * alone[1], 50.0)
    return [
        Figure("without a backlog: live p99, ms", alone[1], "", f"p50 {alone[0]:.1f}"),
        Figure(f"limited to {LIMIT:,} readings/s: live p99, ms", beside[1], f"<= {aim_ms:.0f}", f"p50 {beside[0]:.1f}"),
        Figure("limited: readings/s of the backlog", per_s, f"<= {1.05 * LIMIT:.0f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--outage", type=int, default=3600, help="seconds, at 1,000 readings a second [%(default)s]")
    parser.add_argument("--window", type=float, default=15.0, help="seconds of live readings to judge [%(default)s]")
    parser.add_argument("--rows", default="unlimited,limited", help="of: %(default)s")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
    figures: list[Figure] = []
    try:
        doing(f"an outage of {arguments.outage:,} s")
        state = folder / "state"
        runtime = folder / "run"
        runtime.mkdir()
        made = prefill(state, runtime, arguments.outage)
        for row in arguments.rows.split(","):
            if row == "unlimited":
                figures += asyncio.run(unlimited(state, made))
            else:
                figures += asyncio.run(limited(state, made, arguments.window))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
