"""Power cuts in mid-flow: MQTT loses nothing, polled data at most `commit_after`, and it starts by itself each time.

The gateway is the installed service; its state is on the machine's disk, behind a write cache that a cut empties
(`test_a_cut_takes_what_was_not_flushed` shows it). What is around it stays under power (`ground.py`).

What must be at the sink is known from the sensor and the machines (`tests/e2e/witness.py`):

- MQTT: every id at least once. Twice at most one receive window per cut, and then the second is marked.
- Polled: nothing twice. Of what the gateway had accepted, nothing that was older than `commit_after` at the cut is
  missing. A machine knows that an answer was accepted when the next question comes, so the age is taken from there.
- No gap, no dead letter, in each stream everything in order, of each answer all readings.

`CUTS_SEED` repeats moments and their order.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
from collections import defaultdict
from enum import Enum
from pathlib import Path

import pytest

from gateway.model import Status
from gateway.testing import broker
from tests.e2e.witness import orderly
from vm.conftest import Machine
from vm.ground import WINDOW, Ground
from vm.ground import running as ground_of

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(5400),
    pytest.mark.xdist_group("vm"),
    pytest.mark.skipif(broker.program() is None, reason="needs mosquitto"),
]

COMMIT_AFTER_S = 0.5
"""The default."""


class Moment(Enum):
    """When the power goes."""

    ONLINE = "online"
    CUT_OFF = "sink just gone"
    OFFLINE = "no sink since the boot"
    RECOVERY = "while it recovers"


def test_a_cut_takes_what_was_not_flushed(machine: Machine) -> None:
    """Else no test here would prove anything. Nothing else may flush meanwhile: not the journal, not the service."""
    machine.run(
        "systemctl stop gateway; mount -o remount,commit=300 /; rm -rf /root/d; mkdir /root/d; cd /root/d; "
        "tr '\\0' C </dev/zero | head -c 4096 >/dev/shm/c; head -c 4096 /dev/zero >in_drive; echo kept >flushed; sync; "
        "echo lost >in_memory; dd if=/dev/shm/c of=in_drive bs=4096 oflag=direct conv=notrunc status=none"
    )
    assert machine.run("cd /root/d; cat flushed in_memory; head -c1 in_drive") == "kept\nlost\nC"
    machine.call("powercut")
    machine.call("start")
    assert machine.run("cd /root/d; cat flushed; head -c1 in_drive | tr '\\0' -") == "kept\n-"
    assert machine.run("cat /root/d/in_memory 2>/dev/null || true") == ""
    assert machine.run("systemctl is-active gateway") == "active"


def _table(ground: Ground) -> str:
    """One line per cut. Raises AssertionError with what is not as it must be."""
    orderly(ground.database)
    twice = _published_twice(ground)
    lines = ["cut  when                    answers  stored  lost  the oldest lost before the cut  ids twice"]
    for number, cut in enumerate(ground.cuts):
        lines.append(f"{number + 1:3}  {cut.when:22}  {_polled(ground, number)}  {twice[number]:9}")
    return "\n".join(lines)


def _published_twice(ground: Ground) -> dict[int, int]:
    """Cut → ids that came twice because of it."""
    found: dict[int, int] = defaultdict(int)
    stored = ground.stored(ground.sensor.name)
    missing = set(range(1, ground.sensor.produced + 1)) - set(stored)
    assert not missing, f"published with QoS 1 and lost: {sorted(missing)}"
    for number, rows in stored.items():
        if len(rows) > 1:
            cut = next(i for i, cut in enumerate(ground.cuts) if cut.utc_ms > rows[0].received_ms)
            found[cut] += len(rows) - 1
            marked = [row for row in rows if row.status == Status.REDELIVERED]
            assert len(marked) >= len(rows) - 1, f"id {number} came {len(rows)} times: {rows}"
    assert all(count <= WINDOW for count in found.values()), found
    return found


def _polled(ground: Ground, boot: int) -> str:
    """Both machines together: what was answered, stored and lost in one boot, and how old that was when it ended."""
    given, kept, ages = 0, 0, []
    cut = ground.cuts[boot]
    for witness in ground.witnesses:
        stored = ground.stored(witness.name)
        twice = [number for number, rows in stored.items() if len(rows) > 1]
        assert not twice, f"{witness.name}: twice at the sink: {twice}"
        answers = [answer for process, answer in ground.given(witness) if process == boot]
        here = [answer for answer in answers if answer.number in stored]
        assert here or cut.when == Moment.RECOVERY.value, f"{witness.name}: nothing of boot {boot + 1} is left"
        given, kept = given + len(answers), kept + len(here)
        ages += [
            (cut.at_s - answer.accepted_by_s, cut.at_s - answer.at_s)
            for answer in answers
            if answer.accepted_by_s is not None and answer.number not in stored
        ]
    least_s, most_s = max(ages, default=(0.0, 0.0))
    assert least_s <= COMMIT_AFTER_S, f"cut {boot + 1}: lost what had been accepted {least_s:.3f} s before"
    span = f"{least_s:.2f} to {most_s:.2f} s" if ages else "–"
    return f"{given:7}  {kept:6}  {len(ages):4}  {span:>30}"


async def _until(ground: Ground, moment: Moment, rng: random.Random) -> None:
    """Returns when the power shall go."""
    match moment:
        case Moment.ONLINE:
            await ground.flows()
            await asyncio.sleep(rng.uniform(0, 1.5))
        case Moment.CUT_OFF:
            await ground.flows()
            await ground.cloud(False)
            await asyncio.sleep(rng.uniform(0, 3))
        case Moment.OFFLINE:
            await ground.polls(rng.uniform(2, 6))
        case Moment.RECOVERY:
            await asyncio.sleep(rng.uniform(0, 4))


@pytest.mark.parametrize("cuts", [4, pytest.param(20, marks=pytest.mark.long)])
def test_power_cuts_in_mid_flow_lose_no_message_and_of_polled_data_at_most_commit_after(
    machine: Machine, tmp_path: Path, cuts: int
) -> None:
    seed = os.environ.get("CUTS_SEED") or secrets.token_hex(4)
    print(f"CUTS_SEED={seed}", file=sys.stderr, flush=True)
    rng = random.Random(seed)
    moments = list(Moment) * (cuts // len(Moment))
    rng.shuffle(moments)

    async def story() -> None:
        async with ground_of(machine, tmp_path) as (ground, plant):
            for moment in moments:
                await ground.cloud(moment is not Moment.OFFLINE)
                await ground.connect()
                await _until(ground, moment, rng)
                await ground.cut(moment.value)
                print(f"cut {len(ground.cuts)}: {moment.value}", file=sys.stderr, flush=True)
            await ground.cloud(True)
            await ground.connect()
            await ground.flows()
            plant.hush()
            await ground.complete()
            print(_table(ground), file=sys.stderr)

    asyncio.run(story())
