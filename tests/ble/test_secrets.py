"""Keys: from their files, against recordings, and behind changing addresses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.ble import bthome
from gateway.connectors.ble.cipher import BindKey, ResolvingKey, read_secret
from gateway.connectors.ble.identity import Identities
from gateway.connectors.ble.replay import RESTART_S, Replays
from gateway.errors import DeviceError
from gateway.model import DeviceState

from .conftest import GATT, POINTS, TEMPERATURE, Start, device

IRK = bytes.fromhex("ec0234a357c8ad05341010a60a397d9b")
RESOLVABLE = "70:81:94:0D:FB:AA"
"""Key and address of the sample data of the Core Specification, Vol 3, Part H, D.7: prand 0x708194, hash 0x0dfbaa."""
IDENTITY = "A4:C1:38:8D:18:B2"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text", ["231d39c1d7cc1ab1aee224cd096db932", "231D39C1 D7CC1AB1 AEE224CD 096DB932\n", "23:1d:39:c1:" * 4]
)
def test_a_key_is_32_digits_however_they_are_set_apart(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    assert len(read_secret(tmp_path / "key")) == 16


@pytest.mark.parametrize("text", ["", "231d39", "g" * 32, "00" * 17, "\xe9" * 32])
def test_anything_else_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text, "latin-1")
    with pytest.raises(DeviceError) as caught:
        read_secret(tmp_path / "key")
    assert not text or text not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nowhere"):
        read_secret(tmp_path / "nowhere")


def test_too_few_bytes_do_not_open() -> None:
    assert BindKey(bytes(16)).open(bytes(13), b"abc") is None


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cryptography.hazmat.primitives.ciphers", "cryptography.hazmat.primitives.ciphers.aead"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind in (BindKey, ResolvingKey):
        with pytest.raises(DeviceError, match="ble-keys"):
            kind(bytes(16))


# ── recordings ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lower_count_is_a_recording_and_the_same_an_echo() -> None:
    replays = Replays()
    assert [replays.fresh(count, 0.0) for count in (5, 6, 6, 5, 4, 7, 6)] == [
        True, True, True, False, False, True, False,
    ]  # fmt: skip


def test_a_device_that_counts_anew_is_believed_after_a_while_and_one_recording_is_not() -> None:
    replays = Replays()
    assert replays.fresh(1000, 0.0)
    assert not replays.fresh(3, RESTART_S + 1)
    assert not replays.fresh(3, RESTART_S + 2), "one packet played again and again"
    assert not replays.fresh(4, RESTART_S + 3)
    assert replays.fresh(5, RESTART_S + 4)
    assert replays.fresh(6, RESTART_S + 5)
    assert not replays.fresh(4, RESTART_S + 6)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 30)), max_size=60))
def test_as_long_as_the_device_speaks_nothing_older_passes(packets: list[tuple[int, float]]) -> None:
    replays, now, newest = Replays(), 0.0, -1
    for count, wait_s in packets:
        now = min(now + wait_s, RESTART_S - 1)
        passed = replays.fresh(count, now)
        assert passed == (count >= newest)
        newest = max(newest, count)


# ── changing addresses ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sample_of_the_core_specification_is_resolved() -> None:
    key = ResolvingKey(IRK)
    assert key.made(bytes.fromhex(RESOLVABLE.replace(":", "")))
    assert not key.made(bytes.fromhex("7081940DFBAB"))
    assert not ResolvingKey(bytes(16)).made(bytes.fromhex(RESOLVABLE.replace(":", "")))


def test_each_address_is_tried_once_and_few_are_remembered() -> None:
    tried = []

    class Counting:
        def made(self, address: bytes) -> bool:
            tried.append(address)
            return False

    identities = Identities({IDENTITY: Counting()})
    for _ in range(3):
        for number in range(500):
            address = f"40:00:00:00:{number >> 8:02X}:{number & 255:02X}"
            assert identities.of(address) == address
    assert len(tried) == 500
    assert identities.of("C0:00:00:00:00:01") == "C0:00:00:00:00:01", "a static address is nobody's disguise"
    assert len(tried) == 500
    for number in range(5000):
        identities.of(f"41:00:00:00:{number >> 8:02X}:{number & 255:02X}")
    assert len(identities._known) <= 1024


def test_a_device_whose_address_changes_is_heard_and_connected_to(start: Start, folder: Path) -> None:
    (folder / "irk").write_text(IRK.hex())

    async def main() -> None:
        points = [*POINTS, {"name": "humidity"}]
        tag = device("tag", IDENTITY, irk_file=str(folder / "irk"), connect={"mode": "notify"}, points=points)
        async with start([tag]) as rig:
            rig.bluez.give_gatt(RESOLVABLE, GATT)
            await rig.until(lambda: rig.bluez.scanning)
            data = {bthome.UUID: bytes.fromhex("4003BF13")}
            await rig.bluez.advertise("70:81:94:0D:FB:AB", service_data=data, address_type="random")
            await rig.bluez.advertise(RESOLVABLE, service_data=data, address_type="random")
            await rig.until(lambda: rig.values("tag", "humidity") == [50.55])
            await rig.until(lambda: rig.values("tag", "led") == [0])
            assert rig.bluez.notifying(RESOLVABLE, TEMPERATURE)
            assert rig.connector.status()["foreign"] == 1

    asyncio.run(main())


def test_a_key_file_that_is_missing_is_told_of_its_device(start: Start, folder: Path) -> None:
    async def main() -> None:
        async with start([device("tag", IDENTITY, irk_file=str(folder / "nowhere"))]) as rig:
            await rig.until(lambda: rig.bluez.scanning)
            assert rig.reports[0][:2] == ("tag", DeviceState.FAILING)
            assert "nowhere" in rig.reports[0][2]

    asyncio.run(main())
