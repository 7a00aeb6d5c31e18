"""From a fault at the first endpoint to the first ack of the second one: `python tests/benchmarks/failover.py`.

Every process is real: mosquitto, a publisher that counts, `gateway run`, `gateway ingest`, and before each endpoint a
front door that ends TLS (`door.py`). They live in network namespaces of their own (`network.py`), so a black hole is
one. A trial begins with a fresh gateway that sends over the first endpoint and keeps a session with the second, while
50 messages a second flow, and ends when the fault has been mended. It measures from the moment just before the fault
is made to the moment in which the second door hands the first ack to the gateway's socket, on one clock.

    kill, stop         SIGKILL, SIGSTOP of the process that is the first endpoint; a stopped one goes on afterwards
    blackhole          the router between them silently drops all that goes over the first road, both ways
    expired            the first door dies; the one that takes its place shows a certificate that ended yesterday
    401, 1013          …; behind it a server that does not know the token, or whose disk takes no writes
    refused, dns       the first door dies; nobody listens there any more, or its name is not known any more

`--sinks 1`: both endpoints lead to one store, so a batch may be sent over both and is stored once. `--sinks 2`: each
has a server and a store of its own, the process that dies is that `gateway ingest`; what is in flight there is sent to
the other one only when the first is given up, 3 s after it became suspect: stored by both it would exist twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import network
import trustme
from figures import Figure, doing, finish
from network import CLOUD, Network
from rig import Tool

from gateway.control.client import ControlClient
from gateway.demo.child import Child, until
from gateway.errors import GatewayError, LinkError
from gateway.testing.broker import Mosquitto

ROADS: Final = ("first", "second")
NAMES: Final = tuple(f"{road}.cloud.test" for road in ROADS)
PER_SECOND: Final = 50
DEVICES: Final = 5
_MAIN, _OTHER = 8765, 8766
_READY_S, _SWITCH_S, _WORDS_S, _SETTLE_S = 30.0, 20.0, 40.0, 60.0


class Fault(NamedTuple):
    """What is asked of the gateway when this happens to the first endpoint."""

    aim_s: float | None
    """Median until the first ack of the second one."""
    reason: str
    """What status says, as a pattern."""
    states: tuple[str, ...]
    wait_s: tuple[float, float]
    """Bounds of the wait before the next attempt."""


_RETRY: Final = ("waiting", "connecting", "unused")
FAULTS: Final = {
    "kill": Fault(0.15, r"lost|closed|refused", _RETRY, (0, 60)),
    "blackhole": Fault(1.0, r"no ack|no answer|another session", _RETRY, (0, 60)),
    "stop": Fault(1.0, r"no ack|no answer|stalled|another session", _RETRY, (0, 60)),
    "expired": Fault(None, r"certificate.*expired", ("resting",), (870, 900)),
    "401": Fault(None, r"401", ("resting",), (870, 900)),
    "1013": Fault(None, r"1013", _RETRY, (20, 60)),
    "refused": Fault(None, r"refused|call failed", _RETRY, (0, 60)),
    "dns": Fault(None, r"name|DNS", _RETRY, (0, 60)),
}
OWN_SINK_FAULTS: Final = ("kill", "blackhole", "stop")
"""With a store of its own behind each endpoint; only kill has an aim there."""


class Site:
    """Gateway, roads and cloud side of one series of trials."""

    def __init__(self, folder: Path, net: Network, stack: AsyncExitStack, sinks: int) -> None:
        self.folder = folder
        self.net = net
        self.sinks = sinks
        self._stack = stack
        self._serial = 0
        self.broker = Mosquitto(folder, max_queued_messages=0, max_inflight_messages=0, log_type="error")
        self.gateway = Child(("run", "--config", str(folder / "gateway.toml")), folder / "gateway.log")
        self.servers = [self._server(road, port) for road, port in zip(ROADS, (_MAIN, _OTHER), strict=True)]
        self._control = ControlClient(folder / "run" / "control.sock", timeout_s=5)
        self.first: Tool | Child
        """The process that is the first endpoint."""
        self.publisher: Tool

    def _server(self, road: str, port: int) -> Child:
        arguments = ["ingest", "--data", str(self.folder / road), "--listen", f"127.0.0.1:{port}", "--plain"]
        if self.sinks == 2 and road == ROADS[0]:  # reached without a door: what dies is the server itself
            arguments += ["--listen", f"{CLOUD[0]}:443", "--cert", str(self._certificate("good"))]
        return Child(arguments, self.folder / f"{road}.log", where=self.net.cloud)

    def _certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    # ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        yesterday = datetime.now(UTC) - timedelta(days=1)
        for name, ends in (("good", None), ("expired", yesterday)):
            issued = authority.issue_cert(*NAMES, not_before=yesterday - timedelta(days=9), not_after=ends)
            issued.private_key_and_cert_chain_pem.write_to_path(str(self._certificate(name)))
        self._heal_names()
        self._stack.enter_context(self.broker)
        for server, road in zip(self.servers, ROADS, strict=True):
            await self._serve(server)
            await self._tell("ingest", "--data", str(self.folder / road), "add", "bench",
                             "--token-file", str(self.folder / f"token-{road}"))  # fmt: skip
        if self.sinks == 1:  # the other server is for refusals: it becomes who answers behind the first door
            shutil.copy(self.folder / "token-first", self.folder / "token-good")
            shutil.copy(self.folder / "token-second", self.folder / "token-unknown")
            shutil.copy(self.folder / "token-good", self.folder / "token-second")
            await self._open_first("good", _MAIN)
        else:
            self.first = self.servers[0]
        self.second = await self._stack.enter_async_context(self._door(1, _MAIN if self.sinks == 1 else _OTHER, "good"))
        (self.folder / "gateway.toml").write_text(self._toml())
        await self.ready()  # once without messages: now the broker has a session to keep them for
        await self.gateway.end()
        number = Tool("loads.py", "number", self.broker.port, PER_SECOND, DEVICES)
        self.publisher = await self._stack.enter_async_context(number)
        self.began = time.monotonic()

    async def _serve(self, server: Child) -> None:
        await server.start()
        self._stack.push_async_callback(server.end, signal.SIGKILL)
        control = server.log.with_suffix("") / "control.sock"
        await until(lambda: server.running and control.exists(), _READY_S, "the cloud side answers")

    async def _tell(self, *arguments: str) -> None:
        command = Child(arguments, self.folder / "commands.log")
        await command.start()
        if await command.wait():
            raise GatewayError(f"`gateway {' '.join(arguments)}` failed\n{command.last_words()}")

    def _door(self, road: int, target: int, certificate: str) -> Tool:
        return Tool("door.py", CLOUD[road], 443, target, self._certificate(certificate), where=self.net.cloud)

    async def _open_first(self, certificate: str, target: int) -> None:
        self.first = await self._stack.enter_async_context(self._door(0, target, certificate))

    def _heal_names(self) -> None:
        self.net.names(dict(zip(NAMES, CLOUD, strict=True)))

    def _toml(self) -> str:
        lines = [f'[gateway]\nname = "bench"\nstate_dir = "{self.folder}/state"\nruntime_dir = "{self.folder}/run"']
        for road, name in zip(ROADS, NAMES, strict=True):
            lines.append(
                f'[[uplink.endpoint]]\nname = "{road}"\nurl = "wss://{name}/"\n'
                f'token_file = "{self.folder}/token-{road}"\ntls = {{ cafile = "{self.folder}/ca.pem" }}'
            )
        return (
            "\n".join(lines)
            + f"""
