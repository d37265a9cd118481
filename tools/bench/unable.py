"""What is raised where a tool is not there or cannot do something; reported, never passed over."""

from __future__ import annotations

__all__ = ["Unable"]


class Unable(Exception):
    """A tool cannot do this, or is not there; the text says why."""
