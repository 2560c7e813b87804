"""The commands about stores: pack, synth, verify, card, stores."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from flashlite.arguments import Dtype
from flashlite.cli import checks, unsolved
from flashlite.cli.options import (
    DtypeOption,
    ImplOption,
    LayoutOption,
    ModelArgument,
    OutArgument,
    RevisionOption,
    SeedOption,
    StoreArgument,
    checked,
    show_progress,
    show_table,
)  # fmt: skip
from flashlite.course import plug
from flashlite.errors import FlashliteError
from flashlite.storage import shelf

if TYPE_CHECKING:
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.store import Store

CARD = "README.md"
Repository = Annotated[
    str | None, typer.Option("--repo", help="the hub id that it is to have", callback=checked(checks.check_repository))
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (pack, verify, stores, card, synth):
        app.command()(command)


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
    unsolved.check_solved(impl, unsolved.of_pack(layout, dtype))
    plugged = plug.plug_in(impl)
    from flashlite.storage.find import check_apart
    from flashlite.storage.pack import pack as pack_model

    if plugged.plugs:
        check_apart(out)
    layouts = tuple(layout.split(","))
    store = pack_model(model, out, dtype, layouts, force, show_progress, revision, plugged.names)
    print(f"{store.path}: {store.layers} layers, {store.weight_bytes / 1e6:.1f} MB of weights as {store.dtype_name}")
    plugged.show_calls()


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


def verify(
    store: Annotated[
        str, typer.Argument(help="a store, or the hub id of one", callback=checked(checks.check_store_name))
    ],
    revision: RevisionOption = None,
) -> None:
    """Read every byte of a store and compare it with its checksums."""
    from flashlite.storage.find import find_store

    _verified(find_store(store, revision))
    print(f"{store} is complete and unaltered")


def _verified(store: Store) -> PredictorSet | None:
    """The predictors of a store, if it has any, once every byte was compared. Raises FlashliteError if one differs."""
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.store import PREDICTOR

    store.verify()
    return PredictorSet.load(store) if (store.path / PREDICTOR).exists() else None


def card(
    store: StoreArgument,
    repo: Repository = None,
    force: Annotated[bool, typer.Option("--force", help="replace a README.md that exists")] = False,
) -> None:
    """Write a store's model card, its README.md on a hub, and say how to upload both.

    All that the card says is read off the store, which is compared with its checksums first.
    """
    path = store / CARD
    if path.exists() and not force:
        raise FlashliteError(f"{path} exists already: replace it with --force")
    checks.check_file(path, str(path))
    from flashlite.bench.tables import model_card
    from flashlite.storage.atomic import write_file
    from flashlite.storage.store import Store

    opened = Store(store)
    write_file(path, model_card(opened, _verified(opened), repo))
    print(f"{path}: to upload it with the store, run `hf upload {repo or 'USER/NAME'} {store} . --exclude '.*'`")


def stores(
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="NAME", help="remove this one, by its name in the list")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="remove without asking")] = False,
) -> None:
    """List the packed models in the cache, and what packs that were broken off have left there, or remove some.

    What a process is writing is never removed. Downloads of the hub are in the hub's own cache: see `hf cache`.
    """
    if remove:
        _remove([shelf.find(name) for name in dict.fromkeys(remove)], yes)
    elif found := shelf.entries():
        _show(found)
    else:
        print(f"no packed models in {shelf.shelf()}")


def _show(found: list[shelf.Entry]) -> None:
    rows = [
        [entry.name, entry.dtype, f"{entry.nbytes / 1e6:.1f}", f"{datetime.fromtimestamp(entry.made):%Y-%m-%d %H:%M}",
         "trained" if entry.predictor else "", "; ".join(entry.notes)]
        for entry in found
    ]  # fmt: skip
    from flashlite.bench import tables

    show_table(tables.Table(["name", "dtype", "MB", "made", "predictor", "notes"], rows))
    print(f"{len(found)} in {shelf.shelf()}, {sum(entry.nbytes for entry in found) / 1e6:.1f} MB")


def _remove(entries: list[shelf.Entry], yes: bool) -> None:
    """Remove entries, each after a question unless `yes`. Raises FlashliteError before anything is removed if one is
    being written, or if nobody can be asked."""
    for entry in entries:
        shelf.check_removable(entry)
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        raise FlashliteError("there is no terminal at which --remove could ask: remove without asking by --yes")
    for entry in entries:
        size = f"{entry.nbytes / 1e6:.1f} MB"
        if yes or typer.confirm(f"remove {entry.name}, {size}?", err=True):
            shelf.remove(entry)
            print(f"{entry.name} is removed: {size}")
        else:
            print(f"{entry.name} stays")
