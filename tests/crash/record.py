"""Pure: what `disk.c` wrote down, and a model of the disk that says what a power cut can leave of it.

A file is what was synced, and operations since then; each of them may have reached the disk, in part (sector by
sector), in any order, or not at all. The same holds for the names in the directory, until the directory is synced. A
sync that fails leaves each operation either done or lost for good: the kernel takes its pages for clean from then on.

What the file system may do is meant to be worse than what any does: ext4, say, never makes a later rename last
without an earlier one.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Mapping
from enum import Enum, IntEnum
from typing import Any, NamedTuple

_HEAD = struct.Struct("<IIQII")


class Kind(IntEnum):
    """As in `disk.c`."""

    OPEN = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    UNLINK = 5
    RENAME = 6
    MKDIR = 7
    MARK = 8
    SYNC_FAILED = 9


class Event(NamedTuple):
    """One call that changed something."""

    kind: Kind
    fd: int
    offset: int
    """OPEN: 1 when this made the file."""
    name: str
    data: bytes

    @property
    def said(self) -> Any:
        """What the program said, in a MARK."""
        return json.loads(self.data)


def events(log: bytes) -> Iterator[Event]:
    """The log, in the order of the calls."""
    at = 0
    while at < len(log):
        kind, fd, offset, path, data = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        name = log[at : at + path].decode()
        yield Event(Kind(kind), fd, offset, name, log[at + path : at + path + data])
        at += path + data


class Left(Enum):
    """How much of what was not synced a power cut leaves."""

    ALL = "all"
    """As after a SIGKILL: the kernel had time."""
    NONE = "none"
    SOME = "some"


class Op(NamedTuple):
    """A write; with `data` None, a truncation."""

    offset: int
    data: bytes | None


def _apply(content: bytearray, op: Op) -> None:
    if op.data is None:
        del content[op.offset :]
        content.extend(bytes(op.offset - len(content)))
    else:
        content.extend(bytes(max(0, op.offset - len(content))))
        content[op.offset : op.offset + len(op.data)] = op.data


class File:
    """One inode."""

    def __init__(self, content: bytes = b"") -> None:
        self.synced = bytearray(content)
        self.seen = bytearray(content)
        self.pending: list[Op] = []

    def do(self, op: Op) -> None:
        _apply(self.seen, op)
        self.pending.append(op)

    def sync(self) -> None:
        for op in self.pending:
            _apply(self.synced, op)
        self.pending.clear()

    def fail(self, dice: random.Random) -> None:
        """Each operation is done or lost; none of them is tried again."""
        for op in self.pending:
            if dice.random() < 0.5:
                _apply(self.synced, op)
        self.pending.clear()

    def left(self, how: Left, dice: random.Random) -> bytes:
        if how is Left.ALL and len(self.seen) == len(self.synced) and not self.pending:
            return bytes(self.synced)
        content = bytearray(self.synced)
        if how is Left.SOME:
            sector = dice.choice((512, 4096))
            share = dice.choice((0.1, 0.5, 0.9))
            for op in self.pending:
                for part in _sectors(op, sector):
                    if dice.random() < share:
                        _apply(content, part)
        elif how is Left.ALL:
            for op in self.pending:
                _apply(content, op)
        return bytes(content)


def _sectors(op: Op, size: int) -> Iterator[Op]:
    if op.data is None:
        yield op
        return
    at, end = op.offset, op.offset + len(op.data)
    while at < end:
        upto = min(end, (at // size + 1) * size)
        yield Op(at, op.data[at - op.offset : upto - op.offset])
        at = upto


class Turn(NamedTuple):
    """A name now stands for this file, or for none; a rename does both at once."""

    names: Mapping[str, File | None]


class Disk:
    """One flat directory."""

    def __init__(self, names: Mapping[str, bytes], dice: random.Random) -> None:
        self.synced: dict[str, File] = {name: File(content) for name, content in names.items()}
        self.seen = dict(self.synced)
        self.pending: list[Turn] = []
        self._open: dict[int, File | None] = {}
        self._dice = dice

    def do(self, event: Event) -> None:
        match event.kind:
            case Kind.OPEN:
                if event.offset:
                    self._turn({event.name: File()})
                self._open[event.fd] = self.seen[event.name] if event.name else None
            case Kind.WRITE:
                self._file(event).do(Op(event.offset, event.data))
            case Kind.TRUNCATE:
                self._file(event).do(Op(event.offset, None))
            case Kind.SYNC:
                file = self._open[event.fd]
                if file is not None:
                    file.sync()
                else:
                    for turn in self.pending:
                        _turn(self.synced, turn)
                    self.pending.clear()
            case Kind.SYNC_FAILED:
                file = self._open[event.fd]
                if file is not None:
                    file.fail(self._dice)
            case Kind.UNLINK:
                self._turn({event.name: None})
            case Kind.RENAME:
                self._turn({event.name: None, event.data.decode(): self.seen[event.name]})
            case Kind.MKDIR | Kind.MARK:
                pass

    def _file(self, event: Event) -> File:
        file = self._open[event.fd]
        assert file is not None, "a directory was written to"
        return file

    def _turn(self, names: Mapping[str, File | None]) -> None:
        turn = Turn(names)
        self.pending.append(turn)
        _turn(self.seen, turn)

    def left(self, how: Left, dice: random.Random) -> dict[str, bytes]:
        """What is found after a power cut now."""
        names = dict(self.synced)
        share = 1.0 if how is Left.ALL else 0.0 if how is Left.NONE else dice.choice((0.1, 0.5, 0.9, 1.0))
        for turn in self.pending:
            if dice.random() < share:
                _turn(names, turn)
        return {name: file.left(how, dice) for name, file in names.items()}

    def killed(self) -> dict[str, bytes]:
        """What the next process finds when only this one has ended: the kernel's pages, synced or not."""
        return {name: bytes(file.seen) for name, file in self.seen.items()}


def _turn(names: dict[str, File], turn: Turn) -> None:
    for name, file in turn.names.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file
