"""The local socket, asked the way the command line asks."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from gateway.control.client import ControlClient
from gateway.control.server import ControlServer
from gateway.errors import GatewayError, LinkError
from gateway.model import Json

T = TypeVar("T")


async def status(_question: Mapping[str, Json]) -> Json:
    return {"well": True}


async def refuse(question: Mapping[str, Json]) -> Json:
    raise GatewayError(f"no device {question['device']!r}")


async def tail(question: Mapping[str, Json]) -> AsyncIterator[Json]:
    for n in range(question["count"]):
        yield n


def asking(path: Path, question: Callable[[ControlClient], T]) -> T:
    """Runs the server on this thread's loop and the blocking client beside it."""

    async def both() -> T:
        server = ControlServer(path, {"status": status, "write": refuse}, {"tail": tail})
        async with server.serving():
            return await asyncio.to_thread(question, ControlClient(path, timeout_s=5))

    return asyncio.run(both())


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    assert asking(tmp_path / "s", lambda client: client.ask("status")) == {"well": True}


def test_what_the_daemon_refuses_arrives_as_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="no device 'x'"):
        asking(tmp_path / "s", lambda client: client.ask("write", device="x"))


def test_an_unknown_question_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="known: status, tail, write"):
        asking(tmp_path / "s", lambda client: client.ask("reboot"))


def test_following_yields_until_the_daemon_is_done(tmp_path: Path) -> None:
    def three(client: ControlClient) -> list[Json]:
        answers = client.follow("tail", count=3)
        return [next(answers) for _ in range(3)]

    assert asking(tmp_path / "s", three) == [0, 1, 2]


def test_garbage_is_answered_and_the_next_caller_is_served(tmp_path: Path) -> None:
    def garbage_then_ask(client: ControlClient) -> Json:
        for rubbish in (b"\xff\xfe\n", b"[1,2]\n", b"x" * 100_000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(str(tmp_path / "s"))
                raw.sendall(rubbish)
                raw.recv(4096)
        return client.ask("status")

    assert asking(tmp_path / "s", garbage_then_ask) == {"well": True}


def test_only_the_owner_and_the_group_may_connect(tmp_path: Path) -> None:
    mode = asking(tmp_path / "s", lambda _client: stat.S_IMODE((tmp_path / "s").stat().st_mode))
    assert mode == 0o660


def test_a_stale_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    assert asking(tmp_path / "s", lambda client: client.ask("status")) == {"well": True}


def test_no_daemon_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="Is it running"):
        ControlClient(tmp_path / "s").ask("status")
