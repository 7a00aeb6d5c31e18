"""A real mosquitto on loopback, for tests: started, stopped, killed and restarted on one port.

    with Mosquitto(folder, max_inflight_messages=20) as broker:
        broker.port, broker.restart()

Options are lines of mosquitto.conf. Only the process that was started here is ever signalled.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.testing.process import end_with_parent

_PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
_START_S, _STOP_S = 20.0, 10.0
_TRIES = 5


def program() -> str | None:
    """The path of mosquitto, or None."""
    return shutil.which("mosquitto", path=_PLACES)


class Mosquitto:
    """One broker. Without options: anonymous clients, nothing kept over a restart."""

    def __init__(self, folder: Path, **options: str | int | bool | Path) -> None:
        self.port = 0
        self._folder = folder
        self._options: dict[str, str | int | bool | Path] = {"allow_anonymous": True, "persistence": False, **options}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens. The first start chooses a port, later ones keep it."""
        fixed = self.port
        for _ in range(_TRIES):  # between choosing a port and listening on it, somebody else may take it
            self.port = fixed or _free_port()
            if self._started():
                return
        raise RuntimeError(f"mosquitto does not start: {self.log()}")

    def stop(self) -> None:
        """SIGTERM: it saves what it keeps."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_STOP_S)
            self._process = None

    def kill(self) -> None:
        """SIGKILL: it saves nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def log(self) -> str:
        """What it said, for the message of a failed test."""
        path = self._folder / "mosquitto.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def _started(self) -> bool:
        lines = [f"listener {self.port} 127.0.0.1"]
        if os.geteuid() == 0:
            lines.append("user root")  # else it gives up the right to read our folder
        lines += [
            f"{word} {str(value).lower() if isinstance(value, bool) else value}"
            for word, value in self._options.items()
        ]
        config = self._folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self._folder / "mosquitto.log").open("ab") as log:
            command = [program() or "mosquitto", "-v", "-c", str(config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)  # noqa: PLW1509
        give_up = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < give_up:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.01)
            else:
                return self._process.poll() is None
        self.kill()
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
