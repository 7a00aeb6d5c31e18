"""Every connector that connects to a host says the same of one that it cannot reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.connectors.modbus.config import TcpBus
from gateway.connectors.modbus.link import Line
from gateway.connectors.mqtt.config import MqttBus, Tls
from gateway.connectors.mqtt.link import connected
from gateway.errors import LinkError


async def modbus(host: str, tcp_port: int) -> None:
    bus = TcpBus(name="b", kind="modbus-tcp", host=host, tcp_port=tcp_port)
    await Line(bus, SystemClock(), lambda: None).open()


async def mqtt(host: str, tcp_port: int) -> None:
    bus = MqttBus(name="b", kind="mqtt", host=host, tcp_port=tcp_port)
    await connected(bus, "me", True, lambda: 0)


@pytest.mark.parametrize("connect", [modbus, mqtt])
@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".local"])
def test_a_name_that_can_be_none_is_a_lost_link_and_no_bug(connect: Callable[..., object], host: str) -> None:
    with pytest.raises(LinkError, match=r"cannot connect to .*:1: this is no name of a host"):
        asyncio.run(connect(host, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("connect", [modbus, mqtt])
def test_a_port_where_nobody_listens_is_said_in_plain_words(connect: Callable[..., object]) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can come to listen there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=rf"^cannot connect to 127\.0\.0\.1:{port}: Connection refused$"):
            asyncio.run(connect("127.0.0.1", port))  # type: ignore[arg-type]


def test_a_file_that_holds_no_certificate_is_not_called_a_system_error(tmp_path: Path) -> None:
    nothing = tmp_path / "ca.pem"
    nothing.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    bus = MqttBus(name="b", kind="mqtt", host="127.0.0.1", tls=Tls(cafile=nothing))
    with pytest.raises(LinkError, match=r"cannot connect to 127\.0\.0\.1:8883: .*(PEM|SSL|X509)"):
        asyncio.run(connected(bus, "me", True, lambda: 0))
