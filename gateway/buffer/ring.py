"""The flight ring: entries in a memory-mapped file that survive SIGKILL at any instruction, and cost no system call.

The file lies on tmpfs. It survives the process, not the machine; the store is for that.

    file   =  magic 8 | version 4 | crc 4 | mark 8 | size 8 | zeros to 64        written once, before the first entry
    entry  =  mark 8 | crc 4 | length 4 | number 8 | kind 8 | payload | zeros to a multiple of 8

The mark is random, and made with the file. **An entry exists exactly while its mark is whole.** `put` writes all
that follows the mark, then the mark; `free` zeroes the mark's first byte, one store. Only the space of freed entries
is written again. So at every instruction each entry is there or not there, and what is there is complete: nothing
else in the file can carry a whole mark, and the scan of `open`, which looks for marks, needs no pointers that a crash
could leave half written. The checksum guards against what is no crash (a file that somebody touched).

Space is given next-fit: from the last entry on, over what was freed, around what is still alive. So one long-lived
entry does not block the ring behind it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.errors import StoreError

_MAGIC = b"gwflight"
_VERSION = 1
_FILE_HEAD = struct.Struct("<8sII8sQ")
_START = 64
_HEAD = struct.Struct("<IIQQ")
_TAIL = struct.Struct("<IQQ")  # what the checksum covers of the head: length, number, kind
_MARK_BYTES = 8
_HEAD_BYTES = _MARK_BYTES + _HEAD.size


class Entry:
    """One allocated piece of the ring. A handle: give it back with `free`."""

    __slots__ = ("at", "live", "number", "size")

    def __init__(self, at: int, size: int, number: int) -> None:
        self.at = at
        self.size = size
        self.number = number
        """Grows by one with every `put`, across restarts."""
        self.live = True


class Found(NamedTuple):
    """An entry that an earlier process left behind."""

    entry: Entry
    kind: int
    payload: bytes


class Ring:
    """Entries in a piece of memory. Not thread-safe: one thread, the event loop's."""

    def __init__(self, memory: mmap.mmap | bytearray, mark: bytes) -> None:
        self._memory = memory
        self._mark = mark
        self._end = len(memory)
        self._head = _START
        self._number = 0
        self._entries: deque[Entry] = deque()  # in order of address, cyclic, starting at the head
        self.used_bytes = 0
        self.damaged = False
        """Something was there that cannot be read: no crash does that."""

    @property
    def name(self) -> bytes:
        """Names this ring: numbers of entries count within it."""
        return self._mark

    def skip_to(self, number: int) -> None:
        """The next entry's number will be larger than this."""
        self._number = max(self._number, number)

    @property
    def capacity_bytes(self) -> int:
        return self._end - _START

    def put(self, kind: int, payload: bytes) -> Entry | None:
        """Adds an entry; when this returns it survives the process. None: there is no room."""
        length = len(payload)
        size = (_HEAD_BYTES + length + 7) & ~7
        at = self._room(size)
        if at is None:
            return None
        number = self._number = self._number + 1
        crc = zlib.crc32(payload, zlib.crc32(_TAIL.pack(length, number, kind)))
        memory = self._memory
        body = at + _MARK_BYTES
        zeros = bytes(-length % 8)  # or the end of an old mark, behind a last byte like its first, made a whole one
        memory[body : at + size] = _HEAD.pack(crc, length, number, kind) + payload + zeros
        memory[at:body] = self._mark
        entry = Entry(at, size, number)
        self._entries.append(entry)
        self._head = at + size
        self.used_bytes += size
        return entry

    def free(self, entry: Entry) -> None:
        """Removes an entry; freeing it again does nothing."""
        if entry.live:
            self._memory[entry.at] = 0
            entry.live = False
            self.used_bytes -= entry.size

    def _room(self, size: int) -> int | None:
        entries = self._entries
        if size > self._end - _START - self.used_bytes:
            return None
        for _ in range(2 * len(entries) + 3):
            while entries and not entries[0].live:
                entries.popleft()
            limit = entries[0].at if entries and entries[0].at >= self._head else self._end
            if limit - self._head >= size:
                return self._head
            if limit == self._end:
                self._head = _START
            else:
                passed = entries.popleft()
                entries.append(passed)
                self._head = passed.at + passed.size
        return None

    def _recover(self) -> list[Found]:
        found: list[Found] = []
        memory, at = self._memory, _START
        while (at := memory.find(self._mark, at)) != -1:
            entry = self._read(at)
            if entry is None:
                self.damaged = True
                memory[at] = 0  # keeps the invariant: no whole mark without an entry
                at += 1
            else:
                found.append(entry)
                at += entry.entry.size
        entries = [each.entry for each in found]
        newest = max(entries, key=lambda entry: entry.number, default=None)
        if newest is not None:
            self._number = newest.number
            self._head = newest.at + newest.size
            split = entries.index(newest) + 1
            self._entries.extend(entries[split:] + entries[:split])
        self.used_bytes = sum(entry.size for entry in entries)
        return sorted(found, key=lambda each: each.entry.number)

    def _read(self, at: int) -> Found | None:
        body = at + _HEAD_BYTES
        if at % 8 or body > self._end:
            return None
        crc, length, number, kind = _HEAD.unpack(self._memory[at + _MARK_BYTES : body])
        payload = bytes(self._memory[body : body + length])
        if len(payload) != length or crc != zlib.crc32(payload, zlib.crc32(_TAIL.pack(length, number, kind))):
            return None
        return Found(Entry(at, (_HEAD_BYTES + length + 7) & ~7, number), kind, payload)

    def close(self) -> None:
        """Unmaps the file; its entries stay."""
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()


