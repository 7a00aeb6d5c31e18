"""The rules that make it lose nothing, one by one, as far as they are the buffer's."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.buffer import store as store_module
from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings, WhenFull
from gateway.errors import StoreError
from gateway.model import ClockState, GapReason, Lane, RecordKind, Row, Shape, Trust
from gateway.protocol import batch
from gateway.protocol.messages import MAX_BATCH_BYTES, MAX_BATCH_READINGS, GapBody
from gateway.testing.loop import BOOT, run
from tests.buffer.world import ALARM, LIVE, Machine, Sink, deliver, origin, row


def live(buffer: Any) -> str:
    return next(offer.stream for offer in buffer.offers() if offer.lane is Lane.LIVE and not offer.sealed)


# ── rule 1: identity ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_process_opens_its_own_streams(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        names = {offer.stream for offer in buffer.offers()}
        buffer = await machine.kill()
        assert names.isdisjoint(offer.stream for offer in buffer.offers() if not offer.sealed)
        await machine.stop()

    run(main())


def test_no_batch_exceeds_what_every_server_accepts(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        wide = Shape("wide", tuple(f"p{i}" for i in range(1000)), ("",) * 1000)
        await buffer.append([Row(wide, i, tuple(range(1000))) for i in range(9)])
        await buffer.append([row(i, text='"' * 30_000) for i in range(20)])  # each takes twice its length
        buffer.close(Lane.LIVE)
        records = await buffer.fetch(live(buffer), 1, 1 << 30)
        assert sum(record.readings for record in records) == 9 * 1000 + 40
        for record in records:
            assert len(record.body) <= MAX_BATCH_BYTES
            assert record.readings <= MAX_BATCH_READINGS
            assert record.readings == sum(1 for _ in batch.readings(batch.decode(record.body)))
        await machine.stop()

    run(main())


def test_one_reading_that_is_too_large_becomes_a_gap(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        done: list[int] = []
        await buffer.append([row(1), row(2, text="x" * 300_000), row(3)], lambda: done.append(1))
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [1, 3]
        assert [(gap.reason, gap.readings, gap.device) for gap in sink.gaps] == [(GapReason.OVERSIZE, 2, "meter")]
        assert done == [1]
        assert buffer.stats()["lost"] == {"oversize": 2}
        await machine.stop()

    run(main())


# ── rule 2: time ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clock_that_became_trusted_is_a_record_and_committed_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        machine.clock.trust = Trust.UNSYNCED
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1)])
        good = ClockState(BOOT, 1_760_000_000_000, 5, Trust.SYNCED)
        buffer.clock(good, record=True)
        await buffer.append([row(2)])
        await asyncio.sleep(0.01)
        assert buffer.stats()["commits"] == 1
        buffer.close(Lane.LIVE)
        before, clock, after = await buffer.fetch(live(buffer), 1, 1 << 20)
        assert batch.decode(before.body).clock.trust is Trust.UNSYNCED
        assert clock.kind is RecordKind.CLOCK
        assert msgspec.json.decode(clock.body, type=ClockState) == good
        assert batch.decode(after.body).clock == good
        await machine.stop()

    run(main())


@pytest.mark.parametrize(
    ("trust", "step_ms", "expires"),
    [
        (Trust.SYNCED, 0, True),
        (Trust.UNSYNCED, 0, False),
        (Trust.SYNCED, 400 * 86_400_000, True),
    ],
)
def test_age_counts_only_while_the_clock_is_trusted(tmp_path: Path, trust: Trust, step_ms: int, expires: bool) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_age=3600.0)
        machine.clock.trust = trust
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(2000)
        await buffer.append([row(2)])
        await asyncio.sleep(10)
        machine.clock.utc_offset_ms += step_ms
        buffer.clock(machine.clock.state())
        await asyncio.sleep(100)
        assert buffer.stats()["lost"] == {}, "a clock step expires nothing"
        await asyncio.sleep(1700)
        assert buffer.stats()["lost"] == ({"expired": 2} if expires else {})
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == ([2] if expires else [1, 2])
        await machine.stop()

    run(main())


def test_readings_of_an_earlier_boot_expire_by_utc_and_not_by_a_step(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_age=3600.0)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await buffer.drain()
        other = machine.clock.state()
        buffer = await machine.cut()
        buffer.clock(msgspec.structs.replace(other, boot="f" * 32))
        buffer.clock(msgspec.structs.replace(other, boot="f" * 32, offset_ms=other.offset_ms + 10**10))
        await asyncio.sleep(200)
        assert buffer.stats()["lost"] == {}
        await asyncio.sleep(3600)
        assert buffer.stats()["lost"] == {"expired": 2}
        await machine.stop()

    run(main())


# ── rule 4: commit-or-ack ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_healthy_link_writes_nothing_to_disk(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        sink = Sink()
        files = {path: path.stat().st_mtime_ns for path in machine.data.iterdir()}
        for number in range(2000):
            await buffer.append([row(number)])
            await asyncio.sleep(0.05)
            if number % 4 == 0:
                await deliver(buffer, sink)
        stats = buffer.stats()
        assert (stats["commits"], stats["fsyncs"], stats["committed_bytes"]) == (0, 0, 0)
        assert files == {path: path.stat().st_mtime_ns for path in machine.data.iterdir()}
        await machine.stop()

    run(main())


def test_what_is_not_acked_in_time_is_committed_with_all_that_is_older(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        for number in range(5):
            await buffer.append([row(number)])
            buffer.close(Lane.LIVE)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        assert buffer.stats()["commits"] == 0
        await asyncio.sleep(0.1)
        assert buffer.stats()["commits"] == 1
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [0, 1, 2, 3, 4]
        await machine.stop()

    run(main())


@pytest.mark.parametrize("linger", [0.001, 0.1, 0.25])
@pytest.mark.parametrize("turn_s", [None, 0.0, 0.2, 0.45])
def test_a_power_cut_takes_nothing_that_is_older_than_commit_after(
    tmp_path: Path, linger: float, turn_s: float | None
) -> None:
    """Counted from the arrival of each row, online, offline, and when a session comes in between."""

    async def main() -> None:
        machine = Machine(tmp_path, linger=linger)
        buffer = await machine.start()
        buffer.online(turn_s is None)
        await buffer.append([row(0)])
        for number in range(1, 6):
            await asyncio.sleep(0.09)
            if turn_s is not None and number * 0.09 >= turn_s:
                buffer.online(True)
            await buffer.append([row(number)])
        await asyncio.sleep(0.051)  # the first is now 0.501 s old
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert 0 in sink.numbers
        await machine.stop()

    run(main())


def test_batches_that_wait_for_company_leave_time_for_the_ack(tmp_path: Path) -> None:
    """A healthy link costs no sync although `linger` counts, too: acks come within half of `commit_after`."""

    async def main() -> None:
        machine = Machine(tmp_path, linger=0.25)
        buffer = await machine.start()
        buffer.online(True)
        for number in range(300):
            await buffer.append([row(number)])
            await asyncio.sleep(0.03)
            for offer in buffer.offers():  # the session: whatever has been closed is acked 0.2 s later
                asyncio.get_running_loop().call_later(0.2, buffer.ack, "sink", offer.stream, offer.next - 1)
        assert buffer.stats()["commits"] == 0
        await machine.stop()

    run(main())


def test_a_linger_that_leaves_no_time_for_the_ack_is_a_mistake() -> None:
    assert not list(BufferSettings(linger=0.25).mistakes())
    (mistake,) = BufferSettings(linger=0.26).mistakes()
    assert "more than half of commit_after" in mistake.message


def test_offline_batches_are_committed_in_groups_by_time_and_size(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        for number in range(200):
            await buffer.append([row(number)])
            await asyncio.sleep(0.05)
        stats = buffer.stats()
        assert 18 <= stats["commits"] <= 21  # 10 s, one each 0.5 s
        assert stats["records"] == stats["commits"]
        await asyncio.sleep(1)
        commits = buffer.stats()["commits"]
        await buffer.append([row(1000, text="z" * 70_000)])
        await asyncio.sleep(0.01)
        assert buffer.stats()["commits"] == commits + 1
        await machine.stop()

    run(main())


def test_an_alarm_is_committed_at_once_and_drain_commits_all(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1, ALARM)])
        await asyncio.sleep(0.001)
        assert buffer.stats()["commits"] == 1
        await buffer.append([row(2)])
        await buffer.drain()
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [1, 2]
        assert sink.kinds.count(RecordKind.END) == 2
        await machine.stop()

    run(main())


def test_acked_rows_are_deleted_in_groups(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        for number in range(20):
            await buffer.append([row(number)])
            await asyncio.sleep(1)
        commits = buffer.stats()["commits"]
        await deliver(buffer, Sink(), max_bytes=1)
        assert buffer.stats()["commits"] == commits
        await asyncio.sleep(30)
        assert buffer.stats()["commits"] == commits + 1
        buffer = await machine.cut()
        assert buffer.waiting()[0] == 0
        await machine.stop()

    run(main())


# ── rule 5: flight ring ──────────────────────────────────────────────────────────────────────────────────────────────


def test_after_a_kill_batches_come_under_their_old_identity_and_loose_rows_under_a_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1)])
        buffer.close(Lane.LIVE)
        old = live(buffer)
        (sent,) = await buffer.fetch(old, 1, 1 << 20)
        await buffer.append([row(2)])
        buffer = await machine.kill()
        (again,) = await buffer.fetch(old, 1, 1 << 20)
        assert again == sent
        sink = Sink()
        await deliver(buffer, sink)
        assert {key[0] for key in sink.rows} == {old, live(buffer)}
        assert sorted(sink.numbers) == [1, 2]
        await machine.stop()

    run(main())


def test_without_a_ring_each_append_returns_after_its_commit_and_status_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        machine.ring = False
        buffer = await machine.start()
        assert buffer.stats()["mode"] == "degraded"
        await asyncio.gather(*(buffer.append([row(number)]) for number in range(50)))
        assert buffer.stats()["commits"] <= 2
        buffer = await machine.kill()
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(50))
        await machine.stop()

    run(main())


def test_what_is_not_in_the_ring_is_on_disk_before_it_is_handed_out(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        machine.ring = False
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1, origin=origin(1))])  # still its source's: no commit is waited for
        buffer.close(Lane.LIVE)
        assert [offer.next for offer in buffer.offers()] == [1, 1]
        assert buffer.stats()["commits"] == 0
        (record,) = await buffer.fetch(live(buffer), 1, 1 << 20)
        assert buffer.stats()["commits"] == 1
        stream = live(buffer)
        buffer = await machine.cut()
        assert list(await buffer.fetch(stream, 1, 1 << 20)) == [record]
        await machine.stop()

    run(main())


def test_rows_of_a_full_ring_are_not_doubled_by_a_kill_between_commit_and_free(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, ring_size=1 << 20)
        buffer = await machine.start()
        buffer.online(True)
        ring = buffer._ring
        assert ring is not None
        while ring.put(9, b"\0" * 900) is not None:
            pass
        while ring.capacity_bytes - ring.used_bytes > 350:  # a row fits, its record does not
            assert ring.put(9, b"\0" * 8) is not None
        await buffer.append([row(1)])
        buffer.close(Lane.LIVE)
        before = (machine.run / "flight.ring").read_bytes()
        await asyncio.sleep(1)
        assert buffer.stats()["commits"] == 1
        await machine.stop()
        (machine.run / "flight.ring").write_bytes(before)
        buffer = await machine.start()
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        await machine.stop()

    run(main())


# ── rule 6: sources with their own ack ───────────────────────────────────────────────────────────────────────────────


def test_a_source_is_told_after_the_ack_or_the_commit_and_not_before(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        done: list[int] = []
        await buffer.append([row(1, origin=origin(1)), row(2, origin=origin(1))], lambda: done.append(1))
        buffer.close(Lane.LIVE)
        await asyncio.sleep(0.1)
        assert done == []
        assert buffer.ledger.seen(origin(1))
        assert not buffer.ledger.settled(origin(1))
        buffer.ack("sink", live(buffer), 1)
        assert done == [1]
        assert buffer.ledger.settled(origin(1))
        await buffer.append([row(3, origin=origin(2))], lambda: done.append(2))
        buffer.online(False)
        await asyncio.sleep(0.06)  # a source that waits is not kept waiting for the group
        assert done == [1, 2]
        assert buffer.stats()["commits"] == 1
        await machine.stop()

    run(main())


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("safe_by", ["ack", "commit"])
def test_a_message_is_known_after_a_crash_until_its_source_cannot_send_it_again(
    tmp_path: Path, safe_by: str, power: bool
) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1, origin=origin(7))])
        buffer.close(Lane.LIVE)
        if safe_by == "ack":
            buffer.ack("sink", live(buffer), 1)
        else:
            await asyncio.sleep(1)
            buffer.ack("sink", live(buffer), 1)
            await asyncio.sleep(30)  # its row is acked, and stays for its origin
        buffer = await (machine.cut() if power else machine.kill())
        known = not (power and safe_by == "ack")  # then the broker sends it again, once
        assert buffer.ledger.seen(origin(7)) is known
        assert buffer.ledger.settled(origin(7)) is known
        assert not buffer.ledger.seen(origin(7, b"another message"))
        buffer.ledger.forget([origin(7)])
        buffer.ack("sink", next(iter([o.stream for o in buffer.offers() if o.sealed]), ""), 1)
        await asyncio.sleep(30)
        buffer = await machine.kill()
        assert not buffer.ledger.seen(origin(7))
        assert buffer.stats()["ring_bytes"] == 0
        await machine.stop()

    run(main())


def test_a_message_in_the_open_batch_is_still_its_sources_after_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        buffer.online(True)
        await buffer.append([row(1, origin=origin(1))])
        buffer = await machine.kill()
        assert not buffer.ledger.seen(origin(1))
        await buffer.append([row(1, origin=origin(1))])
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        await machine.stop()

    run(main())


def test_one_message_never_straddles_two_batches(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        rows = [row(n, ALARM if n % 50 == 0 else LIVE, origin(n // 100 + 1), "t" * 300) for n in range(3000)]
        await buffer.append(rows)
        sink = Sink()
        await deliver(buffer, sink)
        assert len(sink.rows) > 3
        for numbers in sink.rows.values():
            assert all(len([n for n in numbers if n // 100 == m]) == 100 for m in {n // 100 for n in numbers})
        await machine.stop()

    run(main())


def test_what_a_source_cannot_send_again_is_forgotten_session_by_session(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(n, origin=origin(n)) for n in range(1, 5)])
        buffer.ledger.keep_only(b"session1", [origin(2), origin(3, b"other content")])
        assert [n for n in range(1, 5) if buffer.ledger.seen(origin(n))] == [2]
        await machine.stop()

    run(main())


# ── rule 7: gaps ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_eviction_is_oldest_first_reported_and_merges(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await machine.start()
        dice = random.Random(1)
        for number in range(400):
            text = dice.randbytes(4000).hex()
            await buffer.append([row(number, text=text)])
            await asyncio.sleep(0.6)
        stats = buffer.stats()
        assert stats["disk_bytes"] <= 1_100_000
        sink = Sink()
        await deliver(buffer, sink)
        lost = 400 - len(sink.numbers)
        assert sink.numbers == list(range(lost, 400))
        assert [(gap.reason, gap.readings) for gap in sink.gaps] == [(GapReason.EVICTED, 2 * lost)]
        assert stats["lost"] == {"evicted": 2 * lost}
        await machine.stop()

    run(main())


def test_what_is_in_flight_is_not_evicted_and_a_gap_that_was_seen_does_not_grow(tmp_path: Path) -> None:
    async def main() -> None:
        dice = random.Random(2)
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await machine.start()

        async def fill(count: int) -> None:
            for number in range(count):
                await buffer.append([row(number, text=dice.randbytes(4000).hex())])
                await asyncio.sleep(0.6)

        await fill(20)
        (first,) = await buffer.fetch(live(buffer), 1, 1)
        buffer.hold(live(buffer), 1)
        await fill(300)
        again, gap = (await buffer.fetch(live(buffer), 1, 1 << 16))[:2]
        assert again == first
        assert (gap.kind, gap.seq) == (RecordKind.GAP, 2)
        buffer.hold(live(buffer), 0)
        await fill(100)
        evicted, same = (await buffer.fetch(live(buffer), 1, 1 << 16))[:2]
        assert (evicted.kind, evicted.seq, evicted.last) == (RecordKind.GAP, 1, 1)
        assert same == gap
        await machine.stop()

    run(main())


def test_alarms_outlive_readings(tmp_path: Path) -> None:
    async def main() -> None:
        dice = random.Random(3)
        machine = Machine(tmp_path, max_size=1_000_000)
        buffer = await machine.start()
        for number in range(300):
            await buffer.append([row(number, ALARM if number < 10 else LIVE, text=dice.randbytes(4000).hex())])
            await asyncio.sleep(0.6)
        sink = Sink()
        await deliver(buffer, sink)
        assert set(range(10)) <= set(sink.numbers)
        assert buffer.stats()["lost"]["evicted"] > 0
        await machine.stop()

    run(main())


# ── rules 8 to 10: live first, resume, sinks ─────────────────────────────────────────────────────────────────────────


def test_a_sealed_stream_ends_and_follows_behind_the_new_one(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        old = live(buffer)
        buffer.seal(Lane.LIVE)
        buffer.seal(Lane.LIVE)  # nothing in it: stays open
        await buffer.append([row(2)])
        buffer.close(Lane.LIVE)
        _, now, sealed = buffer.offers()
        assert (now.stream != old, now.next, now.sealed) == (True, 2, False)
        assert (sealed.stream, sealed.first, sealed.next, sealed.sealed) == (old, 1, 3, True)
        kinds = [record.kind for record in await buffer.fetch(old, 1, 1 << 20)]
        assert kinds == [RecordKind.BATCH, RecordKind.END]
        buffer.ack("sink", old, 2)
        assert len(buffer.offers()) == 3, "the ended one too, while a sink may want it back"
        await machine.stop()

    run(main())


def test_a_sink_that_lost_some_gets_what_is_kept_and_a_gap_for_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, keep_acked=4000)
        buffer = await machine.start()
        buffer.online(True)
        sink = Sink()
        for number in range(20):
            await buffer.append([row(number)])
            await deliver(buffer, sink)
        sink.restore(live(buffer), 0)
        await deliver(buffer, sink)
        assert sink.numbers == list(range(20 - len(sink.numbers), 20))
        assert 3 <= len(sink.numbers) < 20
        assert [gap.reason for gap in sink.gaps] == [GapReason.UNSENT]
        await machine.stop()

    run(main())


def test_what_another_sink_has_is_skipped_by_a_gap_that_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, keep_acked=0)
        buffer = await machine.start()
        first, second = Sink("first"), Sink("second")
        for number in range(3):
            await buffer.append([row(number)])
            await deliver(buffer, first)
        await buffer.append([row(3)])
        await deliver(buffer, second)
        assert second.numbers == [3]
        assert [(gap.reason, gap.readings) for gap in second.gaps] == [(GapReason.STORED_ELSEWHERE, 0)]
        assert buffer.waiting()[0] == 0
        assert buffer.stats()["lost"] == {}
        await machine.stop()

    run(main())


def test_fill_never_covers_what_is_held(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        for number in range(4):
            await buffer.append([row(number)])
            buffer.close(Lane.LIVE)
            if number == 1:
                await asyncio.sleep(1)
        await buffer.fill("sink", live(buffer), Lane.LIVE, 1, 4)
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [0, 1, 2, 3]
        assert sink.gaps == []
        await machine.stop()

    run(main())


def test_a_restored_copy_moves_what_is_unacked_to_a_new_stream(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        done: list[int] = []
        for number in range(4):
            await buffer.append([row(number)], lambda: done.append(1))
            await asyncio.sleep(0.6 if number < 2 else 0)
            buffer.close(Lane.LIVE)
        distrusted = live(buffer)
        await buffer.distrust(distrusted)
        assert distrusted not in {offer.stream for offer in buffer.offers()}
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [0, 1, 2, 3]
        assert done == [1] * 4
        buffer = await machine.kill()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == [0, 1, 2, 3]
        await machine.stop()

    run(main())


def test_what_a_source_may_send_again_is_known_after_its_stream_was_distrusted(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        for packet_id in (1, 2):
            await buffer.append([row(packet_id, origin=origin(packet_id))], lambda: None)
            await asyncio.sleep(0.6)
        buffer.ack("sink", live(buffer), 1)
        await buffer.distrust(live(buffer))
        buffer = await machine.kill()
        assert [buffer.ledger.settled(origin(packet_id)) for packet_id in (1, 2)] == [True, True]
        await machine.stop()

    run(main())


def test_a_store_that_opens_late_does_not_overrule_a_newer_message_of_the_same_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1, origin=origin(1, b"old"))], lambda: None)
        await asyncio.sleep(0.6)
        whole = store_module.Store.open

        def fail(_: object) -> None:
            raise StoreError("not now")

        monkeypatch.setattr(store_module.Store, "open", fail)
        buffer = await machine.kill()
        await buffer.append([row(2, origin=origin(1, b"new"))], lambda: None)
        monkeypatch.setattr(store_module.Store, "open", whole)
        await asyncio.sleep(70)
        assert buffer.ledger.settled(origin(1, b"new"))
        await machine.stop()

    run(main())


def test_a_distrusted_stream_is_given_away_once_the_disk_works_again(tmp_path: Path) -> None:
    """The sink may have been restored by then, and nobody says again that it is a copy's."""

    async def main() -> None:
        machine, sink = Machine(tmp_path), Sink()
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(0.6)
        distrusted, store = live(buffer), buffer._committer.store

        def fail(*_: object) -> None:
            raise StoreError("not now")

        store.move = fail  # type: ignore[method-assign,assignment]
        with pytest.raises(StoreError):
            await buffer.distrust(distrusted)
        del store.move
        await asyncio.sleep(10)
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        assert distrusted not in sink.marks
        await machine.stop()

    run(main())


