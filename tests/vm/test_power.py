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
from typing import NamedTuple

import pytest

from gateway.demo.plant import Plant
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


class Boot(NamedTuple):
    """What became of the answers of both machines in one boot."""

    given: int
    kept: int
    lost: int
    """Accepted, and not at the sink."""
    least_s: float
    """The oldest of these had been accepted so long before the cut, at least …"""
    most_s: float
    """… and at most: so long ago it was given."""


def _table(ground: Ground, boots: list[Boot], twice: dict[int, int]) -> str:
    lines = ["cut  when                    answers  stored  lost  the oldest of them, before the cut  ids twice"]
    for number, (cut, boot) in enumerate(zip(ground.cuts, boots, strict=True)):
        span = f"{boot.least_s:.2f} to {boot.most_s:.2f} s" if boot.lost else "–"
        line = f"{boot.given:7}  {boot.kept:6}  {boot.lost:4}  {span:>34}  {twice[number]:9}"
        lines.append(f"{number + 1:3}  {cut.when:22}  {line}")
    return "\n".join(lines)


def _published_twice(ground: Ground) -> dict[int, int]:
    """Cut → ids that came twice because of it."""
    found: dict[int, int] = defaultdict(int)
    for rows in ground.stored(ground.sensor.name).values():
        if len(rows) > 1:
            # the first of them may have lain on the gateway's disk and be stored behind the cut as well
            before = [i for i, cut in enumerate(ground.cuts) if cut.utc_ms < rows[-1].received_ms]
            found[before[-1]] += len(rows) - 1
    return found


def _boot(ground: Ground, number: int) -> Boot:
    given, kept, ages = 0, 0, []
    cut = ground.cuts[number]
    for witness in ground.witnesses:
        stored = ground.stored(witness.name)
        answers = [answer for process, answer in ground.given(witness) if process == number]
        given, kept = given + len(answers), kept + sum(answer.number in stored for answer in answers)
        ages += [
            (cut.at_s - answer.accepted_by_s, cut.at_s - answer.at_s)
            for answer in answers
            if answer.accepted_by_s is not None and answer.number not in stored
        ]
    return Boot(given, kept, len(ages), *max(ages, default=(0.0, 0.0)))


def _judge(ground: Ground) -> None:
    """Prints the table; raises AssertionError with what is not as it must be."""
    boots, twice = [_boot(ground, number) for number in range(len(ground.cuts))], _published_twice(ground)
    print(_table(ground, boots, twice), file=sys.stderr, flush=True)
    published = ground.stored(ground.sensor.name)
    missing = set(range(1, ground.sensor.produced + 1)) - set(published)
    assert not missing, f"published with QoS 1 and lost: {sorted(missing)}"
    for number, rows in published.items():
        marked = [row for row in rows if row.status == Status.REDELIVERED]
        assert len(marked) >= len(rows) - 1, f"id {number} came {len(rows)} times: {rows}"
    assert all(count <= WINDOW for count in twice.values()), twice
    for witness in ground.witnesses:
        doubled = [number for number, rows in ground.stored(witness.name).items() if len(rows) > 1]
        assert not doubled, f"{witness.name}: twice at the sink: {doubled}"
    for cut, boot in zip(ground.cuts, boots, strict=True):
        assert boot.kept or cut.when == Moment.RECOVERY.value, f"nothing was kept: {cut}"
        assert boot.least_s <= COMMIT_AFTER_S, f"lost what had been accepted {boot.least_s:.3f} s before: {cut}"
    orderly(ground.database)


async def _until(ground: Ground, plant: Plant, moment: Moment, rng: random.Random) -> None:
    """Returns when the power shall go. What the sensor says goes to disk at once, and takes polled data along: without
    a sink it falls silent before every second cut, so that polled data wait as long as they may."""
    match moment:
        case Moment.ONLINE:
            await ground.flows()
            await asyncio.sleep(rng.uniform(0, 1.5))
        case Moment.CUT_OFF:
            await ground.flows()
            await ground.cloud(False)
            _hush_perhaps(plant, rng)
            await asyncio.sleep(rng.uniform(0.5, 3))
        case Moment.OFFLINE:
            await ground.polls(rng.uniform(2, 6))
            _hush_perhaps(plant, rng)
            await asyncio.sleep(rng.uniform(0.5, 3))
        case Moment.RECOVERY:
            await asyncio.sleep(rng.uniform(0, 4))


def _hush_perhaps(plant: Plant, rng: random.Random) -> None:
    if rng.random() < 0.5:
        plant.hush()


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
                await _until(ground, plant, moment, rng)
                await ground.cut(moment.value)
                plant.talk()
                print(f"cut {len(ground.cuts)}: {moment.value}", file=sys.stderr, flush=True)
            await ground.cloud(True)
            await ground.connect()
            await ground.flows()
            plant.hush()
            await ground.complete()
            _judge(ground)

    asyncio.run(story())
