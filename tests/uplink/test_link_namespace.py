"""Networks that are really broken, made of namespaces: a dead IPv6, a deaf DNS, a black hole, a pulled cable."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.uplink import dial
from gateway.uplink.auth import Credential
from gateway.uplink.config import Endpoint
from gateway.uplink.link import open_link
from gateway.uplink.reactions import Kind, Refused
from tests.uplink.house import running, state_of, trouble_of, until
from tests.uplink.memory import MemoryOutbox
from tests.uplink.namespaces import Namespace, namespace, needs_root
from tests.uplink.sink import Sink, Store
from tests.uplink.test_link_dial import names  # noqa: F401

pytestmark = needs_root
NOTHING = Credential({}, None)
CLOUD = "10.77.9.1"
NOWHERE = "fd77::dead"
"""Routed, and nobody is there."""


class Plant(NamedTuple):
    edge: Namespace
    cloud: Namespace
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def endpoint(self, name: str = "a", **more: Any) -> Endpoint:
        return Endpoint(url=f"ws://{CLOUD}:{self.port}/uplink", name=name, **more)

    def run(self, main: Callable[[Sink], Any]) -> Any:
        """`main` at the edge, with a server in the cloud."""

        async def both() -> Any:
            async with Sink(Store(), sock=self.listener) as sink:
                return await main(sink)

        return self.edge.within(lambda: asyncio.run(both()))


@pytest.fixture
def plant() -> Iterator[Plant]:
    """A gateway with Ethernet and LTE, both leading to the cloud, Ethernet first."""
    with namespace("edge") as edge, namespace("cloud") as cloud:
        for number, name in ((1, "eth0"), (2, "wwan0")):
            edge.ip("link", "add", name, "type", "veth", "peer", "name", f"to-{name}", "netns", cloud.name)
            edge.ip("addr", "add", f"10.77.{number}.2/24", "dev", name)
            cloud.ip("addr", "add", f"10.77.{number}.1/24", "dev", f"to-{name}")
            for where, what in ((edge, name), (cloud, f"to-{name}")):
                where.ip("link", "set", what, "up")
            edge.ip("route", "add", "default", "via", f"10.77.{number}.1", "dev", name, "metric", f"{number}00")
        cloud.ip("addr", "add", f"{CLOUD}/32", "dev", "lo")
        edge.ip("addr", "add", "fd77::2/64", "dev", "eth0", "nodad")
        edge.ip("neigh", "add", NOWHERE, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
        listener = cloud.within(lambda: socket.create_server((CLOUD, 0)))
        try:
            yield Plant(edge, cloud, listener)
        finally:
            listener.close()


# ── Happy Eyeballs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ipv6_that_leads_nowhere_costs_a_quarter_of_a_second(
    plant: Plant,
    names: dict[str, list[tuple[int, Any]]],  # noqa: F811
) -> None:
    names["cloud.test"] = [
        (socket.AF_INET6, (NOWHERE, plant.port, 0, 0)),
        (socket.AF_INET, (CLOUD, plant.port)),
    ]

    async def main(_: Sink) -> float:
        with pytest.raises(Refused, match="TCP: no answer"):
            await dial.dial(NOWHERE, plant.port, "", 0.5)
        began = time.monotonic()
        (await dial.dial("cloud.test", plant.port, "", 3.0)).close()
        return time.monotonic() - began

    took_s = plant.run(main)
    assert dial.STAGGER_S <= took_s < 2 * dial.STAGGER_S


# ── the interface ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_endpoint_goes_out_by_its_interface(plant: Plant) -> None:
    async def main(sink: Sink) -> list[str]:
        seen = []
        for interface in ("", "eth0", "wwan0"):
            link = await open_link(plant.endpoint(interface=interface), NOTHING)
            seen.append(link._connection.local_address[0])
            link.abort()
        return seen

    assert plant.run(main) == ["10.77.1.2", "10.77.1.2", "10.77.2.2"]


def test_when_the_cable_is_pulled_the_endpoint_by_lte_carries_on(plant: Plant) -> None:
    async def main(sink: Sink) -> None:
        outbox = MemoryOutbox()
        ends = plant.endpoint("eth", interface="eth0"), plant.endpoint("lte", interface="wwan0")
        async with running(outbox, *ends) as uplink:
            await until(lambda: (state_of(uplink, "eth"), state_of(uplink, "lte")) == ("active", "standby"))
            plant.edge.ip("link", "set", "eth0", "down")
            outbox.put(1)
            await until(lambda: sink.store.rows() == [1])
            await until(lambda: uplink.status()["active"] == "lte")
            await until(lambda: "unreachable" in trouble_of(uplink, "eth"))

    plant.run(main)


@pytest.mark.parametrize(
    ("interface", "says"),
    [
        ("ppp0", "there is no interface ppp0"),
        ("idle0", "interface idle0 has no address"),
        ("six0", "interface six0 has no address of the endpoint's family"),
    ],
)
def test_an_interface_that_cannot_be_used_is_said_and_tried_again(plant: Plant, interface: str, says: str) -> None:
    for name in ("idle0", "six0"):
        plant.edge.ip("link", "add", name, "type", "veth", "peer", "name", f"x-{name}")
        plant.edge.ip("link", "set", name, "up")
        plant.edge.ip("link", "set", f"x-{name}", "up")
    plant.edge.ip("addr", "add", "fd78::2/64", "dev", "six0", "nodad")

    async def main(_: Sink) -> Refused:
        with pytest.raises(Refused) as caught:
            await open_link(plant.endpoint(interface=interface), NOTHING)
        return caught.value

    error = plant.run(main)
    assert (str(error), error.reaction.kind) == (says, Kind.RETRY)


def test_an_interface_needs_no_privilege(plant: Plant) -> None:
    """The service has no capability at all."""
    code = f"""import asyncio
