"""`gateway …` as a person runs it: a process of its own, its exit code, what it prints where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

BOUND_S = 30.0
"""Until something must have happened on a slow machine; nothing takes that long when all is well."""
PROGRAM = (sys.executable, "-m", "gateway")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would change the output."""
    strange = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "JOURNAL_STREAM", "RUNTIME_DIRECTORY", "STATE_DIRECTORY")
    return {**{key: value for key, value in os.environ.items() if key not in strange}, **(extra or {})}


def gateway(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
    """Runs a command to its end."""
    done = subprocess.run(
        [*PROGRAM, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=environment(env),
        cwd=cwd,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


class Running:
    """A command at work; what it prints goes to files. Ended with the block."""

    def __init__(self, folder: Path, *words: object, env: Mapping[str, str] | None = None) -> None:
        self._paths = folder / f"{words[0]}.out", folder / f"{words[0]}.err"
        out, err = (path.open("wb") for path in self._paths)
        with out, err:
            self.process = subprocess.Popen(
                [*PROGRAM, *map(str, words)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(env)
            )

    @property
    def out(self) -> str:
        return self._paths[0].read_text()

    @property
    def err(self) -> str:
        return self._paths[1].read_text()

    def says(self, text: str) -> Self:
        """Returns when it has said this on stdout or stderr."""
        self.until(lambda: text in self.out + self.err, f"it says {text!r}")
        return self

    def until(self, condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + BOUND_S
        while not condition():
            assert self.process.poll() is None, f"{what}: it ended with {self.process.returncode}: {self.err}"
            assert time.monotonic() < give_up, f"{what}: not in time: {self.out}{self.err}"
            time.sleep(0.02)

    def end(self, how: signal.Signals = signal.SIGTERM) -> Done:
        """Signals it and waits."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> Done:
        code = self.process.wait(BOUND_S)
        assert "Traceback" not in self.err, self.err
        return Done(code, self.out, self.err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
