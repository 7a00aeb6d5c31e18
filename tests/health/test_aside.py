"""What could not be read is kept where a person finds it, in bounds."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.status import _set_aside
from gateway.clock import SystemClock
from gateway.health import aside
from gateway.health.aside import Aside


async def eventually(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never: {what}")


class Wall(SystemClock):
    """A clock that a test winds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def written(kept: Aside, count: int) -> None:
    """Runs it until so many have been written."""
    task = asyncio.create_task(kept.run())
    await eventually(lambda: not kept._waiting, "nothing waits")
    await eventually(lambda: sum(len(lines(p)) for p in kept._folder.glob("*.jsonl")) >= count, f"{count} lines")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_made_no_sense_is_in_a_file_that_only_the_owner_reads(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = Aside(tmp_path / "rejected", Wall())
        kept.keep("broker", "plant/boiler", b'{"n": ', "not JSON")
        kept.keep("broker", "plant/bin", b"\xff\x00", "not JSON")
        kept.keep("broker", "plant/long", b"x" * 100_000, "too long")
        await written(kept, 3)
        path = kept.file("broker")
        first, second, third = lines(path)
        assert {key: first[key] for key in ("where", "why", "bytes", "payload")} == {
            "where": "plant/boiler", "why": "not JSON", "bytes": 6, "payload": '{"n": ',
        }  # fmt: skip
        assert first["time"].endswith("+00:00")
        assert second["payload_base64"] == "/wA="
        assert (third["bytes"], len(third["payload"])) == (100_000, 16_384)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        status = kept.status("broker")
        assert (status["kept"], status["left_out"]) == (3, 0)
        assert _set_aside({"set_aside": status}) == f"3 messages could not be read: {path}"

    asyncio.run(scenario())


def test_a_flood_is_counted_and_a_few_of_it_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Wall()
        kept = Aside(tmp_path / "rejected", clock)
        for _ in range(10_000):
            kept.keep("broker", "t", b"x", "why")
            clock.now += 0.006  # a minute in all
        await written(kept, 15)
        assert kept.status("broker")["kept"] == len(lines(kept.file("broker"))) in (15, 16)
        assert kept.status("broker")["left_out"] == 10_000 - kept.status("broker")["kept"]

    asyncio.run(scenario())


def test_the_files_do_not_grow_and_the_newest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "_FILE_BYTES", 50_000)

    async def scenario() -> None:
        clock = Wall()
        kept = Aside(tmp_path / "rejected", clock)
        for number in range(30):
            kept.keep("broker", str(number), b"x" * 8_000, "why")
            clock.now += 10
            await written(kept, 1)
        assert lines(kept.file("broker"))[-1]["where"] == "29"
        names = sorted(path.name for path in kept._folder.iterdir())
        assert names == ["broker.jsonl", "broker.old.jsonl"]
        assert all(path.stat().st_size <= 50_000 for path in kept._folder.iterdir())

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        (tmp_path / "rejected").write_text("a file where the folder should be")
        kept = Aside(tmp_path / "rejected", Wall())
        task = asyncio.create_task(kept.run())
        for _ in range(3):
            kept.keep("broker", "t", b"x", "why")
        await eventually(lambda: not kept._waiting, "nothing waits")
        await eventually(lambda: "cannot be kept" in caplog.text, "it is said")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert caplog.text.count("cannot be kept") == 1

    asyncio.run(scenario())
    assert os.path.isfile(tmp_path / "rejected")
