"""The commands that train and that measure training: train-predictor, eval, relufy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashlite.arguments import is_store
from flashlite.cli import calibrate, checks, unsolved
from flashlite.cli.options import (
    MORE_FILES,
    DtypeOption,
    ImplOption,
    JsonOption,
    ModelArgument,
    PlotOption,
    PredictorOption,
    RevisionOption,
    SeedOption,
    StoreArgument,
    TextOption,
    check_outputs,
    checked,
    open_store,
    show_json,
    show_plot,
    show_progress,
    show_table,
    words_beside_json,
)  # fmt: skip
from flashlite.cli.training_progress import training_progress
from flashlite.course import plug
from flashlite.errors import FlashliteError

if TYPE_CHECKING:
    from torch import Tensor

    from flashlite.storage.tokenizer import Speaker

HELD_OUT_TOKENS = 32_768  # the most that are read of files that are held out
HeldOutOption = Annotated[
    list[Path] | None, typer.Option("--held-out", help="files to measure on; the last tenth of --text if not given")
]
OriginalOption = Annotated[
    str | None,
    typer.Option(
        "--original", help="what a store in int8 was rounded from, to compare with",
        callback=checked(checks.check_model),
    ),
]  # fmt: skip
RunBudgetOption = Annotated[
    str | None,
    typer.Option(
        "--dram-budget",
        help="what the model will have: ranks are chosen so that a token reads least in it",
        callback=checked(checks.check_budget),
    ),
]
CheckpointArgument = Annotated[
    str, typer.Argument(help="a checkpoint folder or a hub id", callback=checked(checks.check_model))
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("train-predictor", context_settings=MORE_FILES)(train_predictor)
    app.command(context_settings=MORE_FILES)(calibrate.calibrate)
    app.command("eval", context_settings=MORE_FILES)(words_beside_json(evaluate))
    app.command(context_settings=MORE_FILES)(words_beside_json(relufy))


def train_predictor(
    context: typer.Context,
    store: StoreArgument,
    text: TextOption,
    held_out: HeldOutOption = None,
    recall: Annotated[float, typer.Option(help="share of firing neurons to predict", min=0.5, max=0.9999)] = 0.97,
    tokens: Annotated[int, typer.Option(help="most tokens to train on", min=1)] = 100_000,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option(help="of training, for each layer and rank", min=1)] = 800,
    budget: RunBudgetOption = None,
    out: Annotated[Path | None, typer.Option(help="the file to write in place of the store's own predictor")] = None,
    impl: ImplOption = "ref",
) -> None:
    """Train the low-rank predictors that say which neurons will fire, and write them into the store.

    What exercises train goes to --out, never into a store that the engine's own code packed. Several processes share
    the layers: torchrun --nproc-per-node N -m flashlite train-predictor ...
    """
    texts, target = _texts(context, text, held_out), out or store / "predictor.safetensors"
    checks.check_file(target, str(target))
    unsolved.check_solved(impl, unsolved.TRAIN | (unsolved.CHOOSE if budget else set()))
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.storage.find import check_apart
    from flashlite.storage.store import Store
    from flashlite.training.distributed import joined
    from flashlite.training.train_predictor import train_predictors

    if plugged.plugs:
        check_apart(target)
    opened = Store(store)
    windows, test = _windows(texts, held_out, opened, tokens)
    with joined() as group:
        predictors = train_predictors(opened, windows, test, recall, seed, show_progress, steps, group, budget)
    if not group.first:
        return
    predictors.save(target)
    show_table(tables.predictor_table(list(predictors.reports)))
    plugged.show_calls()


def evaluate(
    context: typer.Context,
    model: ModelArgument,
    text: TextOption,
    tokens: Annotated[int, typer.Option(help="most tokens to read", min=1)] = 50_000,
    predictor: PredictorOption = "auto",
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    original: OriginalOption = None,
    json_file: JsonOption = None,
) -> None:
    """Perplexity of the dense model and of the predicted one, and how good each layer's predictor is, on a text.

    With --dtype int8 the model is compared with itself in its own dtype, which is packed too if need be.
    """
    texts = [*text, *map(Path, context.args)]
    checks.check_texts(texts)
    check_outputs(json_file, None)
    from flashlite.bench import tables
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.evaluate import evaluate as measure_predictors

    opened = open_store(model, dtype, revision)
    if original is None and opened.quantized and not is_store(model):
        original = model
    beside = open_store(original, None, revision) if original else None
    result = measure_predictors(opened, token_windows(read_files(texts), opened, tokens), predictor, beside)
    show_table(tables.predictor_table(list(result.layers)))
    change = result.predicted_perplexity / result.dense_perplexity - 1
    print(
        f"perplexity on {result.tokens} tokens: dense {result.dense_perplexity:.4f}, "
        f"predicted {result.predicted_perplexity:.4f} ({change:+.2%})"
    )
    if beside is not None and (before := result.original_perplexity) is not None:
        rounded, change = result.dense_perplexity, result.dense_perplexity / before - 1
        print(f"dense in {opened.dtype_name} {rounded:.4f}, in {beside.dtype_name} {before:.4f} ({change:+.2%})")
    show_json(json_file, result.to_json())


def relufy(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(help="the checkpoint to write, a folder")],
    text: TextOption,
    held_out: HeldOutOption = None,
    steps: Annotated[int, typer.Option(help="of training", min=1)] = 1000,
    batch: Annotated[int, typer.Option(help="texts of at most 512 tokens in a step, of all processes", min=1)] = 16,
    lr: Annotated[float, typer.Option(help="highest learning rate", min=0.0)] = 3e-4,
    zeros: Annotated[float, typer.Option(help="share of neurons that should be zero", min=0.0, max=0.99)] = 0.9,
    every: Annotated[int, typer.Option(help="steps between two measurements, and saved states", min=1)] = 100,
    tokens: Annotated[int, typer.Option(help="most tokens to read", min=1)] = 10_000_000,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    json_file: JsonOption = None,
    plot: PlotOption = None,
) -> None:
    """Give a SiLU or GELU model ReLU, train it on until it speaks again, and write it as a checkpoint that can stream.

    Broken off, the same command goes on where it was. Several processes: torchrun --nproc-per-node N -m flashlite ...
    """
    texts = _texts(context, text, held_out)
    checks.check_new_folder(out, False, "choose another name")
    check_outputs(json_file, plot)
    from flashlite.bench import tables
    from flashlite.families.known import ACTIVATIONS
    from flashlite.storage.hub import find_checkpoint
    from flashlite.training import relufy as training
    from flashlite.training.distributed import joined
    from flashlite.training.train_model import Recipe

    opened = training.open_to_relufy(find_checkpoint(checkpoint, revision))
    windows, test = _windows(texts, held_out, training.Speaker(opened.folder, opened.settings), tokens)
    recipe = Recipe(steps, batch, windows.shape[1], lr, zeros=zeros, seed=seed, every=every)
    if training.state_of(out).exists():
        show_progress(f"going on from what {training.state_of(out)} holds")
    if training.activation_of(opened) in ACTIVATIONS:
        show_progress(f"{training.activation_of(opened)} streams already, so nothing is replaced: training on alone")
    with joined() as group, training_progress(group.first, steps) as (tell, measured):
        result = training.relufy(opened, out, windows.flatten(), test, recipe, group, tell, measured)
    if not group.first:
        return
    show_table(tables.zeros_table(result.log))
    print(tables.relufied_line(result))
    try:
        show_plot(lambda plots: plots.relufication(result), plot, "relufy")
    finally:
        show_json(json_file, result.to_json())


def _texts(context: typer.Context, text: list[Path], held_out: list[Path] | None) -> list[Path]:
    """The files of --text, looked at together with those of --held-out. Raises FlashliteError."""
    if held_out and context.args:  # which of the two they belong to can't be told
        raise FlashliteError(f"beside --held-out each file needs its option: --text or --held-out {context.args[0]}")
    texts = [*text, *map(Path, context.args)]
    checks.check_texts([*texts, *(held_out or [])])
    return texts


def _windows(texts: list[Path], held_out: list[Path] | None, speaker: Speaker, tokens: int) -> tuple[Tensor, Tensor]:
    """Windows of tokens to train on, at most `tokens`, and windows to measure on, which are the last tenth of the text
    if no file is held out: [windows, length] each. Raises FlashliteError if there is too little text."""
    from flashlite.storage.tokenizer import read_files, token_windows

    windows = token_windows(read_files(texts), speaker, tokens)
    if held_out:
        return windows, token_windows(read_files(held_out), speaker, HELD_OUT_TOKENS)
    share = max(2, len(windows) // 10)
    if len(windows) <= share:
        raise FlashliteError(f"{windows.numel()} tokens are too few to train and to measure on: give more text")
    return windows[:-share], windows[-share:]
