"""The unit on a real systemd: when it starts, when it does not, what restarts it, what it may touch."""

from __future__ import annotations

import json

import pytest

from box.container import GATEWAY, UNIT, Box, Service, numbers, until

pytestmark = [pytest.mark.box, pytest.mark.root, pytest.mark.xdist_group("box"), pytest.mark.timeout(300)]

_EMPTY = "[gateway]\n"
_TYPO = '[gateway]\nname = "cellar"\nlog_levle = "info"\n'
_TOKEN = "/run/credentials/gateway.service/uplink-token"


def test_systemd_finds_nothing_to_say_against_the_unit(box: Box, service: Service) -> None:
    found = box.attempt("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}")
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_the_service_is_exposed_to_little(box: Box, service: Service) -> None:
    verdict = box.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()[-1]
    print(verdict)
    assert numbers(verdict)[0] <= 2.0, verdict


def test_a_mistake_in_the_configuration_ends_it_with_78_and_is_not_tried_again(service: Service) -> None:
    service.configure(_TYPO)
    assert service.box.attempt("systemctl", "restart", UNIT).returncode != 0
    # `failed` and not `activating (auto-restart)`: no restart is pending
    assert [service.show(name) for name in ("ActiveState", "SubState", "ExecMainStatus")] == ["failed", "failed", "78"]
    told = service.journal()
    assert "/etc/gateway/config.toml:3:1" in told
    assert "did you mean `log_level`?" in told
    service.configure(_EMPTY)
    service.restart()
    assert service.show("StatusText").startswith("Waiting for configuration")


def test_it_starts_without_the_token_that_it_is_told_to_use_and_says_so(box: Box, service: Service) -> None:
    box.run("sh", "-c", "cd /etc/gateway/credentials; [ ! -e uplink-token ] || mv uplink-token /root/uplink-token")
    try:
        service.configure(f'[[uplink.endpoint]]\nurl = "ws://127.0.0.1:1/"\ntoken_file = "{_TOKEN}"\n')
        service.restart()
        until(lambda: "does not hold one token" in service.status(), 10, "the missing token is named")
        assert service.show("ActiveState") == "active"
    finally:
        box.run("sh", "-c", "[ ! -e /root/uplink-token ] || mv /root/uplink-token /etc/gateway/credentials/")


def test_a_process_that_stands_still_is_ended_by_the_watchdog_and_says_where_it_stood(service: Service) -> None:
    service.configure(_EMPTY)
    service.drop_in("WatchdogSec=5")
    service.restart()
    assert service.killed("STOP") > 0
    told = service.journal()
    assert "Watchdog timeout" in told
    assert "Fatal Python error: Aborted" in told


def test_it_is_started_again_however_often_it_dies(service: Service) -> None:
    """systemd's default gives up after five starts in ten seconds."""
    service.configure(_EMPTY)
    service.drop_in("RestartSec=50ms")
    service.restart()
    for _ in range(7):
        service.killed()
    assert service.show("ActiveState") == "active"


_PROBE = """
import errno, json, os, pathlib
def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
print(json.dumps({
    "read passwords": refused(os.open, "/etc/shadow", os.O_RDONLY),
    "read root's credentials": refused(os.listdir, "/etc/gateway/credentials"),
    "see homes": refused(os.listdir, "/root"),
    "write configuration": refused(os.open, "/etc/gateway/config.toml", os.O_WRONLY),
    "write programs": refused(pathlib.Path("/opt/gateway/probe").touch),
    "read what is the group's": refused(os.open, "/srv/port", os.O_RDONLY),
    "write state": refused(pathlib.Path("/var/lib/gateway/probe").touch),
    "write beside the ring": refused(pathlib.Path("/run/gateway/probe").touch),
    "groups": sorted(os.getgroups()),
}))
"""


def test_it_reaches_what_it_needs_and_nothing_else(box: Box, service: Service) -> None:
    """A command in the very sandbox of the unit. What a container cannot show (devices, the clock): tests/vm."""
    box.write("/srv/port", "", mode="0640", group="dialout")
    box.write("/srv/probe.py", _PROBE)
    box.run("cp", f"/etc/systemd/system/{UNIT}", "/run/systemd/system/probe.service")
    box.write(
        "/run/systemd/system/probe.service.d/probe.conf",
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\n"
        "ExecStart=/opt/gateway/current/bin/python /srv/probe.py\n",
    )
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "probe")
    said = json.loads(next(line for line in box.journal("probe").splitlines() if line.startswith("{")))
    groups = sorted(int(box.run("getent", "group", name).split(":")[2]) for name in ("gateway", "dialout", "bluetooth"))
    assert said == {
        "read passwords": "EACCES",
        "read root's credentials": "EACCES",
        "see homes": "EACCES",
        "write configuration": "EACCES",
        "write programs": "EROFS",
        "read what is the group's": "allowed",
        "write state": "allowed",
        "write beside the ring": "allowed",
        "groups": groups,
    }


def test_status_can_be_asked_by_the_group_and_by_nobody_else(box: Box, service: Service) -> None:
    service.configure(_EMPTY)
    service.restart()
    ask = (GATEWAY, "status", "--json")
    assert box.attempt("setpriv", "--reuid=nobody", "--regid=gateway", "--clear-groups", *ask).returncode == 0
    assert box.attempt("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *ask).returncode == 69
