"""Real proxies on loopback, for tests. Only the processes that were started here are ever signalled."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.testing.process import end_with_parent

_START_S, _STOP_S, _TRIES = 20.0, 10.0, 5
PLACES = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"


def program(name: str) -> str | None:
    return shutil.which(name, path=PLACES)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def tinyproxy(folder: Path, target: int, login: str = "", *, allowed: bool = True) -> Iterator[int]:
    """An HTTP proxy that leads to `target` only (or, not even there)."""
    lines = ["Listen 127.0.0.1", "Timeout 60", f"ConnectPort {target if allowed else 1}"]
    lines += [f"BasicAuth {login.replace(':', ' ')}"] if login else []
    config = folder / "tinyproxy.conf"

    def command(port: int) -> Sequence[str]:
        config.write_text("\n".join([f"Port {port}", *lines]) + "\n")
        return [program("tinyproxy") or "tinyproxy", "-d", "-c", str(config)]

    with _running(command, folder / "tinyproxy.log") as port:
        yield port


@contextlib.contextmanager
def microsocks(folder: Path, login: str = "") -> Iterator[int]:
    """A SOCKS5 proxy."""

    def command(port: int) -> Sequence[str]:
        name, _, password = login.partition(":")
        who = ["-u", name, "-P", password] if login else []
        return [program("microsocks") or "microsocks", "-i", "127.0.0.1", "-p", str(port), *who]

    with _running(command, folder / "microsocks.log") as port:
        yield port


@contextlib.contextmanager
def _running(command: Callable[[int], Sequence[str]], log: Path) -> Iterator[int]:
    for _ in range(_TRIES):  # between choosing a port and listening on it, somebody else may take it
        port = free_port()
        with log.open("ab") as said:
            process = subprocess.Popen(command(port), stdout=said, stderr=said, preexec_fn=end_with_parent)  # noqa: PLW1509
        try:
            if _listens(process, port):
                yield port
                return
        finally:
            process.kill()
            process.wait(_STOP_S)
    raise RuntimeError(f"the proxy does not start: {log.read_text()}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    give_up = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process.poll() is None
    return False
