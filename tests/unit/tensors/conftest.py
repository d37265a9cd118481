"""Ways to look at a container, and to make one by hand: no framework is needed."""

import struct
from math import prod
from types import SimpleNamespace

import pytest

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.tensors import find_tensors
from cas_checkpoint.tensors.found import MAX_HEADER_SIZE, MAX_TENSORS


def _check(layout, size):
    end = 0
    for region in layout.regions:
        assert region.offset >= end
        assert region.size > 0
        assert region.elements.width in {1, 2, 4, 8}
        assert region.row_size > 0
        assert region.size % region.row_size == region.row_size % region.elements.width == 0
        end = region.offset + region.size
    assert end <= size
    for tensor in layout.tensors:
        width = ELEMENTS[tensor.dtype].width * (2 if tensor.dtype.startswith("complex") else 1)
        assert len(tensor.shape) == len(tensor.strides)
        assert min((*tensor.shape, *tensor.strides, tensor.offset)) >= 0
        assert prod(tensor.shape) * width < 2**63
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
        assert tensor.offset + ((last + 1) * width if all(tensor.shape) else 0) <= size
    for named in (layout.regions, layout.tensors):
        names = [thing.name for thing in named]
        assert len(set(names)) == len(names) <= MAX_TENSORS
        "".join(names).encode()
    assert layout.regions or layout.tensors


@pytest.fixture(scope="session")
def look():
    """Return the layout of a container, or None, once it is checked; and so is what was read."""

    def look(data, size=None):
        size = len(data) if size is None else size
        total = 0

        def read(offset, count):
            nonlocal total
            total += count
            assert offset >= 0
            assert 0 <= count <= MAX_HEADER_SIZE
            assert total <= 2**26 + 16
            return bytes(data[offset : offset + count])

        layout = find_tensors(read, size)
        if layout is not None:
            _check(layout, size)
        return layout

    return look


def _text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number):
    return b"\x8a\x08" + struct.pack("<q", number)


def _tuple(*parts):
    return b"(" + b"".join(parts) + b"t"


def _global(name):
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def _call(name, *arguments):
    return _global(name) + _tuple(*arguments) + b"R"


def _dictionary(**parts):
    return b"}(" + b"".join(_text(key) + part for key, part in parts.items()) + b"u"


def _made(name, **state):
    return _global(name) + b")\x81" + _dictionary(**state) + b"b"


def _storage(kind="FloatStorage", key="0"):
    return _tuple(_text("storage"), _global(f"torch.{kind}"), _text(key), _text("cpu"), _number(6)) + b"Q"


def _tensor(shape=(6,), strides=(1,), offset=0, storage=None, call="_rebuild_tensor_v2", extra=b""):
    numbers = (_tuple(*map(_number, shape)), _tuple(*map(_number, strides)))
    return _call(f"torch._utils.{call}", storage or _storage(), _number(offset), *numbers, b"\x89", b"N", extra)


@pytest.fixture(scope="session")
def symbols():
    """Functions that return opcodes of pickles."""
    return SimpleNamespace(
        text=_text,
        number=_number,
        tuple=_tuple,
        named=_global,
        call=_call,
        dictionary=_dictionary,
        made=_made,
        storage=_storage,
        tensor=_tensor,
    )
