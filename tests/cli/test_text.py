from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_checkpoint.cli.text import clean, counted, nanoseconds_text, path_text, printable, size_text, time_text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("é 名\u3000前".encode(), "é 名\u3000前"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\x1b[31m", r"\x1b[31m"),
        (b"\x7f", r"\x7f"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\x9b31m".encode(), r"\x9b31m"),
        ("\u202etxt.exe".encode(), r"\u202etxt.exe"),
        ("a\u2028b".encode(), r"a\u2028b"),
    ],
)
def test_names(raw, shown):
    assert printable(path_text(raw)) == shown


@given(st.binary() | st.text(st.characters()).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_is_shown_is_one_line_of_valid_text(raw):
    shown = printable(path_text(raw))
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not any(char < " " or "\x7f" <= char <= "\x9f" for char in shown)


@given(st.text(st.characters()))
def test_any_text_can_be_cleaned(text):
    clean(text).encode("utf-8")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (300_000, "293.0 KiB"),
        (2**30, "1.0 GiB"),
        (2**70, "1024.0 EiB"),
    ],
)
def test_sizes(size, shown):
    assert size_text(size) == shown


def test_times():
    moment = datetime(2024, 2, 29, 12, 0, tzinfo=timezone(timedelta(hours=1)))
    assert time_text(moment) == "2024-02-29T11:00:00Z"
    assert nanoseconds_text(1) == "1970-01-01T00:00:00.000000001Z"
    assert nanoseconds_text(-(10**9)) == "1969-12-31T23:59:59Z"
    assert nanoseconds_text(-(2**63)).startswith("1677-")
    assert nanoseconds_text(2**63 - 1).startswith("2262-")


def test_counts():
    assert [counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
