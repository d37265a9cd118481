from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]
_Elements: TypeAlias = NDArray[np.unsignedinteger[Any]]

def split(values: _Elements, planes: _Bytes, is_float: bool, /) -> None: ...
def join(planes: Sequence[_Bytes], out: _Elements, is_float: bool, /) -> None: ...
def key_counts(base: _Elements, counts: NDArray[np.int64], is_float: bool, /) -> None: ...
def differences(
    values: _Elements,
    base: _Elements,
    groups: _Bytes,
    starts: NDArray[np.int64],
    out: _Elements,
    is_float: bool,
    /,
) -> None: ...
def sums(
    found: _Elements,
    base: _Elements,
    groups: _Bytes,
    starts: NDArray[np.int64],
    out: _Elements,
    is_float: bool,
    /,
) -> None: ...
def measure(values: _Elements, step: int, /) -> tuple[int, int]: ...
def pack(values: _Elements, low_bits: int, top_bits: int, low: _Bytes, top: _Bytes, large: _Elements, /) -> int: ...
def unpack(low: _Bytes, top: _Bytes, large: _Elements, low_bits: int, top_bits: int, out: _Elements, /) -> int: ...
