"""Sensors in the air, through a real bluetoothd and the installed service, to the cloud side: all in one machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from vm.conftest import Machine, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800), pytest.mark.xdist_group("vm")]

_CONFIG = """
[[uplink.endpoint]]
url = "ws://127.0.0.1:8765/"
token_file = "/run/credentials/gateway.service/uplink-token"

[[bus]]
name = "air"
kind = "ble"

[[device]]
name = "fridge"
bus = "air"
address = "C0:B7:00:00:00:01"
decoder = "bthome"
min_interval = "0s"

[[device]]
name = "cellar"
bus = "air"
address = "C0:B7:00:00:00:02"
decoder = "bthome"
min_interval = "0s"

[[device]]
name = "probe"
bus = "air"
address = "C0:6A:77:00:00:01"
connect = { mode = "notify" }
points = [{ name = "temperature", characteristic = "2a6e", unit = "Cel" }]
"""
_SENSOR = "/opt/bumble/bin/python /opt/ble_sensor.py"


@pytest.fixture(scope="module")
def air(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A virtual controller with three sensors, BlueZ, the cloud side, and the service reading them."""
    machine.run("systemctl start bluetooth")
    machine.run(
        "systemd-run -q --unit=ble-sensor --service-type=notify -p TimeoutStartSec=180 " + _SENSOR + " serve --bthome 2"
    )
    machine.run("gateway ingest --data /srv/cloud add vm --token-file /etc/gateway/credentials/uplink-token")
    machine.run("systemd-run -q --unit=cloud --service-type=exec /usr/local/bin/gateway ingest --data /srv/cloud")
    machine.configure(tmp_path_factory.mktemp("vm"), _CONFIG)
    machine.run("systemctl restart gateway")
    yield machine
    print(machine.journal())


def _latest(machine: Machine) -> dict[str, str]:
    """`device/point` → value with unit, as the cloud side has it."""
    lines = re.findall(r"^vm  (\S+)  (.+?)  good  ", machine.run("gateway ingest --data /srv/cloud show"), re.MULTILINE)
    return dict(lines)


def _set(machine: Machine, device: str, temperature: float) -> None:
    machine.run(f"""{_SENSOR} ctl '{{"cmd": "set", "dev": "{device}", "temperature": {temperature}}}'""")


def test_sensors_that_advertise_and_one_that_is_connected_arrive_at_the_cloud_side(air: Machine) -> None:
    wanted = {"fridge/temperature": "21.0 Cel", "cellar/temperature": "22.0 Cel", "probe/temperature": "21.5 Cel"}
    until(lambda: wanted.items() <= _latest(air).items(), 180, "the first values arrive")
    _set(air, "b1", 4.25)
    _set(air, "gatt", 30.5)
    wanted = {"fridge/temperature": "4.25 Cel", "probe/temperature": "30.5 Cel"}
    until(lambda: wanted.items() <= _latest(air).items(), 180, "changed values arrive")


def test_readings_go_on_after_bluetoothd_was_restarted(air: Machine) -> None:
    air.run("systemctl restart bluetooth")
    _set(air, "b1", 5.5)
    _set(air, "gatt", 31.5)
    wanted = {"fridge/temperature": "5.5 Cel", "probe/temperature": "31.5 Cel"}
    until(lambda: wanted.items() <= _latest(air).items(), 240, "values after the restart arrive")
    assert air.run("systemctl show --property NRestarts --value gateway") == "0"


def test_a_connection_that_breaks_is_made_again(air: Machine) -> None:
    air.run(f"""{_SENSOR} ctl '{{"cmd": "drop"}}'""")
    _set(air, "gatt", 12.25)
    until(lambda: _latest(air).get("probe/temperature") == "12.25 Cel", 240, "the sensor is connected to again")
    assert "the connection was lost" in air.journal()
