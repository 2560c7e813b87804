"""What the commands share: their common options, the two screens, files of results."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from flashlite.arguments import LAST_STAGE, Dtype, PredictorKind, parse_stages, parse_window, stage_number
from flashlite.cli import checks
from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flashlite.bench.tables import Table

# what is wider than the terminal goes on in its next line, and is never cut
screen, notes = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
STDOUT = Path("-")
_stdout: ContextVar[TextIO | None] = ContextVar("_stdout", default=None)  # of a command whose words may go elsewhere


def checked(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """What has an option's value looked at while the command line is read, before the command begins."""

    def callback(value: Any) -> Any:
        if value is not None:
            check(value)
        return value

    return callback


def expanded(path: Path | None) -> Path | None:
    """A path whose ~ is the user's home: a shell leaves that of --json=~/out.json as it is."""
    return None if path is None else Path(os.path.expanduser(path))


ModelArgument = Annotated[
    str, typer.Argument(help="opt-mini, a hub id, a checkpoint folder or a store", callback=checked(checks.check_model))
]
StoreArgument = Annotated[Path, typer.Argument(help="a store", callback=checked(checks.check_store))]
OutArgument = Annotated[Path, typer.Argument(help="the store to write, a folder")]
FolderArgument = Annotated[Path, typer.Argument(help="a folder on the drive to measure")]
TextOption = Annotated[list[Path], typer.Option("--text", help="text files: --text a.py b.py", show_default=False)]
MORE_FILES = {"allow_extra_args": True}  # a shell expands --text *.py to several words
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="write the result to this file, or with - to stdout, as without it where stdout is not a terminal; then "
        "words go to stderr",
        callback=expanded,
    ),
]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="write the figure to this file", callback=expanded)]
BudgetOption = Annotated[
    str,
    typer.Option(
        "--dram-budget", help='bytes, "4GiB", or a share of the weights', callback=checked(checks.check_budget)
    ),
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="of the weights; the checkpoint's own if not given")]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", help="of a hub model: a branch, a tag or a commit"),
]
LayoutOption = Annotated[
    str,
    typer.Option("--layout", help="bundled, split, or bundled,split for both", callback=checked(checks.check_layouts)),
]
StageOption = Annotated[
    str,
    typer.Option("--stage", help=f"of the ladder, 0 to {LAST_STAGE} or by name: pool", callback=checked(stage_number)),
]
StagesOption = Annotated[
    str,
    typer.Option("--stages", "--stage", help="a range or a list: 0-6, or 0,3,pool", callback=checked(parse_stages)),
]
WindowOption = Annotated[
    str,
    typer.Option(
        "--window", help="tokens whose neurons stay in DRAM, or auto: as many as the budget has room for",
        callback=checked(parse_window),
    ),
]  # fmt: skip
SeedOption = Annotated[int, typer.Option("--seed", help="of all that is random", min=0, max=2**63 - 1)]
VerifyOption = Annotated[
    bool, typer.Option("--verify-reads", help="compare what is read with its checksums: about a tenth slower")
]
PredictorOption = Annotated[
    PredictorKind,
    typer.Option("--predictor", help="what says which neurons will fire; auto: trained if there is one, else copy"),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="where weights lie and are multiplied: cpu, cuda, or cuda:1")
]
ImplOption = Annotated[str, typer.Option("--impl", help="whose code runs: ref, mine, solutions, or ref,ex03=mine")]


def show_progress(line: str) -> None:
    """A line on the error stream: what is being done."""
    notes.print(line, style="dim", highlight=False)


def show_table(table: Table) -> None:
    """A table at least as wide as its numbers: a narrow terminal breaks its lines, but cuts no number."""
    screen.print(table)


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Look at where results are to go, before anything is measured. Raises FlashliteError if they can't be written."""
    if json_file is not None and json_file == plot:
        raise FlashliteError(f"--json and --plot both name {plot}: write another name for one of them")
    if json_file is not None and json_file != STDOUT:
        checks.check_file(json_file, f"--json {json_file}")
    if plot is not None:
        checks.check_figure(plot, f"--plot {plot}")
        checks.check_file(plot, f"--plot {plot}")


def words_beside_json(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter json_file: where its JSON goes to stdout, its words go to the error stream."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        token = _stdout.set(sys.stdout)
        try:
            with contextlib.redirect_stdout(sys.stderr if _takes_stdout(kwargs["json_file"]) else sys.stdout):
                command(*args, **kwargs)
        finally:
            _stdout.reset(token)

    return run


def show_json(json_file: Path | None, result: Any) -> None:
    """A result as JSON: into the file that was asked for; else to stdout, if that was asked for by `-` or nobody reads
    along there."""
    if _takes_stdout(json_file):
        print(json.dumps(result), file=_stdout.get() or sys.stdout)
    else:
        write_json(json_file, result)


def _takes_stdout(json_file: Path | None) -> bool:
    return json_file == STDOUT or (json_file is None and not (_stdout.get() or sys.stdout).isatty())


def write_json(path: Path | None, value: Any) -> None:
    """Write a result to a file, if one was asked for."""
    if path is None:
        return
    from flashlite.storage.atomic import write_file

    text = json.dumps(value, indent=1) + "\n"
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # a link, a device or a pipe keeps its place
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashliteError(f"--json {path} cannot be written: {error.strerror}") from None
    write_file(path, text)


def show_plot(draw: Callable[[ModuleType], Figure], plot: Path | None, name: str) -> None:
    """Draw a figure into the file that was asked for, else into .flashlite/NAME.png, and say where it is, or in a line
    why there is none. draw: makes the figure from flashlite.plots, which needs matplotlib.

    Raises FlashliteError if the file that was asked for can't be written.
    """
    path = plot or Path(".flashlite") / f"{name}.png"
    try:
        from flashlite import plots

        print(f"plot: {plots.save(draw(plots), path)}")
    except (ModuleNotFoundError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != "matplotlib":
            raise
        reason = error.strerror if isinstance(error, OSError) else "it needs matplotlib: pip install matplotlib"
        if plot is not None:
            raise FlashliteError(f"--plot {plot} cannot be written: {reason}") from None
        print(f"no plot at {path}: {reason}")


def open_store(
    model: str, dtype: str | None = None, revision: str | None = None,
    check: Callable[[Path], object] = lambda checkpoint: None,
) -> Any:  # fmt: skip
    """The store that a model argument means, packed if need be. check: is given a checkpoint's folder before that."""
    from flashlite.storage.find import open_model

    return open_model(model, dtype, revision, check)
