"""numpy, imported when it is first used: that takes longer than many a save in which nothing has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["np"]

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        """Stands for numpy, and keeps what was asked for."""

        def __getattr__(self, name: str) -> object:
            import numpy  # noqa: PLC0415, ICN001 -- now it is needed

            value = getattr(numpy, name)
            setattr(self, name, value)
            return value

    np = _Numpy()
