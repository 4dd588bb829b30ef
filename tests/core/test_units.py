from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lohan_core.units import exact_bytes, format_bytes, format_seconds, parse_bytes, parse_number, parse_whole_number

sizes = st.integers(min_value=0, max_value=2**60)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("24GiB", 24 * 2**30),
        ("24gib", 24 * 2**30),
        ("60GB", 60 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        (" 2 kB ", 2000),
        ("0.1KiB", 102),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("value", ["", "GiB", "-1GiB", "1e9", "24 gigs", "1.5", "24GiBB", -1, 1.0, True, None, [1]])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match=r"wants a size|the unit must be") as raised:
        parse_bytes(value)
    assert repr(value) in str(raised.value)


def test_a_unit_that_could_be_either_is_refused_with_both():
    with pytest.raises(ValueError, match=r"'24G': write GiB .* or GB"):
        parse_bytes("24G")


@given(sizes)
def test_an_exact_size_reads_back_as_it_was(size_bytes):
    assert parse_bytes(exact_bytes(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0B"), (24 * 2**30, "24GiB"), (1500 * 10**6, "1500MB"), (1001, "1001B"), (2**40, "1TiB")],
)
def test_an_exact_size_has_the_largest_unit_that_divides_it(size_bytes, text):
    assert exact_bytes(size_bytes) == text


@given(sizes)
def test_a_size_for_people_is_right_to_a_percent(size_bytes):
    text = format_bytes(size_bytes)
    assert len(text) <= len("1023 KiB")
    assert math.isclose(parse_bytes(text), size_bytes, rel_tol=0.01)


@pytest.mark.parametrize(
    ("value", "number"), [("1e-4", 1e-4), ("1E5", 1e5), (3, 3.0), (0.5, 0.5), (" -2.5 ", -2.5), ("7", 7.0)]
)
def test_numbers_are_read_even_where_yaml_gives_text(value, number):
    assert parse_number(value) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_being_written(number):
    assert parse_number(repr(number)) == number
    assert parse_number(f"{number:.17e}") == number


@pytest.mark.parametrize("value", ["", "fast", True, None, [1], "nan", "inf", math.inf, math.nan, 10**400])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="wants a number"):
        parse_number(value)


@given(st.integers(min_value=-(2**80), max_value=2**80))
def test_whole_numbers_are_read_exactly(number):
    assert parse_whole_number(number) == number


def test_a_whole_number_may_have_an_exponent():
    assert parse_whole_number("1e3") == 1000
    assert parse_whole_number(2.0e3) == 2000


@pytest.mark.parametrize("value", [1.5, "1.5", "1e-3", True, None, "ten", "inf"])
def test_what_is_not_whole_is_refused(value):
    with pytest.raises(ValueError, match="wants a whole number"):
        parse_whole_number(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (123.4, "123 s"),
        (12.34, "12.3 s"),
        (1.234, "1.23 s"),
        (0.1234, "123 ms"),
        (0.01234, "12.3 ms"),
        (0.0, "0.00 ms"),
    ],
)
def test_times_have_three_digits(seconds, text):
    assert format_seconds(seconds) == text
