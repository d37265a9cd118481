"""Types by their names, against what ml_dtypes says of them."""

import sys

import numpy as np
import pytest

from cas_checkpoint.dtypes import array_type, item_size, raw_type, real_numbers
from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.errors import InvalidArgument

FOREIGN = [name for name in ELEMENTS if name == "bfloat16" or name.startswith("float8")]
OWN = [name for name in ELEMENTS if name not in FOREIGN]


@pytest.mark.parametrize("name", OWN)
def test_what_numpy_knows(name):
    assert array_type(name) == raw_type(name) == np.dtype(name).newbyteorder("<")
    assert item_size(name) == np.dtype(name).itemsize
    values = np.array([0, 1], name)
    found = real_numbers(values, name)
    assert found.dtype == ("complex128" if name.startswith("complex") else "float64")
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_only_ml_dtypes_knows(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert array_type(name) == np.dtype(getattr(ml_dtypes, name))
    width = ELEMENTS[name].width
    assert item_size(name) == width
    raw = np.arange(256**width).astype(f"<u{width}")
    values = raw.view(array_type(name))
    with np.errstate(invalid="ignore"):
        expected = values.astype(np.float64)
    for given in (raw, values):
        found = real_numbers(given.reshape(16, -1), name)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found.reshape(-1), expected)
        np.testing.assert_array_equal(np.signbit(found.reshape(-1))[expected == 0], np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("name", FOREIGN)
def test_without_ml_dtypes(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert array_type(name) == raw_type(name) == np.dtype(f"<u{ELEMENTS[name].width}")


@pytest.mark.parametrize("name", ["", "float7", "object", "U5", "V2", "int64,int64", "q4_0"])
def test_no_such_type(name):
    for function in (array_type, raw_type, item_size):
        with pytest.raises(InvalidArgument, match="cannot be read as an array"):
            function(name)
