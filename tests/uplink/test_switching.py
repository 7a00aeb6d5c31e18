"""Moving, draining, stopped processes and slow servers: real sockets, real programs, under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.testing.process import end_with_parent
from gateway.testing.relay import Relay
from gateway.uplink.config import Endpoint
from tests.uplink.house import running, state_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.sink import Sink, Store
from tests.uplink.test_whole import buffering, path, row, stored

RELAY = """
import asyncio
from gateway.testing.relay import Relay
async def main():
    async with Relay("127.0.0.1", {target}, {port}):
        await asyncio.Event().wait()
asyncio.run(main())
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def program(*arguments: str, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("ab") as log:
        child = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, preexec_fn=end_with_parent)  # noqa: PLW1509
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()


class Times(MemoryOutbox):
    """Remembers when acks came."""

    def __init__(self) -> None:
        super().__init__()
        self.acked_at: list[float] = []

    def ack(self, sink: str, stream: str, seq: int) -> None:
        super().ack(sink, stream, seq)
        self.acked_at.append(time.monotonic())


def test_a_move_under_load_makes_no_hole_in_the_acks() -> None:
    one_way_s = 0.05

    async def main() -> tuple[float, float]:
        outbox, store = Times(), Store()
        async with (
            Sink(store) as first,
            Sink(store) as second,
            Relay("127.0.0.1", first.port, delay_s=one_way_s) as a,
            Relay("127.0.0.1", second.port, delay_s=one_way_s) as b,
        ):
            ends = [Endpoint(url=f"ws://127.0.0.1:{port}/", name=name) for port, name in ((a.port, "a"), (b.port, "b"))]
            async with running(outbox, *ends) as uplink:
                await until(lambda: state_of(uplink, "a") == "active" and state_of(uplink, "b") == "standby")
                moved_at = 0.0
                for number in range(300):
                    outbox.put(number)
                    if number == 150:
                        moved_at = time.monotonic()
                        await first.send({"type": "move", "deadline_ms": 60_000, "spread_ms": 0})
                    await asyncio.sleep(0.01)
                await until(lambda: len(store.rows()) == 300 and not outbox.unacked())
                assert uplink.status()["active"] == "b"
                assert store.rows() == list(range(300)), "nothing lost, nothing twice, in order"
                assert first.byes == ["moving as asked"]
                around = [at for at in outbox.acked_at if moved_at - 0.5 < at < moved_at + 1.5]
                gaps = [later - sooner for sooner, later in itertools.pairwise(around)]
                usual = [g for g, at in zip(gaps, around, strict=False) if at < moved_at - 0.1]
                return max(gaps), max(usual)

    gap_s, usual_s = asyncio.run(main())
    print(f"longest time without an ack: {gap_s:.3f} s around the move, {usual_s:.3f} s before it")
    assert gap_s <= 2 * 2 * one_way_s + 0.1 + usual_s, "two round trips, and what a busy machine adds"


@pytest.mark.parametrize("stopped", ["road", "server"])
def test_a_stopped_process_is_left_for_the_second_endpoint(stopped: str, tmp_path: Path) -> None:
    """One store behind both: at once. A server with a store of its own: when it is given up, and not before."""

    async def main() -> float:
        async with path(tmp_path) as (relays, (one, other), file), buffering(tmp_path) as buffer:
            port = free_port()
            if stopped == "road":
                arguments = ["-c", RELAY.format(target=relays[0].port, port=port)]
                token = one.token_file
            else:
                folder, token = tmp_path / "own", tmp_path / "own-token"
                make_token(folder, token)
                arguments = ["-m", "gateway", *ingest(folder, port)]
            first = Endpoint(url=f"ws://127.0.0.1:{port}/", name="first", token_file=token)
            with program(*arguments, said=tmp_path / "said") as child:
                await until(lambda: accepts(port), 30)
                async with running(buffer, first, other) as uplink:
                    await until(lambda: state_of(uplink, "first") == "active" and state_of(uplink, "b") == "standby")
                    for value in range(30):
                        await buffer.append([row(value)])
                        await asyncio.sleep(0.02)
                    await until(lambda: buffer.waiting()[0] == 0)
                    before = len(stored(file))
                    child.send_signal(signal.SIGSTOP)
                    await buffer.append([row(30)])
                    took = await until(lambda: len(stored(file)) > before)
                    assert uplink.status()["active"] == "b"
                    return took

    took = asyncio.run(main())
    print(f"stored by way of the second endpoint after {took:.2f} s")
    if stopped == "road":
        assert took <= 1.0 + 1.0, "0.75 s on an idle machine"
    else:
        assert 3.0 < took < 3.7 + 3.0


