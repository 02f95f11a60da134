"""Exit codes, and the one place where errors become a line on stderr."""

from __future__ import annotations

import enum
import errno
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from flashlet.model.errors import FlashletError, ModelNotFoundError


class ExitCode(enum.IntEnum):
    """What the exit code of `flashlet` means."""

    OK = 0
    FAILED = 1  # the model, the download, the start or the run
    USAGE = 2  # set by typer
    NOT_FOUND = 3  # no such model
    UNAVAILABLE = 69  # the address to listen on; set by the server, named EX_UNAVAILABLE in sysexits.h
    INTERRUPTED = 130  # Ctrl-C, as shells report it


class CommandGroup(TyperGroup):
    """Commands whose errors end in one line on stderr and an exit code, unless --debug is given."""

    def invoke(self, ctx: Any) -> Any:  # the context's class is click's or typer's own, by typer's version
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except Exception as error:
            if ctx.params.get("debug") or _is_for_typer(error):
                raise
            if isinstance(error, (FlashletError, OSError)):
                print_error(str(error))
            else:
                print_error(f"unexpected {type(error).__name__}: {error} (--debug shows where)")
            code = ExitCode.NOT_FOUND if isinstance(error, ModelNotFoundError) else ExitCode.FAILED
            raise typer.Exit(code) from error


def print_error(message: str) -> None:
    """Write `error: message` to stderr, as one line."""
    print("error:", " ".join(message.split()), file=sys.stderr)


def _is_for_typer(error: Exception) -> bool:
    """Usage errors and exits; and a closed pipe, on which typer ends quietly."""
    return (
        isinstance(error, typer.Abort)
        or hasattr(error, "exit_code")
        or (isinstance(error, OSError) and error.errno == errno.EPIPE)
    )
