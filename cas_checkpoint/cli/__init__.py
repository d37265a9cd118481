"""The command line, one module a verb. Only this package imports click and rich, and only it writes to the terminal."""

from __future__ import annotations

import os

import click

from cas_checkpoint._version import __version__
from cas_checkpoint.cli.cat import cat_command
from cas_checkpoint.cli.collect import collect_command
from cas_checkpoint.cli.diff import diff_command
from cas_checkpoint.cli.forget import forget_command
from cas_checkpoint.cli.info import info_command
from cas_checkpoint.cli.interrupts import handle_interrupts
from cas_checkpoint.cli.list import list_command
from cas_checkpoint.cli.output import PROGRAM
from cas_checkpoint.cli.repair import repair_command
from cas_checkpoint.cli.restore import restore_command
from cas_checkpoint.cli.save import save_command
from cas_checkpoint.cli.show import show_command
from cas_checkpoint.cli.tensors import tensors_command
from cas_checkpoint.cli.verbs import EXIT_CODES
from cas_checkpoint.cli.verify import verify_command

__all__ = ["commands", "main"]

_ORDER = [
    save_command,
    restore_command,
    list_command,
    show_command,
    cat_command,
    tensors_command,
    diff_command,
    forget_command,
    collect_command,
    verify_command,
    repair_command,
    info_command,
]


class _Commands(click.Group):
    """The verbs, in the order in which a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return their names."""
        return [command.name or "" for command in _ORDER]


@click.group(cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
def commands() -> None:
    """Save directories and files as snapshots in a content-addressed store, and restore them bit for bit.

    A snapshot REF is an id, at least 4 digits of one, `latest`, `SERIES@latest` or `SERIES@NUMBER`.

    The store is given with --store to each command, or with the environment variable CAS_CHECKPOINT_STORE.
    """


for _command in _ORDER:
    commands.add_command(_command)


def main() -> None:
    """Run the command line, and end the process."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would wait in loops for work that never comes
    handle_interrupts()
    commands(prog_name=PROGRAM)
