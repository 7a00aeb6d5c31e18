"""The status screen: what a person must see at a glance, on the narrowest terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gateway.cli.status import age, screen
from gateway.cli.tail import text

LONG = "energy-meter-main-distribution-board-3"
PORT = "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"


def status(**changed: Any) -> dict[str, Any]:
    """A gateway that is well."""
    endpoint = {
        "name": "north",
        "state": "active",
        "last_error": None,
        "promise": "exactly once",
        "budget": None,
        "failures": 0,
        "next_attempt_s": None,
        "credentials": None,
    }
    bus = {"kind": "modbus-rtu", "state": "running", "since_s": 7300.0, "restarts": 0, "last_error": "", "bus": {}}
    device = {"bus": "rs485", "state": "online", "why": "", "since_s": 61.0}
    buffer = {"mode": "healthy", "why": "", "records": 0, "oldest_s": 0.0, "disk_bytes": 0, "held_back": 0, "lost": {}}
    return {
        "name": "hall-2",
        "version": "0.1.0",
        "up_s": 7301.0,
        "clock": {"trust": "synced", "error_ms": 3},
        "uplink": {"active": "north", "since_s": 130.0, "rtt_ms": 21.5, "endpoints": [endpoint]},
        "buffer": buffer,
        "buses": {"rs485": bus},
        "devices": {"meter": device},
        "intake": {"readings": 1234567, "rejected": 0},
        **changed,
    }  # fmt: skip


def drawn(document: dict[str, Any], width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False, markup=False)
    console.print(screen(document, width))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_gateway_that_is_well_is_ten_lines() -> None:
    assert drawn(status()) == [
        "hall-2",
        "gateway 0.1.0, up 2h, 1,234,567 readings, clock synced ±3 ms",
        "",
        "Uplink  sending to north for 2m, round trip 21.5 ms",
        "  active  north",
        "",
        "Buffer  healthy, nothing waits, nothing lost",
        "",
        "Buses",
        "  running  2h  rs485  modbus-rtu",
        "",
        "Devices  1 online",
        "  online  61s  meter  rs485",
    ]


def test_what_ends_soon_is_said_while_all_is_well() -> None:
    ending = status()
    warning = "our client certificate ends in 12 days"
    ending["uplink"]["endpoints"][0]["credentials"] = {"days_left": 12.1, "warning": warning}
    assert f"  active  north  {warning}" in drawn(ending)
    ending["uplink"]["endpoints"][0] |= {"last_error": "HTTP 503", "failures": 1}
    assert f"  active  north  {warning}; HTTP 503" in drawn(ending)


def test_trouble_that_is_over_is_not_shown_beside_an_endpoint_that_works() -> None:
    over = status()
    over["uplink"]["endpoints"][0] |= {"last_error": "this gateway has been revoked", "failures": 0}
    assert "  active  north" in drawn(over)


def test_less_than_everything_is_said_of_an_endpoint_that_promises_less_or_is_paid_for() -> None:
    document = status()
    promise, budget = (
        "at most once: some of it",
        {"used_bytes": 18_400_000, "limit_bytes": 20_000_000, "state": "within"},
    )
    document["uplink"]["endpoints"][0] |= {"promise": promise, "budget": budget}
    assert f"  active  north  18.4 of 20 MB used today; {promise}" in drawn(document)
    document["uplink"]["endpoints"][0]["budget"] = {**budget, "state": "alarms and results only"}
    assert "      18.4 of 20 MB used today: alarms and results only; at most once: some of" in drawn(document)


def test_what_is_wrong_says_so_in_its_own_words() -> None:
    broken = status()
    broken["uplink"]["active"] = None
    broken["uplink"]["endpoints"][0] |= {
        "state": "waiting",
        "next_attempt_s": 38.0,
        "last_error": "Connection refused",
        "failures": 3,
    }
    broken["buffer"] |= {
        "mode": "degraded",
        "why": "disk full",
        "records": 7,
        "oldest_s": 300,
        "disk_bytes": 12_300_000,
    }
    broken["buffer"] |= {"lost": {"evicted": 12, "oversize": 0}, "held_back": 2}
    broken["buses"]["rs485"] |= {"state": "waiting", "restarts": 4, "last_error": f"cannot open {PORT}: no such file"}
    broken["devices"]["meter"] |= {"state": "offline", "why": "the bus is gone"}
    broken["intake"]["rejected"] = 1
    lines = drawn(broken)
    for line in (
        "gateway 0.1.0, up 2h, 1,234,567 readings, clock synced ±3 ms, 1 sample rejected",
        "Uplink  no endpoint takes readings, for 2m",
        "  waiting  again in 38s  north  Connection refused",
        "      disk full",
        "      sources wait until what they sent is stored",
        "  waiting  2h  rs485  modbus-rtu  4 restarts",
        "      cannot open",
        f"      {PORT}: no such",
        "Devices  1 offline",
        "  offline  61s  meter  rs485  the bus is gone",
    ):
        assert line in lines, "\n".join(lines)
    buffer = " ".join(lines[lines.index("  waiting  again in 38s  north  Connection refused") :])
    assert "degraded, 7 batches not acknowledged, the oldest for 5m, 12.3 MB on disk, lost: 12 evicted" in buffer


def test_a_polled_bus_says_how_much_of_it_is_taken() -> None:
    document = status()
    document["buses"]["rs485"]["bus"] = {"utilisation": 0.456}
    assert "  running  2h  rs485  modbus-rtu  46% busy" in drawn(document)


def test_devices_in_trouble_stand_above_those_that_are_well() -> None:
    document = status()
    well = document["devices"]["meter"]
    document["devices"] = {"a": well, "b": well | {"state": "failing", "why": "exception 2"}, "c": well}
    lines = drawn(document)
    assert lines[lines.index("Devices  1 failing, 2 online") + 1 :] == [
        "  failing  61s  b  rs485  exception 2",
        "  online   61s  a  rs485",
        "  online   61s  c  rs485",
    ]


@pytest.mark.parametrize("width", [40, 80, 132])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width: int) -> None:
    document = status(name=LONG)
    document["devices"] = {LONG: document["devices"]["meter"] | {"state": "failing", "why": f"{PORT}: {'x ' * 60}"}}
    document["buses"] = {LONG: document["buses"]["rs485"]}
    lines = drawn(document, width)
    assert max(map(len, lines)) <= width
    words = "".join("".join(lines).split())
    assert words.count(LONG) == 3
    assert "failing" in words
    assert f"{PORT}:{'x' * 60}" in words


def test_a_new_gateway_waits_for_configuration() -> None:
    document = status(buses={}, devices={})
    document["uplink"] |= {"active": None, "endpoints": []}
    lines = drawn(document)
    assert "Uplink  none: waiting for configuration" in lines
    assert lines[-1] == "Buses  none: waiting for configuration"


def test_names_of_strangers_cannot_act_on_the_terminal() -> None:
    document = status()
    document["devices"] = {"[red]\x1b[2J": document["devices"]["meter"] | {"state": "failing", "why": "\x1b]0;x\x07"}}
    shown = "\n".join(drawn(document))
    assert "\x1b" not in shown
    assert "[red]?[2J" in shown
    reading = {"device": "d\x1b[2J", "point": "p", "value": "a\rb", "unit": "", "status": "good", "utc_ms": 0}
    assert text(reading).endswith(" d?[2J p a?b")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "never"), (0, "0s"), (0.25, "200ms"), (1, "1s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")],
)
def test_an_age_is_as_coarse_as_a_glance_needs(seconds: float | None, said: str) -> None:
    assert age(seconds) == said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"value": 230.1, "unit": "V"}, "meter u 230.1 V"),
        ({"value": True}, "meter u true"),
        ({"value": "running"}, "meter u running"),
        ({"value": None, "unit": "V", "status": "bad:comm_timeout"}, "meter u - V  bad:comm_timeout"),
    ],
)
def test_a_reading_is_one_line_and_its_quality_is_said_when_it_is_not_good(changed: dict[str, Any], said: str) -> None:
    reading = {"device": "meter", "point": "u", "value": 1, "unit": "", "status": "good", "utc_ms": 1_234}
    assert text(reading | changed)[9:] == f"234 {said}"
