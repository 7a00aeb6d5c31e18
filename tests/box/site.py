"""What stands around the gateway inside the box: the machines below it, the cloud side above it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from box.container import Box, until

_FOLDER = "/srv/plant"
_CLOUD = "/srv/cloud"
_CLOUD_UNIT = "/run/systemd/system/cloud.service"
_PYTHON = "/srv/python"
"""A copy of the installed programs: an upgrade takes the first ones away."""


class Tally(NamedTuple):
    """One machine's numbers."""

    produced: int
    stored: int
    twice: int

    @property
    def missing(self) -> int:
        return self.produced - self.stored


class Site:
    """Built once; machines are silent until they are told to talk."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def build(self) -> None:
        box = self._box
        box.run("cp", "-aT", box.run("realpath", "/opt/gateway/current"), _PYTHON)
        box.run("mkdir", "-p", _FOLDER, _CLOUD)
        box.put(Path(__file__).with_name("plant.py"), f"{_FOLDER}/plant.py")
        # a unit of its own: a transient one stays loaded for a while after it stopped, and cannot be started then
        command = " ".join(self._gateway("--drain", "0s"))
        box.run("sh", "-c", f"cat >{_CLOUD_UNIT}", text=f"[Service]\nType=exec\nExecStart={command}\n")
        box.run("systemctl", "daemon-reload")
        self.cloud_on()
        box.run(*self._gateway("add", "box", "--token-file", "/etc/gateway/credentials/uplink-token"))
        box.run(
            "systemd-run", "-q", "--unit=plant", "--service-type=notify",
            f"{_PYTHON}/bin/python", f"{_FOLDER}/plant.py", _FOLDER, f"{_CLOUD}/ingest.db",
        )  # fmt: skip

    @property
    def toml(self) -> str:
        """What a person would write for all this."""
        return (
            '[[uplink.endpoint]]\nurl = "ws://127.0.0.1:8765/"\n'
            'token_file = "/run/credentials/gateway.service/uplink-token"\n'
            + self._box.run("cat", f"{_FOLDER}/buses.toml")
        )

    @property
    def drop_in(self) -> str:
        """The simulated BlueZ sits on a D-Bus of its own."""
        return "".join(f"Environment={line}\n" for line in self._box.run("cat", f"{_FOLDER}/environment").splitlines())

    def talk(self) -> None:
        self._ask("talk")

    def hush(self) -> None:
        self._ask("hush")

    def tallies(self) -> dict[str, Tally]:
        return {device: Tally(*each) for device, each in json.loads(self._ask("proof")).items()}

    def cloud_on(self) -> None:
        """Does nothing where it is on."""
        self._box.run("systemctl", "start", "cloud")
        until(lambda: "8765" in self._box.run("ss", "-Hltn", "sport = :8765"), 20, "the cloud side listens")

    def cloud_off(self) -> None:
        self._box.run("systemctl", "stop", "cloud")

    def _gateway(self, *words: str) -> tuple[str, ...]:
        return (f"{_PYTHON}/bin/python", "-m", "gateway", "ingest", "--data", _CLOUD, *words)

    def _ask(self, word: str) -> str:
        return self._box.run("socat", "-t", "20", "-", f"UNIX-CONNECT:{_FOLDER}/control", text=f"{word}\n")