def create(memory: mmap.mmap | bytearray) -> Ring:
    """A new ring in zeroed memory."""
    mark = secrets.token_bytes(_MARK_BYTES - 1) + b"\xa5"
    mark = bytes([mark[0] or 1]) + mark[1:]  # zero says "freed"
    memory[: _FILE_HEAD.size] = _file_head(mark, len(memory))
    return Ring(memory, mark)


def recover(memory: mmap.mmap | bytearray) -> tuple[Ring, Sequence[Found]] | None:
    """The ring that is in this memory and its entries, oldest first; None when it is no ring."""
    if len(memory) < _START:
        return None
    head = bytes(memory[: _FILE_HEAD.size])
    mark = _FILE_HEAD.unpack(head)[3]
    if head != _file_head(mark, len(memory)):
        return None
    ring = Ring(memory, mark)
    return ring, ring._recover()


def _file_head(mark: bytes, size: int) -> bytes:
    crc = zlib.crc32(_FILE_HEAD.pack(_MAGIC, _VERSION, 0, mark, size))
    return _FILE_HEAD.pack(_MAGIC, _VERSION, crc, mark, size)


def open_ring(path: Path, size: int) -> tuple[Ring, Sequence[Found]]:
    """The ring in this file, with what an earlier process left in it; a new one when there is none.

    A ring that still holds something keeps its size, whatever is asked for; an empty one is made anew.

    Raises:
        StoreError: the file cannot be made, or memory for it cannot be had.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            damaged = False
            old = os.fstat(descriptor).st_size
            if old >= _START:
                memory = mmap.mmap(descriptor, old)
                result = recover(memory)
                if result is not None and (result[1] or result[0].damaged):
                    return result
                damaged = result is None and bool(memory[:].strip(b"\0"))
                memory.close()
            os.ftruncate(descriptor, 0)
            # without the allocation a full tmpfs would kill us with SIGBUS at some later store
            os.posix_fallocate(descriptor, 0, size)
            ring = create(mmap.mmap(descriptor, size))
            ring.damaged = damaged
            return ring, ()
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise StoreError(f"no flight ring at {path}: {error}") from error
