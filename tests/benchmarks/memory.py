"""Does it grow? `python tests/benchmarks/memory.py --readings 10000000`.

`gateway run` reads 50 Modbus devices of 100 registers four times a second into a real `gateway ingest`, which is killed
and stopped at random (seeded): short and long, one after the other. RSS of the gateway is taken five times a second,
from when it has had a kill and a stop; it keeps no acked batches. Printed are minimum, median and maximum for each
tenth of the run, and the verdict: the medians of the tenths after the first stay within 5 % of their
own median. What the ingest server stored is compared with what the gateway collected.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sqlite3
import statistics
import time
from itertools import pairwise
from typing import Any, Final, NamedTuple

import meters
from figures import Figure, doing, finish
from rig import Rig, Tool

from gateway.demo.child import until
from gateway.errors import GatewayError, LinkError

DEVICES: Final = 50
INTERVAL: Final = "250ms"
"""20,000 readings/s, so that a sink that was away catches up with what waits."""
FLAT: Final = 0.05
_SAMPLE_S: Final = 0.2
_FEW: Final = 200
"""Batches that wait although all is well."""
_OUTAGE_S: Final = (0.5, 8.0)
_WELL_S: Final = (2.0, 12.0)
_WARM_S: Final = 300.0
_STUCK_S: Final = 60.0
_QUIET_S: Final = 3.0
"""Longer than a poll may take to fail."""


class Sample(NamedTuple):
    readings: int
    """Collected so far."""
    rss_mb: float
    waiting: int
    """Batches without an ack."""


class Run:
    """One gateway from its start to the last reading."""

    def __init__(self, rig: Rig, readings: int, seed: int) -> None:
        self._rig = rig
        self._wanted = readings
        self._dice = random.Random(seed)
        self.samples: list[Sample] = []
        self.kills = self.stops = 0
        self._before = 0
        self._trouble_task: asyncio.Task[None]

    @property
    def outages(self) -> int:
        """So far, the one under way among them."""
        return self.kills + self.stops

    async def warm_up(self) -> None:
        """Returns when a kill and a stop have shown what they take, and what waited is gone."""

        async def warm() -> bool:
            status: Any = await self._rig.status()
            self._before = status["intake"]["readings"]
            doing(f"{self.outages} outages, {status['buffer']['records']:,} batches wait")
            return self.outages >= 2 and status["buffer"]["records"] < _FEW

        self._trouble_task = asyncio.create_task(self._trouble())
        await until(warm, _WARM_S, "two outages are over")

    async def work(self) -> None:
        """Returns when so many readings were collected and the sink is well."""
        try:
            while not self.samples or self.samples[-1].readings < self._wanted:
                await asyncio.sleep(_SAMPLE_S)
                await self._sample()
        finally:
            self._trouble_task.cancel()
        self._wake()
        if not self._rig.ingest.running:
            await self._rig.ingest.start()

    async def _sample(self) -> None:
        try:
            status: Any = await self._rig.status()
        except LinkError:
            if not self._rig.gateway.running:
                raise GatewayError("the gateway ended") from None
            return
        readings = status["intake"]["readings"] - self._before
        self.samples.append(Sample(readings, meters.memory(self._rig.gateway.pid).rss_mb, status["buffer"]["records"]))
        doing(f"{readings:,} of {self._wanted:,} readings, {self.samples[-1].rss_mb:.1f} MB")

    async def _trouble(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(*_WELL_S))
            away_s = self._dice.uniform(*_OUTAGE_S)
            if self._dice.random() < 0.5 if self.outages > 1 else self.outages:
                self.kills += 1
                await self._rig.ingest.end(signal.SIGKILL)
                await asyncio.sleep(away_s)
                await self._rig.ingest.start()
            else:
                self.stops += 1
                os.kill(self._rig.ingest.pid, signal.SIGSTOP)
                await asyncio.sleep(away_s)
                self._wake()

    def _wake(self) -> None:
        if self._rig.ingest.running:
            os.kill(self._rig.ingest.pid, signal.SIGCONT)

    async def settle(self, machines: Tool) -> int:
        """The machines fall silent, what waits is delivered: readings that were collected."""
        os.kill(machines.pid, signal.SIGSTOP)
        collected = waiting = -1
        since = time.monotonic()
        while time.monotonic() - since < (_STUCK_S if waiting else _QUIET_S):
            await asyncio.sleep(_SAMPLE_S)
            status: Any = await self._rig.status()
            now = status["intake"]["readings"], status["buffer"]["records"]
            if now != (collected, waiting):
                (collected, waiting), since = now, time.monotonic()
            doing(f"{waiting:,} batches wait")
        if waiting:
            raise GatewayError(f"{waiting:,} batches are not delivered, and none has been for {_STUCK_S:g} s")
        return collected

    def stored(self) -> tuple[int, int]:
        """Readings at the sink; polls that are there twice, by their stamps, as the first register of each tells."""
        db = sqlite3.connect(f"file:{self._rig.folder / 'cloud' / 'ingest.db'}?mode=ro", uri=True, timeout=60)
        try:
            (readings,) = db.execute("SELECT total(readings) FROM batch").fetchone()
            (twice,) = db.execute(
                "SELECT total(n - moments) FROM (SELECT count(*) AS n, count(DISTINCT ts_ms) AS moments FROM reading"
                " WHERE series IN (SELECT id FROM series WHERE point = 'r0') GROUP BY series)"
            ).fetchone()
            return int(readings), int(twice)
        finally:
            db.close()

    def tenths(self) -> list[list[float]]:
        """RSS by tenths of the readings."""
        found: list[list[float]] = [[] for _ in range(10)]
        for sample in self.samples:
            found[min(9, 10 * sample.readings // self._wanted)].append(sample.rss_mb)
        return [each for each in found if each]


async def run(readings: int, seed: int) -> tuple[list[Figure], list[str]]:
    async with Rig("ingest") as rig, Tool("loads.py", "modbus") as machines:
        rig.add("[buffer]\nkeep_acked = 0\n")  # it would fill up for minutes, and has a bound and a test of its own
        rig.modbus(machines.said, DEVICES, INTERVAL)
        await rig.start()
        one = Run(rig, readings, seed)
        await one.warm_up()
        began = time.monotonic()
        await one.work()
        took_s = time.monotonic() - began
        collected = await one.settle(machines)
        stored, twice = one.stored()
    tenths = one.tenths()
    medians = [statistics.median(each) for each in tenths]
    middle = statistics.median(medians[1:] or medians)
    off = max(abs(each - middle) / middle for each in medians[1:] or medians)
    steps = [now - then for then, now in pairwise(medians[1:])]
    curve = [
        f"{10 * i:3}–{10 * i + 10:3} %   {min(each):6.1f}  {statistics.median(each):6.1f}  {max(each):6.1f} MB"
        for i, each in enumerate(tenths)
    ]
    waiting = max(sample.waiting for sample in one.samples)
    figures = [
        Figure("RSS: largest deviation of a tenth's median after the first, %", 100 * off, f"<= {100 * FLAT:g}",
               f"around {middle:.1f} MB, slope {1e6 * sum(steps) / readings:+.2f} MB per million readings", True),
        Figure("readings lost", collected - stored, "<= 0",
               f"of {collected:,} in {took_s:.0f} s; {one.kills} kills, {one.stops} stops", True),
        Figure("polls stored twice", twice, "<= 0", f"at most {waiting:,} waited", True),
    ]  # fmt: skip
    return figures, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--readings", type=int, default=1_000_000, help="to be collected [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the outages [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    figures, curve = asyncio.run(run(arguments.readings, arguments.seed))
    if not arguments.json:
        print("RSS                minimum  median maximum")
        print("\n".join(curve))
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
