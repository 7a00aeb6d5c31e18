"""A Debian 12 with systemd as PID 1, in a container that a script of the rig starts and stops (GATEWAY_BOX names it).

Everything here waits for conditions with a bound; nothing sleeps for luck.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

GATEWAY = "/opt/gateway/current/bin/gateway"
UNIT = "gateway.service"
CONFIG = "/etc/gateway/config.toml"
_POLL_S = 0.2


class Box:
    """One container; `start` boots a fresh copy, `stop` throws it away."""

    def __init__(self, script: str, name: str) -> None:
        self._script = script
        self._environment = {**os.environ, "BOX_NAME": name}

    def start(self) -> None:
        self._call("start", timeout_s=120)

    def stop(self) -> None:
        self._call("stop", timeout_s=60)

    def put(self, source: Path, target: str) -> None:
        self._call("put", str(source), target, timeout_s=60)

    def attempt(self, *command: str, text: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command as root; its exit code is the caller's to judge."""
        return subprocess.run(
            ["bash", self._script, "run", "env", "-C", "/", *command],
            env=self._environment, input=text, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def run(self, *command: str, text: str = "", timeout_s: float = 60) -> str:
        """Runs a command that must succeed; returns what it printed."""
        done = self.attempt(*command, text=text, timeout_s=timeout_s)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def journal(self, unit: str) -> str:
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--unit", unit, "--output", "cat", "--no-pager", "--boot")

    def write(self, path: str, text: str, mode: str = "0644", group: str = "root") -> None:
        self.run("install", "-D", "-m", mode, "-g", group, "/dev/stdin", path, text=text)

    def _call(self, *words: str, timeout_s: float) -> None:
        subprocess.run(
            ["bash", self._script, *words],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=timeout_s, check=True,
        )  # fmt: skip


class Service:
    """The gateway's unit, as systemd sees it."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def show(self, name: str) -> str:
        return self.box.run("systemctl", "show", "--property", name, "--value", UNIT)

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def configure(self, toml: str) -> None:
        self.box.write(CONFIG, toml, mode="0640", group="gateway")

    def drop_in(self, text: str) -> None:
        """Differs from the unit in these lines until `plain` is called."""
        self.box.write(f"/run/systemd/system/{UNIT}.d/test.conf", f"[Service]\n{text}\n")
        self.box.run("systemctl", "daemon-reload")

    def plain(self) -> None:
        self.box.run("rm", "-rf", f"/run/systemd/system/{UNIT}.d")
        self.box.run("systemctl", "daemon-reload")

    def restart(self) -> None:
        """Returns when it is ready: the unit is of type notify."""
        self.box.run("systemctl", "restart", UNIT)

    def killed(self, signal: str = "KILL", within_s: float = 30) -> int:
        """Sends a signal to the main process and waits until systemd has started the next one. Returns its pid."""
        before = self.pid
        self.box.run("kill", f"-{signal}", str(before))
        until(lambda: self.pid not in (0, before) and self.show("ActiveState") == "active", within_s, "started again")
        return self.pid

    def journal(self) -> str:
        return self.box.journal(UNIT)

    def status(self) -> str:
        return self.box.run(GATEWAY, "status", "--json")

    def buffer(self, figure: str) -> int:
        """`records`: batches that the cloud side has not acknowledged; `committed_bytes`: of records, to the disk."""
        return int(json.loads(self.status())["buffer"][figure])


def until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Waits for something to become true; fails the test when it does not in time."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {within_s:g} s"
        time.sleep(_POLL_S)


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d+\.\d+", text)]