from gateway.uplink.dial import dial
print(asyncio.run(dial({CLOUD!r}, {plant.port}, "wwan0", 3.0)).getsockname()[0])"""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    command = ["ip", "netns", "exec", plant.edge.name, *nobody, sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("10.77.2.2\n", "")


# ── the kernel's timers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sending", [True, False])
def test_the_kernel_ends_a_connection_into_a_black_hole(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, sending: bool
) -> None:
    """Nobody but the kernel looks: with data under way by its timeout, without by its probes."""
    monkeypatch.setattr(dial, "TCP_USER_TIMEOUT_MS", 1500)
    monkeypatch.setattr(dial, "KEEPALIVE_S", (1, 1, 2))

    async def main(_: Sink) -> tuple[Refused, float]:
        link = await open_link(plant.endpoint(), NOTHING)
        began = time.monotonic()
        plant.cloud.ip("route", "add", "blackhole", "10.77.1.2/32")
        if sending:
            link.send(b"{}")
        with pytest.raises(Refused) as caught:
            await asyncio.wait_for(link.receive(), 30)
        return caught.value, time.monotonic() - began

    error, took_s = plant.run(main)
    assert str(error) == "connection lost: [Errno 110] Connection timed out"
    assert error.reaction.kind is Kind.RETRY
    assert 1.0 < took_s < 10.0


# ── DNS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _answer(query: bytes, code: int, addresses: dict[int, bytes]) -> bytes:
    """To a question of one name [RFC 1035 4.1]."""
    end = query.index(b"\0", 12) + 5
    (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
    data = addresses.get(kind)
    header = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 1 if data else 0, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data if data else b""
    return header + query[12:end] + record


@contextlib.contextmanager
def dns(plant: Plant, code: int | None, addresses: dict[int, bytes]) -> Iterator[None]:
    """A name server at the edge; None: it hears and says nothing."""

    def listen() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 53))
        return sock

    sock = plant.edge.within(listen)

    def serve() -> None:
        while True:
            query, peer = sock.recvfrom(4096)
            if not query:
                return
            if code is not None:
                sock.sendto(_answer(query, code, addresses), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        plant.edge.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 53)))
        thread.join()
        sock.close()


@pytest.mark.parametrize(
    ("code", "addresses", "says"),
    [
        (None, {}, "no answer from DNS for cloud.example.com within 1 s"),
        (3, {}, "DNS knows no address of cloud.example.com"),
        (0, {}, "DNS knows no address of cloud.example.com"),
        (2, {}, "DNS cannot be asked for cloud.example.com at present"),
        (0, {1: bytes([10, 77, 9, 1]), 28: socket.inet_pton(socket.AF_INET6, NOWHERE)}, "connected to 10.77.9.1"),
    ],
)
def test_what_a_real_name_server_says_or_does_not_say(
    plant: Plant, tmp_path: Path, code: int | None, addresses: dict[int, bytes], says: str
) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    program = f"""import asyncio
from gateway.uplink.dial import dial
from gateway.uplink.reactions import Refused
try:
    sock = asyncio.run(dial("cloud.example.com", {plant.port}, "", 1.0))
    print("connected to", sock.getpeername()[0])
except Refused as error:
    print(error)"""
    mount = f"mount --bind {tmp_path / 'resolv.conf'} /etc/resolv.conf && exec {sys.executable} -c '{program}'"
    began = time.monotonic()
    with dns(plant, code, addresses):
        command = ["ip", "netns", "exec", plant.edge.name, "sh", "-c", mount]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (says, "")
    assert time.monotonic() - began < 8, "the process did not wait for the C library, which takes 10 s"
