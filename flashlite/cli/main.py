"""The command line: flashlite --help."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any, NoReturn

import typer

from flashlite.arguments import Dtype
from flashlite.cli import checks, contest, course, measure, run, train, unsolved
from flashlite.cli.options import (
    DtypeOption,
    ImplOption,
    LayoutOption,
    ModelArgument,
    OutArgument,
    RevisionOption,
    SeedOption,
    StoreArgument,
    show_progress,
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
train.register(app)
course.register(app)
contest.register(app)
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
