"""A name to a connected socket: DNS, then Happy Eyeballs [RFC 8305] over its addresses, by the interface asked for.

A lookup cannot be cancelled: the C library sits in it until it gives up, half a minute on a dead server. So each has a
thread of its own that nobody waits for, neither the next attempt nor the end of the process; there are no more of them
than attempts in half a minute.

The kernel's timers stand behind our own: a peer that is gone, or has stopped taking data, ends the connection even when
nobody else notices.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.uplink import reactions
from gateway.uplink.proxy import Talk
from gateway.uplink.reactions import Kind, Reaction, Refused

STAGGER_S: Final = 0.25
"""RFC 8305: the next address is tried when those before have not answered for this long."""
TCP_USER_TIMEOUT_MS: Final = 10_000
KEEPALIVE_S: Final = (30, 10, 3)
"""Idle before the first probe, between probes, probes."""
_CHUNK: Final = 4096
_SIOCGIFADDR: Final = 0x8915  # linux/sockios.h
_LINK_LOCAL: Final = "20"  # of /proc/net/if_inet6


class Address(NamedTuple):
    family: int
    sockaddr: Any


async def dial(host: str, port: int, interface: str, within_s: float) -> socket.socket:
    """A connected, non-blocking socket; `within_s` for the lookup, and again for TCP.

    Raises:
        Refused: there is none; the reaction says what to do.
    """
    addresses = await resolve(host, port, within_s)
    if interface:
        addresses = _by_way_of(interface, addresses)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        async with asyncio.timeout(within_s):
            return await _race(addresses, interface)
    except TimeoutError as error:
        raise Refused(Reaction(Kind.RETRY, f"TCP: no answer from {where} within {within_s:g} s")) from error
    except _Unreachable as error:
        raise Refused(Reaction(Kind.RETRY, f"cannot connect to {where}: {error}")) from error


async def talk_through(sock: socket.socket, talk: Talk, way: str, within_s: float) -> None:
    """Holds the conversation with a proxy. Raises Refused."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(within_s):
            request = next(talk)
            while True:
                if request:
                    await loop.sock_sendall(sock, request)
                request = talk.send(await loop.sock_recv(sock, _CHUNK))
    except StopIteration:
        return
    except TimeoutError as error:
        raise Refused(Reaction(Kind.RETRY, f"{way}: no answer from the proxy within {within_s:g} s")) from error
    except OSError as error:
        raise Refused(Reaction(Kind.RETRY, f"{way}: connection to the proxy lost: {_plain(error)}")) from error


# ── DNS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def resolve(host: str, port: int, within_s: float) -> list[Address]:
    """In the order to try them: as the system sorts them, families taking turns. Raises Refused."""
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        pass  # a name then
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Address]] = loop.create_future()

    def tell(found: list[Address] | None, error: Exception | None) -> None:
        if answer.done():
            return  # it took too long
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found or [])

    def look() -> None:
        found, failed = None, None
        try:
            found = _look_up(host, port)
        except (OSError, UnicodeError) as error:
            failed = error
        try:
            loop.call_soon_threadsafe(tell, found, failed)
        except RuntimeError:
            pass  # the loop is closed: nobody wants to know any more

    try:
        threading.Thread(target=look, name=f"look up {host}", daemon=True).start()
    except RuntimeError as error:  # the service has as many as it may have
        raise Refused(Reaction(Kind.RETRY, f"DNS cannot be asked for {host}: {error}")) from error
    try:
        async with asyncio.timeout(within_s):
            return _by_turns(await answer)
    except TimeoutError as error:
        raise Refused(Reaction(Kind.RETRY, f"no answer from DNS for {host} within {within_s:g} s")) from error
    except OSError as error:
        raise Refused(Reaction(Kind.RETRY, _not_found(host, error))) from error
    except UnicodeError as error:
        raise Refused(Reaction(Kind.REST, f"{host} can be no name of a host", reactions.QUARTER_HOUR_S)) from error


def _look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [Address(family, sockaddr) for family, _, _, _, sockaddr in infos]


def _not_found(host: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
        return f"DNS knows no address of {host}"
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return f"DNS cannot be asked for {host} at present"
    return f"DNS failed for {host}: {error.strerror}"


def _by_turns(addresses: Sequence[Address]) -> list[Address]:
    """RFC 8305 4: so that one dead family does not hold up the other."""
    first = [each for each in addresses if each.family == addresses[0].family]
    others = [each for each in addresses if each.family != addresses[0].family]
    return [each for pair in zip_longest(first, others) for each in pair if each is not None]


# ── TCP ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Unreachable(Exception):
    """No address could be connected to; the text says why each."""


async def _race(addresses: Sequence[Address], interface: str) -> socket.socket:
    """The first to answer. Each gets a head start, or until those before it have failed."""
    waiting = deque(addresses)
    attempts: dict[asyncio.Task[None], socket.socket] = {}
    pending: set[asyncio.Task[None]] = set()
    failures: list[str] = []
    winner: socket.socket | None = None
    try:
        while winner is None and (waiting or pending):
            if waiting:
                address = waiting.popleft()
                try:
                    sock = _socket(address.family, interface)
                except OSError as failed:
                    failures.append(_plain(failed))
                    continue
                task = asyncio.create_task(_connect(sock, address), name=f"connect to {address.sockaddr[0]}")
                attempts[task] = sock
                pending.add(task)
            head_start_s = STAGGER_S if waiting else None
            done, pending = await asyncio.wait(pending, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    winner = winner or attempts[task]
                elif isinstance(error, OSError):
                    failures.append(_plain(error))
                else:
                    raise error
        if winner is None:
            raise _Unreachable("; ".join(dict.fromkeys(failures)))
        return winner
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for sock in attempts.values():
            if sock is not winner:
                sock.close()


async def _connect(sock: socket.socket, address: Address) -> None:
    await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)


def _socket(family: int, interface: str) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    try:
        sock.setblocking(False)
        _harden(sock)
        if interface:  # no privilege is needed since Linux 5.7
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except BaseException:
        sock.close()
        raise
    return sock


def _harden(sock: socket.socket) -> None:
    idle, interval, probes = KEEPALIVE_S
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)


def _plain(error: OSError) -> str:
    """Without address and call, which asyncio adds."""
    return os.strerror(error.errno) if error.errno else str(error)


# ── interface ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_way_of(interface: str, addresses: Sequence[Address]) -> list[Address]:
    """Those that the interface has a family for: without an address of its own the kernel would send with that of
    another, and nothing would ever come back. Raises Refused.
    """
    families = _families(interface)
    usable = [each for each in addresses if each.family in families]
    if not families:
        raise Refused(Reaction(Kind.RETRY, f"interface {interface} has no address"))
    if not usable:
        raise Refused(Reaction(Kind.RETRY, f"interface {interface} has no address of the endpoint's family"))
    return usable


def _families(interface: str) -> set[int]:
    """For which kinds of address it has one of its own. Raises Refused."""
    found: set[int] = set()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("16s24x", interface.encode()))
        found.add(socket.AF_INET)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise Refused(Reaction(Kind.RETRY, f"there is no interface {interface}")) from error
        if error.errno != errno.EADDRNOTAVAIL:
            raise Refused(Reaction(Kind.RETRY, f"interface {interface}: {_plain(error)}")) from error
    try:
        rows = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
    except OSError:
        rows = []  # a kernel without IPv6
    if any(name == interface and scope != _LINK_LOCAL for _, _, _, scope, _, name in map(str.split, rows)):
        found.add(socket.AF_INET6)
    return found
