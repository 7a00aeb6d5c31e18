"""How many may ask at once is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from gateway.control.server import _MAX_CALLERS, ControlServer
from gateway.model import Json


def test_one_caller_too_many_is_told_so_and_has_room_when_another_leaves(tmp_path: Path) -> None:
    async def status(_: Mapping[str, Json]) -> Json:
        return "well"

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Json:
        writer.write(b'{"op": "status"}\n')
        return json.loads(await reader.readline())

    async def main() -> None:
        path = tmp_path / "s"
        async with ControlServer(path, {"status": status}, {}).serving():
            inside = [await asyncio.open_unix_connection(path) for _ in range(_MAX_CALLERS)]
            assert [await ask(*each) for each in inside] == [{"ok": "well"}] * _MAX_CALLERS
            reader, writer = await asyncio.open_unix_connection(path)
            assert "more than" in json.loads(await reader.readline())["error"]
            assert await reader.read() == b""
            writer.close()
            inside.pop()[1].close()
            answer: Json = {}
            while "ok" not in answer:
                again = await asyncio.open_unix_connection(path)
                answer = await ask(*again)
                again[1].close()
            for _, each in inside:
                each.close()

    asyncio.run(asyncio.wait_for(main(), 60))
