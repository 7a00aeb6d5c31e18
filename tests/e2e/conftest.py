"""The whole program, as processes, around simulated machines on real transports."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: sockets lie in it, and they have room for 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="gw-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def numbers(database: Path, device: str, point: str) -> list[int]:
    """Every value of one point at the sink, in the order of its ids."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        rows = db.execute("SELECT value FROM readings WHERE device = ? AND point = ? ORDER BY id", (device, point))
        return [value for (value,) in rows if value is not None]
    finally:
        db.close()
