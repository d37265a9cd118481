"""Single flipped bits in what ends in its own checksum, and what is no such thing."""

from __future__ import annotations

import random

import pytest

from cas_checkpoint.flips import unflipped
from cas_checkpoint.ids import digest

CONTENT = random.Random(1).randbytes(100)
SEALED = CONTENT + digest((CONTENT,))


def test_every_bit_is_found():
    for bit in range(len(SEALED) * 8):
        data = bytearray(SEALED)
        data[bit // 8] ^= 1 << bit % 8
        assert unflipped(bytes(data)) == SEALED


@pytest.mark.parametrize(
    "data",
    [SEALED, b"", SEALED[:32], SEALED[:-1], SEALED[1:], b"xy" + SEALED[2:], bytes(2**16 + 1)],
    ids=["whole", "nothing", "short", "cut at the end", "cut at the start", "altered", "large"],
)
def test_nothing_else_is_taken_for_one(data):
    assert unflipped(data) is None
