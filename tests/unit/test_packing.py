"""Chunks on their way into packs: which codecs are used for what."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cas_checkpoint.backends import LocalBackend
from cas_checkpoint.buffers import ReadBuffers
from cas_checkpoint.codecs import Codec, Encoder
from cas_checkpoint.elements import Elements
from cas_checkpoint.ids import PackId, chunk_id
from cas_checkpoint.knowledge import Knowledge
from cas_checkpoint.monitor import Monitor
from cas_checkpoint.packing import Batch, Coding, Packer
from cas_checkpoint.segments import Hint

WEIGHTS = np.random.default_rng(1).normal(0, 0.05, 2**16).astype("<f4").tobytes()


@pytest.fixture(params=[0, 2], ids=["by itself", "workers"])
def packer(request, tmp_path):
    """Makes a packer of a save; without a worker, of one within a commit."""
    made = []

    def make(coding):
        packer = Packer(
            LocalBackend(tmp_path, durable=False),
            Knowledge(0, limit=2**20) if request.param else None,
            ReadBuffers(2**20),
            new_pack=lambda: PackId(random.randbytes(16)),
            workers=request.param,
            coding=coding,
            monitor=Monitor(),
        )
        made.append(packer)
        return packer

    yield make
    for one in made:
        one.close()


def codecs_of(packer, tmp_path):
    """Write what the packer holds; return the codec of each chunk."""
    if packer._knowledge is None:
        packer.settle()
        packer._release_held()
        footer, parts = packer._pack.builder.finish()
        packs = [(footer, b"".join(parts))]
    else:
        packer.finish()
        packs = [(footer, (tmp_path / "packs" / footer.pack.hex()).read_bytes()) for footer in packer.footers]
    return {
        bytes(chunk): Codec(data[offset])
        for footer, data in packs
        for chunk, offset in zip(footer.ids, footer.offsets.tolist(), strict=True)
    }


def submit(packer, data, hint=None):
    buffer = packer._buffers.take()
    buffer.view[: len(data)] = data
    packer.submit(Batch(buffer, [(0, len(data))], [None], lambda _: None, [hint]))


def test_metadata_is_never_stored_as_planes(packer, tmp_path):
    """Though its bytes are such as would be, were they a file's."""
    one = packer(Coding(1))
    submit(one, WEIGHTS)
    metadata = [WEIGHTS[start : start + 2**17] for start in (0, 2**17)]
    assert [one.store(chunk) for chunk in metadata] == [chunk_id(chunk) for chunk in metadata]
    found = codecs_of(one, tmp_path)
    assert found[chunk_id(WEIGHTS)] == Codec.PLANES
    assert [found[chunk_id(chunk)] for chunk in metadata] == [Codec.ZSTD, Codec.ZSTD]
    assert Encoder().encode(metadata[0])[0] is Codec.PLANES


@pytest.mark.parametrize("planes", [False, True])
def test_without_planes_none_are_guessed(packer, tmp_path, planes):
    one = packer(Coding(1, planes))
    submit(one, WEIGHTS)
    assert codecs_of(one, tmp_path) == {chunk_id(WEIGHTS): Codec.PLANES if planes else Codec.ZSTD}


def test_known_elements_become_planes(packer, tmp_path):
    one = packer(Coding(1))
    submit(one, WEIGHTS[:4000], Hint(Elements(4, is_float=True), None))
    assert codecs_of(one, tmp_path) == {chunk_id(WEIGHTS[:4000]): Codec.PLANES}
