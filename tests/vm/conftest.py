"""The emulated machine: booted afresh once, the gateway installed from wheels, stopped at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


class Machine:
    """Driven over the script that GATEWAY_VM names. Python is 20 to 30 times slower inside than outside."""

    def __init__(self, script: Path) -> None:
        self.script = script

    def call(self, *words: str, timeout_s: float = 300) -> str:
        """One command of the script; its output. Output goes to a file: what it starts may outlive it."""
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                ["bash", str(self.script), *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=timeout_s, check=False,
            )  # fmt: skip
            output.seek(0)
            said = output.read().strip()
        assert done.returncode == 0, f"{words} ended with {done.returncode}\n{said}"
        return said

    def run(self, command: str, timeout_s: float = 300) -> str:
        return self.call("run", command, timeout_s=timeout_s)

    def write(self, folder: Path, text: str, target: str) -> None:
        """Puts a file there; `folder` is one of ours to make it in."""
        source = folder / Path(target).name
        source.write_text(text)
        source.chmod(0o644)
        self.call("put", str(source), target)

    def configure(self, folder: Path, toml: str) -> None:
        self.write(folder, toml, "/etc/gateway/config.toml")
        self.run("chgrp gateway /etc/gateway/config.toml; chmod 640 /etc/gateway/config.toml")

    def journal(self) -> str:
        return self.run("journalctl --sync; journalctl --unit gateway --output cat --no-pager --boot")


def until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Waits for something to become true; fails the test when it does not in time."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {within_s:g} s"
        time.sleep(2)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    script = os.environ.get("GATEWAY_VM")
    if not script:
        pytest.skip("GATEWAY_VM does not name the script that starts the emulated machine")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the machine has Python 3.11; wheels for it are made by the same version")
    wheels = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "-w", str(wheels), str(_ROOT)]
    subprocess.run(command, check=True, timeout=240)
    checkout = tmp_path_factory.mktemp("source") / "checkout"
    checkout.mkdir()
    for name in ("README.md", "config.example.toml", "pyproject.toml"):
        shutil.copy(_ROOT / name, checkout)
    shutil.copytree(_ROOT / "systemd", checkout / "systemd")
    machine = Machine(Path(script))
    machine.call("reset")
    try:
        machine.call("start")
        machine.call("put", str(checkout), "/opt/checkout")
        machine.call("put", str(wheels), "/opt/wheels")
        machine.call("put", str(machine.script.with_name("ble_sensor.py")), "/opt/ble_sensor.py")
        machine.run("sh /opt/checkout/systemd/install.sh --wheels /opt/wheels", timeout_s=900)
        yield machine
    finally:
        machine.call("stop")
