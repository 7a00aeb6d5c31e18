"""The buffer against a model: whatever happens in whatever order, every accepted row arrives once or is reported."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.model import GapReason, Lane
from gateway.testing.loop import VirtualTimeLoop
from tests.buffer.world import ALARM, LIVE, Machine, Sink, deliver, row

COMMIT_AFTER_S = 0.5


class BufferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="buffer-model-"))
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.sink = Sink()
        self.number = 0
        self.accepted: dict[int, float] = {}
        """Row → when."""
        self.may_be_lost: set[int] = set()
        self.settled: Counter[int] = Counter()
        self.settled_before: set[int] = set()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(ring=st.booleans(), small_ring=st.booleans())
    def begin(self, ring: bool, small_ring: bool) -> None:
        self.machine = Machine(
            self.home, commit_after=COMMIT_AFTER_S, ring_size=1 << 20, memory_limit=1_000_000, keep_acked=2000
        )
        self.machine.ring = ring
        self.do(self.machine.start())
        if small_ring and ring:
            self.shrink_ring()

    def shrink_ring(self) -> None:
        """Room for little: what does not fit is committed before it is handed out."""
        ring = self.machine.buffer._ring
        assert ring is not None
        while ring.capacity_bytes - ring.used_bytes > 3000 and ring.put(9, b"\0" * 1000) is not None:
            pass

    @rule(count=st.integers(1, 5), alarm=st.booleans(), text=st.sampled_from(("", "x" * 200, "y" * 40_000)))
    def append(self, count: int, alarm: bool, text: str) -> None:
        rows = []
        for _ in range(count):
            self.number += 1
            rows.append(row(self.number, ALARM if alarm else LIVE, text=text))
        numbers = range(self.number - count + 1, self.number + 1)

        def settled() -> None:
            self.settled.update(numbers)

        async def work() -> None:
            if self.machine.failing:  # without room for it this would wait for the disk, for ever
                await self.machine.buffer.append(rows)
            else:
                await self.machine.buffer.append(rows, settled)

        self.do(work())
        now = self.runner.get_loop().time()
        self.accepted |= dict.fromkeys(numbers, now)

    @rule(seconds=st.sampled_from((0.0, 0.04, 0.2, 0.6, 15.0)))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    @rule(ack=st.booleans(), max_bytes=st.sampled_from((1, 300, 1 << 20)))
    def deliver(self, ack: bool, max_bytes: int) -> None:
        self.do(deliver(self.machine.buffer, self.sink, ack=ack, max_bytes=max_bytes))

    @rule(lane=st.sampled_from(Lane))
    def seal(self, lane: Lane) -> None:
        async def work() -> None:
            self.machine.buffer.seal(lane)

        self.do(work())

    @rule(up=st.booleans())
    def online(self, up: bool) -> None:
        async def work() -> None:
            self.machine.buffer.online(up)

        self.do(work())

    @rule()
    def clock_record(self) -> None:
        async def work() -> None:
            self.machine.buffer.clock(self.machine.clock.state(), record=True)

        self.do(work())

    @rule(failing=st.booleans())
    def disk(self, failing: bool) -> None:
        self.machine.failing = failing
        if not failing:
            self.do(asyncio.sleep(130))  # two of the longest pauses between tries

    @rule()
    def kill(self) -> None:
        if not self.machine.ring or self.machine.failing:
            self.lose_what_is_not_on_disk()
        self.do(self.machine.kill())

    @rule()
    def drain_and_restart(self) -> None:
        async def work() -> None:
            await self.machine.buffer.drain()
            await self.machine.kill()

        if self.machine.failing:
            self.lose_what_is_not_on_disk()
        self.do(work())

    @rule()
    def cut(self) -> None:
        self.lose_what_is_not_on_disk()
        self.do(self.machine.cut())

    def lose_what_is_not_on_disk(self) -> None:
        """Only what is younger than `commit_after`, unless the disk has failed for longer."""
        self.do(asyncio.sleep(0.001))  # what is due at this instant is done
        now = self.runner.get_loop().time()
        for number, at in self.accepted.items():
            promised = self.machine.ring is False and not self.machine.failing
            if self.machine.failing or (now - at < COMMIT_AFTER_S and not promised):
                self.may_be_lost.add(number)

    @rule(back=st.integers(1, 3))
    def sink_restored(self, back: int) -> None:
        """What it had acked is there no longer; what is still held comes again under the same identity."""
        for stream, mark in list(self.sink.marks.items()):
            self.may_be_lost |= self.sink.restore(stream, max(0, mark - back))

    @invariant()
    def nothing_twice_and_nothing_made_up(self) -> None:
        arrived = self.sink.numbers
        assert len(arrived) == len(set(arrived))
        assert set(arrived) <= set(self.accepted)
        assert all(count == 1 for count in self.settled.values())

    def teardown(self) -> None:
        try:
            if hasattr(self, "machine"):
                self.machine.failing = False
                self.do(asyncio.sleep(130))
                self.do(deliver(self.machine.buffer, self.sink))
                self.do(deliver(self.machine.buffer, self.sink))
                missing = set(self.accepted) - set(self.sink.numbers) - self.may_be_lost
                reported = sum(gap.readings or 0 for gap in self.sink.gaps if gap.reason is not GapReason.UNSENT)
                assert 2 * len(missing) <= reported, (missing, self.sink.gaps)
                assert self.do_waiting() == 0
                self.do(self.machine.stop())
        finally:
            self.runner.close()
            shutil.rmtree(self.home)

    def do_waiting(self) -> int:
        async def work() -> int:
            return self.machine.buffer.waiting()[0]

        return int(self.do(work()))


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
