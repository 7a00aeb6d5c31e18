"""How much of a serial line is used for what it is there for, measured in virtual time on a simulated line."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer.buffer import Buffer
from gateway.buffer.config import BufferSettings
from gateway.intake import Intake
from gateway.model import DeviceState, Status, Write
from gateway.normalise.normaliser import Normaliser
from gateway.testing.loop import VirtualClock, run

from .bench import Bench, device
from .simulated import SimulatedLine, polled

THINKS_S = 0.005
BUS = {"kind": "modbus-rtu", "port": "/dev/line", "baud_rate": 19200, "delay_between_requests": 0}
TWENTY = [{"name": f"v{n}", "register": "input", "address": 2 * n, "type": "float32"} for n in range(20)]


def read_s(line: SimulatedLine, registers: int, thinks_s: float = THINKS_S) -> float:
    """The least that one read can take: silence, request, thinking, answer."""
    return max(line.seconds(3.5), 0.00175) + line.seconds(8) + thinks_s + line.seconds(5 + 2 * registers)


@pytest.mark.parametrize("interval", ["1s", "10s"])
def test_thirty_two_devices_of_twenty_points_are_read_as_often_as_the_line_allows(
    interval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 1 s the line is asked for twice what it can carry, at 10 s for a fifth."""
    seconds, every_s = 120.0, float(interval[:-1])
    line = SimulatedLine(19200, dict.fromkeys(range(1, 33), THINKS_S))
    line.put_in_place(monkeypatch)
    devices = [device(f"meter-{unit}", unit, *TWENTY, interval=interval) for unit in range(1, 33)]
    bench = run(polled(BUS, devices, seconds))
    assert {frame[4:6] for _, frame in line.asked} == {b"\0\x28"}, "one request for the twenty points"
    one_s = read_s(line, 40)
    allowed = min(seconds / one_s, 32 * seconds / every_s)
    assert len(bench.samples) >= 0.95 * allowed
    assert all(len(sample.values) == 20 and sample.status is None for sample in bench.samples)
    least, *_, most = sorted(line.answered.values())
    assert most - least <= 1, "all of them alike"
    asked_for = 32 * one_s / every_s
    assert bench.status["load"] == pytest.approx(asked_for, rel=0.02)
    assert bench.status["utilisation"] == pytest.approx(min(asked_for, 1), abs=0.03)


