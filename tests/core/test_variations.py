"""A text as a list of values."""

import pytest

from zimage_core.prompt.variations import integer, number, values_of


@pytest.mark.parametrize(
    "text, values",
    [
        ("0, 0.5, 1", ["0", "0.5", "1"]),
        ("1 2\n3,4,\n", ["1", "2", "3", "4"]),
        ("1\uff0c2", ["1", "2"]),
        ("a fox, in snow\n\n  2 owls \n7", ["a fox, in snow", "2 owls", "7"]),
        ("-1e-3", ["-1e-3"]),
        ("nan, 1", ["nan, 1"]),
    ],
)
def test_numbers_share_lines_and_texts_do_not(text, values):
    assert values_of(text) == values


def test_none_and_too_many_are_refused():
    for text in ("", " \n \n"):
        with pytest.raises(ValueError, match="no values"):
            values_of(text)
    assert len(values_of(",".join("1" * 64))) == 64
    with pytest.raises(ValueError, match="65 values; at most 64"):
        values_of(",".join("1" * 65))


def test_what_is_a_number():
    assert [integer(text) for text in ("18446744073709551615", "-3", "1.0", "1e3", "x", "", "9" * 21)] == [
        2**64 - 1, -3, None, None, None, None, None,
    ]  # fmt: skip
    assert [number(text) for text in ("0.5", "1e3", "inf", "nan", "a")] == [0.5, 1000.0, None, None, None]
