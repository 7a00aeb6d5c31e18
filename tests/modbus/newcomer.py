"""What a newcomer does with a device without a manual, timed: scan, read, compare.

`python -m modbus.newcomer [DEVICES]` in `tests`.

Each device comes from a seed that is told to nobody before the end. The commands are those of the README, with what one
of them prints given to the next; of the device only its host and port are known.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import msgspec

PROGRAM = (sys.executable, "-m", "gateway")


def attempt(folder: Path) -> tuple[float, int, int, int, bool]:
    """Seconds, points of the device, points found, of these right, byte order right (or none needed)."""
    truth = folder / "truth.json"
    words = [sys.executable, "-m", "modbus.shuffled", "any", str(truth)]
    device = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert device.stdout is not None
        host = f"127.0.0.1:{device.stdout.readline().strip()}"
        began = time.monotonic()
        scan = subprocess.run([*PROGRAM, "scan", "modbus", host], capture_output=True, text=True, check=True)
        hint = re.search(r"gateway (read modbus .*)", scan.stderr)
        assert hint is not None, scan.stderr
        # five thousand addresses: where the maps of most devices lie
        read = [*PROGRAM, *hint[1].split(), "--count", "5000", "--looks", "5"]
        found = subprocess.run(read, capture_output=True, text=True, check=True)
        took_s = time.monotonic() - began
    finally:
        device.kill()
        device.communicate()
    told = msgspec.json.decode(truth.read_bytes())["points"]
    real = {(point["address"], point["type"].removeprefix("u")) for point in told}
    (pasted,) = tomllib.loads(found.stdout)["device"]
    mine = {(point["address"], point["type"].removeprefix("u")) for point in pasted["points"]}
    wide = any(not point["type"].endswith("16") for point in told)
    order = not wide or pasted.get("byte_order", "ABCD") == told[0]["order"]
    return took_s, len(real), len(mine), len(real & mine), order


if __name__ == "__main__":
    total = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        with tempfile.TemporaryDirectory() as name:
            total.append(attempt(Path(name)))
            took_s, real, mine, right, order = total[-1]
            print(f"{took_s:5.1f} s: {right} of {real} points, {mine - right} wrong, order {order}", flush=True)
    seconds = sorted(each[0] for each in total)
    points, marks, right, orders = (sum(each[column] for each in total) for column in range(1, 5))
    print(
        f"{len(total)} devices: median {seconds[len(seconds) // 2]:.0f} s, longest {seconds[-1]:.0f} s; "
        f"{right} of {points} points found, {marks - right} of {marks} marks wrong, byte order {orders} of {len(total)}"
    )