[[bus]]
name = "broker"
kind = "mqtt"
host = "127.0.0.1"
tcp_port = {self.broker.port}
client_id = "bench"

[[device]]
name = "{{device}}"
bus = "broker"
topic = "plant/{{device}}/state"
points = [ {{ name = "n" }} ]
"""
        )

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def endpoints(self) -> dict[str, Any]:
        """What status says of each; empty while the gateway does not answer."""
        try:
            status = await asyncio.to_thread(self._control.ask, "status")
        except LinkError:
            return {}
        return {each["name"]: each for each in status["uplink"]["endpoints"]}

    def stored(self) -> dict[str, tuple[int, int, int]]:
        """Device → rows in one store too many, numbers in any store, numbers in more than one."""
        seen: dict[str, list[int]] = {}
        twice: dict[str, int] = {}
        for road in ROADS[: self.sinks]:
            db = sqlite3.connect(f"file:{self.folder / road / 'ingest.db'}?mode=ro", uri=True, timeout=10)
            for device, rows, different in db.execute(
                "SELECT s.device, count(*), count(DISTINCT r.value) FROM reading r JOIN series s ON s.id = r.series"
                " GROUP BY s.device"
            ):
                twice[device] = twice.get(device, 0) + rows - different
            for device, value in db.execute(
                "SELECT DISTINCT s.device, r.value FROM reading r JOIN series s ON s.id = r.series"
            ):
                seen.setdefault(device, []).append(value)
            db.close()
        return {each: (twice[each], len(set(found)), len(found) - len(set(found))) for each, found in seen.items()}

    def batches(self) -> int:
        count = 0
        for road in ROADS[: self.sinks]:
            db = sqlite3.connect(f"file:{self.folder / road / 'ingest.db'}?mode=ro", uri=True, timeout=10)
            count += db.execute("SELECT count(*) FROM batch").fetchone()[0]
            db.close()
        return int(count)

    # ── one trial ────────────────────────────────────────────────────────────────────────────────────────────────

    async def ready(self) -> None:
        await self.gateway.start()

        async def settled() -> bool:
            if not self.gateway.running:
                raise GatewayError("the gateway ended")
            states = {name: each["state"] for name, each in (await self.endpoints()).items()}
            return states == {"first": "active", "second": "standby"}

        await until(settled, _READY_S, "one endpoint active, the other standing by")
        await asyncio.sleep(random.uniform(0.3, 0.8))  # the fault comes at any moment between two messages
        await self.second.ask()

    async def strike(self, name: str) -> float:
        """Makes the fault; returns the moment just before it."""
        match name:
            case "stop":
                struck = time.monotonic()
                os.kill(self.first.pid, signal.SIGSTOP)
                return struck
            case "blackhole":
                struck = time.monotonic()
                self.net.cut(0)
                return struck
            case "dns":
                self.net.names({NAMES[1]: CLOUD[1]})
            case "401":
                shutil.copy(self.folder / "token-good", self.folder / "token-first")
            case "1013":
                shutil.copy(self.folder / "token-unknown", self.folder / "token-first")
                _limit_files(self.servers[1].pid, 0)
        struck = time.monotonic()
        os.kill(self.first.pid, signal.SIGKILL)
        if name in ("expired", "401", "1013"):
            target = _MAIN if name == "expired" else _OTHER
            await self._open_first("expired" if name == "expired" else "good", target)
        return struck

    async def mend(self, name: str) -> None:
        match name:
            case "stop":
                os.kill(self.first.pid, signal.SIGCONT)  # what it still held comes late: it is stored already
                return
            case "blackhole":
                self.net.mend(0)
                return
            case "1013":
                _limit_files(self.servers[1].pid, resource.RLIM_INFINITY)
        if isinstance(self.first, Child):
            await self.first.wait()
            await self._serve(self.first)
            return
        if name in ("expired", "401", "1013"):
            os.kill(self.first.pid, signal.SIGKILL)
        shutil.copy(self.folder / "token-good", self.folder / "token-first")
        self._heal_names()
        await self._open_first("good", _MAIN)

    async def first_ack(self, since: float) -> float:
        """Seconds from then to the first ack of the second endpoint."""
        found: list[float] = []

        async def acked() -> bool:
            found.extend(at for at, marks in (await self.second.ask())["acks"] if at >= since and marks)
            return bool(found)

        await until(acked, _SWITCH_S, "an ack of the second endpoint")
        return found[0] - since

    async def words(self, fault: Fault) -> None:
        """Returns when status says what it must."""
        said: dict[str, Any] = {}

        async def right() -> bool:
            nonlocal said
            found = await self.endpoints()
            if not found:
                return False
            said = found["first"]
            wait_s = said["next_attempt_s"] or 0.0
            return (
                found["second"]["state"] == "active"
                and said["state"] in fault.states
                and bool(re.search(fault.reason, said["last_error"] or "", re.IGNORECASE))
                and fault.wait_s[0] <= wait_s <= fault.wait_s[1]
            )

        try:
            await until(right, _WORDS_S, "")
        except GatewayError:
            raise GatewayError(f"status does not say what it should ({fault.reason}): {said}") from None

    async def trial(self, name: str) -> float:
        await self.ready()
        struck = await self.strike(name)
        took_s = await self.first_ack(struck)
        await self.words(FAULTS[name])
        await self.mend(name)
        await self.gateway.end()
        return took_s

    async def settle(self) -> dict[str, int]:
        """Ends the publisher, lets everything arrive: numbers given away."""
        produced: dict[str, int] = await self.publisher.ask("stop")
        await self.gateway.start()
        give_up = time.monotonic() + _SETTLE_S
        while {device: found[1] for device, found in self.stored().items()} != produced and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)  # what comes twice comes late
        await self.gateway.end()
        return produced


def _limit_files(pid: int, size: int) -> None:
    """0: it cannot write to its files any more, as on a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@asynccontextmanager
