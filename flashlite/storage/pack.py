"""Writing a store: a checkpoint's weights, or what looks like one, in the form that streaming needs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import OPTConfig

from flashlite.arguments import LAYOUTS
from flashlite.drive.direct import direct_alignment
from flashlite.errors import StoreError
from flashlite.families.family import Family
from flashlite.storage.atomic import new_folder, write_file
from flashlite.storage.bundle import FFNShape, pack_bundles, pieces
from flashlite.storage.checkpoint import Checkpoint, find_checkpoint
from flashlite.storage.safetensors_file import DTYPES, Specs, digest_of, new_safetensors
from flashlite.storage.store import (
    CHECKSUMS,
    COPIED,
    FORMAT,
    MANIFEST,
    PREDICTOR,
    RESIDENT,
    Store,
    ffn_file,
    group_of,
    sealed,
)  # fmt: skip
from flashlite.storage.verified import record_checksums


def pack(
    model: str | Path,
    out: Path | str,
    dtype: str = "fp32",
    layouts: tuple[str, ...] = LAYOUTS,
    replace: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Store:
    """Write a checkpoint to `out` as a store, one tensor at a time, and open it.

    model: `opt-mini`, a checkpoint folder or a hub id; dtype: fp32, bf16 or fp16. Raises CheckpointError or StoreError,
    and then leaves nothing behind.
    """
    checkpoint = Checkpoint(find_checkpoint(model))

    def copy_rest(folder: Path) -> dict[str, Any]:
        copy_files(checkpoint.folder, folder, (*COPIED, PREDICTOR))
        return {}

    return write_store(checkpoint, Path(str(model)).name, out, dtype, layouts, copy_rest, replace, progress)


def copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy those of the named files that a folder has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


class Source(Protocol):
    """Where a store's weights come from: a Checkpoint, or what looks like one."""

    family: Family
    opt: OPTConfig
    config: dict[str, Any]
    names: list[str]

    def tensor(self, name: str) -> Tensor:
        """One tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""


def write_store(
    source: Source, name: str, out: Path | str, dtype: str, layouts: tuple[str, ...],
    finish: Callable[[Path], dict[str, Any]], replace: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Store:  # fmt: skip
    """Write weights to `out` as a store called `name`, one tensor at a time, and open it.

    finish: adds what belongs into the folder besides, and returns what belongs into the manifest besides.
    """
    if dtype not in DTYPES or not layouts or not set(layouts) <= set(LAYOUTS):
        raise StoreError(
            f"unknown dtype {dtype!r} or layouts {layouts}: choose from {list(DTYPES)} and {list(LAYOUTS)}"
        )
    out, config = Path(out), source.opt
    if replace and not _may_be_replaced(out):
        raise StoreError(f"{out} is no store, so it isn't replaced: choose another name")
    with new_folder(out, replace) as folder:
        alignment = _grid_of(folder)
        shape = FFNShape(config.ffn_dim, config.hidden_size, DTYPES[dtype].itemsize, alignment)
        files = {RESIDENT: _write_resident(source, folder, DTYPES[dtype], config.num_hidden_layers)}
        files |= _write_ffn(source, folder, DTYPES[dtype], layouts, shape, config.num_hidden_layers, progress)
        more = finish(folder)
        manifest = {
            "format": FORMAT, "name": name, "dtype": dtype, "layouts": list(layouts), "alignment": alignment,
            "config": source.config, "files": files,
            "copied": {f: digest_of(folder / f) for f in COPIED if (folder / f).is_file()},
        }  # fmt: skip
        write_file(folder / MANIFEST, sealed(manifest | more))
        store = Store(folder)
    store.path = out
    return store


def _may_be_replaced(out: Path) -> bool:
    """Whether there is a store, an empty folder or nothing. One look, for other writers may replace it meanwhile."""
    try:
        names = os.listdir(out)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    return not names or MANIFEST in names


def _grid_of(folder: Path) -> int:
    probe = folder / "grid"
    probe.touch()
    grid = direct_alignment(probe)
    probe.unlink()
    return grid


def _write_resident(checkpoint: Source, folder: Path, dtype: torch.dtype, layers: int) -> dict[str, Any]:
    """Returns what the manifest says of the file."""
    ffn = {pattern.format(i) for i in range(layers) for pattern in (checkpoint.family.up, checkpoint.family.down)}
    order = ["embeddings", *(f"layers.{i}" for i in range(layers))]
    names = sorted((n for n in checkpoint.names if n not in ffn), key=lambda n: (order.index(group_of(n)), n))
    with new_safetensors(folder / RESIDENT, {n: (dtype, checkpoint.shape(n)) for n in names}) as writer:
        for name in names:
            writer.write(name, checkpoint.tensor(name).to(dtype))
    return writer.entry


def _write_ffn(
    checkpoint: Source, folder: Path, dtype: torch.dtype, layouts: tuple[str, ...], shape: FFNShape, layers: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Returns what the manifest says of each file."""
    checksums: dict[str, Tensor] = {}
    with contextlib.ExitStack() as open_files:
        files = {
            layout: new_safetensors(folder / ffn_file(layout), _specs(layout, shape, layers)) for layout in layouts
        }
        writers = {layout: open_files.enter_context(file) for layout, file in files.items()}
        for i in range(layers):
            up, down = (
                checkpoint.tensor(name.format(i)).to(dtype) for name in (checkpoint.family.up, checkpoint.family.down)
            )
            for layout, writer in writers.items():
                for piece, rows in _records(layout, up, down, shape).items():
                    writer.write(f"layers.{i}.{piece}", rows)
                    checksums[f"{layout}.layers.{i}.{piece}"] = torch.from_numpy(record_checksums(rows.numpy()))
            progress(f"layer {i + 1} of {layers}")
    entries = {ffn_file(layout): writer.entry for layout, writer in writers.items()}
    return entries | {CHECKSUMS: _write_checksums(folder / CHECKSUMS, checksums)}


def _specs(layout: str, shape: FFNShape, layers: int) -> Specs:
    """What an FFN's file holds."""
    rows = {piece.name: (torch.uint8, (shape.neurons, piece.nbytes)) for piece in pieces(layout, shape)}
    return {f"layers.{i}.{name}": spec for i in range(layers) for name, spec in rows.items()}


def _records(layout: str, up: Tensor, down: Tensor, shape: FFNShape) -> dict[str, Tensor]:
    """A layer's records by piece: [ffn, nbytes] uint8. up: [ffn, d_model]; down: [d_model, ffn]."""
    if layout == "bundled":
        return {"bundle": torch.from_numpy(pack_bundles(up, down, shape.record_bytes))}
    return {"up": up.contiguous().view(torch.uint8), "down": down.T.contiguous().view(torch.uint8)}


def _write_checksums(path: Path, checksums: dict[str, Tensor]) -> dict[str, Any]:
    specs: Specs = {name: (sums.dtype, tuple(sums.shape)) for name, sums in checksums.items()}
    with new_safetensors(path, specs) as writer:
        for name, sums in checksums.items():
            writer.write(name, sums)
    return writer.entry
