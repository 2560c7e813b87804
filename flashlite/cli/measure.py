"""The commands that measure: probe, bench, estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flashlite.arguments import Dtype, parse_stages, parse_window
from flashlite.cli import unsolved
from flashlite.cli.checks import check_stages
from flashlite.cli.options import (
    BudgetOption,
    DtypeOption,
    FolderArgument,
    ImplOption,
    JsonOption,
    ModelArgument,
    PlotOption,
    PredictorOption,
    StagesOption,
    VerifyOption,
    WindowOption,
    check_outputs,
    open_store,
    screen,
    show_json,
    show_plot,
    show_progress,
    show_table,
    write_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (probe, bench, estimate):
        app.command()(command)


def probe(
    folder: FolderArgument = Path("."), json_file: JsonOption = None, plot: PlotOption = None, impl: ImplOption = "ref"
) -> None:
    """Measure what the drive can do: read sizes against reads in flight."""
    check_outputs(json_file, plot)
    unsolved.check_solved(impl, unsolved.PROBE)
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.drive.probe import check_folder
    from flashlite.drive.probe import probe as measure

    check_folder(folder)
    curve = measure(folder)
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
    dram_budget: BudgetOption = "50%",
    window: WindowOption = "5",
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
    impl: ImplOption = "ref",
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure the ladder, each stage in a fresh process and checked against the dense model first."""
    numbers, window_tokens = parse_stages(stages), parse_window(window)
    unsolved.check_solved(impl, unsolved.of_stages(numbers) | unsolved.COST_MODEL)
    plugged = plug.plug_in(impl, model, dtype)
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.bench.ladder import bench as measure

    store = open_store(plugged.model, dtype)
    check_stages(store, numbers, dram_budget, predictor, window_tokens)
    result = measure(
        store, stages=numbers, tokens=tokens, prompt_tokens=prompt_tokens,
        budget=dram_budget, window=window_tokens, predictor=predictor, rounds=rounds, capped=memory_cap, peers=peers,
        slow_tokens=slow_tokens, check_tokens=check_tokens, verify_reads=verify_reads, progress=show_progress,
        worker=plugged.command("flashlite.bench.measure_one"),
    ) | {"impl": impl, "plugged": plugged.lines, "calls": plugged.total()}  # fmt: skip
    first, *rest = tables.summary_lines(result)
    print(first)
    screen.print(tables.ladder_table(result))
    if peers:
        screen.print(tables.peer_table(result))
    print("\n".join(rest))
    print(f"plot: {plots.save(plots.ladder(result), plot or Path('.flashlite/bench.png'))}")
    plugged.show_calls()
    write_json(json_file, result)
    print(json.dumps(result))


def estimate(
    name: Annotated[str, typer.Argument(help="a published OPT, such as opt-6.7b")],
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
    from flashlite.drive.probe import Curve, check_folder
    from flashlite.drive.probe import probe as measure
    from flashlite.drive.published import DRIVES, find_drive
    from flashlite.families.opt import check_published

    check_published(name)
    drives = [find_drive(drive)] if drive else DRIVES
    curves = {f"{d.kind}: {d.name}": d.curve() for d in drives}
    measured = _read_result(against, name, dtype) if against else None
    if measured:
        curves = {tables.MEASURED_DRIVE: Curve.from_json(measured["curve"]), **curves}
    if not drive:
        check_folder(folder)
        curves = {"this drive": measure(folder), **curves}

    from flashlite.bench.estimate import estimate as predict

    result = predict(name, curves, dtype)
    show_table(tables.estimate_table(result, measured))
    print("\n".join(tables.drive_lines(drives)))
    plugged.show_calls()
    try:
        show_plot(lambda plots: plots.estimates(result, measured), plot, "estimate")
    finally:
        show_json(json_file, result)


def _read_result(path: Path, name: str, dtype: str) -> dict[str, Any]:
    """A result of bench of the same model. Raises FlashliteError if the file is not one."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not {"curve", "stages", "model", "dtype"} <= result.keys():
            raise ValueError("it holds no stages")
        if (result["model"], result["dtype"]) != (name, dtype):
            raise ValueError(f"it is of {result['model']} {result['dtype']}, not of {name} {dtype}")
        result["stages"] = [{"name": row["name"], "total_ms": float(row["total_ms"])} for row in result["stages"]]
        return result
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FlashliteError(f"{path} is not a result of bench --json: {error}") from None
