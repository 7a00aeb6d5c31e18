"""SIGKILL in the middle of a stream: what is stored in the end is what was published, each once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from conftest import Rig, eventually  # type: ignore[import-not-found]

from gateway.testing.broker import Mosquitto, program

pytestmark = pytest.mark.skipif(program() is None, reason="mosquitto is not installed")

PROCESS = """
import asyncio, os, sys
from pathlib import Path
from gateway.clock import SystemClock
from gateway.connectors.base import Tools
from gateway.connectors.mqtt.config import MqttBus, MqttDevice, MqttPoint
from gateway.connectors.mqtt.connector import MqttConnector
from gateway.model import Origin

port, version, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

class Journal:
    '''Each sample and its origin are one line, written before emit returns; settled 20 ms later.'''
    def __init__(self):
        text = path.read_text()
        os.truncate(path, text.rfind("\\n") + 1)  # half a line: that emit did not return
        self.file = path.open("a", buffering=1)
        self.known = {}
        for line in path.read_text().splitlines():
            session, packet_id, print_, _ = line.split()
            self.known[Origin(bytes.fromhex(session), int(packet_id), bytes.fromhex(print_))] = True
    async def emit(self, samples, *, settled=None):
        for session, number, print_, value in ((*s.origin, s.values[0]) for s in samples):
            self.file.write(f"{session.hex()} {number} {print_.hex()} {value}\\n")
        origins = {s.origin for s in samples}
        self.known |= dict.fromkeys(origins, False)
        def done():
            self.known |= {o: True for o in origins if o in self.known}
            settled()
        asyncio.get_running_loop().call_later(0.02, done)
    def seen(self, origin): return origin in self.known
    def settled(self, origin): return self.known[origin]
    def whole(self, session): return True
    def forget(self, origins):
        for origin in origins: self.known.pop(origin, None)
    def keep_only(self, session, origins): self.known = {o: d for o, d in self.known.items() if o in origins}

journal = Journal()
tools = Tools(SystemClock(), journal, lambda s: None, lambda d, s, w: None)
bus = MqttBus(name="b", kind="mqtt", host="127.0.0.1", tcp_port=port, client_id="gw", version=version)
device = MqttDevice(name="d", bus="b", topic="plant/n", points=(MqttPoint(name="n"),))
asyncio.run(MqttConnector(bus, [device], tools).run(journal.emit))
"""


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_killed_again_and_again_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, version: str) -> None:
    # else it drops what comes while we start again, which no client can help
    with Mosquitto(tmp_path, max_queued_messages=0) as broker:
        killed_again_and_again(Rig(broker), tmp_path, version)


def killed_again_and_again(rig: Rig, tmp_path: Path, version: str) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    chance = random.Random(version)

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROCESS,
            str(rig.broker.port),
            version,
            str(journal),
            stderr=asyncio.subprocess.DEVNULL,
        )

    def stored() -> list[int]:
        return [int(line.split()[3]) for line in journal.read_text().split("\n")[:-1]]

    enough = asyncio.Event()

    async def publish_until_enough() -> int:
        n = 0
        while not enough.is_set():  # each kill shall fall into the stream, however fast or slow the machine is
            n += 1
            await rig.publish("plant/n", json.dumps({"n": n}))
        return n

    async def scenario() -> None:
        process = await start()
        await rig.publish("plant/n", '{"n": 0}')
        while not stored():  # until it is subscribed, nothing waits for it
            await rig.publish("plant/n", '{"n": 0}')
            await asyncio.sleep(0.05)
        publishing = asyncio.create_task(publish_until_enough())
        for _ in range(4):
            before = len(stored())
            await eventually(lambda before=before: len(stored()) > before + chance.randrange(200), "progress", 60)  # type: ignore[misc]
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            process = await start()
        enough.set()
        published = await publishing
        await eventually(lambda: len(set(stored()) - {0}) == published, "all that was published", 60)
        process.kill()
        await process.wait()
        assert sorted(n for n in stored() if n) == list(range(1, published + 1))

    asyncio.run(scenario())
    rig.close()
