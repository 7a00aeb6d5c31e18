"""One boot, one wheelhouse and one installation for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from box.container import UNIT, Box, Service
from box.site import Site

_ROOT = Path(__file__).resolve().parents[2]
_CHECKOUT = "/root/checkout"
_WHEELS = "/root/wheels"
_PYTHON = (3, 11)
"""Of the box; its wheels are made by this interpreter."""


class Installation(NamedTuple):
    """What the first run of the install script did."""

    output: str
    active: str
    sentence: str

    @staticmethod
    def script(wheels: str = _WHEELS) -> tuple[str, ...]:
        return ("sh", f"{_CHECKOUT}/systemd/install.sh", "--wheels", wheels)


@pytest.fixture(scope="session")
def script() -> str:
    """What starts and stops a box."""
    path = os.environ.get("GATEWAY_BOX")
    if not path:
        pytest.skip("GATEWAY_BOX does not name the script that starts a box with systemd")
    if os.geteuid() != 0:
        pytest.skip("a box needs root")
    return path


@pytest.fixture(scope="session")
def wheels(script: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of this checkout and of all it needs."""
    if sys.version_info[:2] != _PYTHON:
        pytest.skip(f"the box has Python {_PYTHON[0]}.{_PYTHON[1]}; wheels for it are made by the same version")
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "-w", str(folder), str(_ROOT)]
    subprocess.run(command, check=True, timeout=240)
    return folder


@pytest.fixture(scope="session")
def box(script: str, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Booted, with the checkout and the wheels inside; gone at the end, whatever happens."""
    checkout = tmp_path_factory.mktemp("source") / "checkout"
    checkout.mkdir()
    for name in ("README.md", "config.example.toml", "pyproject.toml"):
        shutil.copy(_ROOT / name, checkout)
    shutil.copytree(_ROOT / "systemd", checkout / "systemd")
    box = Box(script, f"gateway-{os.getpid()}")
    try:
        box.start()
        box.put(checkout, _CHECKOUT)
        box.put(wheels, _WHEELS)
        yield box
    finally:
        box.stop()


@pytest.fixture(scope="session")
def installation(box: Box) -> Installation:
    done = box.attempt(*Installation.script(), timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    service = Service(box)
    return Installation(
        done.stdout, box.attempt("systemctl", "is-active", UNIT).stdout.strip(), service.show("StatusText")
    )


@pytest.fixture
def service(box: Box, installation: Installation) -> Iterator[Service]:
    """The installed service, with nothing of an earlier test about it."""
    service = Service(box)
    service.plain()
    yield service
    service.plain()


@pytest.fixture(scope="session")
def site(box: Box, installation: Installation) -> Site:
    """Machines on every kind of bus and the cloud side, all inside the box."""
    site = Site(box)
    site.build()
    return site
