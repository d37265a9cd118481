"""Names of things: chunk ids, checksums, and the shape of random ids in keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.ids import CHUNK_ID_SIZE, RANDOM_ID_SIZE, Buffer, chunk_id, digest, is_hex_id

# From the test vectors of the BLAKE3 specification: input is 0, 1, 2, ... modulo 251.
KNOWN = [
    (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
    (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
]


@pytest.mark.parametrize(("size", "expected"), KNOWN)
def test_chunk_ids_are_blake3_of_the_specification(size, expected):
    data = bytes(number % 251 for number in range(size))
    assert chunk_id(data).hex() == expected
    assert digest((data,)).hex() == expected


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_any_buffer_has_the_id_of_its_bytes(make):
    assert isinstance(make(b"some bytes"), Buffer)
    assert chunk_id(make(b"some bytes")) == chunk_id(b"some bytes")
    assert len(chunk_id(make(b"some bytes"))) == CHUNK_ID_SIZE


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=100)))
def test_a_checksum_is_that_of_the_concatenation(parts):
    assert digest(parts) == chunk_id(b"".join(parts))


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=RANDOM_ID_SIZE, max_size=RANDOM_ID_SIZE))
def test_the_hexadecimal_form_of_a_random_id_is_known(identity):
    assert is_hex_id(identity.hex())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "g" * 32,
        "0" * 31 + "\n",
        "0" * 32 + "\n",
        " " + "0" * 31,
        "\u0660" * 32,
        "\udcff" * 32,
    ],
)
def test_other_texts_are_no_ids(text):
    assert not is_hex_id(text)
