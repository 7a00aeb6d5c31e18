"""What the normaliser costs: `python tests/benchmarks/normaliser.py`. Processor time of one core, best of five."""

from __future__ import annotations

import time

from gateway.model import ClockState, Sample, Trust
from gateway.normalise.normaliser import Normaliser
from gateway.points import Point

CLOCK = ClockState("0" * 32, 1_750_000_000_000, 1, Trust.SYNCED)
SAMPLES = 20_000


def cost_us(points: list[Point], values: tuple[float | int | None, ...], **said: object) -> float:
    """Microseconds per sample, each a second after the one before."""
    names = tuple(point.name for point in points)
    best = float("inf")
    for _ in range(5):
        normaliser = Normaliser({"device": points})
        samples = [Sample("device", names, values, at_ns=i * 10**9, **said) for i in range(SAMPLES)]  # type: ignore[arg-type]
        start = time.process_time()
        for sample in samples:
            normaliser.rows(sample, CLOCK)
        best = min(best, (time.process_time() - start) / SAMPLES * 1e6)
    return best


def main() -> None:
    print(f"{'':36}{'2 points':>12}{'10 points':>12}   microseconds per sample")
    kinds = {
        "good floats, nothing asked": (lambda i: Point(name=f"p{i}"), 21.5),
        "good floats, expire_after": (lambda i: Point(name=f"p{i}", expire_after=60), 21.5),
        "integers, scale 0.1": (lambda i: Point(name=f"p{i}", scale=0.1), 215),
        "scale, limits, digits": (lambda i: Point(name=f"p{i}", scale=0.1, min=0, max=99, digits=1), 215),
        "within the deadband": (lambda i: Point(name=f"p{i}", deadband=0.5), 21.5),
        "bad, repeated": (lambda i: Point(name=f"p{i}"), None),
    }
    for what, (make, value) in kinds.items():
        costs = [cost_us([make(i) for i in range(width)], (value,) * width) for width in (2, 10)]
        print(f"{what:36}{costs[0]:12.2f}{costs[1]:12.2f}")


if __name__ == "__main__":
    main()
