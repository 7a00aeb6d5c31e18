"""Children end with us, in our order."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.testing import broker
from gateway.testing.process import end_with_parent

_WITHIN_S = 30.0


def test_ctrl_c_on_a_terminal_reaches_us_and_not_our_children() -> None:
    with subprocess.Popen(["sleep", "60"], preexec_fn=end_with_parent) as child:  # noqa: PLW1509
        group = os.getpgid(child.pid)  # the terminal signals a whole group
        child.kill()
    assert group != os.getpgid(0)


@pytest.mark.skipif(broker.program() is None, reason="mosquitto is not installed")
def test_a_broker_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from gateway.testing.broker import Mosquitto
with Mosquitto(pathlib.Path({str(tmp_path)!r})) as broker:
    print(broker.port, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port), 5.0).close()
        parent.kill()
    give_up = time.monotonic() + _WITHIN_S
    while _listens(port):
        assert time.monotonic() < give_up, "it outlives the process that started it"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5.0).close()
    except OSError:
        return False
    return True
