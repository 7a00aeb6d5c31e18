"""A clock that is wrong from power-on and is set later: all stamps of that boot end right at the sink.

A machine without a battery clock boots in the past, one with a worn-out battery anywhere. It collects and delivers all
the same; when the clock is set and the kernel vouches for it, a `clock` record puts right what is at the sink already.
The machines outside know when they answered (`tests/e2e/witness.py`).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway.demo.child import until
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

_WRONG_BY_MS = 24 * 3600 * 1000
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


@pytest.mark.parametrize("power_on", ["1970-01-01T00:00:00", "2038-01-19T03:14:08"])
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
        async with ground_of(machine, tmp_path) as (ground, plant):
            await ground.flows()
            assert abs(_errors_ms(ground)[-1]) > _WRONG_BY_MS, "the clock was to be wrong"
            await asyncio.to_thread(machine.write, tmp_path, _SET, "/root/set.py")
            await asyncio.to_thread(machine.run, f"/opt/gateway/current/bin/python /root/set.py {time.time()}")
            await until(lambda: abs(_errors_ms(ground)[0]) < _WRONG_BY_MS, PATIENCE_S, "what is stored is put right")
            await ground.flows()
            plant.hush()
            await ground.complete()
            errors = _errors_ms(ground)
            print(f"{len(errors)} stamps, off by {min(errors)} to {max(errors)} ms")
            assert max(map(abs, errors)) < _RIGHT_WITHIN_MS

    asyncio.run(story())


def _errors_ms(ground: Ground) -> list[int]:
    """Of each number that the machines gave away and the sink has: stamp minus the moment of the answer."""
    utc_s = time.time() - time.monotonic()
    found = []
    for witness in ground.witnesses:
        stored = ground.stored(witness.name)
        for _, answer in ground.given(witness):
            found += [row.ts_ms - round((answer.at_s + utc_s) * 1000) for row in stored.get(answer.number, ())]
    return found
