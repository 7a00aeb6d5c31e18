"""Pure: whether something that had been synced is missing from SQLite's log.

The log is frames: pages, the last one of each commit marked as such. A commit is synced before the next one begins. So
a power cut leaves good frames up to some commit, and behind them at most the frames of one commit more, in any state.
A frame behind the end of that proves that what is before it had been synced. SQLite reads up to the first bad frame
and forgets the rest without a word.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log (and `walformat.html` for the index)
"""

from __future__ import annotations

import struct
from typing import Final

_HEAD_BYTES: Final = 32
_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_FRAME: Final = struct.Struct(">II8s")
"""Page, size of the file in pages (0: no end of a commit), salts."""
_FRAME_BYTES: Final = 24
_SALTS: Final = slice(16, 24)
_GOOD: Final = struct.Struct("=I")
_GOOD_AT: Final = 16


def good_frames(index: bytes) -> int:
    """How many frames SQLite believes, from the head of its index (`-shm`)."""
    return int(_GOOD.unpack_from(index, _GOOD_AT)[0]) if len(index) >= _GOOD_AT + _GOOD.size else 0


def _is_whole(head: bytes) -> bool:
    if len(head) < _HEAD_BYTES or head[:4] not in _MAGIC:
        return False  # zeros would be a good checksum of zeros
    words = struct.unpack_from(">6I" if head[3] & 1 else "<6I", head)
    first = second = 0
    for i in range(0, len(words), 2):
        first = (first + words[i] + second) & 0xFFFFFFFF
        second = (second + words[i + 1] + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack_from(">2I", head, 24)


def is_damaged(log: bytes, page_bytes: int, good: int) -> bool:
    """Whether commits that had been synced are behind the frames that are believed."""
    size = _FRAME_BYTES + page_bytes
    salts = log[_SALTS] if _is_whole(log[:_HEAD_BYTES]) else None  # frames with other salts are of a log before it
    ended = False
    for at in range(_HEAD_BYTES + good * size, len(log) - _FRAME_BYTES + 1, size):
        _, pages, mine = _FRAME.unpack_from(log, at)
        if salts is None and any(mine):
            salts = mine
        if mine == salts:
            if ended:
                return True
            ended = pages != 0
    return False
