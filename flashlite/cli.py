"""The command line: flashlite --help."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flashlite.course import commands, plug
from flashlite.errors import FlashliteError

app = typer.Typer(
    help="Run a language model larger than memory by streaming its weights from flash.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
screen, notes = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="opt-mini, a hub id, a checkpoint folder or a store")]
TextOption = Annotated[list[Path], typer.Option("--text", help="text files: --text a.py b.py", show_default=False)]
MORE_FILES = {"allow_extra_args": True}  # a shell expands --text *.py to several words
JsonOption = Annotated[Path | None, typer.Option("--json", help="write the result to this file")]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="write the figure to this file")]
BudgetOption = Annotated[str, typer.Option("--dram-budget", help='bytes, "4GiB", or a share of the weights')]
WindowOption = Annotated[int, typer.Option("--window", help="tokens whose neurons stay in DRAM")]
PredictorOption = Annotated[str, typer.Option("--predictor", help="trained or oracle")]
ImplOption = Annotated[str, typer.Option("--impl", help="whose code runs: ref, mine, solutions, or ref,ex03=mine")]

commands.register(app)


def _progress(line: str) -> None:
    notes.print(line, style="dim", highlight=False)


def _write_json(path: Path | None, value: Any) -> None:
    if path is not None:
        from flashlite.files import write_file

        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(value, indent=1) + "\n")


def _open(model: str, dtype: str | None = None) -> Any:
    from flashlite.model import home
    from flashlite.packing import open_model

    return open_model(model, home() / "stores", dtype)


@app.command()
def probe(
    folder: Annotated[Path, typer.Argument(help="a folder on the drive to measure")] = Path("."),
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure what the drive can do: read sizes against reads in flight."""
    from flashlite import plots, tables
    from flashlite.probe import probe as measure

    curve = measure(folder)
    screen.print(tables.curve_table(curve))
    print(f"sequential {curve.sequential_mb_s:.0f} MB/s; backend {curve.backend}, grid of {curve.alignment} bytes")
    print(f"plot: {plots.save(plots.drive_curve(curve), plot or Path('.flashlite/probe.png'))}")
    _write_json(json_file, curve.to_json())
    print(json.dumps(curve.to_json()))


@app.command()
def pack(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="the store to write, a folder")],
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; fp32 is exact for every published OPT")] = "fp32",
    layout: Annotated[str, typer.Option(help="bundled, split, or both")] = "bundled,split",
    force: Annotated[bool, typer.Option("--force", help="replace a store that exists")] = False,
) -> None:
    """Write a model to flash in the form that streaming needs, one tensor at a time."""
    from flashlite.packing import pack as pack_model

    store = pack_model(model, out, dtype, tuple(layout.split(",")), force, _progress)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of weights as {store.dtype_name}")


@app.command()
def synth(
    name: Annotated[str, typer.Argument(help="a published OPT, such as opt-1.3b or opt-6.7b")],
    out: Annotated[Path, typer.Argument(help="the store to write, a folder")],
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "bf16",
    layout: Annotated[str, typer.Option(help="bundled, split, or both")] = "bundled,split",
    seed: int = 0,
) -> None:
    """Write a model of a published size with planted sparsity: real reads and products, noise for text."""
    from flashlite import tables
    from flashlite.synth import synth as plant

    store = plant(name, out, dtype, tuple(layout.split(",")), seed, _progress)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of planted weights as {dtype}")
    print(tables.planted_line(store.manifest["planted"]))


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="a store")]) -> None:
    """Read every byte of a store and compare it with its checksums."""
    from flashlite.store import Store

    opened = Store(store)
    opened.verify()
    print(f"{store} is complete and unaltered")


