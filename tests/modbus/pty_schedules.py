"""The schedules of `schedules.py` through a real line: `python -m tests.modbus.pty_schedules --from 0 --count 10000`.

`Line` and `SerialPort` ask over a pseudo-terminal, in real time, and the units answer at its other end, on the same
event loop. Many lines run side by side. What a machine is late by is counted into what a unit is late by: a schedule
during which the loop stood still for longer than the promise leaves room for is run again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import tty
from collections import Counter

from gateway.clock import SystemClock
from gateway.connectors.modbus.client import Reply
from gateway.connectors.modbus.config import RtuBus
from gateway.connectors.modbus.framing import ASCII, RTU
from gateway.connectors.modbus.link import Line
from gateway.connectors.modbus.request import Request
from gateway.errors import LinkError

from .schedules import Schedule

SIDE_BY_SIDE = 60
TRIES = 20
PATHS = (
    "schedules", "values", "acknowledged", "refused", "identified", "timeout", "crc", "doubtful", "late", "echoing",
    "cancelled", "lost", "damaged", "cut short", "twice", "noise", "broadcast", "late once", "rtu", "ascii",
)  # fmt: skip
"""What must have happened in a campaign."""


class Lag:
    """How late the event loop was, at worst, since somebody asked last."""

    def __init__(self) -> None:
        self.worst_s: dict[object, float] = {}

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            late = loop.time() - before - 0.01
            for each, worst in self.worst_s.items():
                self.worst_s[each] = max(worst, late)


class PtySchedule(Schedule):
    """Over a pseudo-terminal."""

    timeout_s, window_s, quick_s = 0.08, 0.16, 0.002
    lateness = 0.5

    def __init__(self, seed: int) -> None:
        super().__init__(seed, (RTU, ASCII)[seed % 2])
        self.loop = asyncio.get_running_loop()
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.asked: tuple[Request, bytes] | None = None
        self.heard = b""
        self.timers: list[asyncio.TimerHandle] = []
        bus = RtuBus(
            name="line",
            kind="modbus-rtu" if self.framing is RTU else "modbus-ascii",
            port=os.ttyname(self.slave),
            baud_rate=115200,
            timeout=self.timeout_s,
            late_window=self.window_s,
            local_echo="auto" if self.known_echo is None else self.known_echo,
            delay_between_requests=0.003,
        )
        self.lost: list[bool] = []
        self.line = Line(bus, SystemClock(), lambda: self.lost.append(True))

    async def play(self) -> Counter[str]:
        try:
            await self.line.open()
            self.client = self.line.client
            self.loop.add_reader(self.master, self._readable)
            for _ in range(self.dice.randint(4, 12)):
                request = self.question()
                self.judge(request, await self._ask(request))
            assert not self.lost
            return self.sum()
        finally:
            for timer in self.timers:
                timer.cancel()
            self.loop.remove_reader(self.master)
            self.line.close()
            os.close(self.master)
            os.close(self.slave)

    async def _ask(self, request: Request) -> Reply | None:
        self.asked = request, self.framing.frame(request.unit, request.pdu(), 0)
        self.heard = b""
        if self.dice.random() >= 0.1 * self.faults:
            return (await self.line.ask(request)).reply
        asking = asyncio.create_task(self.line.ask(request))
        await asyncio.sleep(self.dice.random() * 2 * self.timeout_s)
        asking.cancel()
        try:
            return (await asking).reply
        except asyncio.CancelledError:
            self.seen["cancelled"] += 1
            return None

    def _readable(self) -> None:
        self.heard += os.read(self.master, 4096)
        if self.asked and self.asked[1] in self.heard:
            request, frame = self.asked
            self.asked, self.heard = None, b""
            self.now = self.loop.time()
            self.sent(request, frame)

    def put(self, when: float, piece: bytes) -> None:
        self.number += 1
        # pieces of one moment keep their order
        self.timers.append(self.loop.call_at(when + self.number * 1e-9, os.write, self.master, piece))


async def _campaign(seeds: list[int], seen: Counter[str], failed: list[int]) -> None:
    lag = Lag()
    watch = asyncio.create_task(lag.watch())
    tries: Counter[int] = Counter()

    async def worker() -> None:
        while seeds and len(failed) < 10:
            seed = seeds.pop()
            tries[seed] += 1
            lag.worst_s[seed] = 0.0
            try:
                seen.update(await PtySchedule(seed).play())
            except (AssertionError, LinkError) as error:
                slow = lag.worst_s[seed] > PtySchedule.window_s / 4
                if slow and tries[seed] < TRIES:
                    seen["run again"] += 1
                    seeds.insert(0, seed)
                else:
                    failed.append(seed)
                    print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            finally:
                del lag.worst_s[seed]

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(SIDE_BY_SIDE):
                group.create_task(worker())
    finally:
        watch.cancel()


def campaign(first: int, count: int) -> tuple[list[int], Counter[str]]:
    """Seeds that failed, and what was seen."""
    seen: Counter[str] = Counter()
    failed: list[int] = []
    asyncio.run(_campaign(list(range(first, first + count)), seen, failed))
    return failed, seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.modbus.pty_schedules")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=10_000, help="number of schedules")
    options = parser.parse_args()
    begun = time.monotonic()
    failed, seen = campaign(options.first, options.count)
    for what, times in sorted(seen.items()):
        print(f"{times:12,} {what}")
    missing = [path for path in PATHS if not seen[path]]
    print(f"{len(failed)} failed, {time.monotonic() - begun:.0f} s{f', never: {missing}' if missing else ''}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
