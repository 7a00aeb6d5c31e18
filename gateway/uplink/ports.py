"""Pure: what the uplink needs of the buffer and of the commands. `app` hands it objects that fit.

All methods are called on the event loop. What is not `async` neither blocks nor awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from gateway.model import Command, Lane, Record, Result
from gateway.protocol.messages import StreamOffer


class Outbox(Protocol):
    """The buffer, seen from the uplink: streams of numbered records that wait for an ack."""

    def offers(self) -> tuple[StreamOffer, ...]:
        """The open streams (alarm, live), then sealed ones that still hold something: alarm first, oldest first.

        The open live stream is always there, although nothing may be in it yet (`first == next`).
        """

    def holds(self) -> Collection[str]:
        """Every stream of which something is held, be it offered at present or not."""

    def waiting(self) -> tuple[int, float]:
        """Records not yet acked by any sink, and the age of the oldest in seconds (0.0 when there is none)."""

    def close(self, lane: Lane) -> bool:
        """Encodes the rows that wait in the open batch of this lane into a record now. False: there were none.

        The uplink calls it when nothing of this lane is in flight (an idle link waits for nothing); otherwise the
        buffer closes batches itself, by size and by its linger time.
        """

    async def fetch(self, stream: str, seq: int, max_bytes: int) -> Sequence[Record]:
        """Records of one stream from `seq` on, in order, at least one if there is one, about `max_bytes` in all.

        The first may have a higher number than asked for: what lies between was acked by some sink. Does not remove
        anything. Raises StoreError when the disk cannot be read (what is lost has been turned into a gap: ask again).
        """

    def hold(self, stream: str, upto: int) -> None:
        """Records up to this number are in flight: do not evict them. 0: none is."""

    def ack(self, sink: str, stream: str, seq: int) -> None:
        """Durably stored by this sink up to `seq`: they are free. Idempotent, never goes back."""

    async def fill(self, sink: str, stream: str, lane: Lane, first: int, last: int) -> int:
        """This sink misses first..last and `fetch` has no record of them. Returns up to where another sink acked them
        (below `first`: it is not known to), and puts a gap record (`unsent`) in the place of the others, also where
        nothing of the stream is held any more."""

    def seal(self, lane: Lane) -> None:
        """Ends the open stream of this lane with an `end` record; new rows go to a new stream. Live first."""

    async def distrust(self, stream: str) -> None:
        """The sink knows more of this stream than was ever sent, so this gateway is a restored copy: what is un-acked
        moves to a new stream, loudly."""

    def online(self, up: bool, patient: bool = False) -> None:
        """Whether a session takes records at present; offline, the buffer commits in groups by time and size. With
        `patient` every message costs money: batches gather for as long as leaves time for the ack before the disk."""

    def listen(self, wake: Callable[[], None]) -> None:
        """`wake` is called whenever there is something new to fetch or to close. One listener."""


class Commands(Protocol):
    """The command router, seen from the uplink."""

    def receive(self, command: Command) -> None:
        """Takes a command over; its result comes through `results`, now or after a restart."""

    def missing(self, open_ids: Sequence[str]) -> None:
        """The server still waits for results of these: those that are known are offered again."""

    def results(self) -> Sequence[Result]:
        """Results that no `result_ack` has come for, oldest first."""

    def acked(self, command_id: str) -> None:
        """The server has stored this result."""

    def listen(self, wake: Callable[[], None]) -> None:
        """`wake` is called when `results` has more. One listener."""
