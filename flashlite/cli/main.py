"""The command line: flashlite --help."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flashlite.cli import course, measure
from flashlite.cli.options import (
    MORE_FILES,
    BudgetOption,
    ImplOption,
    JsonOption,
    ModelArgument,
    PredictorOption,
    TextOption,
    VerifyOption,
    WindowOption,
    open_store,
    screen,
    show_progress,
    write_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError

app = typer.Typer(
    help="Run a language model larger than memory by streaming its weights from flash.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

measure.register(app)
course.register(app)


@app.command()
def pack(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="the store to write, a folder")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the checkpoint's own if not given")] = None,
    layout: Annotated[str, typer.Option(help="bundled, split, or both")] = "bundled,split",
    force: Annotated[bool, typer.Option("--force", help="replace a store that exists")] = False,
) -> None:
    """Write a model to flash in the form that streaming needs, one tensor at a time."""
    from flashlite.storage.pack import pack as pack_model

    store = pack_model(model, out, dtype, tuple(layout.split(",")), force, show_progress)
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
    from flashlite.bench import tables
    from flashlite.training.planted import synth as plant

    store = plant(name, out, dtype, tuple(layout.split(",")), seed, show_progress)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of planted weights as {dtype}")
    print(tables.planted_line(store.manifest["planted"]))


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="a store")]) -> None:
    """Read every byte of a store and compare it with its checksums."""
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.store import PREDICTOR, Store

    opened = Store(store)
    opened.verify()
    if (opened.path / PREDICTOR).exists():
        PredictorSet.load(opened)
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
    from flashlite.bench import tables
    from flashlite.storage.store import PREDICTOR, Store
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.train_predictor import train_predictors

    opened = Store(store)
    windows = token_windows(read_files([*text, *map(Path, context.args)]), opened, tokens)
    if held_out:
        test = token_windows(read_files(held_out), opened, 32_768)
    else:
        share = max(2, len(windows) // 10)
        if len(windows) <= share:
            raise FlashliteError(f"{windows.numel()} tokens are too few to train and to calibrate on: give more text")
        windows, test = windows[:-share], windows[-share:]
    predictors = train_predictors(opened, windows, test, recall, seed, show_progress)
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
    from flashlite.bench import tables
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.evaluate import evaluate as measure

    opened = open_store(store)
    reports = PredictorSet.load(opened).reports
    result = measure(opened, token_windows(read_files([*text, *map(Path, context.args)]), opened, tokens))
    screen.print(tables.predictor_table(list(reports)))
    change = result.predicted_perplexity / result.dense_perplexity - 1
    print(
        f"perplexity on {result.tokens} tokens: dense {result.dense_perplexity:.4f}, "
        f"predicted {result.predicted_perplexity:.4f} ({change:+.2%})"
    )
    write_json(json_file, {**vars(result), "layers": [vars(report) for report in reports]})


@app.command()
def run(
    model: ModelArgument = "opt-mini",
    prompt: Annotated[str, typer.Option(help="text to continue; an empty one begins a new text")] = "def add(a, b):",
    max_new_tokens: Annotated[int, typer.Option(help="fewer where the model's positions end", min=1)] = 64,
    stage: Annotated[int, typer.Option(help="of the ladder, 0 to 6")] = 5,
    dram_budget: BudgetOption = "50%",
    predictor: PredictorOption = "trained",
    window: WindowOption = 5,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16")] = None,
    verify_reads: VerifyOption = False,
    impl: ImplOption = "ref",
) -> None:
    """Continue a prompt, token by token, with the weights on flash.

    A prompt may hold any valid Unicode; one that isn't UTF-8 or fills the model's positions is refused. With --impl the
    code of exercises runs as any program of yours, without the limits that grading sets.
    """
    plugs, _ = plug.plug_in(impl)
    import torch
    from transformers import TextStreamer

    from flashlite.bench import tables
    from flashlite.bench.ladder import check_stage
    from flashlite.engine.model import load
    from flashlite.storage.tokenizer import encode, load_tokenizer, settings_named

    store = open_store(model, dtype)
    tokenizer = load_tokenizer(store)
    ids = encode(tokenizer, prompt, store)
    if plugs:
        check_stage(store, stage, dram_budget, window, plug.command(plugs, "flashlite.bench.measure_one"))
    longest = store.config.max_position_embeddings - ids.shape[1]
    flash_model = load(
        store, dram_budget=dram_budget, stage=stage, predictor=predictor, window=window, verify_reads=verify_reads
    )
    began = time.perf_counter()
    with settings_named(store):
        flash_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(max_new_tokens, longest), do_sample=False,
            num_beams=1, streamer=TextStreamer(tokenizer),
        )  # fmt: skip
    engine = flash_model.flash
    print(tables.token_line(engine.calls, engine.budget.total, time.perf_counter() - began))


def main() -> None:
    """Run the command line; an error that flashlite foresees is one line and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever a model writes, even where the terminal lacks the letters
        sys.stdout.reconfigure(errors="replace")
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
