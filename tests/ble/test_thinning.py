"""Which packets are news."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import bthome
from gateway.connectors.ble.advertisement import Decoded
from gateway.connectors.ble.decoders import Thinning


def packet(objects: str) -> Decoded:
    return bthome.decode(bytes.fromhex("40" + objects))


def points(news: Decoded | None) -> list[str] | None:
    return None if news is None else [quantity.point for quantity in news.quantities]


def test_a_numbered_packet_that_is_repeated_is_one_acquisition() -> None:
    thinning = Thinning(0.0)
    assert thinning.news(packet("000902CA09"), 0.0) is not None
    assert [thinning.news(packet("000902CA09"), at / 10) for at in range(1, 100)] == [None] * 99
    assert thinning.news(packet("000A02CA09"), 10.0) is not None


def test_a_device_that_repeats_one_packet_for_long_is_alive() -> None:
    """The packet id only changes with the data: an unchanged value must not expire while the device is heard."""
    thinning = Thinning(1.0)
    assert thinning.news(packet("000902CA09"), 0.0) is not None
    assert thinning.news(packet("000902CA09"), 29.9) is None
    assert thinning.news(packet("000902CA09"), 30.0) is not None


def test_the_same_payload_without_a_number_counts_once_in_min_interval() -> None:
    thinning = Thinning(5.0)
    passed = [at for at in range(21) if thinning.news(packet("02CA09"), float(at)) is not None]
    assert passed == [0, 5, 10, 15, 20]


def test_a_new_measurement_within_min_interval_is_thinned_out() -> None:
    thinning = Thinning(30.0)
    assert thinning.news(packet("02CA09"), 0.0) is not None
    assert thinning.news(packet("02CB09"), 29.0) is None
    assert thinning.news(packet("02CC09"), 30.0) is not None


def test_a_door_that_opens_is_never_thinned_out() -> None:
    thinning = Thinning(30.0)
    assert thinning.news(packet("1A00"), 0.0) is not None
    assert thinning.news(packet("1A01"), 0.1) is not None
    assert thinning.news(packet("1A00"), 0.2) is not None


def test_a_button_press_is_told_once_however_often_its_packet_is_heard() -> None:
    thinning = Thinning(1.0)
    assert points(thinning.news(packet("00013A01"), 0.0)) == ["button"]
    assert [thinning.news(packet("00013A01"), float(at)) for at in range(1, 300)] == [None] * 299
    assert points(thinning.news(packet("00023A01"), 300.1)) == ["button"]
    assert points(thinning.news(packet("00033A01"), 300.2)) == ["button"], "a second press at once is a second press"


def test_what_lasts_in_a_repeated_packet_is_told_again_without_its_event() -> None:
    thinning = Thinning(1.0)
    assert points(thinning.news(packet("01613A01"), 0.0)) == ["battery", "button"]
    assert points(thinning.news(packet("01613A01"), 5.0)) == ["battery"]


def test_kinds_of_packets_sent_in_turn_do_not_starve_each_other() -> None:
    thinning = Thinning(10.0)
    passed = [points(thinning.news(packet("02CA09" if at % 2 else "0C020C"), float(at))) for at in range(40)]
    assert passed.count(["temperature"]) == passed.count(["voltage"]) == 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.booleans(), st.floats(0, 5)), max_size=60), st.floats(0, 20))
def test_no_change_of_a_state_is_ever_lost(steps: list[tuple[int, bool, float]], min_interval_s: float) -> None:
    thinning, now, told, state = Thinning(min_interval_s), 0.0, None, None
    for temperature, door, wait_s in steps:
        now += wait_s
        state = door
        news = thinning.news(packet(f"57{temperature:02x}1A{door:02x}"), now)
        if news is not None:
            told = next(quantity.value for quantity in news.quantities if quantity.point == "door")
        assert told == state
