"""The commands that measure: probe, bench, estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashlite.cli.options import (
    BudgetOption,
    ImplOption,
    JsonOption,
    ModelArgument,
    PlotOption,
    PredictorOption,
    VerifyOption,
    WindowOption,
    notes,
    open_store,
    save_plot,
    screen,
    show_progress,
    shows_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from flashlite.bench.result import Result


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (probe, bench, estimate):
        app.command()(shows_json(command))


def probe(
    folder: Annotated[Path, typer.Argument(help="a folder on the drive to measure")] = Path("."),
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> dict[str, Any]:
    """Measure what the drive can do: read sizes against reads in flight."""
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.drive.probe import probe as measure

    curve = measure(folder)
    screen.print(tables.curve_table(curve))
    print(f"sequential {curve.sequential_mb_s:.0f} MB/s; backend {curve.backend}, grid of {curve.alignment} bytes")
    save_plot(plots.drive_curve(curve), plot, "probe")
    return curve.to_json()


def bench(
    model: ModelArgument = "opt-mini",
    stages: Annotated[str, typer.Option("--stages", "--stage", help="a range or a list: 0-6, or 0,3,5")] = "0-6",
    tokens: Annotated[int, typer.Option(help="to generate", min=8)] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 32,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    dram_budget: BudgetOption = "50%",
    window: WindowOption = 5,
    predictor: PredictorOption = "trained",
    rounds: Annotated[int, typer.Option(help="processes for each stage", min=1)] = 3,
    memory_cap: Annotated[bool, typer.Option("--memory-cap", help="have the system enforce budget plus base")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="measure what people use today, under the same cap")] = False,
    slow_tokens: Annotated[
        int | None, typer.Option(help="to generate where every weight is read for each; --tokens if not given", min=8)
    ] = None,
    check_tokens: Annotated[
        int | None, typer.Option(help="to compare with the oracle; --tokens if not given", min=1)
    ] = None,
    verify_reads: VerifyOption = False,
    wide: Annotated[bool, typer.Option("--wide", help="show all columns, in more than 80 characters")] = False,
    impl: ImplOption = "ref",
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> dict[str, Any]:
    """Measure the ladder, each stage in a fresh process and checked against the dense model first.

    When it is interrupted, it shows the stages that are complete.
    """
    plugs, plugged = plug.plug_in(impl)
    from flashlite import plots
    from flashlite.bench import ladder
    from flashlite.engine.stages import parse_stages

    numbers = parse_stages(stages)
    try:
        result = ladder.bench(
            open_store(model, dtype), stages=numbers, tokens=tokens, prompt_tokens=prompt_tokens, budget=dram_budget,
            window=window, predictor=predictor, rounds=rounds, capped=memory_cap, peers=peers, slow_tokens=slow_tokens,
            check_tokens=check_tokens, verify_reads=verify_reads, progress=show_progress,
            worker=plug.command(plugs, "flashlite.bench.measure_one"),
        )  # fmt: skip
    except ladder.Interrupted as interrupted:
        if interrupted.result:
            _show_ladder(interrupted.result, wide)
        complete = len(interrupted.result.stages) if interrupted.result else 0
        notes.print(f"interrupted: {complete} of {len(set(numbers))} stages are complete", highlight=False)
        raise typer.Exit(130) from None
    result = replace(result, impl=impl, plugged=plugged)
    _show_ladder(result, wide)
    save_plot(plots.ladder(result), plot, "bench")
    return result.to_json()


def _show_ladder(result: Result, wide: bool) -> None:
    """The tables of a benchmark, and the lines around them."""
    from flashlite.bench import tables

    first, *rest = tables.summary_lines(result)
    print(first)
    screen.print(tables.ladder_table(result, wide))
    if result.peers:
        screen.print(tables.peer_table(result, wide))
    print("\n".join([tables.LEGEND, *rest]))


def estimate(
    name: Annotated[str, typer.Argument(help="a published OPT, such as opt-6.7b")],
    folder: Annotated[Path, typer.Argument(help="a folder on the drive to measure")] = Path("."),
    drive: Annotated[str | None, typer.Option(help="only this published drive, by a part of its name")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "bf16",
    against: Annotated[Path | None, typer.Option(help="a result of bench --json, to check the estimate with")] = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> dict[str, Any]:
    """What a token of a model would take on this drive and on published ones, without running the model."""
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.bench.estimate import estimate as predict
    from flashlite.drive.probe import probe as measure
    from flashlite.drive.published import DRIVES, find_drive

    drives = [find_drive(drive)] if drive else DRIVES
    curves = {f"{d.kind}: {d.name}": d.curve() for d in drives}
    measured = _read_result(against, name, dtype) if against else None
    if measured:
        curves = {tables.MEASURED_DRIVE: measured.curve, **curves}
    if not drive:
        curves = {"this drive": measure(folder), **curves}
    result = predict(name, curves, dtype)
    screen.print(tables.estimate_table(result, measured))
    print("\n".join(tables.drive_lines(drives)))
    save_plot(plots.estimates(result, measured), plot, "estimate")
    return result


def _read_result(path: Path, name: str, dtype: str) -> Result:
    """A result of bench of the same model. Raises FlashliteError if the file holds something else."""
    from flashlite.bench.result import Result

    try:
        result = Result.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, FlashliteError) as error:
        raise FlashliteError(f"{path} is not a result of bench --json: {error}") from None
    if (result.model, result.dtype) != (name, dtype):
        raise FlashliteError(f"{path} is a result of {result.model} {result.dtype}, not of {name} {dtype}")
    return result