@pytest.mark.parametrize("interval", ["150ms", "1s"])
def test_one_dead_unit_of_five_costs_the_others_no_more_than_a_twentieth(
    interval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two minutes, on a line with time to spare and on one with none."""
    polls = {}
    for dead in (None, 3):
        line = SimulatedLine(19200, {unit: THINKS_S for unit in range(1, 6) if unit != dead})
        line.put_in_place(monkeypatch)
        devices = [device(f"meter-{unit}", unit, *TWENTY, interval=interval) for unit in range(1, 6)]
        bench = run(polled(BUS, devices, 120))
        polls[dead] = line.answered
    for unit in (1, 2, 4, 5):
        assert polls[3][unit] >= 0.95 * polls[None][unit]
    assert sum(frame[0] == 3 for _, frame in line.asked) <= 4 + 2  # three failures, one retry, two probes
    assert ("meter-3", DeviceState.OFFLINE, "comm_timeout") in bench.reports
    assert set(bench.statuses("meter-3", "v0")) == {Status.COMM_TIMEOUT, Status.DEVICE_OFFLINE}


def test_polls_stay_on_their_grid_for_ten_minutes_on_a_device_four_times_too_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = SimulatedLine(19200, {1: 0.2})
    line.put_in_place(monkeypatch)
    bench = run(polled(BUS, [device("slow", 1, {"name": "v", "address": 0}, interval="50ms")], 600))
    starts = [at for at, _ in line.asked][2:]
    origin = starts[0]
    for at in starts:
        phase = (at - origin) / 0.05
        assert phase == pytest.approx(round(phase), abs=0.01)
    assert len(starts) + bench.status["skipped"] == pytest.approx(600 / 0.05, abs=45)  # a second of listening at first
    assert all(after - before == pytest.approx(0.25) for before, after in itertools.pairwise(starts))


def test_a_device_that_needs_a_long_pause_has_its_turn_on_a_line_that_is_never_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = SimulatedLine(19200, dict.fromkeys(range(1, 5), THINKS_S))
    line.put_in_place(monkeypatch)
    slow: dict[str, Any] = {"delay_between_requests": "100ms"}
    devices = [
        device(f"d{n}", n, {"name": "v", "address": 0}, interval="20ms", **(slow if n == 1 else {}))
        for n in range(1, 5)
    ]
    run(polled(BUS, devices, 30))
    assert line.answered[1] >= 0.9 * line.answered[2]
    before = 0.0
    for at, frame in line.asked:
        assert frame[0] != 1 or at - before >= 0.1 - 1e-9
        before = at + line.seconds(8 + 7) + THINKS_S


def test_a_refused_block_is_cut_once_and_the_status_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    line = SimulatedLine(19200, {1: THINKS_S})
    line.holes = {13}
    line.put_in_place(monkeypatch)
    points = [{"name": f"v{n}", "address": n} for n in (10, 11, 12, 15, 16)]
    bench = run(polled(BUS, [device("meter", 1, *points, interval="1s")], 60))
    assert sum(frame[2:6] == b"\0\x0a\0\7" for _, frame in line.asked) == 1
    meter = bench.status["devices"]["meter"]
    assert meter["cut"] == ["holding 10…16 → holding 10…12 + holding 15…16"]
    assert meter["refused"] == []
    assert bench.status["requests"] == 2


def test_reads_that_a_device_ignores_for_their_length_are_cut_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    line = SimulatedLine(19200, {1: THINKS_S})
    line.longest = 12
    line.put_in_place(monkeypatch)
    far = {"name": "far", "address": 500, "register": "input", "type": "float32"}
    bench = run(polled(BUS, [device("meter", 1, *TWENTY, far, interval="1s")], 120))
    for point in (far, *TWENTY):
        assert bench.statuses("meter", str(point["name"]))[-30:] == [Status.GOOD] * 30
    assert bench.status["devices"]["meter"]["cut"][0] == "input 0…39 → input 0…19 + input 20…39"
    assert bench.status["requests"] == 5


def test_a_register_that_does_not_exist_is_named_in_the_status_and_asked_for_once_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = SimulatedLine(19200, {1: THINKS_S})
    line.holes = {10}
    line.put_in_place(monkeypatch)
    points = [{"name": f"v{n}", "address": n} for n in (10, 12)]
    bench = run(polled(BUS, [device("meter", 1, *points, interval="60s")], 2 * 3600 + 600))
    assert bench.status["devices"]["meter"]["refused"] == ["v10"]
    assert sum(frame[2:6] == b"\0\x0a\0\1" for _, frame in line.asked) == 3


def test_a_timeout_that_most_answers_come_close_to_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = SimulatedLine(19200, {1: 0.3, 2: THINKS_S})
    line.put_in_place(monkeypatch)
    devices = [device(f"meter-{unit}", unit, *TWENTY, interval="1s") for unit in (1, 2)]
    bench = run(polled(BUS, devices, 1000))
    said = [record.getMessage() for record in caplog.records if "timeout is" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("meter-1 takes up to 3")
    slow, quick = (bench.status["devices"][f"meter-{unit}"] for unit in (1, 2))
    assert 300 <= slow["reply_p50_ms"] <= slow["reply_p99_ms"] <= 300 * 1.2
    assert 5 <= quick["reply_p99_ms"] <= 5 * 1.2


def test_a_flood_of_commands_leaves_every_fifth_turn_to_the_polls_and_none_waits_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = SimulatedLine(19200, {1: THINKS_S, 2: THINKS_S})
    line.put_in_place(monkeypatch)
    setpoint = {"name": "setpoint", "address": 100, "write": {}}
    devices = [device("boiler", 1, setpoint, interval="60s"), device("meter", 2, *TWENTY, interval="50ms")]

    async def scenario() -> float:
        bench = Bench({**BUS, "local_echo": False}, devices, VirtualClock())
        async with bench.running():
            await asyncio.sleep(10)
            alone = line.answered[2]
            took = []
            until = bench.clock.monotonic() + 60

            async def insist() -> None:
                while bench.clock.monotonic() < until:
                    began = bench.clock.monotonic()
                    await bench.connector.execute(Write("boiler", "setpoint", 7))
                    took.append(bench.clock.monotonic() - began)

            await asyncio.gather(*(insist() for _ in range(8)))
            writes, polls = len(took), line.answered[2] - alone
            assert 0.2 <= polls / writes <= 0.3, "four commands, and then a poll; and the setpoint is read again"
            del took[:]
            until = bench.clock.monotonic() + 60
            await insist()  # one at a time, on a line that polls whenever it can
            return max(took)

    longest = run(scenario())
    assert longest <= 2 * read_s(line, 40) + 2 * read_s(line, 1), "it waits for one poll at most, and the reading back"


def test_an_hour_without_an_uplink_changes_nothing_on_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything goes into a real buffer that nobody empties, and that is soon full."""
    twenty = [{"name": f"v{n}", "address": n} for n in range(20)]
    devices = [device(f"meter-{unit}", unit, *twenty, interval="1s") for unit in (1, 2, 3)]

    async def cut_off() -> dict[str, Any]:
        clock = VirtualClock()
        settings = BufferSettings(max_size=1_000_000, memory_limit=1_000_000, commit_after=5)
        buffer = await Buffer.open(settings, tmp_path, clock, tmp_path)
        running = asyncio.create_task(buffer.run())
        bench = Bench(BUS, devices, clock)
        intake = Intake(Normaliser({each.name: each.points for each in bench.devices}), buffer, clock)
        poller = asyncio.create_task(bench.connector.run(intake.emit))
        await asyncio.sleep(3600)
        status: dict[str, Any] = buffer.stats()
        for task in (poller, running):
            task.cancel()
        await asyncio.gather(poller, running, return_exceptions=True)
        await buffer.drain()
        await buffer.release()
        return status

    line = SimulatedLine(19200, dict.fromkeys((1, 2, 3), THINKS_S))
    line.restless = True
    line.put_in_place(monkeypatch)
    status = run(cut_off())
    assert status["lost"]["evicted"] > 0, "it was full"
    minutes = Counter(int(at - line.asked[0][0]) // 60 for at, _ in line.asked)
    assert {minutes[minute] for minute in range(1, 59)} == {180}
