"""How the command line ends: every error once, on stderr, with the exit status it stands for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from curlfx.cli.voice import LEVEL
from curlfx.errors import CurlfxError, InvariantError, did_you_mean

INTERRUPTED = 130


class Program(TyperGroup):
    """A group of commands that turns errors into one line and an exit status.

    Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input, 130 interrupted.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises: typer.Exit with the status; the error itself under ``--debug``."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except CurlfxError as error:
            if LEVEL.get() == "debug":
                raise
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, InvariantError):
                print("this is a bug of curlfx; --debug shows where", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interruption:
            notes = getattr(interruption, "__notes__", [])
            print("\n".join(["interrupted", *notes]), file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from interruption

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name. Raises: typer.BadParameter (exit 2) with the nearest one there is."""
        if (
            args
            and not ctx.resilient_parsing
            and not args[0].startswith("-")
            and self.get_command(ctx, args[0]) is None
        ):
            hint = did_you_mean(args[0], self.list_commands(ctx))
            raise typer.BadParameter(f"no command {args[0]!r}{hint}", ctx=ctx)
        return super().resolve_command(ctx, args)


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM ends a command as Ctrl-C does; a second SIGTERM ends the process at once."""

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, which alone may say what a signal does
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
