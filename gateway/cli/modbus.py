"""What `gateway scan modbus` and `gateway read modbus` have in common: where to look, and how a line is set."""

from __future__ import annotations

import argparse
import ipaddress
from typing import NamedTuple

from gateway.cli.arguments import between

_HOSTS_MAX = 1024
_PORT = between(1, 65_535)


class Target(NamedTuple):
    """A serial port, or a host, or the hosts of a network; else it may be the name of a bus."""

    text: str
    port: str = ""
    host: str = ""
    tcp_port: int = 502
    network: tuple[str, ...] = ()


def target(text: str) -> Target:
    """`/dev/ttyUSB0`, `192.168.1.50`, `meter.local:1502`, `[fe80::1]:502`, `192.168.1.0/24`."""
    if text.startswith(("/", ".")):
        return Target(text, port=text)
    if "/" in text:
        network, tcp_port = _split(text) if text.rpartition("/")[2].count(":") else (text, 502)
        try:
            hosts = ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a port such as /dev/ttyUSB0 nor a network") from None
        if hosts.num_addresses > _HOSTS_MAX:
            raise argparse.ArgumentTypeError(f"{text} has more than {_HOSTS_MAX:,} addresses; name a smaller part")
        return Target(text, tcp_port=tcp_port, network=tuple(str(host) for host in hosts.hosts()))
    host, tcp_port = _split(text)
    return Target(text, host=host, tcp_port=tcp_port)


def _split(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, _PORT(rest[1:]) if rest else 502
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host:  # no port, or a bare IPv6 address
        return text, 502
    return host, _PORT(port)