@app.command("train-predictor", context_settings=MORE_FILES)
def train_predictor(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(help="a store; the predictor is written into it")],
    text: TextOption,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="files to calibrate and report on; the last tenth of --text if not given")
    ] = None,
    recall: Annotated[float, typer.Option(help="share of firing neurons to predict", min=0.5, max=0.9999)] = 0.97,
    tokens: Annotated[int, typer.Option(help="most tokens to train on")] = 100_000,
    seed: int = 0,
) -> None:
    """Train the low-rank predictors that say which neurons will fire."""
    from flashlite import tables
    from flashlite.store import PREDICTOR, Store
    from flashlite.text import read_files, token_windows
    from flashlite.train_predictor import train_predictors

    opened = Store(store)
    windows = token_windows(read_files([*text, *map(Path, context.args)]), opened, tokens)
    if held_out:
        test = token_windows(read_files(held_out), opened, 32_768)
    else:
        share = max(2, len(windows) // 10)
        if len(windows) <= share:
            raise FlashliteError(f"{windows.numel()} tokens are too few to train and to calibrate on: give more text")
        windows, test = windows[:-share], windows[-share:]
    predictors = train_predictors(opened, windows, test, recall, seed, _progress)
    predictors.save(opened.path / PREDICTOR)
    screen.print(tables.predictor_table(list(predictors.reports)))


@app.command("eval", context_settings=MORE_FILES)
def evaluate(
    context: typer.Context,
    store: ModelArgument,
    text: TextOption,
    tokens: Annotated[int, typer.Option(help="most tokens to read")] = 50_000,
    json_file: JsonOption = None,
) -> None:
    """Perplexity of the dense model and of the predicted one, and how good each layer's predictor is."""
    from flashlite import tables
    from flashlite.evaluate import evaluate as measure
    from flashlite.predictor import PredictorSet
    from flashlite.store import PREDICTOR
    from flashlite.text import read_files, token_windows

    opened = _open(store)
    reports = PredictorSet.load(opened.path / PREDICTOR, opened.layers, opened.shape).reports
    result = measure(opened, token_windows(read_files([*text, *map(Path, context.args)]), opened, tokens))
    screen.print(tables.predictor_table(list(reports)))
    change = result.predicted_perplexity / result.dense_perplexity - 1
    print(
        f"perplexity on {result.tokens} tokens: dense {result.dense_perplexity:.4f}, "
        f"predicted {result.predicted_perplexity:.4f} ({change:+.2%})"
    )
    _write_json(json_file, {**vars(result), "layers": [vars(report) for report in reports]})


@app.command()
def run(
    model: ModelArgument = "opt-mini",
    prompt: Annotated[str, typer.Option(help="text to continue")] = "def add(a, b):",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    stage: Annotated[int, typer.Option(help="of the ladder, 0 to 6")] = 5,
    dram_budget: BudgetOption = "50%",
    predictor: PredictorOption = "trained",
    window: WindowOption = 5,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    impl: ImplOption = "ref",
) -> None:
    """Continue a prompt, token by token, with the weights on flash."""
    plugs, _ = plug.plug_in(impl)
    from transformers import TextStreamer

    from flashlite import tables
    from flashlite.bench import check_stage
    from flashlite.model import load
    from flashlite.text import load_tokenizer

    store = _open(model, dtype)
    tokenizer = load_tokenizer(store)
    inputs = tokenizer(prompt or tokenizer.bos_token, return_tensors="pt", return_token_type_ids=False)
    if plugs:
        check_stage(store, stage, dram_budget, window, plug.command(plugs, "flashlite.worker"))
    longest = store.config.max_position_embeddings - inputs["input_ids"].shape[1]
    if longest < 1:
        raise FlashliteError(f"the prompt fills all {store.config.max_position_embeddings} positions: shorten it")
    flash_model = load(store, dram_budget=dram_budget, stage=stage, predictor=predictor, window=window)
    began = time.perf_counter()
    flash_model.generate(
        **inputs, max_new_tokens=min(max_new_tokens, longest), do_sample=False, streamer=TextStreamer(tokenizer)
    )
    engine = flash_model.flash
    print(tables.token_line(engine.calls, engine.budget.total, time.perf_counter() - began))


@app.command()
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
    impl: ImplOption = "ref",
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Measure the ladder, each stage in a fresh process and checked against the dense model first."""
    plugs, plugged = plug.plug_in(impl)
    from flashlite import plots, tables
    from flashlite.bench import bench as measure
    from flashlite.stages import parse_stages

    result = measure(
        _open(model, dtype), stages=parse_stages(stages), tokens=tokens, prompt_tokens=prompt_tokens,
        budget=dram_budget, window=window, predictor=predictor, rounds=rounds, capped=memory_cap, peers=peers,
        slow_tokens=slow_tokens, check_tokens=check_tokens, progress=_progress,
        worker=plug.command(plugs, "flashlite.worker"),
    ) | {"impl": impl, "plugged": plugged}  # fmt: skip
    first, *rest = tables.summary_lines(result)
    print(first)
    screen.print(tables.ladder_table(result))
    print("\n".join(rest))
    print(f"plot: {plots.save(plots.ladder(result), plot or Path('.flashlite/bench.png'))}")
    _write_json(json_file, result)
    print(json.dumps(result))


def main() -> None:
    """Run the command line; an error that flashlite foresees is one line and exit code 1."""
    try:
        app()
    except FlashliteError as error:
        print(f"flashlite: {error}", file=sys.stderr)
        sys.exit(1)
    except NotImplementedError as error:  # a stub of the course
        print(f"flashlite: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if not (line := plug.own_line(error)):
            raise
        print(f"flashlite: {line}{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