def test_the_end_of_a_distrusted_stream_does_not_end_the_open_one(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        machine.failing = True  # so that all of it is in memory
        await buffer.append([row(1)])
        distrusted = live(buffer)
        buffer.seal(Lane.LIVE)
        await buffer.distrust(distrusted)
        await buffer.append([row(2)])
        buffer.close(Lane.LIVE)
        records = await buffer.fetch(live(buffer), 1, 1 << 20)
        assert [record.kind for record in records] == [RecordKind.BATCH, RecordKind.BATCH]
        await machine.stop()

    run(main())


def test_what_the_ring_had_no_room_for_leaves_no_hole_that_looks_like_a_loss(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, ring_size=600)
        buffer = await machine.start()
        await buffer.append([row(1, text="x" * 250)])
        buffer.seal(Lane.LIVE)  # the record does not fit beside its row, its end would
        buffer = await machine.kill()
        await asyncio.sleep(1)
        sink = Sink()
        await deliver(buffer, sink)
        assert (sink.numbers, sink.gaps) == ([1], [])
        await machine.stop()

    run(main())


def test_two_sessions_may_tell_of_the_same_copy_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(0.6)
        distrusted = live(buffer)
        await asyncio.gather(buffer.distrust(distrusted), buffer.distrust(distrusted))
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        await machine.stop()

    run(main())


# ── rule 11: bounded, always ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_disk_is_a_state_and_memory_gives_up_the_oldest(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, memory_limit=1_000_000)
        buffer = await machine.start()
        machine.failing = True
        for number in range(300):
            await buffer.append([row(number, text="m" * 10_000)])
            await asyncio.sleep(0.6)
        stats = buffer.stats()
        assert stats["mode"] == "degraded"
        assert re.search(r"No space left.*: going on from memory, tried again in \d+ s", stats["why"])
        assert stats["memory_bytes"] <= 1_100_000
        assert stats["lost"]["overflow"] > 0
        machine.failing = False
        await asyncio.sleep(61)
        assert buffer.stats()["mode"] == "healthy"
        buffer = await machine.cut()
        sink = Sink()
        await deliver(buffer, sink)
        lost = 300 - len(sink.numbers)
        assert sink.numbers == list(range(lost, 300))
        assert [(gap.reason, gap.readings) for gap in sink.gaps] == [(GapReason.OVERFLOW, 2 * lost)]
        await machine.stop()

    run(main())


def test_a_source_that_keeps_its_messages_waits_instead_of_losing_them(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path, memory_limit=1_000_000)
        buffer = await machine.start()
        machine.failing = True
        accepted: list[int] = []

        async def source() -> None:
            for number in range(1, 201):
                await buffer.append([row(number, origin=origin(number), text="m" * 10_000)], lambda: None)
                accepted.append(number)

        task = asyncio.create_task(source())
        await asyncio.sleep(30)
        assert 50 < len(accepted) < 120
        assert buffer.stats()["held_back"] == 1
        machine.failing = False
        await asyncio.sleep(61)
        await task
        sink = Sink()
        await deliver(buffer, sink)
        assert sorted(sink.numbers) == list(range(1, 201))
        assert buffer.stats()["lost"] == {}
        await machine.stop()

    run(main())


def test_a_buffer_that_refuses_makes_the_sources_wait_and_gives_up_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        dice = random.Random(4)
        machine = Machine(tmp_path, max_size=1_000_000, memory_limit=1_000_000, when_full=WhenFull.REFUSE)
        buffer = await machine.start()

        async def source() -> None:
            for number in range(600):
                await buffer.append([row(number, text=dice.randbytes(4000).hex())])

        task = asyncio.create_task(source())
        await asyncio.sleep(600)
        assert not task.done()
        assert buffer.stats()["held_back"] == 1
        sink = Sink()
        while not task.done():
            await deliver(buffer, sink)
            await asyncio.sleep(61)
        await deliver(buffer, sink)
        assert sink.numbers == list(range(600))
        assert sink.gaps == []
        await machine.stop()

    run(main())


def test_a_disk_that_fails_while_a_backlog_is_read_is_said_and_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        buffer = await machine.start()
        await buffer.append([row(1)])
        await asyncio.sleep(1)
        store = buffer._committer.store
        whole = store.read

        def broken(*_: Any) -> Any:
            raise StoreError("disk I/O error")

        store.read = broken  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await buffer.fetch(live(buffer), 1, 1 << 20)
        assert buffer.stats()["mode"] == "degraded"
        store.read = whole  # type: ignore[method-assign]
        await asyncio.sleep(5)
        assert buffer.stats()["mode"] == "healthy"
        sink = Sink()
        await deliver(buffer, sink)
        assert sink.numbers == [1]
        assert GapBody(GapReason.UNSENT) not in sink.gaps
        await machine.stop()

    run(main())


def test_two_processes_never_share_a_store(tmp_path: Path) -> None:
    async def main() -> None:
        machine = Machine(tmp_path)
        await machine.start()
        second = await Buffer.open(BufferSettings(), machine.data, machine.clock, None, machine.executor)
        assert second.stats()["mode"] == "degraded"
        await second.release()
        await machine.stop()

    run(main())
