"""From a name to a connection: every step has its limit and its own words, and a dead address costs a moment only."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from gateway.uplink import dial
from gateway.uplink.auth import Credential, Credentials
from gateway.uplink.config import Endpoint, TlsSettings
from gateway.uplink.link import open_link
from gateway.uplink.reactions import Kind, Refused
from tests.uplink.house import running, trouble_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.sink import Sink, Store

NOTHING = Credential({}, None)
LIMIT_S = 0.3
IN_TIME_S = 5.0
"""Far more than the limit, for a slow machine; far less than any default of a library or the system."""


@contextlib.contextmanager
def deaf(host: str = "127.0.0.1", family: int = socket.AF_INET) -> Iterator[int]:
    """A port whose queue is full: what knocks there gets no answer, not even a refusal."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server of raw bytes: its port, and the first bytes of every connection."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        with contextlib.suppress(OSError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass


def says(text: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text.encode())
        await writer.drain()

    return answer


async def refusal(endpoint: Endpoint, credential: Credential = NOTHING) -> tuple[Refused, float]:
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        await open_link(endpoint, credential)
    return caught.value, time.monotonic() - began


def at(port: int, scheme: str = "ws", host: str = "127.0.0.1", **more: Any) -> Endpoint:
    return Endpoint(url=f"{scheme}://{host}:{port}/uplink", connect_timeout=LIMIT_S, **more)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, Any]]]:
    """Host names that stand for these addresses, beside those that the system knows."""
    known: dict[str, list[tuple[int, Any]]] = {}
    asked = socket.getaddrinfo

    def look_up(host: str, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if host in known and not flags & socket.AI_NUMERICHOST:
            return [(family, socket.SOCK_STREAM, 6, "", sockaddr) for family, sockaddr in known[host]]
        return asked(host, port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dns_that_does_not_answer_holds_up_neither_the_attempt_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    asked = socket.getaddrinfo

    def look_up(host: str, *rest: Any, flags: int = 0, **more: Any) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            release.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return asked(host, *rest, flags=flags, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    began = time.monotonic()
    try:
        error, _ = asyncio.run(refusal(at(1, host="ingest.example.com")))
        assert time.monotonic() - began < IN_TIME_S, "the loop did not wait for the thread"
        assert str(error) == "no answer from DNS for ingest.example.com within 0.3 s"
        assert error.reaction.kind is Kind.RETRY
    finally:
        release.set()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (socket.gaierror(socket.EAI_NONAME, "sorry"), "DNS knows no address of a.example"),
        (socket.gaierror(socket.EAI_NODATA, "sorry"), "DNS knows no address of a.example"),
        (socket.gaierror(socket.EAI_AGAIN, "sorry"), "DNS cannot be asked for a.example at present"),
        (socket.gaierror(socket.EAI_FAIL, "sorry"), "DNS failed for a.example: sorry"),
        (OSError(errno.EMFILE, "Too many open files"), "DNS failed for a.example: Too many open files"),
    ],
)
def test_what_dns_answers_is_said(monkeypatch: pytest.MonkeyPatch, error: OSError, says: str) -> None:
    def look_up(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    refused, _ = asyncio.run(refusal(at(1, host="a.example")))
    assert (str(refused), refused.reaction.kind) == (says, Kind.RETRY)


@pytest.mark.parametrize("interface", ["", "lo"])
def test_a_process_without_free_descriptors_is_said_and_not_ended(interface: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> Refused:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            error, _ = await refusal(at(1, interface=interface))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return error

    error = asyncio.run(main())
    assert error.reaction.kind is Kind.RETRY
    assert str(error).endswith("Too many open files")


def test_a_name_that_can_be_none_is_rested() -> None:
    error, _ = asyncio.run(refusal(at(1, host="a..b")))
    assert str(error) == "a..b can be no name of a host"
    assert error.reaction.kind is Kind.REST


def test_a_port_that_takes_no_connection_is_given_up_in_time() -> None:
    with deaf() as port:
        error, took_s = asyncio.run(refusal(at(port)))
    assert str(error) == f"TCP: no answer from 127.0.0.1:{port} within 0.3 s"
    assert took_s < IN_TIME_S


def test_a_closed_port_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error, _ = asyncio.run(refusal(at(port)))
    assert str(error) == f"cannot connect to 127.0.0.1:{port}: Connection refused"


def test_a_server_that_stalls_in_the_tls_handshake_is_given_up_in_time() -> None:
    async def main() -> None:
        async with answering(silence) as (port, heard):
            endpoint = at(port, "wss")
            error, took_s = await refusal(endpoint, Credentials(endpoint).read())
            assert str(error) == "TLS handshake stalled: not done within 0.3 s"
            assert took_s < IN_TIME_S
            assert heard[0][0] == 0x16, "it was a handshake that it got"

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("said", ["", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"])
def test_a_server_that_does_not_finish_the_upgrade_is_given_up_in_time(tmp_path: Path, scheme: str, said: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said.encode())
        await silence(reader, writer)

    async def main() -> None:
        async with answering(stall, context if scheme == "wss" else None) as (port, heard):
            endpoint = at(
                port, scheme, tls=TlsSettings(cafile=tmp_path / "ca.pem") if scheme == "wss" else TlsSettings()
            )
            error, took_s = await refusal(endpoint, Credentials(endpoint).read())
            assert str(error) == "no answer to the upgrade within 0.3 s"
            assert took_s < IN_TIME_S
            assert heard[0].startswith(b"GET /uplink HTTP/1.1\r\n")

    asyncio.run(main())


def test_a_server_that_never_welcomes_has_its_own_limit() -> None:
    async def main() -> None:
        async with (
            serve(
                ServerConnection.wait_closed, "127.0.0.1", 0, subprotocols=[Subprotocol("gateway.uplink.v1")]
            ) as server,
            running(MemoryOutbox(), at(server.sockets[0].getsockname()[1], name="a")) as uplink,
        ):
            await until(lambda: trouble_of(uplink, "a") == "no welcome within 2 s")

    asyncio.run(main())


def test_a_limit_leaves_no_socket_and_no_task_behind() -> None:
    async def main() -> None:
        open_before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await refusal(at(port))
            async with answering(silence) as (stalling, _):
                endpoint = at(stalling, "wss")
                await refusal(endpoint, Credentials(endpoint).read())
        await until(lambda: len(asyncio.all_tasks()) == 1)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= open_before)

    with deaf() as port:
        asyncio.run(main())


# ── Happy Eyeballs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_ipv6_costs_a_quarter_of_a_second(names: dict[str, list[tuple[int, Any]]]) -> None:
    async def main() -> float:
        async with Sink(Store()) as sink:
            names["both.test"] = [
                (socket.AF_INET6, ("::1", dead, 0, 0)),
                (socket.AF_INET6, ("::1", dead, 0, 0)),
                (socket.AF_INET, ("127.0.0.1", sink.port)),
            ]
            began = time.monotonic()
            sock = await dial.dial("both.test", sink.port, "", 3.0)
            took_s = time.monotonic() - began
            assert sock.getpeername() == ("127.0.0.1", sink.port)
            sock.close()
            return took_s

    with deaf("::1", socket.AF_INET6) as dead:
        took_s = asyncio.run(main())
    assert dial.STAGGER_S <= took_s < 2 * dial.STAGGER_S, "the other family came second, before the second IPv6"


def test_an_address_that_refuses_costs_nothing(names: dict[str, list[tuple[int, Any]]]) -> None:
    async def main() -> float:
        with socket.create_server(("127.0.0.1", 0)) as free:
            closed = free.getsockname()[1]
        async with Sink(Store()) as sink:
            names["two.test"] = [(socket.AF_INET, ("127.0.0.1", port)) for port in (closed, sink.port)]
            began = time.monotonic()
            (await dial.dial("two.test", sink.port, "", 3.0)).close()
            return time.monotonic() - began

    assert asyncio.run(main()) < dial.STAGGER_S


def test_a_slow_address_may_still_win(names: dict[str, list[tuple[int, Any]]]) -> None:
    """The later attempt never answers; the first does, after its head start is over."""

    async def main() -> None:
        names["two.test"] = [(socket.AF_INET, slow.getsockname()), (socket.AF_INET, ("127.0.0.1", dead))]
        task = asyncio.create_task(dial.dial("two.test", 1, "", 10.0))
        await asyncio.sleep(2 * dial.STAGGER_S)
        slow.listen(16)  # makes room: the kernel answers the repeated SYN
        sock = await task
        assert sock.getpeername() == slow.getsockname()
        sock.close()

    with deaf() as dead, socket.socket() as slow, contextlib.ExitStack() as callers:
        slow.bind(("127.0.0.1", 0))
        slow.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(slow.getsockname())
        asyncio.run(main())


def test_when_no_address_can_be_reached_each_reason_is_said_once(names: dict[str, list[tuple[int, Any]]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    names["many.test"] = [(socket.AF_INET, ("127.0.0.1", closed))] * 3 + [(socket.AF_INET, ("255.255.255.255", closed))]
    error, _ = asyncio.run(refusal(at(closed, host="many.test")))
    assert str(error).startswith(f"cannot connect to many.test:{closed}: Connection refused; ")
    assert str(error).count("Connection refused") == 1


# ── the kernel's timers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kernel_watches_every_connection() -> None:
    async def main() -> None:
        async with Sink(Store()) as sink:
            link = await open_link(at(sink.port), NOTHING)
            sock = link._connection.transport.get_extra_info("socket")
            read = {name: sock.getsockopt(level, getattr(socket, name)) for level, name in options}
            link.abort()
            assert read == {
                "SO_KEEPALIVE": 1,
                "TCP_KEEPIDLE": 30,
                "TCP_KEEPINTVL": 10,
                "TCP_KEEPCNT": 3,
                "TCP_USER_TIMEOUT": 10_000,
                "TCP_NODELAY": 1,
            }

    tcp = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
    options = [(socket.SOL_SOCKET, "SO_KEEPALIVE"), *((socket.IPPROTO_TCP, name) for name in tcp)]
    asyncio.run(main())


# ── the environment, and where we are sent ───────────────────────────────────────────────────────────────────────────


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with answering(silence) as (trap, heard), Sink(Store()) as sink:
            for name in ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy", "socks_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{trap}")
                monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{trap}")
            (await open_link(at(sink.port), NOTHING)).abort()
            assert heard == []

    asyncio.run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    async def main() -> None:
        target = Sink(Store())
        accepted: list[object] = []
        async with target:
            there = f"HTTP/1.1 {status} Moved\r\nLocation: {target.url}\r\nContent-Length: 0\r\n\r\n"
            async with answering(says(there)) as (port, _):
                error, _ = await refusal(at(port), Credential({"Authorization": "Bearer s3cret"}, None))
            accepted += target.authorizations
        assert accepted == [], "the target has never heard of us, nor of our token"
        assert str(error) == f"HTTP {status}: redirects are not followed"
        assert (error.reaction.kind, error.reaction.wait_s) == (Kind.RETRY, 60)

    asyncio.run(main())
