"""What a process remembers of sinks is bounded: a server that calls itself something new each time fills nothing."""

from __future__ import annotations

from gateway.protocol.manifest import MAX_SINKS, Manifest

STREAM = "1" * 32


def test_more_sinks_than_there_can_be_are_forgotten_oldest_first() -> None:
    manifest = Manifest()
    for number in range(10 * MAX_SINKS):
        manifest.acked(f"sink-{number}", STREAM, number)
        assert manifest.mark(f"sink-{number}", STREAM) == number
        assert len(manifest.marks()) <= MAX_SINKS
    assert manifest.mark("sink-0", STREAM) is None


def test_streams_that_nothing_is_held_of_are_forgotten() -> None:
    manifest = Manifest()
    for number in range(1000):
        stream = f"{number:032x}"
        manifest.acked("sink", stream, 1)
        manifest.distrust(stream)
        manifest.keep({stream})
        assert len(manifest.marks()) == 1
    assert manifest.trusted(f"{0:032x}")
    assert not manifest.trusted(f"{999:032x}")
