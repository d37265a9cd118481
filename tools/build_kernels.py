"""A hook of the package's build: compiles `cas_checkpoint/_kernels.c`, if that can be done here.

It has a twin in numpy (`cas_checkpoint/planes.py`), so where there is no compiler, or no header of Python, the package
is built without it. CAS_CHECKPOINT_KERNELS=off in the environment leaves it out, and with =required the build fails if
it cannot be compiled.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "cas_checkpoint._kernels"
SOURCE = "cas_checkpoint/_kernels.c"


class KernelsHook(BuildHookInterface):  # type: ignore[misc]
    """Puts the compiled module into a wheel, or, of an installation that can be edited, next to its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what to put where."""
        wanted = os.environ.get("CAS_CHECKPOINT_KERNELS", "")
        if self.target_name != "wheel" or wanted == "off":
            return
        folder = tempfile.mkdtemp(prefix="cas-checkpoint-build-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # what is in it goes into the wheel later
        try:
            built = compiled(Path(self.root), folder)
        except Exception as error:  # whatever a compiler, or what calls it, may raise
            if wanted == "required":
                raise
            print(f"WARNING: {SOURCE} could not be compiled ({error}): numpy does its work, slower.", file=sys.stderr)
            return
        if version == "editable":
            target = Path(self.root, SOURCE).parent / built.name
            shutil.copy(built, f"{target}.new")
            Path(f"{target}.new").replace(target)  # the old one may be in use
        else:
            build_data["force_include"][str(built)] = f"cas_checkpoint/{built.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def compiled(root: Path, folder: str) -> Path:
    """Compile the module into a folder; return where it is."""
    from setuptools import Distribution, Extension  # noqa: PLC0415 -- only where it is needed
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415

    arguments = [] if sys.platform == "win32" else ["-O3"]
    extension = Extension(NAME, [str(root / SOURCE)], extra_compile_args=arguments)
    command = build_ext(Distribution({"name": NAME, "ext_modules": [extension]}))
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(NAME))
