"""Whatever happened to its files, the gateway starts, delivers what can be read, and says that something is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from gateway.buffer.database import CorruptError
from gateway.model import GapReason, RecordKind
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, row
from tests.crash.damage import DAMAGES, UNNOTICED, Damage, copy, spoil
from tests.crash.filled import Filled, fill

NEW = 1_000_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return fill(tmp_path_factory.mktemp("filled"))


async def _delivered(machine: Machine, sink: Sink) -> None:
    """What is met while reading is repaired, and then read again."""
    for _ in range(4):
        with contextlib.suppress(CorruptError):
            await deliver(machine.buffer, sink, max_bytes=20_000)
            return
    await deliver(machine.buffer, sink)


async def trial(home: Path, filled: Filled, damage: Damage, seed: int) -> str:
    """Starts on what the damage left, twice. Returns what was lost, in a word."""
    machine = Machine(home)
    copy(filled.folder, machine.data)
    spoil(damage, machine.data, seed)
    sink = Sink()
    buffer = await machine.start()
    await _delivered(machine, sink)
    await buffer.append([row(NEW)])
    await buffer.drain()
    await _delivered(machine, sink)
    stats = buffer.stats()
    await machine.stop()
    arrived = set(sink.numbers)
    assert len(sink.numbers) == len(arrived), "a row is there twice"
    assert arrived <= {*filled.numbers, NEW}, "a row is there that never was"
    for identity, body in sink._bodies.items():
        assert filled.bodies.get(identity, body) == body, f"{identity} is not what it was"
    assert NEW in arrived
    assert stats["mode"] == "healthy", stats["why"]
    missing = filled.numbers - arrived
    told = any(gap.reason in (GapReason.CORRUPT, GapReason.UNSENT) and gap.readings is None for gap in sink.gaps)
    if missing and not told:
        assert damage in UNNOTICED, f"{len(missing)} rows are missing and nobody says so"
    aside = sorted(path.name for path in machine.data.iterdir() if "damaged" in path.name)
    assert {name.removesuffix("-wal").removesuffix("-shm") for name in aside} <= {"buffer.db.damaged-1"}
    # whatever was done about it, it is done: the next start finds a good store
    gaps, ends = len(sink.gaps), sink.kinds.count(RecordKind.END)
    await machine.start()
    await _delivered(machine, sink)
    stats = machine.buffer.stats()
    await machine.stop()
    assert len(sink.numbers) == len(set(sink.numbers))
    assert (len(sink.gaps), sink.kinds.count(RecordKind.END)) >= (gaps, ends)
    assert not stats["gaps_of_unknown_size"]
    return "nothing" if not missing else "some" if told else "unnoticed"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_it_starts_delivers_what_can_be_read_and_says_what_is_lost(
    tmp_path: Path, filled: Filled, damage: Damage
) -> None:
    for seed in range(6):
        run(trial(tmp_path / str(seed), filled, damage, seed))
