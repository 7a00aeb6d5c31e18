"""Runs inside the box: the demo's plant, with a control socket. `plant.py FOLDER DATABASE`

FOLDER/buses.toml is the configuration of its buses, FOLDER/environment what the gateway's process needs to find them.
On the socket one word is asked and one line answered: `talk`, `hush`, and `proof` (JSON: device → produced, stored,
twice, counted in the machine's own numbers).
"""

from __future__ import annotations

import asyncio
import grp
import json
import os
import re
import sys
from pathlib import Path

import sdnotify

from gateway.demo import plant as plants
from gateway.demo.plant import Plant
from gateway.demo.proof import take


def _proof(plant: Plant, database: Path) -> str:
    found = take(database, plant.counters)
    widths = {counter.device: counter.readings for counter in plant.counters}
    return json.dumps(
        {t.device: [n // widths[t.device] for n in (t.produced, t.stored, t.twice)] for t in found.tallies}
    )


async def main(folder: Path, database: Path) -> None:
    async with plants.running(folder) as plant:
        ports = re.findall(r'"(/dev/pts/\d+)"', plant.toml)
        for port in ports:  # as udev leaves a serial adapter
            os.chown(port, 0, grp.getgrnam("dialout").gr_gid)
            os.chmod(port, 0o660)
        (folder / "buses.toml").write_text(plant.toml)
        (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in plant.environment.items()))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            word = (await reader.readline()).decode().strip()
            if word == "talk":
                plant.talk()
            elif word == "hush":
                plant.hush()
            writer.write((_proof(plant, database) if word == "proof" else word).encode() + b"\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(answer, folder / "control")
        sdnotify.SystemdNotifier().notify("READY=1")
        await server.serve_forever()


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
