"""The commands that measure: probe, bench, estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashlite.arguments import BUNDLED_NAMES, Dtype, parse_stages, parse_window, stage_number
from flashlite.cli import unsolved
from flashlite.cli.checks import check_exercises, check_policy, check_stages
from flashlite.cli.options import (
    BudgetOption,
    DeviceOption,
    DtypeOption,
    FolderArgument,
    ImplOption,
    JsonOption,
    ModelArgument,
    PlotOption,
    PredictorOption,
    RevisionOption,
    StagesOption,
    VerifyOption,
    WindowOption,
    check_outputs,
    notes,
    open_store,
    show_json,
    show_plot,
    show_progress,
    show_table,
    words_beside_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from flashlite.bench.result import Result


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (probe, bench, estimate):
        app.command()(words_beside_json(command))


def probe(
    folder: FolderArgument = Path("."), json_file: JsonOption = None, plot: PlotOption = None, impl: ImplOption = "ref"
) -> None:
    """Measure what the drive can do: read sizes against reads in flight."""
    check_outputs(json_file, plot)
    unsolved.check_solved(impl, unsolved.PROBE)
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.drive.probe import check_folder
    from flashlite.drive.probe import probe as measure_drive

    check_folder(folder)
    curve = measure_drive(folder)
    show_table(tables.curve_table(curve))
    print(f"sequential {curve.sequential_mb_s:.0f} MB/s; backend {curve.backend}, grid of {curve.alignment} bytes")
    plugged.show_calls()
    try:
        show_plot(lambda plots: plots.drive_curve(curve), plot, "probe")
    finally:
        show_json(json_file, curve.to_json())


def bench(
    model: ModelArgument = "opt-mini",
    stages: StagesOption = "0-6",
    tokens: Annotated[int, typer.Option(help="to generate", min=8)] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 32,
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    dram_budget: BudgetOption = "50%",
    window: WindowOption = "5",
    predictor: PredictorOption = "auto",
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
    device: DeviceOption = "cpu",
    wide: Annotated[bool, typer.Option("--wide", help="show all columns, in more than 80 characters")] = False,
    impl: ImplOption = "ref",
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure the ladder, each stage in a fresh process and checked against the dense model first.

    When it is interrupted, it shows the stages that are complete.
    """
    numbers, window_tokens = parse_stages(stages), parse_window(window)
    check_outputs(json_file, plot)
    check_policy(impl, numbers)
    unsolved.check_solved(impl, unsolved.of_stages(numbers, dtype) | unsolved.COST_MODEL)
    plugged = plug.plug_in(impl, model, dtype, revision)
    from flashlite.bench import ladder
    from flashlite.engine.device.place import place_of
    from flashlite.engine.predictors.choice import automatic

    place_of(device).check_dtype(dtype)  # before anything is packed
    store = open_store(plugged.model, dtype, plugged.revision)
    check_exercises(store, plugged)
    if predictor == "auto" and max(numbers) >= stage_number("predictor"):
        predictor = automatic(store)
    check_stages(store, numbers, dram_budget, predictor, window_tokens, device)
    try:
        result = ladder.bench(
            store, stages=numbers, tokens=tokens, prompt_tokens=prompt_tokens, budget=dram_budget, window=window_tokens,
            predictor=predictor, rounds=rounds, capped=memory_cap, peers=peers, slow_tokens=slow_tokens,
            check_tokens=check_tokens, verify_reads=verify_reads, device=device,
            progress=show_progress, worker=plugged.command("flashlite.bench.measure_one"),
        )  # fmt: skip
    except ladder.Interrupted as interrupted:
        _show_complete(interrupted.result, len(set(numbers)), wide)
        raise typer.Exit(130) from None
    result = replace(result, impl=impl, plugged=plugged.lines, calls=plugged.total())
    _show_ladder(result, wide)
    plugged.show_calls()
    try:
        show_plot(lambda plots: plots.ladder(result), plot, "bench")
    finally:
        show_json(json_file, result.to_json())


def _show_ladder(result: Result, wide: bool) -> None:
    """The tables of a benchmark, and the lines around them."""
    from flashlite.bench import tables

    first, *rest = tables.summary_lines(result)
    print(first)
    show_table(tables.ladder_table(result, wide))
    if result.peers:
        show_table(tables.peer_table(result, wide))
    print("\n".join([tables.LEGEND, *rest]))


def _show_complete(result: Result | None, wanted: int, wide: bool) -> None:
    """What an interrupted benchmark has of the stages that were wanted."""
    if result:
        _show_ladder(result, wide)
    complete = len(result.stages) if result else 0
    notes.print(f"interrupted: {complete} of {wanted} stages are complete", highlight=False)


def estimate(
    name: Annotated[str, typer.Argument(help="a published model, such as opt-6.7b or falcon-7b, or opt-mini")],
    folder: FolderArgument = Path("."),
    drive: Annotated[str | None, typer.Option(help="only this published drive, by a part of its name")] = None,
    dtype: Annotated[Dtype, typer.Option(help="of the weights")] = "bf16",
    against: Annotated[Path | None, typer.Option(help="a result of bench --json, to check the estimate with")] = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
    impl: ImplOption = "ref",
) -> None:
    """What a token of a model would take on this drive and on published ones, without running the model."""
    check_outputs(json_file, plot)
    unsolved.check_solved(impl, unsolved.ESTIMATE)
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.drive.probe import check_folder
    from flashlite.drive.probe import probe as measure_drive
    from flashlite.drive.published import DRIVES, find_drive
    from flashlite.families.published import check_published

    if name not in BUNDLED_NAMES:
        check_published(name)
    drives = [find_drive(drive)] if drive else DRIVES
    curves = {f"{d.kind}: {d.name}": d.curve() for d in drives}
    measured = _read_result(against, name, dtype) if against else None
    if measured:
        curves = {tables.MEASURED_DRIVE: measured.curve, **curves}
    if not drive:
        check_folder(folder)
        curves = {"this drive": measure_drive(folder), **curves}

    from flashlite.bench.estimate import estimate as predict

    result = predict(name, curves, dtype)
    show_table(tables.estimate_table(result, measured))
    print("\n".join(tables.drive_lines(drives)))
    plugged.show_calls()
    try:
        show_plot(lambda plots: plots.estimates(result, measured), plot, "estimate")
    finally:
        show_json(json_file, result)


def _read_result(path: Path, name: str, dtype: str) -> Result:
    """A result of bench of the same model. Raises FlashliteError if the file is not one."""
    from flashlite.bench.result import Result

    try:
        result = Result.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, FlashliteError) as error:
        raise FlashliteError(f"{path} is not a result of bench --json: {error}") from None
    if (result.model, result.dtype) != (name, dtype):
        raise FlashliteError(f"{path} is a result of {result.model} {result.dtype}, not of {name} {dtype}")
    return result
