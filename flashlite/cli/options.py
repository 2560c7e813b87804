"""What the commands share: their common options, the two screens, files of results."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a line or a table that is wider than the terminal is wrapped by the terminal, and never cut
screen, notes = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)

ModelArgument = Annotated[str, typer.Argument(help="opt-mini, a hub id, a checkpoint folder or a store")]
TextOption = Annotated[list[Path], typer.Option("--text", help="text files: --text a.py b.py", show_default=False)]
MORE_FILES = {"allow_extra_args": True}  # a shell expands --text *.py to several words
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="write the result to this file; - is stdout, with nothing else")
]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="write the figure to this file")]
BudgetOption = Annotated[str, typer.Option("--dram-budget", help='bytes, "4GiB", or a share of the weights')]
WindowOption = Annotated[int, typer.Option("--window", help="tokens whose neurons stay in DRAM")]
VerifyOption = Annotated[
    bool, typer.Option("--verify-reads", help="compare what is read with its checksums: about a tenth slower")
]
PredictorOption = Annotated[str, typer.Option("--predictor", help="trained or oracle")]
ImplOption = Annotated[str, typer.Option("--impl", help="whose code runs: ref, mine, solutions, or ref,ex03=mine")]


def show_progress(line: str) -> None:
    """A line on the error stream: what is being done."""
    notes.print(line, style="dim", highlight=False)


def shows_json(command: Callable[..., Any]) -> Callable[..., None]:
    """A command that returns its result as plain data, and has the parameters json_file and plot.

    Before it begins, the places of its files are checked. Where its JSON goes to stdout, all else that the command
    prints goes to the error stream.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        json_file = kwargs["json_file"]
        check_outputs(json_file, kwargs["plot"])
        with contextlib.redirect_stdout(sys.stderr if _on_stdout(json_file) else sys.stdout):
            result = command(*args, **kwargs)
        show_json(json_file, result)

    return run


def show_json(json_file: Path | None, result: Any) -> None:
    """Write a result to its file; to stdout for `--json -`, and without `--json` if stdout is not a terminal."""
    write_json(Path("-") if _on_stdout(json_file) else json_file, result)


def _on_stdout(json_file: Path | None) -> bool:
    return str(json_file) == "-" if json_file else not sys.stdout.isatty()


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Raise FlashliteError if a result can't be written where it is wanted, before anything slow begins."""
    if json_file and str(json_file) != "-":
        check_place(json_file, "--json")
    if plot:
        check_place(plot, "--plot")
        from matplotlib.backend_bases import FigureCanvasBase

        formats = FigureCanvasBase.get_supported_filetypes()
        if plot.suffix[1:].lower() not in formats:
            raise FlashliteError(
                f"--plot {plot} cannot be written: a figure's name ends in one of .{', .'.join(sorted(formats))}"
            )


def check_place(path: Path, option: str) -> None:
    """Raise FlashliteError unless a file can be written at `path`, whose folders may be missing yet."""
    if reason := _refusal(path):
        raise FlashliteError(f"{option} {path} cannot be written: {reason}; name another file")


def _refusal(path: Path) -> str | None:
    """Why no file can be written at `path`, None if one can."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if path.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be written in {folder}"
    return "the file that is there may not be changed" if path.exists() and not os.access(path, os.W_OK) else None


def save_plot(figure: Figure, plot: Path | None, name: str) -> None:
    """Write a figure where it is wanted, or else under .flashlite in the working folder if that can be written."""
    from flashlite import plots

    place = plot or Path(".flashlite") / f"{name}.png"
    if plot is None and (reason := _refusal(place)):
        print(f"no plot, because {reason}: name a file with --plot")
    else:
        print(f"plot: {plots.save(figure, place)}")


def write_json(path: Path | None, value: Any) -> None:
    """Write a result to a file, or for the name - to stdout; nowhere if no file was asked for."""
    if str(path) == "-":
        print(json.dumps(value))
    elif path is not None:
        from flashlite.storage.atomic import write_file

        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(value, indent=1) + "\n")


def open_store(model: str, dtype: str | None = None) -> Any:
    """The store that a model argument means, packed if need be."""
    from flashlite.storage.find import open_model

    return open_model(model, dtype)
