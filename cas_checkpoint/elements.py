"""What the bytes of tensors consist of: numbers of one width, floating-point or not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = ["ELEMENTS", "Elements"]


class Elements(NamedTuple):
    """Numbers that lie one after another, little-endian.

    Attributes:
        width: bytes of each: 1, 2, 4 or 8.
        is_float: whether the highest bit is a sign and the next ones an exponent; else they are integers, or any bits.
    """

    width: int
    is_float: bool


def _elements() -> dict[str, Elements]:
    floats = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex128": 8, "complex64": 4}
    small = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    integers = {"bool": 1} | {f"{sign}int{8 * width}": width for sign in ("", "u") for width in (1, 2, 4, 8)}
    return {
        **{name: Elements(width, is_float=True) for name, width in floats.items()},
        **{name: Elements(1, is_float=True) for name in small[:-1]},
        small[-1]: Elements(1, is_float=False),  # an exponent and nothing else
        **{name: Elements(width, is_float=False) for name, width in integers.items()},
    }


ELEMENTS: Final[Mapping[str, Elements]] = MappingProxyType(_elements())
"""For each type of numbers, by the name that numpy or ml_dtypes has for it, what its bytes consist of.

A complex number is two elements.
"""
