"""A network between a gateway and its cloud side, of namespaces that live as long as the benchmark: needs root.

    gateway ── 10.77.1.2 ──┐                 ┌── 10.77.3.2   first road
               10.77.2.2 ──┴──── router ─────┴── 10.77.4.2   second road      cloud

Two roads with addresses of their own at both ends. `cut` makes the router throw away what goes over one road, both ways
and without a word: connections stay established on both sides, as with a dead radio link. The benchmark itself lives in
the gateway's namespace (`enter`), so what it starts without more ado is at the plant; `cloud` is a prefix for commands
that run on the other side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.testing.process import end_with_parent

CLOUD = ("10.77.3.2", "10.77.4.2")
_PLANT = ("10.77.1.2", "10.77.2.2")
_INSIDE = "GATEWAY_BENCHMARK_INSIDE"


def enter() -> None:
    """Runs this program again in namespaces of its own; returns in there."""
    if _INSIDE in os.environ:
        return
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, *sys.argv])


class Network:
    """`with Network(folder) as network:` after `enter`. Names are resolved from a file in `folder`, and by nobody
    else: no name server answers."""

    def __init__(self, folder: Path) -> None:
        self._hosts = folder / "hosts"
        self._resolv = folder / "resolv.conf"
        self._keepers: list[subprocess.Popen[bytes]] = []
        self.cloud: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        router, cloud = self._keep(), self._keep()
        inside = ("nsenter", f"--net=/proc/{router}/ns/net")
        self._router, self.cloud = inside, ("nsenter", f"--net=/proc/{cloud}/ns/net")
        _run("ip", "link", "add", "plant", "type", "veth", "peer", "name", "south", "netns", str(router))
        _run(*inside, "ip", "link", "add", "north", "type", "veth", "peer", "name", "cloud", "netns", str(cloud))
        self._up((), "plant", _PLANT)
        self._up(inside, "south", ("10.77.1.1", "10.77.2.1"))
        self._up(inside, "north", ("10.77.3.1", "10.77.4.1"))
        self._up(self.cloud, "cloud", CLOUD)
        _run(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for near, here, there in ((1, (), 3), (2, (), 4), (3, self.cloud, 1), (4, self.cloud, 2)):
            _run(*here, "ip", "route", "add", f"10.77.{there}.0/24", "via", f"10.77.{near}.1")
        self._resolv.write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
        self.names({})
        _run("mount", "--bind", str(self._hosts), "/etc/hosts")
        _run("mount", "--bind", str(self._resolv), "/etc/resolv.conf")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run("umount", "/etc/hosts")
        _run("umount", "/etc/resolv.conf")
        _run("ip", "link", "delete", "plant")
        for keeper in self._keepers:
            keeper.kill()
            keeper.wait()

    def names(self, known: dict[str, str]) -> None:
        """What can be resolved from now on: name → address."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known.items())]
        self._hosts.write_text("\n".join(lines) + "\n")

    def cut(self, road: int) -> None:
        """What goes over this road disappears."""
        for address in (CLOUD[road], _PLANT[road]):
            _run(*self._router, "ip", "route", "add", "blackhole", f"{address}/32")

    def mend(self, road: int) -> None:
        for address in (CLOUD[road], _PLANT[road]):
            _run(*self._router, "ip", "route", "del", "blackhole", f"{address}/32")

    def _keep(self) -> int:
        """A new network namespace, as long as a process lives in it: its pid."""
        keeper = subprocess.Popen(("unshare", "--net", "sleep", "infinity"), preexec_fn=end_with_parent)  # noqa: PLW1509
        self._keepers.append(keeper)
        theirs = Path(f"/proc/{keeper.pid}/ns/net")
        give_up = time.monotonic() + 10
        while theirs.readlink() == Path("/proc/self/ns/net").readlink():
            if time.monotonic() > give_up:
                raise RuntimeError("no network namespace can be made")
            time.sleep(0.01)
        return keeper.pid

    def _up(self, where: tuple[str, ...], link: str, addresses: tuple[str, ...]) -> None:
        _run(*where, "ip", "link", "set", "lo", "up")
        for address in addresses:
            _run(*where, "ip", "address", "add", f"{address}/24", "dev", link)
        _run(*where, "ip", "link", "set", link, "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=10)
