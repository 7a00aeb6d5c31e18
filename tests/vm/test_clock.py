"""A clock that is wrong from power-on and is set later: all stamps of that boot end right at the sink.

A machine without a battery clock boots in the past, one with a worn-out battery anywhere. It collects all the same. The
server's time is enough to put the stamps right; when the clock is set and the kernel vouches for it, that counts. The
machines outside know when they answered (`tests/e2e/witness.py`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.demo.child import until
from gateway.model import Trust
from gateway.testing import broker
from vm.conftest import Machine
from vm.ground import PATIENCE_S, Ground
from vm.ground import running as ground_of

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("vm"),
    pytest.mark.skipif(broker.program() is None, reason="needs mosquitto"),
]

_RIGHT_WITHIN_MS = 5_000
"""The emulated machine is slow, and so is the way in by which its clock is set."""
_SET = """
import ctypes, sys, time
from gateway import clock
time.clock_settime(time.CLOCK_REALTIME, float(sys.argv[1]))
vouch = clock._Timex()
vouch.modes = 0x1C  # linux/timex.h: maxerror, esterror, status
vouch.maxerror, vouch.esterror, vouch.status = 10_000, 10_000, 0x0001  # PLL, and no longer UNSYNC
assert clock.SystemClock()._libc.adjtimex(ctypes.byref(vouch)) >= 0
"""
"""What an NTP daemon does."""


@pytest.mark.parametrize("power_on", ["1970-01-01T00:00:00"])
def test_stamps_of_a_wrong_clock_end_right_at_the_sink(machine: Machine, tmp_path: Path, power_on: str) -> None:
    async def story() -> None:
        # nothing else may set the clock, and nothing may remember the time over the boot
        await asyncio.to_thread(
            machine.run,
            "systemctl disable -q --now systemd-timesyncd; rm -f /var/lib/systemd/timesync/clock; "
            "systemctl stop gateway",
        )
        await asyncio.to_thread(machine.call, "stop")
        await asyncio.to_thread(machine.call, "start", "--rtc", power_on)
        inside_s = int(await asyncio.to_thread(machine.run, "date +%s"))
        assert abs(inside_s - time.time()) > 24 * 3600, "the clock was to be wrong"
        async with ground_of(machine, tmp_path) as (ground, plant):
            await _collects_alone(ground)
            await ground.flows()
            await until(lambda: _off_by_ms(ground) < _RIGHT_WITHIN_MS, PATIENCE_S, "the server's time puts it right")
            await asyncio.to_thread(machine.write, tmp_path, _SET, "/root/set.py")
            await asyncio.to_thread(machine.run, f"/opt/gateway/current/bin/python /root/set.py {time.time()}")
            await until(lambda: _clocks(ground)[-1] == Trust.SYNCED, PATIENCE_S, "the sink hears that the clock is set")
            await ground.flows()
            plant.hush()
            await ground.complete()
            assert _clocks(ground)[0] == Trust.SERVER
            assert _off_by_ms(ground) < _RIGHT_WITHIN_MS

    asyncio.run(story())


async def _collects_alone(ground: Ground) -> None:
    """A process that has heard no server stamps by the wrong clock, and keeps that on disk."""
    await ground.cloud(False)
    await asyncio.to_thread(ground.machine.run, "systemctl restart gateway")
    produced = [witness.produced + 10 for witness in ground.witnesses]

    def answered() -> bool:
        return all(witness.produced >= goal for witness, goal in zip(ground.witnesses, produced, strict=True))

    await until(answered, PATIENCE_S, "it collects")
    await ground.cloud(True)


def _clocks(ground: Ground) -> list[str]:
    """The trust of each clock record at the sink."""
    with closing(sqlite3.connect(f"file:{ground.database}?mode=ro", uri=True, timeout=10)) as db:
        return [trust for (trust,) in db.execute("SELECT trust FROM clock ORDER BY id")]


def _off_by_ms(ground: Ground) -> int:
    """The worst stamp of all numbers that the machines gave away and the sink has, against the moment of the answer."""
    utc_s = time.time() - time.monotonic()
    worst = 0
    for witness in ground.witnesses:
        stored = ground.stored(witness.name)
        for _, answer in ground.given(witness):
            at_ms = round((answer.at_s + utc_s) * 1000)
            worst = max([worst, *(abs(row.ts_ms - at_ms) for row in stored.get(answer.number, ()))])
    return worst
