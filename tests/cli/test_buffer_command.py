"""`gateway buffer`: what it says of stores that are well, at work, or damaged, and that it leaves them as they are."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.buffer import inspection
from gateway.buffer.gaps import gap_record
from gateway.buffer.schema import INSERT, to_row
from gateway.cli import main
from gateway.model import ClockState, GapReason, Lane, Trust
from gateway.protocol.messages import GapBody
from gateway.testing.loop import BOOT, run
from tests.buffer.world import ALARM, Machine, origin, row

README = (Path(__file__).parents[2] / "gateway/buffer/README.md").read_text()


def filled(home: Path, more: Callable[[Machine], Awaitable[None]] | None = None) -> Machine:
    """Two streams on disk: readings 1 to 6 and an alarm."""
    machine = Machine(home)

    async def fill() -> None:
        buffer = await machine.start()
        for number in range(1, 7):
            await buffer.append([row(number)])
            buffer.close(Lane.LIVE)
        await buffer.append([row(100, ALARM)])
        await asyncio.sleep(1)
        if more is not None:
            await more(machine)
        await machine.stop()

    run(fill())
    return machine


def called(*words: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["buffer", *map(str, words)])
    code = exit.value.code
    assert isinstance(code, int)
    return code


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert called("export", *words) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def numbers(lines: list[dict[str, Any]]) -> list[int]:
    return [line["value"] for line in lines if line["point"] == "n"]


def test_a_store_that_is_well_is_counted_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = filled(tmp_path)
    before = sorted((path.name, path.read_bytes()) for path in machine.data.iterdir())
    assert called("stat", machine.data) == 0
    said = capsys.readouterr().out
    assert re.search(r"live +[0-9a-f]{32} +6 records, 12 readings, .*Z, clock synced", said)
    assert re.search(r"alarm +[0-9a-f]{32} +1 record, 2 readings", said)
    assert "\x1b" not in said, "plain, when it is piped"
    assert called("verify", machine.data / "buffer.db") == 0
    assert "7 records with 14 readings in order" in capsys.readouterr().out
    assert sorted((path.name, path.read_bytes()) for path in machine.data.iterdir()) == before


def test_readings_come_out_as_lines_filtered_by_device_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = filled(tmp_path)
    lines = exported(capsys, machine.data)
    assert numbers(lines) == [100, 1, 2, 3, 4, 5, 6]
    assert lines[2] == {
        "utc": "2025-06-15T15:06:40.001Z",
        "clock": "synced",
        "device": "meter",
        "point": "u",
        "value": 230.5,
        "unit": "V",
        "quality": "good",
    }
    assert numbers(exported(capsys, machine.data, "--device", "door")) == [100]
    since, until = "2025-06-15T15:06:40.002", "2025-06-15T15:06:40.004+00:00"
    assert numbers(exported(capsys, machine.data, "--since", since, "--until", until)) == [2, 3]
    assert called("export", machine.data, "--since", "yesterday") == 2


def test_what_was_stamped_before_the_clock_was_set_is_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    machine.clock.trust = Trust.UNSYNCED

    async def fill() -> None:
        buffer = await machine.start()
        await buffer.append([row(5)])
        buffer.clock(ClockState(BOOT, 1_760_000_000_000, 5, Trust.SYNCED), record=True)
        await buffer.drain()
        await machine.stop()

    run(fill())
    assert {(line["utc"], line["clock"]) for line in exported(capsys, machine.data)} == {
        ("2025-10-09T08:53:20.005Z", "synced")
    }


def test_a_gateway_at_work_is_looked_at_and_does_not_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def at_work(machine: Machine) -> None:
        buffer = machine.buffer
        ring = machine.run / "flight.ring"
        buffer.online(True)
        await buffer.append([row(7, origin=origin(1))])
        buffer.close(Lane.LIVE)  # a record in the ring
        await buffer.append([row(8)])  # a row in the ring
        assert numbers(exported(capsys, machine.data, "--ring", ring)) == [100, 1, 2, 3, 4, 5, 6, 7, 8]
        assert called("stat", machine.data, "--ring", ring) == 0
        said = capsys.readouterr().out
        assert re.search(r"Flight ring  1 record, 2 readings, .*, 2 readings in no record yet", said)
        assert called("verify", machine.data, "--ring", ring) == 0
        assert "and 1 batch in the flight ring" in capsys.readouterr().out
        commits = buffer.stats()["commits"]
        await asyncio.sleep(1)
        assert buffer.stats()["commits"] == commits + 1
        assert buffer.stats()["mode"] == "healthy"
        # what is now in both comes out once
        assert sorted(numbers(exported(capsys, machine.data, "--ring", ring))) == [1, 2, 3, 4, 5, 6, 7, 8, 100]

    filled(tmp_path, at_work)


def test_who_reads_slowly_keeps_no_lock(tmp_path: Path) -> None:
    """`gateway buffer export | less`, left alone over lunch."""

    async def at_work(machine: Machine) -> None:
        store = machine.buffer._committer.store
        assert store._db is not None
        with inspection.opened(machine.data / "buffer.db") as looked_at:
            for stream in looked_at.streams():
                for _ in looked_at.records(stream):
                    busy, *_ = store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    assert not busy

    filled(tmp_path, at_work)


def test_damage_is_named_counted_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = filled(tmp_path)
    path = machine.data / "buffer.db"
    data = bytearray(path.read_bytes())
    at = data.index(b'"v":[[230.5],[3]]') + 15
    data[at : at + 1] = b"4"  # a reading of 3 says 4
    aside = machine.data / "buffer.db.damaged-1"
    aside.write_bytes(data)
    assert called("verify", aside) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"live stream [0-9a-f]{32}: record 3 of stream [0-9a-f]+: wrong checksum|record 3: .*checksum", said
    )
    assert "6 records with 12 readings in order; lost with the rest: at least 2 readings" in said
    assert called("stat", aside) == 0
    assert "1 record cannot be read" in capsys.readouterr().out
    assert called("export", aside) == 1
    out, err = capsys.readouterr()
    assert numbers([json.loads(line) for line in out.splitlines()]) == [100, 1, 2, 4, 5, 6]
    assert "1 record cannot be read" in err


def test_a_record_within_another_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = filled(tmp_path)
    path = machine.data / "buffer.db"
    db = sqlite3.connect(path)
    name, key = db.execute("SELECT id, key FROM stream WHERE lane = 1").fetchone()
    gap = gap_record(name.hex(), Lane.LIVE, 2, 4, GapBody(GapReason.EVICTED, 6), 0, None)
    db.execute(INSERT, to_row(key, gap))
    db.commit()
    db.close()
    assert called("verify", path) == 1
    said = capsys.readouterr().out
    assert "record 3 lies within another one, which ends at 4" in said
    assert "record 4 lies within another one" in said


def test_pages_that_are_gone_do_not_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def more(machine: Machine) -> None:
        for number in range(10, 60):
            await machine.buffer.append([row(number, text=f"{number}" * 300)])
            machine.buffer.close(Lane.LIVE)
        await asyncio.sleep(1)

    machine = filled(tmp_path, more)
    path = machine.data / "buffer.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2048 * 1024
    data[middle : middle + 2048] = bytes(2048)
    path.write_bytes(data)
    assert called("verify", path) == 1
    assert called("export", path) == 1
    out = capsys.readouterr().out
    saved = numbers([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    assert 10 < len(saved) < 57


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("nothing.db", None, "No such file"),
        ("text.db", b"no database " * 200, "not a database"),
        ("empty.db", b"", "no store of this program"),
    ],
)
def test_what_is_no_store_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for way in ("stat", "export", "verify"):
        assert called(way, tmp_path / name) == 1
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert why in err
        assert str(tmp_path / name) in err


def test_without_a_file_the_configuration_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = filled(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text(f'[gateway]\nstate_dir = "{machine.data}"\nruntime_dir = "{machine.run}"\n')
    assert numbers(exported(capsys, "-c", config)) == [100, 1, 2, 3, 4, 5, 6]
    assert called("verify", "-c", config) == 0
    assert "in the flight ring" in capsys.readouterr().out
    assert called("stat", "-c", tmp_path / "none.toml") == 78


def test_the_examples_of_the_readme_run_and_its_line_is_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = filled(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line.split("#")[0].split(">")[0]) for line in block.splitlines()]
    assert [command[:2] for command in commands] == [["gateway", "buffer"]] * 4
    for _, _, *words in commands:
        words = [str(machine.data / "buffer.db") if word.startswith("/var/lib/gateway/") else word for word in words]
        given = [] if str(machine.data / "buffer.db") in words else [str(machine.data)]
        assert called(*words, *given) == 0
    assert (tmp_path / "meter.jsonl").exists()
    (example,) = re.findall(r"^```json\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (real, *_) = exported(capsys, machine.data)
    assert list(json.loads(example)) == list(real)
    assert {key: type(value) for key, value in json.loads(example).items()} == {k: type(v) for k, v in real.items()}
