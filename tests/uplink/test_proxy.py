"""Endpoints behind real proxies, and behind those that fail in every way."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.uplink.config import Endpoint, TlsSettings
from tests.uplink import proxies
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.pki import Pki, secret
from tests.uplink.sink import Sink, Store
from tests.uplink.test_link_dial import answering, deaf, refusal, says, silence


def _needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(proxies.program(name) is None, reason=f"{name} is not installed")


@contextmanager
def http(folder: Path, target: int, login: str = "") -> Iterator[str]:
    with proxies.tinyproxy(folder, target, login) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def socks(folder: Path, target: int, login: str = "") -> Iterator[str]:
    with proxies.microsocks(folder, login) as port:
        yield f"socks5://127.0.0.1:{port}"


Real = Callable[[Path, int, str], AbstractContextManager[str]]
REAL = [
    pytest.param(http, marks=_needs("tinyproxy"), id="http"),
    pytest.param(socks, marks=_needs("microsocks"), id="socks5"),
]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def behind(proxy: str, url: str, **more: Any) -> Endpoint:
    return Endpoint(url=url, name="a", proxy=proxy, **more)


# ── that it works ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("real", REAL)
@pytest.mark.parametrize("login", ["", "plant:geheim"])
def test_rows_arrive_through_a_proxy_which_looks_up_the_name_and_sees_only_tls(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Real, login: str
) -> None:
    asked = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        assert host != "localhost", "the proxy knows names that we do not"
        return asked(host, *rest, **more)

    async def main() -> None:
        outbox = MemoryOutbox()
        async with Sink(Store(), tls=pki.server("localhost"), token="s3cret") as sink:
            with real(tmp_path, sink.port, login) as proxy:
                monkeypatch.setattr(socket, "getaddrinfo", look_up)
                auth = secret(tmp_path / "login", f"{login}\n") if login else None
                endpoint = behind(
                    proxy,
                    f"wss://localhost:{sink.port}/uplink",
                    proxy_auth_file=auth,
                    token_file=secret(tmp_path / "token", "s3cret"),
                    tls=TlsSettings(cafile=pki.cafile),
                )
                async with running(outbox, endpoint) as uplink:
                    for row in range(20):
                        outbox.put(row)
                    await until(lambda: sink.store.rows() == list(range(20)) and not outbox.unacked())
                    assert state_of(uplink, "a") == "active"

    asyncio.run(main())


@pytest.mark.parametrize("real", REAL)
def test_the_certificate_is_that_of_the_endpoint_not_of_whoever_stands_between(
    pki: Pki, tmp_path: Path, real: Real
) -> None:
    async def main(context: ssl.SSLContext) -> str:
        async with Sink(Store(), tls=context, token="s3cret") as sink:
            with real(tmp_path, sink.port, "") as proxy:
                token = secret(tmp_path / "token", "s3cret")
                endpoint = behind(proxy, sink.url, token_file=token, tls=TlsSettings(cafile=pki.cafile))
                async with running(MemoryOutbox(), endpoint) as uplink:
                    await until(lambda: state_of(uplink, "a") == "resting")
                    assert sink.authorizations == [], "the token was not shown"
                    return trouble_of(uplink, "a")

    assert "IP address mismatch" in asyncio.run(main(pki.server("10.9.8.7")))
    assert "local issuer" in asyncio.run(main(Pki(tmp_path, "other").server()))


# ── that it fails well ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("real", REAL)
@pytest.mark.parametrize("shown", ["", "plant:wrong"])
def test_a_proxy_that_does_not_know_us_rests_until_its_login_changes(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Real, shown: str
) -> None:
    monkeypatch.setattr("gateway.uplink.uplink.LOOK_AT_FILES_EVERY_S", 0.02)

    async def main() -> None:
        outbox = MemoryOutbox()
        outbox.put(1)
        async with Sink(Store(), tls=pki.server()) as sink:
            with real(tmp_path, sink.port, "plant:geheim") as proxy:
                auth = secret(tmp_path / "login", shown) if shown else None
                endpoint = behind(proxy, sink.url, proxy_auth_file=auth, tls=TlsSettings(cafile=pki.cafile))
                async with running(outbox, endpoint) as uplink:
                    await until(lambda: state_of(uplink, "a") == "resting")
                    said = trouble_of(uplink, "a")
                    assert "name and password" in said
                    assert "wrong" not in said
                    assert uplink.status()["endpoints"][0]["failures"] == 1, "nobody hammers"
                    if auth is not None:
                        secret(auth, "plant:geheim")
                        await until(lambda: sink.store.rows() == [1])

    asyncio.run(main())


@_needs("tinyproxy")
def test_a_target_that_the_proxy_does_not_allow_is_rested(tmp_path: Path) -> None:
    async def main() -> None:
        async with Sink(Store()) as sink:
            with proxies.tinyproxy(tmp_path, sink.port, allowed=False) as port:
                error, _ = await refusal(behind(f"http://127.0.0.1:{port}", sink.url))
                way = f"proxy 127.0.0.1:{port} to 127.0.0.1:{sink.port}"
                assert str(error) == f"{way}: HTTP 403: the proxy does not let us through"
                assert error.reaction.wait_s == 900

    asyncio.run(main())


@pytest.mark.parametrize("real", REAL)
def test_a_target_that_is_down_is_retried(tmp_path: Path, real: Real) -> None:
    async def main() -> None:
        closed = proxies.free_port()
        with real(tmp_path, closed, "") as proxy:
            error, _ = await refusal(behind(proxy, f"ws://127.0.0.1:{closed}/"))
            assert f"to 127.0.0.1:{closed}: " in str(error)
            assert (error.reaction.kind.value, error.reaction.wait_s) == ("retry", 0)

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_is_down_is_retried_until_it_is_back(tmp_path: Path, scheme: str) -> None:
    closed = proxies.free_port()
    error, _ = asyncio.run(refusal(behind(f"{scheme}://127.0.0.1:{closed}", "ws://a.example/")))
    assert str(error) == f"proxy: cannot connect to 127.0.0.1:{closed}: Connection refused"
    assert (error.reaction.kind.value, error.reaction.wait_s) == ("retry", 0)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("said", ["", "HTTP/1.1 200 OK\r\n", "\x05"])
def test_a_proxy_that_stalls_is_given_up_in_time(scheme: str, said: str) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said.startswith("H" if scheme == "http" else "\x05"):
            writer.write(said.encode())
        await silence(reader, writer)

    async def main() -> None:
        async with answering(stall) as (port, _):
            error, took_s = await refusal(
                behind(f"{scheme}://127.0.0.1:{port}", "ws://a.example:1/", connect_timeout=0.3)
            )
            assert str(error) == f"proxy 127.0.0.1:{port} to a.example:1: no answer from the proxy within 0.3 s"
            assert took_s < 5

    asyncio.run(main())


def test_a_proxy_that_takes_no_connection_is_given_up_in_time() -> None:
    with deaf() as port:
        error, _ = asyncio.run(refusal(behind(f"http://127.0.0.1:{port}", "ws://a.example:1/", connect_timeout=0.3)))
    assert str(error) == f"proxy: TCP: no answer from 127.0.0.1:{port} within 0.3 s"


@pytest.mark.parametrize(
    ("status", "kind"), [(403, "rest"), (407, "rest"), (502, "retry"), (504, "retry"), (302, "retry")]
)
def test_what_a_proxy_refuses_is_told_from_what_the_endpoint_refuses(status: int, kind: str) -> None:
    async def main() -> None:
        async with answering(says(f"HTTP/1.1 {status} No\r\n\r\n")) as (port, heard):
            error, _ = await refusal(behind(f"http://127.0.0.1:{port}", "ws://a.example:1/"))
            assert str(error).startswith(f"proxy 127.0.0.1:{port} to a.example:1: HTTP {status}: ")
            assert error.reaction.kind.value == kind
            assert heard == [b"CONNECT a.example:1 HTTP/1.1\r\nHost: a.example:1\r\n\r\n"]

    asyncio.run(main())


def test_a_proxy_that_hangs_up_is_retried() -> None:
    async def main() -> None:
        async with answering(says("")) as (port, _):
            error, _ = await refusal(behind(f"socks5://127.0.0.1:{port}", "ws://a.example:1/"))
            assert str(error).endswith(": the proxy closed the connection")

    asyncio.run(main())


@pytest.mark.parametrize("text", ["plant", ":geheim", "plant:", "", "a:b\nc:d", "x" * 256 + ":y"])
def test_a_login_file_holds_one_name_and_password(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        auth = secret(tmp_path / "login", text)
        async with running(MemoryOutbox(), behind("http://127.0.0.1:1", "ws://a.example/", proxy_auth_file=auth)) as up:
            await until(lambda: state_of(up, "a") == "resting")
            assert str(auth) in trouble_of(up, "a")

    asyncio.run(main())


def test_a_login_that_others_can_read_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        auth = secret(tmp_path / "login", "plant:geheim", 0o644)
        async with running(MemoryOutbox(), behind("http://127.0.0.1:1", "ws://a.example/", proxy_auth_file=auth)) as up:
            await until(lambda: state_of(up, "a") == "resting")
            assert f"chmod 600 {auth}" in trouble_of(up, "a")

    asyncio.run(main())
