"""The command line: flashlite --help."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any, NoReturn

import typer

from flashlite.cli import contest, course, measure, run, stores, train
from flashlite.course import plug
from flashlite.errors import FlashliteError
from flashlite.version import __version__

app = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

UsageError: Any = typer.BadParameter.__base__  # what typer raises of any wrong command line; older typers take click's

GROUPS = {"The engine": (run, stores, measure, train), "The course": (course, contest)}  # of commands, as --help shows


def _register() -> None:
    for group, modules in GROUPS.items():
        for module in modules:
            before = len(app.registered_commands)
            module.register(app)
            for command in app.registered_commands[before:]:
                command.rich_help_panel = group


_register()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"flashlite {__version__}")
        raise typer.Exit


@app.callback()
def flashlite(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="show the version", callback=_show_version)] = False,
) -> None:
    """Run a language model larger than memory by streaming its weights from flash."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line. Whatever flashlite foresees is one line: exit code 2 if the command line itself is wrong, 1
    for anything else."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever a model writes, even where the terminal lacks the letters
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        _fail(_usage(error), error.exit_code)
    except (FlashliteError, NotImplementedError) as error:  # NotImplementedError: a stub of the course
        _fail(str(error))
    except typer.Abort:  # Ctrl-C, in older typers
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if not (line := plug.own_line(error)):
            raise
        _fail(f"{line}{type(error).__name__}: {error}")


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where to read how it is written."""
    said = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{said}: see `{error.ctx.command_path} --help`" if error.ctx else said


def _fail(line: str, code: int = 1) -> NoReturn:
    print(f"flashlite: {line}", file=sys.stderr)
    sys.exit(code)
