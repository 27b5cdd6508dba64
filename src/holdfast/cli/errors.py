"""Errors as messages with a next step, and the exit codes that go with them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from holdfast.errors import HoldfastError

INTERRUPTED = 130
_STORAGE = 4
P = ParamSpec("P")


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """``command`` with its errors printed to stderr, without a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except HoldfastError as error:
            show_error(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            show_error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            where = f" {error.filename}" if error.filename else ""
            show_error(f"Cannot write{where}: {error.strerror}. Free some space or choose --out.")
            raise typer.Exit(_STORAGE) from None

    return run


def show_error(message: str) -> None:
    """A message on stderr, in red where there are colours."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), message))
