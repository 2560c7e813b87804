"""The commands that measure: probe, bench, estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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
    open_store,
    parse_window,
    screen,
    show_progress,
    write_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (probe, bench, estimate):
        app.command()(command)


def probe(
    folder: Annotated[Path, typer.Argument(help="a folder on the drive to measure")] = Path("."),
    json_file: JsonOption = None,
    plot: PlotOption = None,
    impl: ImplOption = "ref",
) -> None:
    """Measure what the drive can do: read sizes against reads in flight."""
    plugged = plug.plug_in(impl)
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.drive.probe import probe as measure

    curve = measure(folder)
    screen.print(tables.curve_table(curve))
    print(f"sequential {curve.sequential_mb_s:.0f} MB/s; backend {curve.backend}, grid of {curve.alignment} bytes")
    print(f"plot: {plots.save(plots.drive_curve(curve), plot or Path('.flashlite/probe.png'))}")
    write_json(json_file, curve.to_json())
    plugged.show_calls()
    print(json.dumps(curve.to_json()))


def bench(
    model: ModelArgument = "opt-mini",
    stages: Annotated[str, typer.Option("--stages", "--stage", help="a range or a list: 0-6, or 0,3,5")] = "0-6",
    tokens: Annotated[int, typer.Option(help="to generate", min=8)] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 32,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
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
    window_tokens = parse_window(window)
    plugged = plug.plug_in(impl, model, dtype)
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.bench.ladder import bench as measure
    from flashlite.engine.stages import parse_stages

    result = measure(
        open_store(plugged.model, dtype), stages=parse_stages(stages), tokens=tokens, prompt_tokens=prompt_tokens,
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
    folder: Annotated[Path, typer.Argument(help="a folder on the drive to measure")] = Path("."),
    drive: Annotated[str | None, typer.Option(help="only this published drive, by a part of its name")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "bf16",
    against: Annotated[Path | None, typer.Option(help="a result of bench --json, to check the estimate with")] = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
    impl: ImplOption = "ref",
) -> None:
    """What a token of a model would take on this drive and on published ones, without running the model."""
    plugged = plug.plug_in(impl)
    from flashlite import plots
    from flashlite.bench import tables
    from flashlite.bench.estimate import estimate as predict
    from flashlite.drive.probe import Curve
    from flashlite.drive.probe import probe as measure
    from flashlite.drive.published import DRIVES, find_drive

    drives = [find_drive(drive)] if drive else DRIVES
    curves = {f"{d.kind}: {d.name}": d.curve() for d in drives}
    measured = _read_result(against, name, dtype) if against else None
    if measured:
        curves = {tables.MEASURED_DRIVE: Curve.from_json(measured["curve"]), **curves}
    if not drive:
        curves = {"this drive": measure(folder), **curves}
    result = predict(name, curves, dtype)
    screen.print(tables.estimate_table(result, measured))
    print("\n".join(tables.drive_lines(drives)))
    print(f"plot: {plots.save(plots.estimates(result, measured), plot or Path('.flashlite/estimate.png'))}")
    plugged.show_calls()
    write_json(json_file, result)
    print(json.dumps(result))


def _read_result(path: Path, name: str, dtype: str) -> dict[str, Any]:
    """A result of bench of the same model. Raises FlashliteError if it is none."""
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or not {"curve", "stages", "model", "dtype"} <= result.keys():
            raise ValueError("it holds no stages")
        if (result["model"], result["dtype"]) != (name, dtype):
            raise ValueError(f"it is of {result['model']} {result['dtype']}, not of {name} {dtype}")
        return result
    except (OSError, ValueError) as error:
        raise FlashliteError(f"{path} is no result of bench --json: {error}") from None
