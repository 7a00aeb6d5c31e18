"""The flight ring: what `put` returned for is there after a kill at any write, exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.buffer.ring import Entry, create, open_ring, recover
from gateway.errors import StoreError


class Witness(bytearray):
    """Memory that shows itself after every piece of every write, as a kill would leave it."""

    watch: Any = None

    def __setitem__(self, where: Any, what: Any) -> None:
        if self.watch is None:
            super().__setitem__(where, what)
        elif isinstance(where, int):
            self.watch()
            super().__setitem__(where, what)
            self.watch()
        else:
            self.watch()
            step = max(1, len(what) // 5)  # a copy that was cut short, at several places
            for at in range(0, len(what), step):
                piece = what[at : at + step]
                super().__setitem__(slice(where.start + at, where.start + at + len(piece)), piece)
                self.watch()


Action = tuple[str, int]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 300)),
        st.tuples(st.just("free"), st.integers(0, 50)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(actions, st.integers(300, 1500))
def test_a_kill_at_any_write_loses_nothing_and_doubles_nothing(script: list[Action], size: int) -> None:
    memory = Witness(size)
    ring = create(memory)
    alive: dict[int, bytes] = {}
    handles: dict[int, Entry] = {}
    under_way: bytes | None = None
    leaving: int | None = None

    def check() -> None:
        after = recover(bytearray(memory))
        assert after is not None
        found = {each.entry.number: each.payload for each in after[1]}
        assert len(found) == len(after[1])
        extra = {number: payload for number, payload in found.items() if number not in alive}
        missing = alive.keys() - found.keys()
        assert all(found[number] == payload for number, payload in alive.items() if number in found)
        assert list(extra.values()) in ([], [under_way])
        assert missing in (set(), {leaving})

    memory.watch = check
    for i, (action, number) in enumerate(script):
        if action == "put":
            under_way = bytes([i % 256]) * number
            entry = ring.put(1, under_way)
            if entry is not None:
                alive[entry.number], handles[entry.number] = under_way, entry
            under_way = None
        elif handles:
            leaving = sorted(handles)[number % len(handles)]
            ring.free(handles.pop(leaving))
            del alive[leaving]
            leaving = None
        check()


@settings(max_examples=60, deadline=None)
@given(actions, actions)
def test_a_recovered_ring_goes_on_where_it_was(before: list[Action], after: list[Action]) -> None:
    memory = bytearray(1200)
    ring = create(memory)
    alive: dict[int, tuple[Entry, bytes]] = {}
    for script in (before, after):
        for i, (action, number) in enumerate(script):
            if action == "put":
                payload = bytes([i % 256]) * number
                entry = ring.put(2, payload)
                if entry is not None:
                    assert entry.number not in alive
                    alive[entry.number] = entry, payload
            elif alive:
                ring.free(alive.pop(sorted(alive)[number % len(alive)])[0])
        again = recover(memory)
        assert again is not None
        ring, found = again
        assert [(each.entry.number, each.payload) for each in found] == [(n, alive[n][1]) for n in sorted(alive)]
        assert ring.used_bytes == sum(entry.size for entry, _ in alive.values())
        alive = {each.entry.number: (each.entry, each.payload) for each in found}


def test_one_entry_that_stays_does_not_block_the_ring_behind_it() -> None:
    memory = bytearray(64 + 10 * 40)
    ring = create(memory)
    first = ring.put(1, b"stays")
    assert first is not None
    for _ in range(100):
        entry = ring.put(1, b"passes")
        assert entry is not None
        ring.free(entry)
    again = recover(memory)
    assert again is not None
    assert [each.payload for each in again[1]] == [b"stays"]


def test_a_full_ring_says_so_and_has_room_again_after_a_free() -> None:
    ring = create(bytearray(64 + 3 * 40))
    entries = [ring.put(1, b"x" * 8) for _ in range(3)]
    assert all(entries)
    assert ring.put(1, b"") is None
    assert entries[1] is not None
    ring.free(entries[1])
    assert ring.put(1, b"y" * 9) is None
    assert ring.put(1, b"y" * 8) is not None


@pytest.mark.parametrize("same", range(1, 8))
def test_what_is_left_of_an_old_mark_never_becomes_a_whole_one(same: int) -> None:
    """A payload may end in what a mark begins with, just where one was: taken for damage, a kill told of a loss."""
    memory = bytearray(64 + 88)
    ring = create(memory)
    for _ in range(2):
        old = ring.put(1, b"x" * 8)
        assert old is not None
        ring.free(old)
    entry = ring.put(1, b"x" * 8 + ring.name[:same])
    assert entry is not None
    assert entry.at == 64, "it ends in the mark of the second"
    ring.free(entry)
    again = recover(memory)
    assert again is not None
    assert not again[1]
    assert not again[0].damaged


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 4096, b"gwflight" + b"\xff" * 4088])
def test_a_file_that_is_no_ring_is_made_one(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "flight.ring"
    path.write_bytes(damage)
    ring, found = open_ring(path, 1 << 16)
    assert not found
    assert ring.put(1, b"works") is not None
    ring.close()
    ring, found = open_ring(path, 1 << 16)
    assert [each.payload for each in found] == [b"works"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(64, 1199), st.integers(0, 7)), min_size=1, max_size=5))
def test_flipped_bits_lose_entries_and_never_change_one(flips: list[tuple[int, int]]) -> None:
    memory = bytearray(1200)
    ring = create(memory)
    payloads = {bytes([i]) * 50 for i in range(10)}
    for payload in sorted(payloads):
        assert ring.put(1, payload) is not None
    for at, bit in flips:
        memory[at] ^= 1 << bit
    again = recover(memory)
    assert again is not None
    assert {each.payload for each in again[1]} <= payloads


def test_a_ring_that_holds_something_keeps_its_size_and_an_empty_one_takes_the_new(tmp_path: Path) -> None:
    path = tmp_path / "flight.ring"
    ring, _ = open_ring(path, 1 << 16)
    ring.put(1, b"held")
    ring.close()
    ring, found = open_ring(path, 1 << 17)
    assert path.stat().st_size == 1 << 16
    ring.free(found[0].entry)
    ring.close()
    open_ring(path, 1 << 17)
    assert path.stat().st_size == 1 << 17


def test_no_place_for_a_ring_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        open_ring(tmp_path / "absent" / "flight.ring", 1 << 16)
