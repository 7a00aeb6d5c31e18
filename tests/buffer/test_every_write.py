"""A kill at every single write to the ring, in the middle of whatever the buffer was doing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.buffer import buffer as module
from gateway.buffer.recovery import sort_out
from gateway.buffer.ring import create, recover
from gateway.model import Lane, RecordKind
from gateway.protocol import batch
from gateway.testing.loop import run
from tests.buffer.test_ring import Witness
from tests.buffer.world import ALARM, LIVE, Machine, origin, row

steps = st.lists(
    st.sampled_from(("row", "rows", "alarm", "message", "close", "fetch", "ack", "split")), max_size=25
).filter(
    lambda script: script.count("split") <= 3  # more fill the ring, and nobody commits here to empty it
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=steps)
def test_every_row_is_in_the_ring_once_and_what_was_sent_keeps_its_identity(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    memory = Witness(2 << 20)  # has room for two that must be split: what waits for a full ring is its source's
    ring = create(memory)
    accepted: set[int] = set()
    under_way: set[int] = set()
    gone: set[int] = set()
    sent: dict[tuple[str, int], bytes] = {}

    def check() -> None:
        after = recover(bytearray(memory))
        assert after is not None
        found = sort_out(after[1], {})
        numbers = [int(str(each.values[1])) for loose in found.loose for each in loose.rows]
        identities = {}
        for _, flown in found.records:
            for record, _ in flown:
                identities[record.stream, record.seq] = record.body
                if record.kind is RecordKind.BATCH:
                    numbers += [int(str(each.values[1])) for each in batch.rows(batch.decode(record.body))]
        assert len(numbers) == len(set(numbers))
        assert accepted - gone <= set(numbers)
        assert set(numbers) <= accepted | under_way
        assert all(identities[identity] == body for identity, body in sent.items())

    async def main(home: Path) -> None:
        machine = Machine(home, commit_after=60.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "open_ring", lambda *_: (ring, ()))
            buffer = await machine.start()
        buffer.online(True)
        memory.watch = check
        number = packet = 0
        waiting: list[int] = []  # messages are their source's until they are in a record
        splits = 0
        for step in script:
            splits += step == "split"
            if step == "split" and splits > 2:
                continue
            live = next(offer for offer in buffer.offers() if offer.lane is Lane.LIVE)
            if step in ("row", "rows", "alarm", "split"):
                count = 5 if step == "rows" else 2 if step == "split" else 1
                rows = [
                    row(number + i, ALARM if step == "alarm" else LIVE, text='"' * 90_000 if step == "split" else "")
                    for i in range(count)
                ]
                under_way.update(waiting, range(number, number + count))
                await buffer.append(rows)
                accepted.update(range(number, number + count))
                under_way.clear()
                number += count
            elif step == "message":
                packet += 1
                under_way.add(number)
                await buffer.append([row(number, origin=origin(packet))])
                waiting.append(number)
                under_way.clear()
                number += 1
            elif step == "close":
                under_way.update(waiting)
                buffer.close(Lane.LIVE)
                accepted.update(waiting)
                under_way.clear()
                waiting.clear()
            elif step == "fetch":
                for record in await buffer.fetch(live.stream, live.first, 1 << 20):
                    sent[record.stream, record.seq] = record.body
            elif live.first < live.next:
                for record in await buffer.fetch(live.stream, live.first, 1):
                    sent.pop((record.stream, record.seq), None)
                    gone.update(int(str(each.values[1])) for each in batch.rows(batch.decode(record.body)))
                    buffer.ack("sink", live.stream, record.seq)
            if step in ("rows", "split", "alarm"):  # these may have closed a batch, messages and all
                closed = {int(str(each.values[1])) for each in buffer._open._lanes[Lane.LIVE].rows}
                accepted.update(set(waiting) - closed)
                waiting[:] = [each for each in waiting if each in closed]
            check()
        memory.watch = None
        await machine.stop()

    run(main(tmp_path_factory.mktemp("life")))
