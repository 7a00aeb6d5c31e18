"""Pure: bytes in, frames out.

A frame is what stands between two delimiters. Where the stream was cut into chunks makes no difference. Memory is
bounded: a frame longer than `max_length` is dropped up to its delimiter and counted once, however long it gets.

What comes before the first delimiter may have lost its beginning, so it is not a frame; it is one when the line was
silent for `idle_s` before it. With `idle_s`, silence ends a frame as a delimiter does: for devices that send none.
"""

from __future__ import annotations


class Framer:
    """`now` is monotonic seconds; it matters only where `idle_s` is given."""

    def __init__(self, delimiter: bytes, max_length: int, idle_s: float | None, now: float) -> None:
        self._delimiter = delimiter
        self._max_length = max_length
        self._idle_s = idle_s
        self._last = now
        self._buffer = bytearray()
        self._partial = True
        self._dropping = False
        self.overlong = 0
        """Frames that were dropped because they did not end in time."""

    def feed(self, data: bytes, now: float) -> list[bytes]:
        """Frames that end in `data`, without delimiters, empty ones left out."""
        frames = self.tick(now)
        self._last = now
        self._buffer += data
        size, start = len(self._delimiter), 0
        # what was there before `data` has no delimiter in it, but may have the beginning of one
        look = max(0, len(self._buffer) - len(data) - size + 1)
        while (end := self._buffer.find(self._delimiter, max(look, start))) >= 0:
            self._end(bytes(self._buffer[start:end]), frames)
            start = end + size
        del self._buffer[:start]
        if len(self._buffer) - (size - 1) > self._max_length:
            self._overlong()
            del self._buffer[: len(self._buffer) - (size - 1)]
        return frames

    def deadline(self) -> float | None:
        """When silence will mean something."""
        if self._idle_s is None or not (self._buffer or self._partial or self._dropping):
            return None
        return self._last + self._idle_s

    def tick(self, now: float) -> list[bytes]:
        """The frame that silence has ended, if there is one."""
        due = self.deadline()
        frames: list[bytes] = []
        if due is not None and now >= due:
            rest = bytes(self._buffer)
            self._buffer.clear()
            self._end(rest, frames)
        return frames

    def _end(self, frame: bytes, frames: list[bytes]) -> None:
        if len(frame) > self._max_length:
            self._overlong()
        whole = not (self._partial or self._dropping)
        self._partial = self._dropping = False
        if whole and frame:
            frames.append(frame)

    def _overlong(self) -> None:
        if not self._dropping:
            self._dropping = True
            self.overlong += 1