async def site(sinks: int) -> AsyncIterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
    try:
        with Network(folder) as net:
            async with AsyncExitStack() as stack:
                made = Site(folder, net, stack, sinks)
                try:
                    await made.start()
                    yield made
                except GatewayError:
                    print(made.gateway.last_words())
                    raise
                finally:
                    if made.gateway.log.exists() and made.gateway.running:
                        await made.gateway.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def series(sinks: int, names: Sequence[str], trials: int) -> list[Figure]:
    figures = []
    behind = "" if sinks == 1 else "own store each: "
    async with site(sinks) as made:
        for name in names:
            times, wrong = [], []
            for i in range(trials):
                doing(f"{behind}{name} {i + 1}/{trials}")
                try:
                    times.append(await made.trial(name))
                except GatewayError as error:
                    wrong.append(str(error))
                    break  # the site may be in any state now
            aim_s = FAULTS[name].aim_s if sinks == 1 or name == "kill" else None
            aim = f"<= {aim_s}" if aim_s else ""
            spread = f"min {min(times):.3f}, max {max(times):.3f}, {len(times)} trials" if times else ""
            median = statistics.median(times) if times else float("nan")
            figures.append(Figure(f"{behind}{name} → first ack of the second, s, median", median, aim, spread))
            figures.append(
                Figure(f"{behind}{name}: not handled as specified", len(wrong), "<= 0", "; ".join(wrong), True)
            )
            if wrong:
                return figures
        per_s = made.batches() / (time.monotonic() - made.began)
        produced = await made.settle()
        stored = made.stored()
    lost = sum(count - stored[device][1] for device, count in produced.items())
    both = f"{sum(each[2] for each in stored.values())} in both stores" if sinks == 2 else ""
    return [
        *figures,
        Figure(f"{behind}readings lost", lost, "<= 0", f"of {sum(produced.values()):,}", True),
        Figure(f"{behind}readings twice in one store", sum(each[0] for each in stored.values()), "<= 0", both, True),
        Figure(f"{behind}batches/s, faults and restarts included", per_s, ">= 10"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="of each fault [%(default)s]")
    parser.add_argument("--faults", default=",".join(FAULTS), help="of: %(default)s")
    parser.add_argument("--sinks", default="1,2", help="how many stores stand behind the two endpoints [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    arguments = parser.parse_args()
    network.enter()
    names = arguments.faults.split(",")
    figures = []
    for sinks in map(int, arguments.sinks.split(",")):
        asked = names if sinks == 1 else [name for name in names if name in OWN_SINK_FAULTS]
        if asked:
            figures += asyncio.run(series(sinks, asked, arguments.trials))
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
