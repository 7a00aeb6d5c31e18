"""The install script on a clean Debian 12 without a network: first time, again, and when something is wrong."""

from __future__ import annotations

import pytest

from box.conftest import Installation
from box.container import CONFIG, GATEWAY, Box, Service

pytestmark = [pytest.mark.box, pytest.mark.root, pytest.mark.xdist_group("box"), pytest.mark.timeout(300)]

_GOOD = '[gateway]\nname = "cellar"\n'
_BAD = '[gateway]\nnmae = "cellar"\n'


def _versions(box: Box) -> list[str]:
    return box.run("sh", "-c", "ls -d /opt/gateway/version.*").split()


def test_a_clean_machine_gets_a_service_that_runs_and_waits_for_configuration(installation: Installation) -> None:
    assert installation.active == "active"
    assert installation.sentence == "Waiting for configuration: a bus and an endpoint"
    assert "running: Waiting for configuration" in installation.output
    assert "gateway check" in installation.output


def test_secrets_and_configuration_are_for_root_and_the_gateway_only(box: Box, installation: Installation) -> None:
    shown = box.run("stat", "-c", "%A %U %G", "/etc/gateway", "/etc/gateway/credentials", CONFIG, "/var/lib/gateway")
    assert shown.splitlines() == [
        "drwxr-x--- root gateway",
        "drwx------ root root",
        "-rw-r----- root gateway",
        "drwxr-x--- gateway gateway",
    ]
    assert set(box.run("id", "-Gn", "gateway").split()) == {"gateway", "dialout", "bluetooth"}
    assert box.run("systemctl", "is-enabled", "gateway") == "enabled"


def test_a_second_run_is_an_upgrade_that_keeps_what_a_person_wrote(box: Box, service: Service) -> None:
    service.configure(_GOOD)
    box.write("/etc/gateway/credentials/uplink-key", "secret\n", mode="0600")
    service.restart()
    before, pid = _versions(box), service.pid
    done = box.attempt(*Installation.script(), timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    after = _versions(box)
    assert len(after) == 1
    assert after != before
    assert box.run("readlink", "-f", "/opt/gateway/current") == after[0]
    assert service.pid not in (0, pid)
    assert after[0] in box.run("cat", f"/proc/{service.pid}/cmdline")
    assert box.run("cat", CONFIG) == _GOOD.strip()
    assert box.run("cat", "/etc/gateway/credentials/uplink-key") == "secret"
    assert '"name": "cellar"' in service.status()


def test_an_upgrade_that_does_not_take_the_configuration_leaves_the_old_version_running(
    box: Box, service: Service
) -> None:
    service.configure(_GOOD)
    service.restart()
    before, pid = _versions(box), service.pid
    service.configure(_BAD)
    done = box.attempt(*Installation.script(), timeout_s=240)
    assert done.returncode == 1
    assert "did you mean `name`" in done.stderr
    assert "the old one goes on running" in done.stderr
    assert (_versions(box), service.pid) == (before, pid)


def test_an_upgrade_that_does_not_start_goes_back_to_the_version_that_did(box: Box, service: Service) -> None:
    service.configure(_GOOD)
    service.restart()
    before = _versions(box)
    box.run("touch", f"{before[0]}/starts")
    service.drop_in("ExecStartPre=/usr/bin/test -e /opt/gateway/current/starts")
    done = box.attempt(*Installation.script(), timeout_s=240)
    assert done.returncode == 1
    assert "back to the old one" in done.stderr
    assert _versions(box) == before
    assert box.run("readlink", "-f", "/opt/gateway/current") == before[0]
    assert service.show("ActiveState") == "active"


def test_wheels_that_are_not_there_are_said_before_anything_is_touched(box: Box, service: Service) -> None:
    done = box.attempt(*Installation.script("/srv"))
    assert done.returncode == 1
    assert "no gateway-*.whl in /srv" in done.stderr


def test_a_missing_python3_venv_that_cannot_be_had_is_said_in_one_line(box: Box, service: Service) -> None:
    versions = _versions(box)
    box.run("mv", "/usr/lib/python3.11/ensurepip", "/srv/ensurepip")
    try:
        done = box.attempt(*Installation.script())
    finally:
        box.run("mv", "/srv/ensurepip", "/usr/lib/python3.11/ensurepip")
    assert done.returncode == 1
    assert "python3-venv is missing and could not be installed" in done.stderr
    assert _versions(box) == versions


def test_the_command_is_on_the_path(box: Box, installation: Installation) -> None:
    assert box.run("gateway", "--version") == box.run(GATEWAY, "--version")
