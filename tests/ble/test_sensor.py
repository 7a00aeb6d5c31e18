"""What the board of devices is told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import bthome, ruuvi
from gateway.connectors.ble.advertisement import Advertisement
from gateway.connectors.ble.sensor import Sensor
from gateway.model import DeviceState, Status

from .conftest import device

ADDRESS = "A4:C1:38:8D:18:B2"


def heard(payload: str) -> Advertisement:
    return Advertisement(ADDRESS, "", -60, {bthome.UUID: bytes.fromhex(payload)}, {})


def test_formats_sent_in_turn_of_which_one_can_be_read_do_not_flap() -> None:
    said: list[DeviceState] = []
    sensor = Sensor(device("a", ADDRESS), lambda _, state, __: said.append(state), 0.0)
    samples = []
    for at in range(0, 100, 2):
        samples.append(sensor.take(heard("4002C409"), float(at), at))
        samples.append(sensor.take(heard("2001"), at + 0.5, at))
        samples.append(sensor.take(heard("41A47266C95F730011223378237214"), at + 1.0, at))
    assert set(said) == {DeviceState.ONLINE}
    assert all(sample is None or sample.values == (25.0,) for sample in samples)
    sensor.take(heard("2001"), 200.0, 200)
    assert said[-1] is DeviceState.FAILING


def test_a_key_error_without_configured_points_still_shows() -> None:
    sensor = Sensor(device("a", ADDRESS), lambda *_: None, 0.0)
    sample = sensor.take(heard("41A47266C95F730011223378237214"), 1.0, 1)
    assert sample is not None
    assert (sample.points, sample.values, sample.status) == (("payload",), (None,), (Status.KEY_ERROR,))


def test_a_decoder_that_is_named_looks_at_nothing_else() -> None:
    both = heard("4002C409")._replace(
        manufacturer_data={
            ruuvi.COMPANY: bytes.fromhex("0512FC5394C37C0004FFFC040CAC364200CDCBB8334C884F"),
        }
    )
    for name, point, value in (("bthome", "temperature", 25.0), ("ruuvi", "temperature", 24.3)):
        sample = Sensor(device("a", ADDRESS, decoder=name), lambda *_: None, 0.0).take(both, 1.0, 1)
        assert sample is not None
        assert sample.values[sample.points.index(point)] == value


def test_a_sensor_that_was_never_heard_is_offline_after_its_time() -> None:
    said: list[tuple[str, DeviceState, str]] = []
    sensor = Sensor(
        device("a", ADDRESS, expire_after="10m", points=[{"name": "temperature"}]), lambda *s: said.append(s), 0.0
    )
    assert sensor.expires_at() == 600.0
    assert sensor.expire(599.9, 1) is None
    sample = sensor.expire(600.0, 2)
    assert sample is not None
    assert (sample.points, sample.status) == (("temperature",), (Status.STALE,))
    assert sensor.expire(9999.0, 3) is None
    assert said == [("a", DeviceState.OFFLINE, "nothing heard for 10m")]


def test_of_a_device_that_is_connected_to_only_the_session_speaks() -> None:
    said: list[DeviceState] = []
    points = [{"name": "temperature"}, {"name": "battery", "characteristic": "2a19"}]
    both = device("a", ADDRESS, connect={"mode": "notify"}, points=points)
    sample = Sensor(both, lambda _, state, __: said.append(state), 0.0).take(heard("4002C409"), 1.0, 1)
    assert sample is not None
    assert sample.points == ("temperature",)
    assert said == []


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from([bthome.UUID, "x"]), st.binary(max_size=30)),
            st.dictionaries(st.sampled_from([ruuvi.COMPANY, 0x4C]), st.binary(max_size=26)),
        ),
        max_size=10,
    )
)
def test_whatever_is_on_the_air_no_sample_has_a_value_without_good_status(
    air: list[tuple[dict[str, bytes], dict[int, bytes]]],
) -> None:
    sensor = Sensor(device("a", ADDRESS, min_interval="0s"), lambda *_: None, 0.0)
    for at, (service_data, manufacturer_data) in enumerate(air):
        sample = sensor.take(Advertisement(ADDRESS, "", -60, service_data, manufacturer_data), float(at), at)
        if sample is not None:
            status = sample.status or (Status.GOOD,) * len(sample.points)
            assert len(sample.points) == len(sample.values) == len(status) == len(sample.units or sample.points) > 0
            assert all(
                (value is None) == (each is not Status.GOOD) for value, each in zip(sample.values, status, strict=True)
            )
