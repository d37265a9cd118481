"""Types of numbers by their names: as what arrays they come, and what real numbers their bits stand for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cas_checkpoint.elements import ELEMENTS
from cas_checkpoint.errors import InvalidArgument
from cas_checkpoint.lazynumpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["array_type", "item_size", "raw_type", "real_numbers"]


class _Small(NamedTuple):
    """A floating-point type of eight bits, as ml_dtypes and the OCP's specification of 8-bit floats have them.

    Attributes:
        exponent: bits of the exponent.
        mantissa: bits of the mantissa.
        bias: what is subtracted from the exponent.
        infinite: whether the highest exponent is that of infinities and NaNs, as in IEEE 754.
        nans: the bits of its NaNs if it is not.
    """

    exponent: int
    mantissa: int
    bias: int
    infinite: bool
    nans: tuple[int, ...]


_SMALL: Final = {
    "float8_e4m3fn": _Small(4, 3, 7, infinite=False, nans=(0x7F, 0xFF)),
    "float8_e4m3fnuz": _Small(4, 3, 8, infinite=False, nans=(0x80,)),
    "float8_e5m2": _Small(5, 2, 15, infinite=True, nans=()),
    "float8_e5m2fnuz": _Small(5, 2, 16, infinite=False, nans=(0x80,)),
}
_BFLOAT16: Final = "bfloat16"
_E8M0: Final = "float8_e8m0fnu"
_E8M0_BIAS: Final = 127


def raw_type(name: str) -> np.dtype[Any]:
    """Return the type of arrays that hold numbers of the type `name` with numpy alone, little-endian.

    For what numpy does not know, such as bfloat16, that is an unsigned integer of the same width.

    Raises:
        InvalidArgument: there is no type of that name here.
    """
    if name in _SMALL or name in (_BFLOAT16, _E8M0):
        return np.dtype(f"<u{ELEMENTS[name].width}")
    if name not in ELEMENTS:
        raise InvalidArgument(f"numbers of the type {name!r} cannot be read as an array")
    return np.dtype(name).newbyteorder("<")


def array_type(name: str) -> np.dtype[Any]:
    """Return the same as `raw_type`, but the type of ml_dtypes for what numpy does not know, if that is installed."""
    raw = raw_type(name)
    if name not in _SMALL and name not in (_BFLOAT16, _E8M0):
        return raw
    try:
        foreign: type[Any] = getattr(import_module("ml_dtypes"), name)
    except (ImportError, AttributeError):
        return raw
    return np.dtype(foreign)


def item_size(name: str) -> int:
    """Return the bytes of one number of that type; errors as for `raw_type`."""
    return raw_type(name).itemsize


def real_numbers(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return what numbers of the type `name` stand for, as float64, or as complex128 if they are complex.

    Args:
        values: of any shape, of the type `raw_type(name)` or `array_type(name)`.
        name: their type.
    """
    if name in _SMALL or name == _E8M0:
        return _table(name)[values.view(np.uint8)]
    if name == _BFLOAT16:
        values = (values.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # NaNs that signal
        return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


@cache
def _table(name: str) -> NDArray[np.float64]:
    """Return what each of the 256 bytes stands for."""
    codes = np.arange(256)
    if name == _E8M0:
        table = np.ldexp(1.0, codes - _E8M0_BIAS)
        table[-1] = np.nan
        return table
    kind = _SMALL[name]
    exponent = (codes & 0x7F) >> kind.mantissa
    fraction = (codes & ((1 << kind.mantissa) - 1)) / (1 << kind.mantissa)
    normal = np.ldexp(1 + fraction, exponent - kind.bias)
    table = np.where(exponent > 0, normal, np.ldexp(fraction, 1 - kind.bias))
    if kind.infinite:
        highest = exponent == (1 << kind.exponent) - 1
        table[highest] = np.where(fraction[highest] == 0, np.inf, np.nan)
    table = np.where(codes & 0x80, -table, table)
    table[list(kind.nans)] = np.nan
    return table
