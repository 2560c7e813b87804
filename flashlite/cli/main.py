"""The command line: flashlite --help."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flashlite.arguments import Dtype
from flashlite.cli import checks, course, measure, run, unsolved
from flashlite.cli.options import (
    MORE_FILES,
    DtypeOption,
    ImplOption,
    JsonOption,
    LayoutOption,
    ModelArgument,
    OutArgument,
    PredictorOption,
    RevisionOption,
    SeedOption,
    StoreArgument,
    TextOption,
    check_outputs,
    open_store,
    show_json,
    show_progress,
    show_table,
    words_beside_json,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError
from flashlite.version import __version__

app = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

UsageError: Any = typer.BadParameter.__base__  # what typer raises of any wrong command line; older typers take click's

measure.register(app)
course.register(app)
app.command()(run.run)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"flashlite {__version__}")
        raise typer.Exit


@app.callback()
def flashlite(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="show the version", callback=_show_version)] = False,
) -> None:
    """Run a language model larger than memory by streaming its weights from flash."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def pack(
    model: ModelArgument,
    out: OutArgument,
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    layout: LayoutOption = "bundled,split",
    force: Annotated[bool, typer.Option("--force", help="replace a store that exists")] = False,
    impl: ImplOption = "ref",
) -> None:
    """Write a model to flash in the form that streaming needs, one tensor at a time.

    What exercises pack says so in its manifest, and never lands where the engine's own code would look for it.
    """
    checks.check_new_folder(out, force, "choose another name, or replace it with --force")
    unsolved.check_solved(impl, unsolved.PACK if "bundled" in layout else set())
    plugged = plug.plug_in(impl)
    from flashlite.storage.find import check_apart
    from flashlite.storage.pack import pack as pack_model

    if plugged.plugs:
        check_apart(out)
    layouts = tuple(layout.split(","))
    store = pack_model(model, out, dtype, layouts, force, show_progress, revision, plugged.names)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of weights as {store.dtype_name}")
    plugged.show_calls()


@app.command()
def synth(
    name: Annotated[str, typer.Argument(help="a published model, such as opt-1.3b, falcon-7b or phi-2")],
    out: OutArgument,
    dtype: Annotated[Dtype, typer.Option(help="of the weights")] = "bf16",
    layout: LayoutOption = "bundled,split",
    seed: SeedOption = 0,
) -> None:
    """Write a model of a published size with planted sparsity: real reads and products, noise for text."""
    from flashlite.families.published import check_published

    check_published(name)
    checks.check_new_folder(out, False, "choose another name")
    from flashlite.bench import tables
    from flashlite.training.planted import synth as plant

    store = plant(name, out, dtype, tuple(layout.split(",")), seed, show_progress)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of planted weights as {dtype}")
    print(tables.planted_line(store.manifest["planted"]))


@app.command()
def verify(store: StoreArgument) -> None:
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
    store: StoreArgument,
    text: TextOption,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="files to calibrate and report on; the last tenth of --text if not given")
    ] = None,
    recall: Annotated[float, typer.Option(help="share of firing neurons to predict", min=0.5, max=0.9999)] = 0.97,
    tokens: Annotated[int, typer.Option(help="most tokens to train on", min=1)] = 100_000,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option(help="of training, for each layer and rank", min=1)] = 800,
    out: Annotated[Path | None, typer.Option(help="the file to write in place of the store's own predictor")] = None,
    impl: ImplOption = "ref",
) -> None:
    """Train the low-rank predictors that say which neurons will fire, and write them into the store.

    What exercises train goes to --out, never into a store that the engine's own code packed.
    """
    if held_out and context.args:  # which of the two they belong to can't be told
        raise FlashliteError(f"beside --held-out each file needs its option: --text or --held-out {context.args[0]}")
    texts, target = [*text, *map(Path, context.args)], out or store / "predictor.safetensors"
    checks.check_texts([*texts, *(held_out or [])])
    checks.check_file(target, str(target))
    unsolved.check_solved(impl, unsolved.TRAIN)
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.storage.find import check_apart
    from flashlite.storage.store import Store
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.train_predictor import train_predictors

    if plugged.plugs:
        check_apart(target)
    opened = Store(store)
    windows = token_windows(read_files(texts), opened, tokens)
    if held_out:
        test = token_windows(read_files(held_out), opened, 32_768)
    else:
        share = max(2, len(windows) // 10)
        if len(windows) <= share:
            raise FlashliteError(f"{windows.numel()} tokens are too few to train and to calibrate on: give more text")
        windows, test = windows[:-share], windows[-share:]
    predictors = train_predictors(opened, windows, test, recall, seed, show_progress, steps)
    predictors.save(target)
    show_table(tables.predictor_table(list(predictors.reports)))
    plugged.show_calls()


@app.command("eval", context_settings=MORE_FILES)
@words_beside_json
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    text: TextOption,
    tokens: Annotated[int, typer.Option(help="most tokens to read", min=1)] = 50_000,
    predictor: PredictorOption = "auto",
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    json_file: JsonOption = None,
) -> None:
    """Perplexity of the dense model and of the predicted one, and how good each layer's predictor is, on a text."""
    texts = [*text, *map(Path, context.args)]
    checks.check_texts(texts)
    check_outputs(json_file, None)
    from flashlite.bench import tables
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.evaluate import evaluate as measure_predictors

    opened = open_store(model, dtype, revision)
    result = measure_predictors(opened, token_windows(read_files(texts), opened, tokens), predictor)
    show_table(tables.predictor_table(list(result.layers)))
    change = result.predicted_perplexity / result.dense_perplexity - 1
    print(
        f"perplexity on {result.tokens} tokens: dense {result.dense_perplexity:.4f}, "
        f"predicted {result.predicted_perplexity:.4f} ({change:+.2%})"
    )
    show_json(json_file, result.to_json())


def main() -> None:
    """Run the command line. Whatever flashlite foresees is one line: exit code 2 if the command line itself is wrong, 1
    for anything else."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever a model writes, even where the terminal lacks the letters
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        _fail(_usage(error), error.exit_code)
    except (FlashliteError, NotImplementedError) as error:  # NotImplementedError: a stub of the course
        _fail(str(error))
    except typer.Abort:  # Ctrl-C, in older typers
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if not (line := plug.own_line(error)):
            raise
        _fail(f"{line}{type(error).__name__}: {error}")


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where to read how it is written."""
    said = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{said}: see `{error.ctx.command_path} --help`" if error.ctx else said


def _fail(line: str, code: int = 1) -> NoReturn:
    print(f"flashlite: {line}", file=sys.stderr)
    sys.exit(code)
