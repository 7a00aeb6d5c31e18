"""`gateway ingest` as a person uses it: with and without a running server, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from websockets.asyncio.client import connect

from gateway.errors import LinkError
from gateway.ingest import cli, control, terminal
from gateway.ingest.config import address
from gateway.ingest.tokens import Role
from gateway.protocol.messages import SUBPROTOCOL
from ingest.cloud import Gateway, body, cloud, gateway, stream_id

_RUN = """
import argparse, sys
from gateway.ingest import cli
parser = argparse.ArgumentParser()
cli.add_arguments(parser)
sys.exit(cli.main(parser.parse_args()))
"""


@pytest.fixture
def ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        code = cli.main(parser.parse_args(["--data", str(tmp_path / "data"), *words]))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The server in its own process, ready."""
    arguments = ["--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--drain", "200ms"]
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found:
            return int(found.group(1))
    raise AssertionError("the server said nothing of where it listens")


def test_adding_a_gateway_prints_its_token_once_and_a_block_to_paste(
    ingest: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = ingest("--listen", "127.0.0.1:4711", "add", "hall-2")
    assert code == 0
    token = re.search(r"^[\w-]{43}$", out, re.M)
    assert token
    block = tomllib.loads(out[out.index("[[uplink") :])
    assert block["uplink"]["endpoint"][0]["url"] == "ws://127.0.0.1:4711/"
    code, out, _ = ingest("list")
    assert "hall-2  gateway  offline  tokens 1  never seen" in out
    assert token.group() not in out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("add", "bad name!"), 78, "cannot be a name"),
        (("revoke", "nobody"), 1, "not known"),
        (("send", "g1", "d", "p", "1"), 69, "no server answers"),
        (("show",), 78, "nothing has been stored"),
        (("--listen", "nowhere:x",), 78, "is not HOST:PORT"),
        (("--key", "k.pem", "--listen", "127.0.0.1:0"), 78, "need --cert"),
        (("--drain", "soon",), 78, "a duration"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_an_exit_code(
    ingest: Callable[..., tuple[int, str, str]], words: tuple[str, ...], code: int, text: str
) -> None:
    got, _, err = ingest(*words)
    assert got == code
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("127.0.0.1", 80)),
        ("example.org", ("example.org", 8765)),
        ("[::1]", ("::1", 8765)),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


def test_a_running_server_is_talked_to_over_its_socket_and_stops_cleanly(
    serving: subprocess.Popen[str], ingest: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    port = port_of(serving)
    mode = (tmp_path / "data" / "control.sock").stat().st_mode
    assert oct(mode & 0o777) == "0o600"
    code, out, _ = ingest("add", "g1")
    assert code == 0
    assert f'url = "ws://127.0.0.1:{port}/"' in out
    token = next(line for line in out.splitlines() if len(line) == 43)
    s = stream_id()

    async def talk() -> None:
        async with connect(
            f"ws://127.0.0.1:{port}/",
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            additional_headers={"Authorization": f"Bearer {token}"},
            proxy=None,
        ) as ws:
            g = Gateway(ws)
            await g.hello(s)
            await g.batch(s, 1, body([2**64 - 1]))
            await g.acked(s, 1)
            sending = asyncio.create_task(asyncio.to_thread(send))
            command = await g.expect("command")
            await g.send(type="result", id=command["id"], outcome="ok", value=command["value"])
            assert (await sending).returncode == 0

    def send() -> subprocess.CompletedProcess[str]:
        words = ["--data", str(tmp_path / "data"), "send", "g1", "meter", "p0", "21.5"]
        command = [sys.executable, "-c", _RUN, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)

    asyncio.run(talk())
    assert "18446744073709551615 V" in ingest("show")[1]
    assert "21.5  ok" in ingest("show")[1]
    assert ingest("send", "g1", "meter", "p0", "on")[0] == 1
    assert "queued" in ingest("send", "g1", "meter", "p0", "on", "--queue")[1]
    assert ingest("revoke", "g1")[0] == 0
    assert "revoked" in ingest("list")[1]
    assert ingest("--listen", "127.0.0.1:0")[0] == 1, "a second server on the same folder"
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(20) == 0
    assert not (tmp_path / "data" / "control.sock").exists()
    assert "g1  gateway  revoked" in ingest("list")[1], "works without the server too"


def test_a_socket_left_by_a_killed_server_does_not_stop_the_next(
    serving: subprocess.Popen[str], ingest: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    port_of(serving)
    os.kill(serving.pid, signal.SIGKILL)
    serving.wait()
    assert (tmp_path / "data" / "control.sock").exists()
    assert ingest("add", "g1")[0] == 0, "a dead socket is no server"

    async def again() -> None:
        async with cloud(tmp_path) as server:
            answer = await control.ask(server.settings.control, control.List(), 5)
            assert [each.name for each in answer.listed] == ["g1"]

    asyncio.run(again())


def test_the_socket_answers_nonsense_with_an_error_and_lives_on(tmp_path: Path) -> None:
    async def test() -> None:
        deep = tmp_path / ("d" * 120)
        async with cloud(deep) as server:
            answer = await control.ask(server.settings.control, control.Add("no good", Role.GATEWAY), 5)
            assert "cannot be a name" in answer.error
            with pytest.raises(LinkError):
                await control.ask(tmp_path / "nothing.sock", control.List(), 5)
            folder = os.open(server.settings.data, os.O_PATH)
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/control.sock")
            os.close(folder)
            writer.write(b'{"op":"explode"}\n')
            assert json.loads(await reader.readline())["error"]
            writer.close()
            assert (await control.ask(server.settings.control, control.Recent(), 5)).commands == ()

    asyncio.run(test())


def test_the_screen_shows_gateways_values_and_trouble(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server, name="hall-2") as g:
            await g.hello(s)
            await g.batch(s, 1, body([21.5]))
            await g.acked(s, 1)
            console = Console(width=120, record=True, file=io.StringIO())
            console.print(terminal.render(server))
            server.committer.failures = 1
            console.print(terminal.render(server))
            text = console.export_text()
            for word in ("hall-2", "online", "21.5", "good", "takes no data"):
                assert word in text
            assert "gateway ingest --data" in terminal.welcome(server)

    asyncio.run(test())
