"""The contest's command: judge an entry or a class, and record hidden traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from flashlite.cli import checks
from flashlite.cli.options import (
    MORE_FILES,
    PlotOption,
    SeedOption,
    check_outputs,
    checked,
    expanded,
    open_store,
    screen,
    show_plot,
    show_progress,
    show_table,
    write_json,
)  # fmt: skip
from flashlite.course.classroom.state import STATE, read_state, write_text
from flashlite.course.manifest import find_course
from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from flashlite.bench.tables import Table
    from flashlite.contest.judge import Contest, Standing
    from flashlite.contest.leaderboard import Place

Which = Literal["policy", "layout"]
TIME_LIMIT = 120.0  # seconds


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("contest", context_settings=MORE_FILES)(contest)


def contest(
    context: typer.Context,
    which: Annotated[
        Which, typer.Argument(help="policy: which neurons to keep; layout: how they lie on flash")
    ] = "policy",
    entry: Annotated[Path | None, typer.Option(help="judge this file; your exercises/ one if not given")] = None,
    classroom: Annotated[Path | None, typer.Option("--class", help="judge every folder in this one")] = None,
    traces: Annotated[
        Path | None, typer.Option(help="judge on the traces in this folder; the course's if not given")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="with --class: a line a student", callback=expanded)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the result to this file", callback=expanded)
    ] = None,
    plot: PlotOption = None,
    time_limit: Annotated[float, typer.Option(help="seconds for one entry", min=1)] = TIME_LIMIT,
    record: Annotated[Path | None, typer.Option(help="record new traces into this folder, and judge nothing")] = None,
    seed: SeedOption = 0,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="with --record: files of text; held-out Python if not given")
    ] = None,
    tokens: Annotated[int, typer.Option(help="with --record: of each trace", min=8)] = 160,
    count: Annotated[int, typer.Option(help="with --record: how many traces", min=1)] = 4,
    model: Annotated[str, typer.Option(help="with --record: whose traces")] = "opt-mini",
    dram_budget: Annotated[
        str,
        typer.Option(help="with --record: whose room each layer has", callback=checked(checks.check_budget)),
    ] = "60%",
) -> None:
    """The contest: the fewest bytes in the same memory, or the cheapest reads.

    The exit code is 0 only if the entry has a score; for a class it is 0.
    """
    files = [*(text or []), *map(Path, context.args)]
    if record is not None:
        return record_traces(record, seed, files, tokens, count, model, dram_budget)
    if files:
        raise FlashliteError(f"{files[0]} is not understood here: name an entry with --entry, or text with --record")
    if csv_file is not None and classroom is None:
        raise FlashliteError("--csv has a line for each student: write it with --class")
    if entry is not None and classroom is not None:
        raise FlashliteError("--entry judges one file and --class a folder of students: write one of them")
    check_outputs(json_file, plot)
    held = open_contest(which, traces)
    if classroom is not None:
        return judge_class(held, classroom, csv_file or Path(f"contest_{which}.csv"), json_file, plot, time_limit)
    file = entry or find_course().root / "exercises" / held.file
    if not file.is_file():
        raise FlashliteError(f"{file} is missing: name your entry with --entry FILE")
    standing = held.enter(file, time_limit)
    screen.print(
        f"{held.title}: {len(held.traces)} traces, {held.tokens} tokens; entry {escape(_shown(file))}", style="dim"
    )
    show_table(table_of(held, standing))
    said = (
        f"score [bold]{standing.score:.1f}[/bold]"
        if standing.score is not None
        else f"no score: {escape(standing.message)}"
    )
    screen.print(said)
    show_plot(lambda plots: plots.contest(held.drawn(standing), held.ends, held.title, held.shown[1]), plot, "contest")
    write_json(json_file, standing.to_json())
    if entry is None and traces is None and standing.score is not None:
        _note(which, standing.score)
    raise typer.Exit(0 if standing.score is not None else 1)


def _note(which: str, score: float) -> None:
    """Note the score of the course's own entry on the course's own traces, for the report."""
    place = find_course().root / STATE / "contest.json"
    write_text(place, json.dumps(read_state(place) | {which: {"score": score}}, indent=1) + "\n")


def open_contest(which: Which, traces: Path | None) -> Contest:
    """A contest on the traces in a folder, or on the course's own. Raises FlashliteError if there are none."""
    from flashlite.contest.judge import CONTESTS
    from flashlite.contest.traces import public_folder, trace_files

    public = trace_files(public_folder())
    return CONTESTS[which](public if traces is None else trace_files(traces), public)


def table_of(held: Contest, standing: Standing) -> Table:
    """What the baselines and the entry read, with their scores."""
    from flashlite.bench.tables import Table
    from flashlite.contest.referee import score

    columns = list(next(iter(standing.rows.values())).columns)
    zero, hundred = (standing.rows[name].cost for name in held.ends)
    rows = [
        [name, *(f"{value:.3f}" for value in row.columns.values()), f"{score(row.cost, zero, hundred):.1f}"]
        for name, row in standing.rows.items()
    ]
    return Table(["", *columns, "score"], rows, held.title)


def judge_class(
    held: Contest, folder: Path, csv_file: Path, json_file: Path | None, plot: Path | None, time_limit: float
) -> None:
    """Judge a class: a line a student as they are judged, then the leaderboard as table, CSV and figure."""
    from flashlite.bench.tables import Table
    from flashlite.contest.leaderboard import as_csv, play_class
    from flashlite.storage.atomic import write_file

    checks.check_file(csv_file, f"--csv {csv_file}")
    places = play_class(held, folder, time_limit, _say)
    rows = [[place.student, _points(place)] for place in places]
    show_table(Table(["student", "score"], rows, held.title))
    csv_file.parent.mkdir(parents=True, exist_ok=True)
    write_file(csv_file, as_csv(places))
    scores = {place.student: place.standing.score for place in places if place.standing.score is not None}
    if scores:
        show_plot(lambda plots: plots.leaderboard(scores, held.title), plot, "leaderboard")
    write_json(json_file, [{"student": place.student, **place.standing.to_json()} for place in places])
    count = f"{len(places)} {'student' if len(places) == 1 else 'students'}"
    screen.print(f"{count}, {len(held.traces)} traces → {escape(_shown(csv_file))}")


def _say(place: Place) -> None:
    screen.print(f"{escape(place.student):30} {_points(place):>8}  {escape(place.standing.message)}".rstrip())


def _points(place: Place) -> str:
    return "–" if place.standing.score is None else f"{place.standing.score:.1f}"


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def record_traces(
    folder: Path, seed: int, files: list[Path], tokens: int, count: int, model: str, dram_budget: str
) -> None:
    """Record traces into a new folder. Raises FlashliteError before anything slow where they can't be written."""
    checks.check_model(model)
    checks.check_texts(files)
    if folder.exists():
        raise FlashliteError(f"{folder} exists already: name a new folder for the traces")
    checks.check_writable(folder, str(folder))
    from flashlite.contest.record import record, write_traces
    from flashlite.storage.tokenizer import read_files
    from flashlite.training.corpus import corpus

    store = open_store(model)
    texts = read_files(files) if files else corpus(held_out=True)
    traces = record(store, texts, seed, tokens, count, dram_budget, show_progress)
    paths = write_traces(traces, folder)
    screen.print(f"{len(paths)} traces of {tokens} tokens, seed {seed} → {escape(str(folder))}")
