"""What is shown is bounded: viewers, and the points that they see."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.ingest import live as live_module
from gateway.ingest.live import LiveState
from gateway.ingest.web import page
from gateway.protocol import batch
from gateway.protocol.entry import Entry
from ingest.cloud import SYNCED, body, cloud, entry, url


def test_one_viewer_too_many_is_turned_away_until_another_goes(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server, AsyncExitStack() as stack:
            address = url(server).rstrip("/") + page.LIVE_PATH
            viewers = [
                await stack.enter_async_context(connect(address, subprotocols=[page.LIVE], proxy=None))
                for _ in range(page.MAX_VIEWERS)
            ]
            for viewer in viewers:
                await viewer.recv()
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, subprotocols=[page.LIVE], proxy=None)
            assert refused.value.response.status_code == 503
            await viewers[0].close()
            async with asyncio.timeout(30):
                while True:
                    try:
                        await stack.enter_async_context(connect(address, subprotocols=[page.LIVE], proxy=None))
                    except InvalidStatus:
                        await asyncio.sleep(0.01)
                    else:
                        return

    asyncio.run(test())


def test_points_beyond_the_bound_are_stored_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_SERIES", 10)
    live = LiveState()
    for number in range(25):
        live.stored(entry("1" * 32, number + 1, body([number], device=f"d{number:02}")), SYNCED.offset_ms, 0)
    assert [view.device for view, _ in live.series()] == [f"d{number:02}" for number in range(10)]
    assert live.gateways_at(0)[0].readings == 25
    live.stored(entry("1" * 32, 26, body([77], at_ms=9000, device="d03")), SYNCED.offset_ms, 0)
    assert [view.text for view, _ in live.series() if view.device == "d03"] == ["77"]


def made_up(seq: int, device: str, points: tuple[str, ...], units: tuple[str, ...]) -> Entry:
    groups = [batch.Group(device, points, units, [0], [[1]] * len(points))]
    return entry("1" * 32, seq, msgspec.json.encode(batch.Body(SYNCED, 0, groups)))


def test_names_that_somebody_makes_up_fill_no_memory() -> None:
    """Devices without points, and units that are as long as a message."""
    live = LiveState()
    live.stored(made_up(1, "meter", ("u",), ("V",)), SYNCED.offset_ms, 0)
    for seq in range(2, 200):
        live.stored(made_up(seq, f"device {seq}", (), ()), SYNCED.offset_ms, 0)
        live.stored(made_up(seq, "meter", ("u",), (f"{seq}" + "V" * 10_000,)), SYNCED.offset_ms, 0)
    assert len(live._shapes) == 1
    assert [view.device for view, _ in live.series()] == ["meter"]
