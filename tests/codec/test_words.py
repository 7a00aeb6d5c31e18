"""Type words and byte orders, against struct and against what devices are known to send."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.codec.words import Family, Order, Word, parse, parse_order
from gateway.errors import DecodeError

settings.register_profile("words", deadline=None)
settings.load_profile("words")

ORDERS = ["ABCD", "CDAB", "BADC", "DCBA"]


@pytest.mark.parametrize(
    ("order", "wire"),
    [
        ("AB", "0102"),
        ("BA", "0201"),
        ("big", "0102"),
        ("little", "0201"),
        ("word", "0102"),
        ("CDAB", "0102"),
        ("BADC", "0201"),
        ("DCBA", "0201"),
    ],
)
def test_sixteen_bits_in_every_order(order: str, wire: str) -> None:
    assert parse("uint16", order).decode(bytes.fromhex(wire)) == 0x0102
    assert parse("uint16", order).encode(0x0102).hex() == wire


@pytest.mark.parametrize(
    ("order", "wire"),
    [
        ("ABCD", "01020304"),
        ("CDAB", "03040102"),
        ("BADC", "02010403"),
        ("DCBA", "04030201"),
        ("none", "01020304"),
        ("word", "03040102"),
        ("byte", "02010403"),
        ("word_byte", "04030201"),
        ("little", "04030201"),
        ("cdab", "03040102"),
        ("ABCDEFGH", "01020304"),
        ("GHEFCDAB", "03040102"),
    ],
)
def test_thirty_two_bits_in_every_order(order: str, wire: str) -> None:
    assert parse("uint32", order).decode(bytes.fromhex(wire)) == 0x01020304
    assert parse("uint32", order).encode(0x01020304).hex() == wire


@pytest.mark.parametrize(
    ("order", "wire"),
    [
        ("ABCDEFGH", "0102030405060708"),
        ("GHEFCDAB", "0708050603040102"),
        ("BADCFEHG", "0201040306050807"),
        ("HGFEDCBA", "0807060504030201"),
        ("CDAB", "0708050603040102"),
        ("DCBA", "0807060504030201"),
    ],
)
def test_sixty_four_bits_in_every_order(order: str, wire: str) -> None:
    assert parse("uint64", order).decode(bytes.fromhex(wire)) == 0x0102030405060708
    assert parse("uint64", order).encode(0x0102030405060708).hex() == wire


@given(st.integers(1, 8), st.booleans(), st.sampled_from(Order), st.data())
def test_every_integer_comes_back_exactly(size: int, signed: bool, order: Order, data: st.DataObject) -> None:
    low = -(1 << 8 * size - 1) if signed else 0
    value = data.draw(st.integers(low, low + (1 << 8 * size) - 1))
    word = parse(f"{'int' if signed else 'uint'}{8 * size}", order.value)
    assert len(word.encode(value)) == size
    assert word.decode(word.encode(value)) == value
    assert type(word.decode(word.encode(value))) is int


@given(st.integers(1, 8), st.sampled_from(Order), st.data())
def test_every_bcd_number_comes_back_and_reads_as_its_digits(size: int, order: Order, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, 10 ** (2 * size) - 1))
    word = parse(f"bcd{8 * size}", order.value)
    assert word.decode(word.encode(value)) == value
    assert parse(f"bcd{8 * size}").encode(value).hex() == f"{value:0{2 * size}}"


def test_what_is_no_decimal_digit_is_no_value() -> None:
    assert parse("BCD16").decode(b"\x12\x34") == 1234
    assert parse("bcd32", "CDAB").decode(b"\x56\x78\x12\x34") == 12345678
    assert parse("bcd16").decode(b"\xff\xff") is None
    assert parse("bcd16").decode(b"\x0a\x00") is None
    for wrong in (-1, 10_000):
        with pytest.raises(ValueError, match="does not fit into bcd16: 0 … 9999"):
            parse("bcd16").encode(wrong)


@pytest.mark.parametrize(
    ("words", "wire", "value"),
    [
        ({"name": "bits", "bit": 4, "bits": 3}, "0050", 5),
        ({"name": "bits", "bit": 4, "bits": 3}, "ff8f", 0),
        ({"name": "bits", "bit": 0, "bits": 16}, "ffff", 65535),
        ({"name": "bits", "bit": 8, "bits": 2, "byte_order": "BA"}, "0003", 3),
        ({"name": "uint16", "mask": 0xFF00}, "12ab", 0x12),
        ({"name": "uint16", "mask": 0xFF00, "shift": 0}, "12ab", 0x1200),
        ({"name": "uint32", "mask": 0xFFFFFF, "byte_order": "CDAB"}, "3456ff12", 0x123456),
        ({"name": "int16", "mask": 0x0FF0}, "0ff0", -1),
        ({"name": "int16", "mask": 0x0FF0}, "f7f0", 127),
        ({"name": "int32", "mask": 0xFFFF0000}, "80000001", -32768),
    ],
)
def test_some_bits_of_an_integer_are_a_number_of_their_own(words: dict[str, Any], wire: str, value: int) -> None:
    word = parse(**words)
    assert word.decode(bytes.fromhex(wire)) == value
    with pytest.raises(ValueError, match="neighbours"):
        word.encode(value)


@given(st.integers(1, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.booleans())
def test_a_masked_value_lies_in_its_span(mask: int, register: int, signed: bool) -> None:
    word = parse("int32" if signed else "uint32", mask=mask)
    value = word.decode(register.to_bytes(4, "big"))
    assert isinstance(value, int)
    assert word.low <= value < word.low + word.span
    assert (value << word.shift) & mask == register & mask


@given(st.integers(1, 8), st.booleans(), st.sampled_from([-1, 1]))
def test_one_beyond_the_range_is_refused(size: int, signed: bool, side: int) -> None:
    low = -(1 << 8 * size - 1) if signed else 0
    value = low - 1 if side < 0 else low + (1 << 8 * size)
    with pytest.raises(ValueError, match="does not fit"):
        parse(f"{'int' if signed else 'uint'}{8 * size}").encode(value)


@given(st.sampled_from([("float16", "e", 16), ("float32", "f", 32), ("float64", "d", 64)]), st.data())
def test_a_float_decodes_to_its_shortest_decimal(kind: tuple[str, str, int], data: st.DataObject) -> None:
    name, code, width = kind
    number = data.draw(st.floats(width=width, allow_nan=False, allow_infinity=False))  # type: ignore[call-overload]
    wire = struct.pack(f">{code}", number)
    value = parse(name).decode(wire)
    assert isinstance(value, float)
    assert struct.pack(f">{code}", value) == wire
    if width < 64:  # Python's own floats are shortest already
        digits = len(repr(value).split("e")[0].replace(".", "").strip("-0"))
        for fewer in range(1, digits - (".0" in repr(value))):
            with contextlib.suppress(OverflowError):
                shorter = float(f"{number:.{fewer}g}")
                assert shorter == value or struct.pack(f">{code}", shorter) != wire


@given(st.decimals(-999999, 999999, places=2, allow_nan=False))
def test_what_a_person_typed_into_a_float32_is_what_is_read(number: object) -> None:
    typed = float(f"{float(str(number)):.6g}")
    assert parse("float32").decode(struct.pack(">f", typed)) == typed


def test_twenty_one_point_one_is_twenty_one_point_one() -> None:
    assert repr(parse("float32").decode(struct.pack(">f", 21.1))) == "21.1"
    assert repr(parse("float32").decode(struct.pack(">f", 230.4))) == "230.4"
    assert parse("float32").decode(bytes.fromhex("7f7fffff")) == 3.4028235e38


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_nan_and_infinity_are_no_value(name: str) -> None:
    code = {"float16": "e", "float32": "f", "float64": "d"}[name]
    for number in (math.nan, math.inf, -math.inf):
        assert parse(name).decode(struct.pack(f">{code}", number)) is None
        with pytest.raises(ValueError, match="does not fit"):
            parse(name).encode(number)


def test_a_float_too_large_for_its_width_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into float32"):
        parse("float32").encode(1e39)


@pytest.mark.parametrize("value", [1.5, "12", math.nan, math.inf])
def test_an_integer_takes_whole_numbers_only(value: float | str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse("int16").encode(value)


def test_a_single_byte_in_a_register_is_the_low_one_or_with_swapped_order_the_high_one() -> None:
    assert parse("int8").registers == 1
    assert parse("int8").decode(b"\x01\xff") == -1
    assert parse("uint8", "BA").decode(b"\x01\xff") == 1
    assert parse("UINT8H").decode(b"\x01\xff") == 1
    assert parse("UINT8L").decode(b"\x01\xff") == 255
    assert parse("uint8", "little").decode(b"\x07") == 7


def test_bits_count_from_the_least_significant() -> None:
    assert parse("bit", bit=3).decode(b"\x00\x08") is True
    assert parse("bit", bit=3).decode(b"\x08\x00") is False
    assert parse("bit", "BA", bit=3).decode(b"\x08\x00") is True
    assert parse("bit", bit=15).decode(b"\x80\x00") is True
    with pytest.raises(ValueError, match="neighbours"):
        parse("bit", bit=0).encode(True)


def test_bool_is_anything_but_zero() -> None:
    assert parse("bool").decode(b"\x00\x00") is False
    assert parse("bool").decode(b"\x01\x00") is True
    assert parse("bool").decode(b"\x00") is False
    assert parse("bool").encode(True) == b"\x01"


def test_strings_end_at_the_first_zero_and_lose_their_padding() -> None:
    assert parse("string", length=8).decode(b"SDM120\x00\x00") == "SDM120"
    assert parse("string", length=8).decode(b"SDM120  ") == "SDM120"
    assert parse("string", "byte", length=6).decode(b"DS1M02") == "SDM120"
    assert parse("string", "little", length=4).decode(b"abcd") == "abcd"
    assert parse("string", length=5).decode(b"abcdeX") == "abcde"
    assert parse("string", length=4).decode(b"a\xff\xfeb") == "a\ufffd\ufffdb"
    with pytest.raises(ValueError, match="at most 4"):
        parse("string", length=4).encode("Grüße")


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=11), st.sampled_from(ORDERS))
def test_every_text_comes_back(text: str, order: str) -> None:
    word = parse("string", order, length=12)
    assert word.decode(word.encode(text)) == text.rstrip()


@pytest.mark.parametrize(
    ("name", "family", "size"),
    [
        ("INT16", Family.INT, 2),
        ("Float", Family.FLOAT, 4),
        ("double", Family.FLOAT, 8),
        ("uint24", Family.UINT, 3),
        ("Boolean", Family.BOOL, 1),
        ("u32", Family.UINT, 4),
        ("s16", Family.INT, 2),
        ("FLOAT32-IEEE", Family.FLOAT, 4),
    ],
)
def test_names_are_read_in_any_case_and_by_common_aliases(name: str, family: Family, size: int) -> None:
    assert (parse(name).family, parse(name).size) == (family, size)


@pytest.mark.parametrize("name", ["int", "int12", "int72", "float8", "float24", "bcd12", "", "int16h"])
def test_unknown_types_are_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown type .* known: int8"):
        parse(name)


def test_what_does_not_fit_together_is_refused() -> None:
    for call in (
        lambda: parse("string"),
        lambda: parse("int16", length=2),
        lambda: parse("bit"),
        lambda: parse("bit", bit=16),
        lambda: parse("int16", bit=1),
        lambda: parse("bits", bit=1),
        lambda: parse("bits", bits=1),
        lambda: parse("bits", bit=14, bits=3),
        lambda: parse("bit", bit=1, bits=1),
        lambda: parse("float32", mask=1),
        lambda: parse("bcd16", mask=1),
        lambda: parse("bits", bit=1, bits=1, mask=2),
        lambda: parse("uint16", mask=0x10000),
        lambda: parse("uint16", mask=-1),
        lambda: parse("uint16", mask=0xFF, shift=8),
        lambda: parse("uint16", shift=8),
        lambda: parse("float32", "BA"),
        lambda: parse("float32", "ACBD"),
        lambda: parse_order("middle"),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()


@given(st.binary(max_size=20), st.sampled_from(["int16", "uint64", "float32", "bit", "string", "uint24"]))
def test_decoding_gives_a_value_or_says_that_the_length_is_wrong(data: bytes, name: str) -> None:
    word = parse(name, length=5 if name == "string" else 0, bit=1 if name == "bit" else None)
    try:
        word.decode(data)
    except DecodeError:
        assert len(data) != word.size
    else:
        assert len(data) == word.size or (name == "string" and len(data) == 6)


SHARING = [
    parse("bit", bit=0),
    parse("bit", bit=15),
    parse("bit", "BA", bit=3),
    parse("bits", bit=4, bits=3),
    parse("bits", "BA", bit=6, bits=5),
    parse("uint16", mask=0x0FF0),
    parse("int16", mask=0x00F0),
    parse("uint16", mask=0x0FF0, shift=0),
    parse("int8"),
    parse("uint8h"),
    parse("bcd8"),
    parse("uint16", "BA"),
    parse("bool"),
]


@pytest.mark.parametrize("word", SHARING, ids=str)
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_a_value_laid_over_its_register_is_read_back_and_leaves_its_neighbours_alone(
    word: Word, before: int, wanted: int
) -> None:
    value = word.decode(wanted.to_bytes(2, "big")[: word.size] if word.size == 2 else wanted.to_bytes(2, "big"))
    assume(value is not None)
    assert value is not None
    own, bits = word.overlay(value)
    after = before & ~own | bits
    assert bits & ~own == 0
    assert after & ~own == before & ~own
    assert word.decode(after.to_bytes(2, "big")) == value


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (parse("bit", bit=1), 2),
        (parse("bits", bit=4, bits=3), 8),
        (parse("uint16", mask=0x0FF0, shift=0), 1),
        (parse("int8"), 128),
        (parse("bit", bit=1), "on"),
        (parse("bits", bit=4, bits=3), 0.5),
    ],
)
def test_what_does_not_fit_into_its_bits_is_not_laid_over_others(word: Word, value: float | str) -> None:
    with pytest.raises(ValueError, match=r"."):
        word.overlay(value)
