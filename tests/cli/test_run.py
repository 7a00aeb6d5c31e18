"""The daemon as a person meets it: started, asked, followed, told to stop, started twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.command import BOUND_S, PROGRAM, Running, environment, gateway
from gateway.demo.machines import ModbusTcp, Registers


def configured(folder: Path, port: int = 1, extra: str = "") -> Path:
    """A gateway with one Modbus machine."""
    path = folder / "gateway.toml"
    path.write_text(f"""
[gateway]
name = "here"
state_dir = "{folder / "state"}"
runtime_dir = "{folder / "run"}"
{extra}
[[bus]]
name = "net"
kind = "modbus-tcp"
host = "127.0.0.1"
tcp_port = {port}
[[device]]
name = "inverter"
bus = "net"
interval = "100ms"
points = [
  {{ name = "sequence", address = 0, type = "uint32" }},
  {{ name = "power", address = 2, type = "float32", unit = "W", digits = 1 }},
]
""")
    return path


@asynccontextmanager
async def machine() -> AsyncIterator[ModbusTcp]:
    made = ModbusTcp(Registers("inverter"))
    await made.listen()
    work = asyncio.create_task(made.run())
    yield made
    work.cancel()
    await asyncio.wait([work])


def test_run_status_tail_and_a_drain_that_keeps_everything(folder: Path) -> None:
    async def story() -> None:
        async with machine() as inverter:
            await asyncio.to_thread(person, inverter)

    def person(inverter: ModbusTcp) -> None:
        control = folder / "run" / "control.sock"
        with Running(folder, "run", "-c", configured(folder, inverter.port)) as daemon:
            daemon.says("inverter is online")
            assert "WARNING gateway.cli.run" in daemon.err
            assert "there is no [[uplink.endpoint]] to deliver to" in daemon.err
            with Running(folder, "tail", "inverter", "--socket", control) as tail:
                tail.until(lambda: tail.out.count("\n") >= 4, "it shows readings")
                assert re.match(r"\d\d:\d\d:\d\d\.\d{3} inverter (sequence \d+|power [\d.]+ W)\n", tail.out), tail.out
                deadline = time.monotonic() + 10  # a batch waits once it is closed, after the first readings were seen
                while "nothing waits" in (out := gateway("status", "--socket", control).out):
                    assert time.monotonic() < deadline, out
                code, out, err = gateway("status", "--socket", control)
                assert (code, err) == (0, "")
                assert re.search(r"^here\ngateway \S+, up \S+, [\d,]+ readings, clock ", out)
                assert "Uplink  none: waiting for configuration\n" in out
                assert re.search(r"^Buffer  healthy, .* not acknowledged", out, re.M)
                assert re.search(r"^  running  \S+  net  modbus-tcp(  \d+% busy)?$", out, re.M)
                assert re.search(r"^Devices  1 online\n  online  \S+  inverter  net$", out, re.M)
                whole = json.loads(gateway("status", "--json", "--socket", control).out)
                assert whole["devices"]["inverter"]["state"] == "online"
                assert daemon.end() == (0, "", daemon.err)
                assert tail.wait().code == 69
                assert tail.err == "the gateway ended\n"
        assert "SIGTERM: finishing" in daemon.err
        assert not control.exists()
        with Running(folder, "run", "-c", configured(folder, inverter.port)) as again:
            again.says("inverter is online")
            waiting = json.loads(gateway("status", "--json", "--socket", control).out)["buffer"]["records"]
            assert waiting >= 2, "what the first one read waits for an endpoint"
            assert again.end().code == 0

    asyncio.run(story())


def test_a_second_gateway_on_the_same_directories_refuses_and_names_the_first(folder: Path) -> None:
    config = configured(folder)
    with Running(folder, "run", "-c", config) as first:
        first.says("here: ")
        code, _, err = gateway("run", "-c", config)
        assert code == 1
        refusal = f"another gateway (pid {first.process.pid}) uses {folder / 'state'}; `gateway status` asks it"
        assert err.splitlines()[-1].endswith(f" ERROR   gateway.cli.run: {refusal}")
        other = folder / "other.toml"
        other.write_text(config.read_text().replace(str(folder / "state"), str(folder / "elsewhere")))
        code, _, err = gateway("run", "-c", other)
        assert code == 1
        assert f"uses {folder / 'run'};" in err.splitlines()[-1]
        assert gateway("status", "--config", config).code == 0, "the first goes on"
        assert first.end().code == 0


def test_what_a_killed_gateway_left_behind_is_no_obstacle(folder: Path) -> None:
    config, control = configured(folder), folder / "run" / "control.sock"
    with Running(folder, "run", "-c", config) as first:
        first.says("here: ")
        first.process.kill()
        first.process.wait()
    assert control.exists()
    code, _, err = gateway("status", "--socket", control)
    assert code == 69
    assert err == (
        f"no gateway answers at {control} (Connection refused). Is it running? "
        "Another one is named with --config or --socket.\n"
    )
    with Running(folder, "run", "-c", config) as second:
        second.says("here: ")
        assert gateway("status", "--socket", control).code == 0
        assert second.end().code == 0


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with Running(folder, "run", "-c", configured(folder)) as daemon:
        daemon.says("here: ")
        daemon.process.send_signal(signal.SIGSTOP)  # so that it finds both when it goes on
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        daemon.process.send_signal(signal.SIGCONT)
        assert daemon.wait().code == 130
        assert "again: ending at once" in daemon.err


def test_nobody_answers_where_nobody_is(folder: Path) -> None:
    for command in ("status", "tail"):
        code, out, err = gateway(command, "--socket", folder / "none.sock")
        assert (code, out) == (69, "")
        assert err.startswith(f"no gateway answers at {folder / 'none.sock'} (No such file or directory).")
        assert err.count("\n") == 1


def test_a_daemon_that_hangs_up_or_says_nothing_is_one_line(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(folder / "mute.sock"))
        mute.listen()
        asked = subprocess.Popen(
            [*PROGRAM, "status", "--socket", str(folder / "mute.sock")], stderr=subprocess.PIPE, env=environment()
        )
        caller, _ = mute.accept()
        caller.close()
        _, err = asked.communicate(timeout=30)
    assert asked.returncode == 69
    assert re.fullmatch(rb"the gateway at \S+ (is gone: .*|ended without an answer)\n", err), err


def test_an_unknown_device_is_said_and_waited_for(folder: Path) -> None:
    with Running(folder, "run", "-c", configured(folder)) as daemon:
        daemon.says("here: ")
        with Running(folder, "tail", "invertr", "--socket", folder / "run" / "control.sock") as tail:
            tail.says('no device "invertr" has been heard of yet; did you mean `inverter`?; waiting for it')
            assert tail.end(signal.SIGINT).code == 130


def test_a_configuration_with_mistakes_is_exit_code_78(folder: Path) -> None:
    (folder / "bad.toml").write_text("[gateway]\nlog_lvel = 'debug'\nnmae = 'x'\n")
    code, out, err = gateway("run", "-c", "bad.toml", cwd=folder)
    assert (code, out) == (78, "")
    assert [line.split(":")[:2] for line in err.splitlines()] == [["bad.toml", "2"], ["bad.toml", "3"]]
    long = "/tmp/" + "x" * 100
    (folder / "long.toml").write_text(f"[gateway]\nruntime_dir = '{long}'\n")
    assert "too long for the socket in it" in gateway("run", "-c", folder / "long.toml").err


def test_a_directory_that_cannot_be_used_is_one_line(folder: Path) -> None:
    config = configured(folder)
    config.write_text(config.read_text().replace(str(folder / "state"), "/proc/nowhere"))
    code, _, err = gateway("run", "-c", config)
    assert code == 1
    assert "cannot use /proc/nowhere: No such file or directory. Run it as" in err.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to mount")
def test_a_disk_that_became_read_only_is_no_reason_to_stand_still(folder: Path) -> None:
    config, state = configured(folder), folder / "state"
    state.mkdir()
    mounted = f"mount -t tmpfs none {state} && mount -o remount,ro {state}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    run = " ".join([*PROGRAM, "run", "-c", str(config)])
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{mounted} && exec {run}"], stderr=log, env=environment()
        )
    try:
        control, give_up = folder / "run" / "control.sock", time.monotonic() + BOUND_S
        while not control.exists():
            assert daemon.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        _, out, _ = gateway("status", "--socket", control)
        daemon.terminate()
        assert daemon.wait(BOUND_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert "Buffer  degraded" in out


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to be less than it")
def test_a_user_who_may_not_is_told_so(folder: Path) -> None:
    somebody = 65534

    def limited(*words: object) -> subprocess.CompletedProcess[str]:
        """As root without the right to pass by permissions: a stranger to what belongs to somebody else."""
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *PROGRAM, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=BOUND_S, check=False)

    config, control = configured(folder), folder / "run" / "control.sock"
    (folder / "state").mkdir(mode=0o700)
    os.chown(folder / "state", somebody, somebody)
    done = limited("run", "-c", config)
    assert done.returncode == 1
    assert f"cannot use {folder / 'state'}: permission denied. Run it as the service's user" in done.stderr
    with Running(folder, "run", "-c", config) as daemon:
        daemon.says("here: ")
        os.chown(control, somebody, somebody)
        done = limited("status", "--socket", control)
    assert (done.returncode, done.stderr) == (
        69,
        f"this user may not connect to {control}: try sudo, or join the group of the service\n",
    )
    config.chmod(0o600)
    os.chown(config, somebody, somebody)
    done = limited("check", config)
    assert done.returncode == 78
    assert f"{config}: cannot be read: Permission denied (try sudo)" in done.stderr


def test_in_the_journal_each_line_has_its_priority_and_in_a_terminal_beside_it_none_has(folder: Path) -> None:
    config = configured(folder)
    with (folder / "journal").open("wb") as journal:
        file = os.fstat(journal.fileno())
        stream = {"JOURNAL_STREAM": f"{file.st_dev}:{file.st_ino}"}
        daemon = subprocess.Popen([*PROGRAM, "run", "-c", str(config)], stderr=journal, env=environment(stream))
    try:
        said, give_up = folder / "journal", time.monotonic() + BOUND_S
        while "here: " not in said.read_text():
            assert daemon.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        daemon.terminate()
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert all(re.match(r"<[2-7]>\S", line) for line in said.read_text().splitlines())
    bad = folder / "bad.toml"
    bad.write_text("x = 1\n")
    assert gateway("run", "-c", bad, env={"JOURNAL_STREAM": "1:2"}).err.startswith(str(bad))


def test_without_a_configuration_it_says_in_one_line_where_to_begin(tmp_path: Path) -> None:
    done = gateway("run", "--config", tmp_path / "none" / "config.toml")
    assert (done.code, len(done.err.splitlines())) == (78, 1)
    assert "there is no such file; config.example.toml shows" in done.err
    assert "`gateway demo`" in done.err
