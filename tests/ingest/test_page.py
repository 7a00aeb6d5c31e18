"""The page: who may look, what is served, and a real browser that watches a value change."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request

from gateway.errors import AuthError
from gateway.ingest.door import COOKIE, check_viewer
from gateway.ingest.server import IngestServer
from gateway.ingest.sinks.sqlite import SqliteSink
from gateway.ingest.tokens import Role, Tokens
from gateway.ingest.web import page
from ingest.cloud import body, cloud, gateway, stream_id, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HERE, AWAY = ("127.0.0.1", 5), ("192.0.2.7", 5)


def request(**headers: str) -> Request:
    return Request("/", Headers({name.replace("_", "-"): value for name, value in headers.items()}))


@pytest.mark.parametrize(
    ("peer", "headers", "allowed"),
    [
        (HERE, {"Host": "127.0.0.1:8765"}, True),
        (HERE, {"Host": "localhost:8765"}, True),
        (("::1", 5, 0, 0), {"Host": "[::1]:8765"}, True),
        (HERE, {"Host": "localhost:8765", "Origin": "http://localhost:8765"}, True),
        (HERE, {"Host": "evil.example:8765"}, False),
        (HERE, {"Host": "localhost.evil.example"}, False),
        (HERE, {}, False),
        (HERE, {"Host": "localhost:8765", "Origin": "http://evil.example"}, False),
        (HERE, {"Host": "localhost:8765", "Origin": "null"}, False),
        (HERE, {"Host": "localhost:8765", "X_Forwarded_For": "192.0.2.7"}, False),
        (AWAY, {"Host": "localhost:8765"}, False),
        (AWAY, {"Host": "[broken"}, False),
        (AWAY, {"Host": "x", "Authorization": "Bearer VIEWER"}, True),
        (AWAY, {"Host": "x", "Authorization": "Basic PASSWORD"}, True),
        (AWAY, {"Host": "x", "Cookie": f"{COOKIE}=VIEWER"}, True),
        (AWAY, {"Host": "x", "Cookie": f"{COOKIE}=VIEWER", "Origin": "http://x"}, True),
        (AWAY, {"Host": "x", "Cookie": f"{COOKIE}=VIEWER", "Origin": "http://y"}, False),
        (AWAY, {"Host": "x", "Authorization": "Bearer GATEWAY"}, False),
        (AWAY, {"Host": "x", "Authorization": "Bearer wrong"}, False),
        (AWAY, {"Host": "x", "Authorization": "Basic %%%"}, False),
    ],
)
def test_who_may_look(tmp_path: Path, peer: Any, headers: dict[str, str], allowed: bool) -> None:
    sink = SqliteSink(tmp_path)
    tokens = Tokens(sink)
    words = {"VIEWER": tokens.add("anna", Role.VIEWER, 0), "GATEWAY": tokens.add("g1", Role.GATEWAY, 0)}
    words["PASSWORD"] = base64.b64encode(f"any:{words['VIEWER']}".encode()).decode()
    for word, token in words.items():
        headers = {name: value.replace(word, token) for name, value in headers.items()}
    with contextlib.nullcontext() if allowed else pytest.raises(AuthError):
        check_viewer(request(**headers), peer, tokens)
    sink.close()


async def get(server: IngestServer, path: str, host: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, content = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, content


def test_the_page_and_its_parts_are_served_with_a_strict_policy(tmp_path: Path) -> None:
    async def test() -> None:
        async with cloud(tmp_path) as server:
            for path in ("/", "/page.css", "/page.js", "/icon.svg"):
                status, headers, content = await get(server, path)
                assert status == 200
                assert len(content) == int(headers["content-length"]) > 200
                assert "default-src 'none'" in headers["content-security-policy"]
                assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"")
                assert b"innerHTML" not in content
            assert (await get(server, "/etc/passwd"))[0] == 404
            assert (await get(server, "/../server.py"))[0] == 404
            assert (await get(server, "/", "evil.example"))[0] == 401

    asyncio.run(test())


def test_a_viewer_is_told_everything_once_and_then_what_changed(tmp_path: Path) -> None:
    async def test() -> None:
        s = stream_id()
        async with cloud(tmp_path) as server, gateway(server) as g:
            await g.hello(s)
            await g.batch(s, 1, body([2**64 - 1, True]))
            await g.acked(s, 1)
            host, port = server.addresses[0]
            address = f"ws://{host}:{port}{page.LIVE_PATH}"
            async with connect(address, subprotocols=[page.LIVE], proxy=None) as viewer:
                first = json.loads(await viewer.recv())
                assert [(each["view"]["text"], each["trail"]) for each in first["series"]] == [
                    ("18446744073709551615", [float(2**64 - 1)]),
                    ("true", [1.0]),
                ]
                assert [(each["name"], each["online"]) for each in first["gateways"]] == [("g1", True)]
                assert json.loads(await viewer.recv())["changed"] == []
                await g.batch(s, 2, body([5], at_ms=9000))
                await g.batch(s, 3, body([4], at_ms=500))
                await g.acked(s, 3)
                changed = json.loads(await viewer.recv())["changed"]
                assert [(each["point"], each["text"]) for each in changed] == [("p0", "5")]
            with pytest.raises(InvalidStatus):
                await connect(address, subprotocols=[page.LIVE], origin="http://evil.example", proxy=None)  # type: ignore[arg-type]

    asyncio.run(test())


# ── a real browser ───────────────────────────────────────────────────────────────────────────────────────────────────


class Browser:
    """The few words of the DevTools protocol that the test needs."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._number = 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._ws.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self._ws.recv(), 30))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        what, content = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(content["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(content["args"]))
        elif what == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])

    async def evaluate(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, script: str, wanted: Any) -> None:
        async with asyncio.timeout(30):
            while (found := await self.evaluate(script)) != wanted:
                assert not self.complaints, (found, self.complaints)
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        place = folder / "DevToolsActivePort"
        await until(lambda: place.exists() and len(place.read_text().split()) == 2, 40)
        port = int(place.read_text().split()[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line[15:]) for line in head.decode().split("\r\n") if line.lower().startswith("content-length")
        )
        pages = json.loads(await reader.readexactly(length))
        writer.close()
        target = next(each for each in pages if each["type"] == "page")["webSocketDebuggerUrl"]
        async with connect(target, proxy=None, max_size=None) as ws:
            made = Browser(ws)
            for domain in ("Page", "Runtime", "Log"):
                await made.call(f"{domain}.enable")
            yield made
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_a_value_that_changes_and_complains_about_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        s, t = stream_id(), stream_id()
        value = "document.querySelector('.device:last-child td.value span')?.textContent"
        async with cloud(tmp_path) as server, gateway(server) as g, browser(tmp_path / "profile") as chromium:
            await g.hello(s, t)
            await g.batch(t, 1, body([1], device="!clock", source_ms=2**59))  # no date of any calendar
            await g.acked(t, 1)
            await g.batch(s, 1, body([20.25], device="<b>boiler</b>"))
            await g.acked(s, 1)
            host, port = server.addresses[0]
            await chromium.call("Page.navigate", url=f"http://{host}:{port}/")
            await chromium.until(value, "20.25")
            await chromium.until("document.querySelector('#link').textContent", "live")
            await chromium.until("document.querySelector('#gateways tbody th')?.textContent", "g1")
            await chromium.until(
                "document.querySelector('.device:last-child h3').firstChild.textContent", "<b>boiler</b>"
            )
            await g.batch(s, 2, body([21.5], at_ms=2000, device="<b>boiler</b>"))
            await chromium.until(value, "21.5")
            await g.batch(s, 3, body([18446744073709551615], at_ms=3000, device="<b>boiler</b>"))
            await chromium.until(value, "18446744073709551615")
            assert "," in await chromium.evaluate(
                "document.querySelector('.device:last-child polyline').getAttribute('points')"
            )
            await chromium.evaluate(
                "const f = document.querySelector('#filter'); f.value = 'nothing'; f.dispatchEvent(new Event('input'))"
            )
            await chromium.until("document.querySelectorAll('.device').length", 0)
            assert chromium.complaints == []

    asyncio.run(test())
