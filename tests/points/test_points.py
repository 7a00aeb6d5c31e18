"""What a point of the configuration may not say."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.points import Point
from gateway.settings import read


@pytest.mark.parametrize(
    ("keys", "place", "says"),
    [
        ({"scale": 0}, "scale", "every value the same"),
        ({"min": 5, "max": 4}, "min", "larger than max"),
        ({"min_interval": "10s", "max_interval": "5s"}, "min_interval", "longer than max_interval"),
        ({"unit": "degF", "convert": "celcius"}, "convert", "nearest known one is `celsius`"),
        ({"unit": "degF", "convert": "kWh"}, "convert", "it can become Cel, K"),
        ({"convert": "Celcius"}, "convert", "unknown unit"),
    ],
)
def test_a_mistake_is_found_before_the_gateway_runs(keys: dict[str, Any], place: str, says: str) -> None:
    point, mistakes = read(Point, {"name": "p", **keys})
    assert point is None
    assert [m.path for m in mistakes] == [(place,)]
    assert says in mistakes[0].message


def test_a_point_that_converts_what_its_source_names_is_fine() -> None:
    assert read(Point, {"name": "p", "convert": "°C", "unit": ""})[1] == []
    assert read(Point, {"name": "p", "convert": "°C", "unit": "°F", "scale": 0.1})[1] == []
