"""What all verbs have in common: three options, and how they end."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cas_checkpoint.cli.interrupts import INTERRUPTED
from cas_checkpoint.cli.output import Terminal, discard_stdout
from cas_checkpoint.errors import CasCheckpointError

__all__ = ["DAMAGED", "EXIT_CODES", "WARNED", "Verb", "verb", "workers_option"]

WARNED = 3
DAMAGED = 12
_FAILED = 1
_UNREAD = 141
EXIT_CODES = """\
\b
Exit codes:
    0  done
    1  failed
    2  usage
    3  done, with warnings
   10  no such store
   11  no such snapshot
   12  damage found
   13  refused: the store needs a newer version of this program
  130  interrupted (Ctrl-C); 143 by SIGTERM, 129 by SIGHUP
  141  whoever read stdout has gone
"""

Function = TypeVar("Function", bound=Callable[..., object])


class Verb(click.Command):
    """A command whose every end has its exit code, and that never shows a traceback unasked.

    Its function gets a `Terminal` in place of the options `json` and `quiet`, and may return an exit code.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 -- click's signature
    ) -> click.Context:
        """Parse the arguments; a mistake in them becomes a document too if one was asked for."""
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if as_json:
                Terminal(json=True, quiet=False).failed("UsageError", error.format_message(), error.exit_code)
            raise

    def invoke(self, ctx: click.Context) -> None:
        """Run the verb, and end with its exit code."""
        terminal = Terminal(json=ctx.params.pop("json"), quiet=ctx.params.pop("quiet"))
        ctx.params["terminal"] = terminal
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for what a terminal's encoding lacks
        ctx.exit(_end(terminal, lambda: super(Verb, self).invoke(ctx)))


def _end(terminal: Terminal, action: Callable[[], int | None]) -> int:
    """Do it, tell what went wrong, and return the exit code."""
    try:
        code = action() or 0
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        text = "; ".join(filter(None, ("interrupted", terminal.outcome())))
        return _fail(terminal, stop, text, getattr(stop, "exit_code", INTERRUPTED))
    except BrokenPipeError:
        discard_stdout()
        return _UNREAD
    except CasCheckpointError as error:
        return _fail(terminal, error, str(error), error.exit_code)
    except click.UsageError as error:  # click shows it
        terminal.failed("UsageError", error.format_message(), error.exit_code)
        raise
    except MemoryError as error:
        return _fail(terminal, error, "out of memory", _FAILED)
    except Exception as error:  # noqa: BLE001 -- a user is not to be shown a traceback
        text = f"{type(error).__name__}: {error} (set CAS_CHECKPOINT_TRACEBACK=1 to see where)"
        return _fail(terminal, error, text, _FAILED)
    return code


def _fail(terminal: Terminal, error: BaseException, text: str, exit_code: int) -> int:
    if os.environ.get("CAS_CHECKPOINT_TRACEBACK") == "1":
        traceback.print_exception(error)
    terminal.error(type(error).__name__, text, exit_code)
    try:
        sys.stdout.flush()
    except OSError:  # that may have been the error
        discard_stdout()
    return exit_code


def _check_store(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    if not value:
        raise click.UsageError("no store given: use --store URL, or set CAS_CHECKPOINT_STORE")
    return value


def workers_option(function: Function) -> Function:
    """Add the option of verbs that work in several threads."""
    return click.option(
        "--workers", type=click.IntRange(1, 1024), metavar="N", help="Threads to work with.  [default: one a core]"
    )(function)


def verb(function: Function) -> Function:
    """Add the options of all verbs; to be the innermost decorator."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No progress, summaries or titles; warnings and errors only."),
        click.option("--json", is_flag=True, help="Write one JSON document to stdout."),
        click.option(
            "--store",
            "url",
            metavar="URL",
            envvar="CAS_CHECKPOINT_STORE",
            show_envvar=True,
            callback=_check_store,
            help="The store: a path, or any URL that fsspec knows.",
        ),
    ):
        function = option(function)
    return function
