"""The model of the store cannot lie: whatever is asked of it and of the real store, both answer the same.

The only liberty is how large they are: the model counts rows, SQLite pages. For the comparison the real store counts
rows too, so that both give up the same records at the same moment.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.buffer.config import BufferSettings, WhenFull
from gateway.buffer.records import Expiry, Limits, Records
from gateway.buffer.schema import SEQ_MASK, Stored
from gateway.buffer.store import Opened, Store, Work
from gateway.errors import StoreError
from gateway.model import GapReason, Lane, Origin, Record, RecordKind
from gateway.protocol.messages import GapBody
from tests.conservation.disk import ModelStore, Mood, Platter

BOOTS = ("0" * 31 + "1", "0" * 31 + "2")


class Pair:
    """Both stores, and what a buffer would know of them."""

    def __init__(self, dice: random.Random, folder: Path) -> None:
        self.dice = dice
        self.folder = folder
        self.settings = BufferSettings(
            max_size=dice.choice([3_000, 20_000, 512_000_000]),
            alarm_reserve=dice.choice([0, 1_000]),
            free_space_floor=0,
            when_full=dice.choice([WhenFull.DROP_OLDEST, WhenFull.DROP_OLDEST, WhenFull.REFUSE]),
        )
        self.platter = Platter()
        self.boot = BOOTS[0]
        self.next: dict[str, int] = {}
        self.lanes: dict[str, Lane] = {}
        self.walked: Counter[str] = Counter()
        self.aside = random.Random(1)  # so that what the other dice show stays as it was
        self.real, self.model = Store(self.settings, folder), ModelStore(self.settings, folder, self.platter)

    def both(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What both answer."""
        answers = [_answer(getattr(store, name), *args, **kwargs) for store in (self.real, self.model)]
        assert answers[0] == answers[1], f"{name}{args}:\nthe real store says {answers[0]}\nthe model says {answers[1]}"
        self.walked[name] += 1
        losses = (
            answers[0][1] if isinstance(answers[0], tuple) and name == "read" else getattr(answers[0], "losses", ())
        )
        for loss in losses:
            self.walked[loss.reason.value] += 1
        return answers[0]

    def reopen(self) -> None:
        self.real.close()
        self.model.close()
        self.real, self.model = Store(self.settings, self.folder), ModelStore(self.settings, self.folder, self.platter)
        opened = self.both("open")
        self.walked["opened with origins"] += bool(opened.origins)
        self._learn(opened)

    def rescue(self) -> None:
        self._learn(self.both("rescue", corrupt=self.dice.random() < 0.5))

    def _learn(self, opened: Opened) -> None:
        for stream, disk in opened.disks.items():
            self.lanes[stream] = disk.lane
            self.next[stream] = max(self.next.get(stream, 1), disk.last + 1)

    def rot(self) -> None:
        """The same bit flips in both."""
        full = [(name, each) for name, each in self.platter.streams.items() if each.rows]
        if not full:
            return
        name, each = self.dice.choice(full)
        seq = self.dice.choice(list(each.rows))
        row = list(each.rows[seq])
        row[7] ^= 1
        each.rows[seq] = tuple(row)
        assert self.real._records is not None
        assert self.real._db is not None
        key = self.real._records._keys[name]
        self.real._db.execute("UPDATE record SET crc = ? WHERE id = ?", (row[7], key << 40 | seq))
        self.walked["rot"] += 1

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self) -> str:
        if self.next and self.dice.random() < 0.85:
            return self.dice.choice(list(self.next))
        name = f"{self.dice.getrandbits(128):032x}"
        self.next[name] = 1
        self.lanes[name] = self.dice.choice(list(Lane))
        return name

    def record(self) -> Stored:
        stream, dice = self.stream(), self.dice
        kind = dice.choices([RecordKind.BATCH, RecordKind.GAP, RecordKind.CLOCK, RecordKind.END], [12, 3, 1, 1])[0]
        seq = self.next[stream] if dice.random() < 0.85 else dice.randint(1, self.next[stream])
        body, last, readings = b"", 0, 0
        if kind is RecordKind.BATCH:
            body, readings = dice.choice([b"x" * 40, dice.randbytes(300), b"same " * 90]), dice.randint(1, 9)
        elif kind is RecordKind.GAP:
            reason = dice.choice([GapReason.EVICTED, GapReason.EXPIRED, GapReason.UNSENT])
            body = msgspec.json.encode(GapBody(reason, dice.choice([None, 4])))
            last = seq + dice.choice([0, 0, 2, 5])
        origins = tuple(Origin(b"session1", dice.randrange(9), b"f" * 16) for _ in range(dice.choice([0, 0, 0, 2])))
        record = Record(stream, self.lanes[stream], seq, kind, body, readings, last, origins)
        self.next[stream] = max(self.next[stream], record.upto + 1)
        return Stored(record, dice.randrange(5_000), dice.choice([None, dice.randrange(5_000)]))

    def limits(self) -> Limits:
        dice = self.dice
        some = {name: dice.randint(0, after) for name, after in self.next.items() if dice.random() < 0.5}
        return Limits(
            marks={name: mark for name, mark in some.items() if mark},
            pins={
                name: frozenset({mark, mark // 2} - {0}) for name, mark in some.items() if dice.random() < 0.4 and mark
            },
            held={name: dice.choice([mark, SEQ_MASK]) for name, mark in some.items() if dice.random() < 0.2},
            sent={name: dice.randint(0, self.next[name]) for name in self.next if dice.random() < 0.4},
        )

    def commit(self) -> None:
        dice = self.dice
        # as in a buffer, a number comes once in a transaction, and those of a stream in order
        records: dict[tuple[str, int], Stored] = {}
        for _ in range(dice.choice([0, 1, 1, 3, 8])):
            stored = self.record()
            records[stored.record.stream, stored.record.seq] = stored
        before = dice.randrange(5_000)
        expiry = {lane: Expiry(self.boot, before, before) for lane in Lane if dice.random() < 0.1}
        sinks = {name: {"sink": dice.randint(1, 9)} for name in self.next if dice.random() < 0.1}
        aside = self.aside
        proved = {name: aside.randint(1, after) for name, after in self.next.items() if aside.random() < 0.1}
        covered = {dice.choice(list(Lane)): dice.randrange(99)} if dice.random() < 0.1 else {}
        keep = frozenset(name for name in self.next if dice.random() < 0.3)
        work = Work(
            records=sorted(records.values(), key=lambda each: (each.record.stream, each.record.seq)),
            boot=self.boot,
            keep=keep,
            limits=self.limits(),
            expiry=expiry,
            sinks=sinks,
            proved=proved,
            ring=b"ring" * 2,
            covered=covered,
            reported=dice.random() < 0.3,
        )
        self.walked["refused"] += isinstance(self.both("commit", work), str)

    def move(self) -> None:
        streams = [name for name, each in self.platter.streams.items() if each.rows]
        if streams:
            stream = self.dice.choice(streams)
            target = f"{self.dice.getrandbits(128):032x}"
            rows = self.platter.streams[stream].rows
            pins = frozenset(seq for seq in rows if self.aside.random() < 0.3)
            self.both("move", stream, self.dice.randint(0, self.next[stream]), target, self.boot, pins)
            self.lanes[target], self.next[target] = self.lanes[stream], self.next[stream] + 2
            self.walked["moved, and rows stayed"] += stream in self.platter.streams
            if stream not in self.platter.streams:
                del self.next[stream]

    def read(self) -> None:
        stream = self.stream()
        self.both("read", stream, self.dice.randint(1, self.next[stream] + 1), self.dice.choice([1, 400, 1 << 20]))

    def everything(self) -> None:
        for stream in self.platter.streams:
            self.both("read", stream, 1, 1 << 30)


def _answer(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except StoreError as error:
        return type(error).__name__


STEPS = {"commit": 40, "read": 15, "reopen": 4, "move": 2, "rot": 2, "rescue": 1, "boot": 1, "probe": 1}


def run_pair(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    monkeypatch.setattr(Records, "pages", lambda records: (sum(disk.bytes for disk in records.disks.values()), 0))
    dice = random.Random(seed)
    pair = Pair(dice, folder)
    pair.reopen()
    for step in dice.choices(list(STEPS), list(STEPS.values()), k=40):
        if step == "boot":
            pair.boot = BOOTS[1]
        elif step == "probe":
            pair.both("probe")
        else:
            getattr(pair, step)()
    pair.everything()
    pair.reopen()
    pair.everything()
    pair.real.close()
    return pair.walked


def test_the_model_of_the_store_answers_as_the_store_does(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: Counter[str] = Counter()
    for seed in range(40):
        with tempfile.TemporaryDirectory(prefix="store-", dir=_memory()) as folder:
            try:
                walked += run_pair(seed, Path(folder), monkeypatch)
            except AssertionError as error:
                error.add_note(f"seed {seed}")
                raise
    wanted = ("commit", "read", "open", "move", "rescue", "probe", "rot", "refused", "evicted", "expired")
    assert [
        path for path in (*wanted, "corrupt", "opened with origins", "moved, and rows stayed") if not walked[path]
    ] == []


def test_nothing_is_given_up_of_a_stream_that_is_being_read_whatever_its_key(tmp_path: Path) -> None:
    store = Store(BufferSettings(), tmp_path)
    store.open()
    names = ["a" * 32, "b" * 32, "c" * 32]
    records = [Stored(Record(name, Lane.LIVE, 1, RecordKind.BATCH, b"x", 1), 0, None) for name in names]
    store.commit(Work(records, BOOTS[0]))
    limits = Limits({}, {}, dict.fromkeys(names, SEQ_MASK), {})
    done = store.commit(Work((), BOOTS[0], limits=limits, expiry={Lane.LIVE: Expiry(BOOTS[0], 9, 9)}))
    assert done.losses == ()
    store.close()


def test_what_the_model_could_not_commit_is_not_there_and_what_it_committed_survives() -> None:
    platter = Platter()
    store = ModelStore(BufferSettings(), Path(), platter)
    store.open()
    stored = Stored(Record("a" * 32, Lane.LIVE, 1, RecordKind.BATCH, b"x"), 0, None)
    store.commit(Work([stored], BOOTS[0]))
    platter.mood = Mood.FULL
    with pytest.raises(StoreError):
        store.commit(Work([stored._replace(record=msgspec.structs.replace(stored.record, seq=2))], BOOTS[0]))
    again = ModelStore(BufferSettings(), Path(), platter)
    assert [disk.last for disk in again.open().disks.values()] == [1]


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
