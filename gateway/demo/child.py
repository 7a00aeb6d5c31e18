"""A process of ours: started, watched, ended. Its output goes to a file, so that it never blocks on a full pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from gateway.errors import GatewayError
from gateway.testing.process import end_with_parent

_POLL_S = 0.02


class Child:
    """`gateway ARGUMENTS…` as a process of its own, run by this Python. `where`: the beginning of a command line that
    runs it somewhere else, such as in a network namespace."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        where: Sequence[str] = (),
    ) -> None:
        self._arguments = arguments
        self._where = where
        self._environment = {**os.environ, **(environment or {})}
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts it (again). Output is appended to the log."""
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._where, sys.executable, "-m", "gateway", *self._arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment,
                preexec_fn=end_with_parent,
            )  # fmt: skip

    async def wait(self) -> int:
        """Returns its exit code when it has ended by itself."""
        assert self._process is not None
        return await self._process.wait()

    async def end(self, how: signal.Signals = signal.SIGTERM, within_s: float = 20.0) -> int:
        """Signals it and waits. Returns its exit code; what does not end in time is killed."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        try:
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    def last_words(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


async def until(condition: Callable[[], bool | Awaitable[bool]], within_s: float, what: str) -> None:
    """Waits for something to become true. Raises GatewayError with `what` when it does not in time."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                answer = condition()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise GatewayError(f"{what}: not within {within_s:g} s") from error
