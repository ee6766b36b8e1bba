import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.text import size, visible


def test_bytes_are_worded_in_the_largest_unit_that_they_fill():
    assert [size(n) for n in (0, 1023, 1024, 5 << 20, 900 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "900 MiB", "3.0 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\x07\x85\x7f", r"\x07\x85\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("line\u2028line", r"line\u2028line"),
        ("\ud800", r"\ud800"),
        ("\uffff\U0001fffe", r"\uffff\U0001fffe"),
        ("a\n\tb", "a\n\tb"),
        ("👩‍🔬 مرحبا é \U0010fffd", "👩‍🔬 مرحبا é \U0010fffd"),
    ],
)
def test_what_hides_or_acts_is_spelled_and_the_rest_stays(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_no_control_or_direction_is_left_and_python_reads_the_spelling_back(text):
    shown = visible(text)
    left = set(shown) - set("\n\t")
    assert not {char for char in left if unicodedata.category(char) in {"Cc", "Cs"}}
    assert not {char for char in left if unicodedata.bidirectional(char) in {"LRE", "RLE", "LRO", "RLO", "PDF"}}
    assert not {char for char in left if unicodedata.bidirectional(char) in {"LRI", "RLI", "FSI", "PDI"}}
    for char in set(text):
        spelled = visible(char)
        assert spelled == char or spelled.encode("ascii").decode("unicode_escape") == char
    assert shown == "".join(map(visible, text))
