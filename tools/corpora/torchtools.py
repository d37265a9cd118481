"""What runs with torch share: torch itself, as deterministic as it can be, and tensors as numpy has them."""

from __future__ import annotations

import os
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np

from corpora.corpus import Unavailable
from corpora.tensorfile import Bf16, Tensor

__all__ = ["saved", "tensor_of", "torch_for"]

_THREADS = 2  # whatever the machine has: sums in another order have other last bits
_SMALL = 0.25  # a scale below which a second thread would only wait


def torch_for(seed: int, *, scale: float) -> Any:  # noqa: ANN401 -- a module
    """Return torch with its generator seeded, or raise `Unavailable`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the processor to others
    try:
        torch: Any = import_module("torch")
    except ImportError:
        raise Unavailable("torch is not installed (pip install torch)") from None
    torch.manual_seed(seed)
    torch.set_num_threads(_THREADS if scale >= _SMALL else 1)
    torch.use_deterministic_algorithms(mode=True)
    return torch


def tensor_of(tensor: Any) -> Tensor:  # noqa: ANN401 -- a torch.Tensor
    """Return a copy of a torch tensor, as numpy knows it."""
    torch: Any = import_module("torch")
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return Bf16(plain.view(torch.int16).numpy().view(np.uint16).copy())
    copied: Tensor = plain.numpy().copy()
    return copied


def saved(thing: object) -> bytes:
    """Return what `torch.save` writes."""
    torch: Any = import_module("torch")
    file = BytesIO()
    torch.save(thing, file)
    return file.getvalue()
