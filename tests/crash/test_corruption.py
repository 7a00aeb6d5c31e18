"""Whatever happened to its files, the gateway starts, delivers what can be read, and says that something is missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.buffer.database import CorruptError
from gateway.buffer.ring import open_ring
from gateway.commands.store import Store as JournalStore
from gateway.control.client import ControlClient
from gateway.demo.child import Child, until
from gateway.errors import LinkError
from gateway.model import GapReason, Json, Lane, RecordKind
from gateway.protocol import batch
from gateway.testing.loop import run
from tests.buffer.world import Machine, Sink, deliver, row
from tests.crash.damage import DAMAGES, UNNOTICED, Damage, copy, garbled, headless, spoil, wal_flipped
from tests.crash.filled import Filled, fill
from tests.crash.states import memory
from tests.uplink.sink import Sink as UplinkSink
from tests.uplink.sink import Store as SinkStore

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
    if not told and damage not in UNNOTICED:
        assert missing <= filled.last, f"{len(missing)} rows are missing and nobody says so"
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


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nine_hundred_damages_more(filled: Filled) -> None:
    first, lost = random.SystemRandom().randrange(1 << 20), Counter[str]()
    print(f"seeds from {first} on")
    for seed in range(first, first + 900 // len(DAMAGES)):
        for damage in DAMAGES:
            with memory() as home:
                lost[run(trial(home, filled, damage, seed))] += 1
    print(f"lost: {dict(lost)}")


# ── the flight ring ──────────────────────────────────────────────────────────────────────────────────────────────────

ROWS = 40


async def _fly(home: Path) -> tuple[Path, dict[tuple[str, int], bytes]]:
    """A ring with records and rows that a killed process left, and what its records say."""
    machine = Machine(home, commit_after=60.0, ring_size=1 << 20)
    buffer = await machine.start()
    buffer.online(True)
    for number in range(ROWS):
        await buffer.append([row(number)])
        if number % 3 == 0:
            buffer.close(Lane.LIVE)
    offer = next(offer for offer in buffer.offers() if offer.lane is Lane.LIVE)
    bodies = {(each.stream, each.seq): each.body for each in await buffer.fetch(offer.stream, 1, 1 << 20)}
    copied = home / "flight.ring"
    shutil.copy(machine.run / "flight.ring", copied)
    await machine.stop()
    return copied, bodies


def _ring_of_another_version(data: bytearray, dice: random.Random) -> bytearray:
    data[8:12] = (7).to_bytes(4, "little")
    return data


def _ring_of_another_size(data: bytearray, dice: random.Random) -> bytearray:
    return data + bytes(dice.randrange(8, 1 << 16))


def _ring_cut(data: bytearray, dice: random.Random) -> bytearray:
    return data[: dice.randrange(1, 6000)]


def _ring_head(data: bytearray, dice: random.Random) -> bytearray:
    data[:64] = dice.randbytes(64)
    return data


def _ring_entries_flipped(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.randint(1, 100)):
        data[dice.randrange(64, 8000)] ^= 1 << dice.randrange(8)
    return data


def _ring_zeroed(data: bytearray, dice: random.Random) -> bytearray:
    at = dice.randrange(64, 6000)
    data[at : at + dice.randrange(8, 4096)] = bytes(100)
    return data


def _ring_noise(data: bytearray, dice: random.Random) -> bytearray:
    return bytearray(dice.randbytes(len(data)))


RINGS = (
    _ring_of_another_version, _ring_of_another_size, _ring_cut, _ring_head, _ring_noise, _ring_entries_flipped,
    _ring_zeroed,
)  # fmt: skip


@pytest.mark.parametrize("spoil_ring", RINGS, ids=lambda spoil_ring: spoil_ring.__name__.removeprefix("_ring_"))
def test_a_damaged_flight_ring_gives_back_what_can_be_read(
    tmp_path: Path, spoil_ring: Callable[[bytearray, random.Random], bytearray]
) -> None:
    async def one(home: Path, seed: int) -> None:
        ring, bodies = await _fly(home / "before")
        machine = Machine(home / "after", ring_size=1 << 20)
        data = spoil_ring(bytearray(ring.read_bytes()), random.Random(seed))
        (machine.run / "flight.ring").write_bytes(data)
        sink = Sink()
        buffer = await machine.start()
        await buffer.append([row(NEW)])
        await deliver(buffer, sink, max_bytes=1)  # one by one: between two there may be a hole now
        stats = buffer.stats()
        await machine.stop()
        assert len(sink.numbers) == len(set(sink.numbers))
        assert {*sink.numbers} <= {*range(ROWS), NEW}
        assert NEW in sink.numbers
        assert stats["mode"] == "healthy"
        for identity, body in sink._bodies.items():
            assert bodies.get(identity, body) == body
        told = any(gap.reason is GapReason.CORRUPT for gap in sink.gaps)
        if len(sink.numbers) < ROWS + 1 and spoil_ring not in (_ring_entries_flipped, _ring_zeroed):
            assert told  # a mark that is gone is how an entry is freed: nobody can tell

    for seed in range(6):
        run(one(tmp_path / str(seed), seed))


# ── the whole daemon ─────────────────────────────────────────────────────────────────────────────────────────────────


def _noise(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(dice.randrange(1, 20_000)))


def _cut(path: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data))])


def _flips(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(20):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _a_folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _nothing(path: Path, dice: random.Random) -> None:
    pass


OTHERS = (_nothing, _noise, _cut, _flips, _a_folder)


async def daemon(home: Path, filled: Filled, damage: Damage, seed: int) -> str:
    """`gateway run` on what the damage left. Its other files are spoilt too."""
    dice = random.Random(seed)
    state, runtime = home / "state", home / "run"
    copy(filled.folder, state)
    spoil(damage, state, seed)
    runtime.mkdir()
    journal = JournalStore(state / "commands.db")
    await journal.load()
    await journal.close()
    ring, _ = open_ring(runtime / "flight.ring", 1 << 20)
    ring.put(1, b"of another version")
    ring.close()
    dice.choice(OTHERS)(state / "commands.db", dice)
    dice.choice(OTHERS)(runtime / "flight.ring", dice)
    async with UplinkSink(SinkStore()) as sink:
        config = home / "gateway.toml"
        config.write_text(
            f'[gateway]\nstate_dir = "{state}"\nruntime_dir = "{runtime}"\n'
            f'[[uplink.endpoint]]\nname = "sink"\nurl = "{sink.url}"\n'
        )
        child = Child(("run", "--config", str(config)), home / "gateway.log")
        control = ControlClient(runtime / "control.sock", timeout_s=5)
        await child.start()
        try:
            status: Json = {}

            async def delivered() -> bool:
                nonlocal status
                assert child.running, child.last_words()
                try:
                    status = await asyncio.to_thread(control.ask, "status")
                except LinkError:
                    return False
                return bool(status["uplink"]["active"] and not status["buffer"]["records"])

            await until(delivered, 60.0, "it starts, and delivers what it has")
        finally:
            code = await child.end()
        assert code == 0, child.last_words()
    records = sink.store.records
    bodies = [(each["stream"], each["seq"]) for each in records if each["type"] == "batch"]
    assert len(bodies) == len(set(bodies))
    numbers: list[int] = []
    for each in records:
        if each["type"] == "batch":
            original = filled.bodies[each["stream"], each["seq"]]
            assert each["body"] == json.loads(original), "a batch is not what it was"
            numbers += [int(str(row.values[1])) for row in batch.rows(batch.decode(original))]
    assert len(numbers) == len(set(numbers))
    missing = filled.numbers - set(numbers)
    told = any(each["type"] == "gap" and each["body"]["reason"] in ("corrupt", "unsent") for each in records)
    if damage not in UNNOTICED and not missing <= filled.last:
        assert told, child.last_words()
        assert status["buffer"]["gaps_of_unknown_size"] or status["buffer"]["lost"]
        assert "given up" in child.log.read_text()
    return "nothing" if not missing else "some" if told else "unnoticed"


@pytest.mark.parametrize("damage", [headless, garbled, wal_flipped], ids=lambda damage: damage.__name__)
def test_the_daemon_starts_on_it_and_delivers_what_can_be_read(folder: Path, filled: Filled, damage: Damage) -> None:
    asyncio.run(daemon(folder, filled, damage, 1))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_daemon_starts_a_hundred_times(filled: Filled) -> None:
    first, lost = random.SystemRandom().randrange(1 << 20), Counter[str]()
    print(f"seeds from {first} on")
    for number in range(6 * len(DAMAGES)):
        home = Path(tempfile.mkdtemp(prefix="gw-"))
        lost[asyncio.run(daemon(home, filled, DAMAGES[number % len(DAMAGES)], first + number))] += 1
        shutil.rmtree(home)
    print(f"lost: {dict(lost)}")
