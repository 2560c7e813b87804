"""What the commands share: their common options, the two screens, files of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flashlite.errors import FlashliteError

screen, notes = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="opt-mini, a hub id, a checkpoint folder or a store")]
TextOption = Annotated[list[Path], typer.Option("--text", help="text files: --text a.py b.py", show_default=False)]
MORE_FILES = {"allow_extra_args": True}  # a shell expands --text *.py to several words
JsonOption = Annotated[Path | None, typer.Option("--json", help="write the result to this file")]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="write the figure to this file")]
BudgetOption = Annotated[str, typer.Option("--dram-budget", help='bytes, "4GiB", or a share of the weights')]
WindowOption = Annotated[
    str, typer.Option("--window", help="tokens whose neurons stay in DRAM, or auto: as many as the budget has room for")
]
VerifyOption = Annotated[
    bool, typer.Option("--verify-reads", help="compare what is read with its checksums: about a tenth slower")
]
PredictorOption = Annotated[str, typer.Option("--predictor", help="trained or oracle")]
ImplOption = Annotated[str, typer.Option("--impl", help="whose code runs: ref, mine, solutions, or ref,ex03=mine")]


def parse_window(text: str) -> int | str:
    """What --window means: a number of tokens, or "auto". Raises FlashliteError if malformed."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise FlashliteError(f"--window {text!r} is not understood: write a number of tokens, or auto") from None


def show_progress(line: str) -> None:
    """A line on the error stream: what is being done."""
    notes.print(line, style="dim", highlight=False)


def write_json(path: Path | None, value: Any) -> None:
    """Write a result to a file, if one was asked for."""
    if path is not None:
        from flashlite.storage.atomic import write_file

        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(value, indent=1) + "\n")


def open_store(model: str, dtype: str | None = None) -> Any:
    """The store that a model argument means, packed if need be."""
    from flashlite.storage.find import open_model

    return open_model(model, dtype)
