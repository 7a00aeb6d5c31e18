"""Plain endpoints against programs of other people: Node-RED, and a listener on Node's `ws`.

They are used where `GATEWAY_NODE_RED` names a folder in which `npm install node-red` was run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.testing.process import end_with_parent
from gateway.testing.relay import Relay
from gateway.uplink.config import AckPath
from tests.uplink.house import running, until
from tests.uplink.test_plain import Rows, plain

HOME = Path(os.environ.get("GATEWAY_NODE_RED", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not (HOME / "node_modules" / "node-red" / "red.js").exists() or shutil.which("node") is None,
    reason="GATEWAY_NODE_RED names no installed Node-RED",
)
ACKING = AckPath(path="ack.id")
FLOW: list[dict[str, Any]] = [
    {"id": "the-tab", "type": "tab", "label": "readings"},
    {"id": "the-port", "type": "websocket-listener", "path": "/in", "wholemsg": "false"},
    {"id": "the-in", "type": "websocket in", "z": "the-tab", "server": "the-port", "client": "",
     "wires": [["the-parse"]]},
    {"id": "the-parse", "type": "json", "z": "the-tab", "property": "payload", "action": "obj",
     "wires": [["the-keep", "the-ack"]]},
    # what a person would write in a function node: one line for each reading
    {"id": "the-keep", "type": "function", "z": "the-tab", "outputs": 1, "wires": [["the-file"]],
     "func": "return [(msg.payload.readings || []).map(r => ({payload: JSON.stringify(r)}))];"},
    {"id": "the-file", "type": "file", "z": "the-tab", "filename": "FILE", "filenameType": "str", "appendNewline": True,
     "createDir": False, "overwriteFile": "false", "wires": [[]]},
    {"id": "the-ack", "type": "function", "z": "the-tab", "outputs": 1, "wires": [["the-out"]],
     "func": "msg.payload = JSON.stringify({ack: {id: msg.payload.id}}); return msg;"},
    {"id": "the-out", "type": "websocket out", "z": "the-tab", "server": "the-port", "client": "", "wires": []},
]  # fmt: skip
LISTENER = """
const { Server } = require('ws');
const fs = require('fs');
const server = new Server({ port: PORT, host: '127.0.0.1' });
server.on('connection', peer => peer.on('message', data => {
  const message = JSON.parse(data);
  for (const reading of message.readings || []) fs.appendFileSync('FILE', JSON.stringify(reading) + '\\n');
  peer.send(JSON.stringify({ ack: { id: message.id } }));
}));
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts(port: int) -> None:
    give_up_at = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < give_up_at, "it never listened"
            time.sleep(0.1)


class Peer:
    def __init__(self, port: int, file: Path) -> None:
        self.port = port
        self._file = file

    def readings(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        return [json.loads(line) for line in self._file.read_text().splitlines() if line.endswith("}")]

    def values(self) -> list[int]:
        return [reading["value"] for reading in self.readings()]


@contextlib.contextmanager
def program(kind: str, home: Path) -> Iterator[Peer]:
    """One of the two listeners, up when it accepts."""
    port, file = free_port(), home / "readings.txt"
    if kind == "node-red":
        (home / "flows.json").write_text(json.dumps(FLOW).replace("FILE", str(file)))
        (home / "settings.js").write_text("module.exports = { flowFile: 'flows.json', uiHost: '127.0.0.1' };\n")
        red = str(HOME / "node_modules" / "node-red" / "red.js")
        command = ["node", red, "--userDir", str(home), "--settings", str(home / "settings.js"), "--port", str(port)]
    else:
        (home / "listener.js").write_text(LISTENER.replace("PORT", str(port)).replace("FILE", str(file)))
        command = ["node", str(home / "listener.js")]
    environment = {**os.environ, "NODE_PATH": str(HOME / "node_modules")}
    with (home / "log.txt").open("wb") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=end_with_parent)  # noqa: PLW1509
        try:
            accepts(port)
            yield Peer(port, file)
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize("kind", ["node-red", "ws"])
@pytest.mark.parametrize("ack", ["none", "pong", ACKING])
def test_every_reading_arrives_as_documented(kind: str, ack: Any, tmp_path: Path) -> None:
    async def main(peer: Peer) -> None:
        outbox = Rows()
        async with running(outbox, plain(peer.port, ack=ack)):
            await until(lambda: outbox.up, 60)
            for value in range(200):
                outbox.put(value)
                await asyncio.sleep(0.001)
            await until(lambda: len(peer.values()) >= 200 and not outbox.unacked(), 30)
        assert peer.values() == list(range(200))
        assert peer.readings()[7] == {
            "device": "meter", "point": "n", "time": "2025-11-22T16:30:01.000Z", "value": 7, "unit": "1",
            "quality": "good",
        }  # fmt: skip

    with program(kind, tmp_path) as peer:
        asyncio.run(main(peer))


@pytest.mark.parametrize("kind", ["node-red", "ws"])
@pytest.mark.parametrize("ack", ["pong", ACKING])
def test_with_acks_a_path_that_breaks_loses_nothing(kind: str, ack: Any, tmp_path: Path) -> None:
    async def main(peer: Peer) -> None:
        outbox = Rows()
        async with Relay("127.0.0.1", peer.port) as relay, running(outbox, plain(relay.port, ack=ack)):
            await until(lambda: outbox.up, 60)
            for value in range(300):
                outbox.put(value)
                if value in (100, 200):
                    relay.cut() if value == 100 else relay.black_hole()
                    await until(lambda: not outbox.up)
                    await relay.forward()
                await asyncio.sleep(0.002)
            await until(lambda: len(set(peer.values())) == 300, 60)
            await until(lambda: not outbox.unacked())

    with program(kind, tmp_path) as peer:
        asyncio.run(main(peer))


def test_a_listener_that_is_killed_loses_nothing_of_what_its_acks_promise(tmp_path: Path) -> None:
    async def main() -> None:
        outbox = Rows()
        with program("ws", tmp_path) as first:
            async with running(outbox, plain(first.port, ack=ACKING), random=lambda: 0.5):
                await until(lambda: outbox.up, 60)
                for value in range(100):
                    outbox.put(value)
                    await asyncio.sleep(0.001)
                await until(lambda: len(first.values()) > 20)
            # killed with the gateway's session: the next one sends what has no ack, to another that appends there
        second_home = tmp_path / "second"
        second_home.mkdir()
        with program("ws", second_home) as second:
            async with running(outbox, plain(second.port, ack=ACKING)):
                await until(lambda: outbox.up, 60)
                await until(lambda: not outbox.unacked() and not outbox.rows[next(iter(outbox.rows))], 30)
            assert set(first.values()) | set(second.values()) == set(range(100))

    asyncio.run(main())
