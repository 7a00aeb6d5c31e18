"""Walking through the models of a SunSpec device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.modbus.sunspec import Found, Model, walk
from gateway.connectors.modbus.sweep import Bite


def walked(held: dict[int, int]) -> tuple[Found | None, list[Bite]]:
    """Against a device that refuses what it does not have."""
    steps, asked = walk(), []
    said: list[int] | None = None
    try:
        bite = next(steps)
        while True:
            asked.append(bite)
            assert len(asked) < 1000, "it never ends"
            assert 0 <= bite.address <= bite.address + bite.quantity <= 65536
            places = range(bite.address, bite.address + bite.quantity)
            said = [held[each] for each in places] if all(each in held for each in places) else None
            bite = steps.send(said)
    except StopIteration as end:
        return end.value, asked


def text(words: str, registers: int) -> list[int]:
    data = words.encode().ljust(2 * registers, b"\0")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


def inverter(base: int, end: int = 0xFFFF) -> dict[int, int]:
    common = [*text("Solar AG", 16), *text("X 8000", 16), *text("", 8), *text("1.2.3", 8), *text("SN-77", 16), 1, 0]
    words = [0x5375, 0x6E53, 1, 66, *common, 103, 50, *range(50), end, 0]
    return dict(enumerate(words, base))


def test_the_models_are_found_wherever_the_mark_stands() -> None:
    for base in (40000, 50000, 0):
        found, _ = walked(inverter(base))
        assert found == Found(
            base, (Model(1, base + 4, 66), Model(103, base + 72, 50)), ("Solar AG", "X 8000", "1.2.3", "SN-77")
        )
        assert found.models[1].name == "inverter, three phases"


def test_a_device_without_the_mark_is_asked_three_times() -> None:
    found, asked = walked({40000: 1, 40001: 2})
    assert found is None
    assert asked == [Bite(40000, 2), Bite(50000, 2), Bite(0, 2)]


def test_a_list_that_has_no_end_ends_where_the_device_refuses() -> None:
    found, _ = walked({at: word for at, word in inverter(40000).items() if at < 40122})
    assert found is not None
    assert [model.id for model in found.models] == [1, 103]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=60))
def test_a_walk_ends_whatever_the_device_says(noise: list[int]) -> None:
    held = {40000 + at: noise[at % len(noise)] for at in range(25_000)}
    held |= {40000: 0x5375, 40001: 0x6E53}
    found, _ = walked(held)
    assert found is not None