def ingest(folder: Path, port: int) -> list[str]:
    return ["ingest", "--data", str(folder), "--listen", f"127.0.0.1:{port}", "--plain", "--drain", "2s"]


def make_token(folder: Path, token: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "gateway", "ingest", "--data", str(folder), "add", "gw-1"],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    token.touch(mode=0o600)
    token.write_text(max(re.findall(r"\S+", said), key=len))


def test_a_rolling_restart_of_two_servers_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        folders = [tmp_path / "north", tmp_path / "south"]
        ports = [free_port(), free_port()]
        ends = []
        for folder, port in zip(folders, ports, strict=True):
            token = tmp_path / f"{folder.name}-token"
            make_token(folder, token)
            ends.append(Endpoint(url=f"ws://127.0.0.1:{port}/", name=folder.name, token_file=token))

        def all_stored() -> list[int]:
            found = []
            for folder in folders:
                for file in folder.glob("*.db"):
                    found += stored(file)
            return found

        count = 0
        async with contextlib.AsyncExitStack() as stack, buffering(tmp_path) as buffer:
            children = []
            for folder, port in zip(folders, ports, strict=True):
                arguments = ("-m", "gateway", *ingest(folder, port))
                children.append(stack.enter_context(program(*arguments, said=tmp_path / "said")))
            await until(lambda: all(accepts(port) for port in ports), 30)
            async with running(buffer, *ends, random=lambda: 0.3) as uplink:
                await until(
                    lambda: sorted(each["state"] for each in uplink.status()["endpoints"]) == ["active", "standby"]
                )
                feeding = True

                async def feed() -> None:
                    nonlocal count
                    while feeding:
                        await buffer.append([row(count)])
                        count += 1
                        await asyncio.sleep(0.005)

                feeder = asyncio.create_task(feed())
                for number in (0, 1):
                    await asyncio.sleep(0.5)
                    children[number].terminate()
                    await until(lambda number=number: children[number].poll() is not None, 20)
                    arguments = ("-m", "gateway", *ingest(folders[number], ports[number]))
                    children[number] = stack.enter_context(program(*arguments, said=tmp_path / "said"))
                    await until(lambda number=number: accepts(ports[number]), 30)
                    name = ends[number].name
                    await until(lambda name=name: state_of(uplink, name) in ("active", "standby"), 60)
                await asyncio.sleep(0.5)
                feeding = False
                await feeder
                await until(lambda: buffer.waiting()[0] == 0, 30)
        values = all_stored()
        assert sorted(set(values)) == list(range(count)), "nothing is lost"
        assert len(values) == count, "nothing is doubled, although each server has a store of its own"
        for folder in folders:
            with contextlib.closing(sqlite3.connect(next(folder.glob("*.db")))) as db:
                assert db.execute("SELECT count(*) FROM gap WHERE reason != 'stored_elsewhere'").fetchone() == (0,)

    asyncio.run(main())


@pytest.mark.parametrize("late_s", [1.5, 3.0, 4.5])
def test_a_slow_server_is_not_run_away_from(late_s: float, caplog: pytest.LogCaptureFixture) -> None:
    """Acks that come late at both endpoints: nothing is stored twice, and after it has been learnt, nobody switches."""

    async def main() -> None:
        outbox, store = MemoryOutbox(), Store()
        async with Sink(store) as first, Sink(store) as second:
            first.ack_after_s = second.ack_after_s = late_s
            ends = [Endpoint(url=sink.url, name=name) for sink, name in ((first, "a"), (second, "b"))]
            async with running(outbox, *ends) as uplink:
                await until(lambda: state_of(uplink, "b") == "standby")
                number, began = 0, time.monotonic()
                while time.monotonic() < began + 15:
                    outbox.put(number)
                    number += 1
                    await asyncio.sleep(0.05)
                await until(lambda: len(store.rows()) == number and not outbox.unacked(), 30)
            assert store.rows() == list(range(number))

    caplog.set_level("INFO", "gateway.uplink.uplink")
    asyncio.run(main())
    switches = [r.created for r in caplog.records if r.getMessage().startswith("uplink: sending to")][1:]
    settled = [at for at in switches if at > caplog.records[0].created + 12]
    assert settled == [], "it has learnt how slow they are"
    if late_s <= 3.0:
        assert len(switches) <= 1, "a suspect is run away from once a minute"
