"""Writing a store: the weights of a checkpoint, or of anything like one, in the form that streaming needs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from flashlite.arguments import LAYOUTS, MANIFEST, is_store
from flashlite.drive.direct import direct_alignment
from flashlite.errors import CheckpointError, StoreError
from flashlite.families.family import EMBEDDINGS, Family
from flashlite.storage.atomic import new_folder, write_file
from flashlite.storage.bundle import FFNShape, pack_bundles, pieces
from flashlite.storage.checkpoint import ADAPTER, Checkpoint
from flashlite.storage.hub import find_checkpoint, model_name, origin_of
from flashlite.storage.int8 import resident as int8
from flashlite.storage.int8.rounding import quantize_neurons
from flashlite.storage.safetensors_file import STORED, Specs, digest_of, new_safetensors
from flashlite.storage.side_files import copy_files, side_files
from flashlite.storage.store import (
    CHECKSUMS,
    FORMAT,
    INT8_FORMAT,
    PACKED_BY,
    PACKED_FROM,
    PREDICTOR,
    RESIDENT,
    Store,
    ffn_file,
    sealed,
    shape_of,
)  # fmt: skip
from flashlite.storage.verified import record_checksums

log = logging.getLogger("flashlite")

Progress = Callable[[str], None]


def pack(
    model: str | Path,
    out: Path | str,
    dtype: str | None = None,
    layouts: tuple[str, ...] = LAYOUTS,
    replace: bool = False,
    progress: Progress = lambda step: None,
    revision: str | None = None,
    packed_by: str = "",
) -> Store:
    """Write a checkpoint to `out` as a store, one tensor at a time, and open it.

    model: `opt-mini`, a checkpoint folder or a hub id.
    dtype: fp32, bf16, fp16 or int8; None is the checkpoint's own, which config.json says, or else its first weights.
    layouts: those of LAYOUTS that the FFN is written in.
    replace: whether a store at `out` may be replaced.
    progress: told of each step.
    revision: of a hub model, a branch, a tag or a commit; None is its main branch.
    packed_by: files whose code runs in place of the engine's, which the manifest then says.

    Raises CheckpointError or StoreError, and then leaves nothing behind.
    """
    folder = find_checkpoint(model, revision)
    if is_store(folder):
        raise CheckpointError(f"{folder} is a store, which is packed already: name the checkpoint folder or a hub id")
    return pack_checkpoint(Checkpoint(folder), model_name(model), out, dtype, layouts, replace, progress, packed_by)


def pack_checkpoint(
    checkpoint: Checkpoint, name: str, out: Path | str, dtype: str | None = None, layouts: tuple[str, ...] = LAYOUTS,
    replace: bool = False, progress: Progress = lambda step: None, packed_by: str = "",
) -> Store:  # fmt: skip
    """`pack` for a checkpoint that is open, as a store called `name`."""

    def copy_rest(folder: Path, up_projections: str) -> dict[str, Any]:
        names = [name for name in side_files(checkpoint.folder) if name != MANIFEST]
        copy_files(checkpoint.folder, folder, [*names, PREDICTOR])
        said = {"own_dtype": checkpoint.own_dtype, PACKED_BY: packed_by, PACKED_FROM: origin_of(checkpoint.folder)}
        return {key: value for key, value in said.items() if value or key == "own_dtype"}

    if (checkpoint.folder / ADAPTER).exists():
        log.warning("flashlite: %s holds an adapter too, which is not used: merge it first", checkpoint.folder)
    return write_store(checkpoint, name, out, dtype or own_dtype(checkpoint), layouts, copy_rest, replace, progress)


def own_dtype(checkpoint: Checkpoint) -> str:
    """What a checkpoint is packed as if no dtype is named. Raises CheckpointError if it is none that a store has."""
    if checkpoint.own_dtype is None:
        raise CheckpointError(f"{checkpoint.folder}: the dtype in config.json is not fp32, bf16 or fp16: name one")
    return checkpoint.own_dtype


class Source(Protocol):
    """Where a store's weights come from: a Checkpoint, or anything with its attributes."""

    family: Family
    settings: PreTrainedConfig
    config: dict[str, Any]
    names: list[str]

    def tensor(self, name: str) -> Tensor:
        """One tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""


def write_store(
    source: Source, name: str, out: Path | str, dtype: str, layouts: tuple[str, ...],
    finish: Callable[[Path, str], dict[str, Any]], replace: bool = False, progress: Progress = lambda step: None,
) -> Store:  # fmt: skip
    """Write weights to `out` as a store called `name`, one tensor at a time, and open it.

    finish: is given the folder and the digest of the up projections; writes whatever else belongs into the folder, and
        returns whatever else belongs into the manifest.
    """
    if dtype not in STORED or not layouts or not set(layouts) <= set(LAYOUTS):
        raise StoreError(
            f"unknown dtype {dtype!r} or layouts {layouts}: choose from {list(STORED)} and {list(LAYOUTS)}"
        )
    out = Path(out)
    if replace and not _may_be_replaced(out):
        raise StoreError(f"{out} is not a store, so it isn't replaced: choose another name")
    with new_folder(out, replace) as folder:
        alignment = _grid_of(folder)
        shape = shape_of(source.settings, source.family, STORED[dtype], alignment)
        ffn, up_projections, scales = _write_ffn(source, folder, STORED[dtype], layouts, shape, progress)
        files = {RESIDENT: _write_resident(source, folder, STORED[dtype], scales)}
        manifest = {
            "format": INT8_FORMAT if dtype == "int8" else FORMAT, "name": name,
            "dtype": dtype, "layouts": list(layouts), "alignment": alignment,
            "config": source.config, "files": files | ffn, "up_projections": up_projections,
            **finish(folder, up_projections),
            "copied": {name: digest_of(folder / name) for name in side_files(folder)},
        }  # fmt: skip
        write_file(folder / MANIFEST, sealed(manifest))
        store = Store(folder)
    store.path = out
    return store


def _may_be_replaced(out: Path) -> bool:
    """Whether there is a store, an empty folder or nothing.

    It takes one look, because other writers may replace it meanwhile.
    """
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


def _write_resident(source: Source, folder: Path, dtype: torch.dtype, scales: dict[str, Tensor]) -> dict[str, Any]:
    """Returns what the manifest says of the file. scales: those of the FFNs where matrices are int8."""
    if dtype == torch.int8:
        shapes = {name: source.shape(name) for name in source.names}
        specs = int8.resident_specs(shapes, source.family, source.settings.num_hidden_layers)
        return int8.write_resident(source, folder / RESIDENT, specs, scales)
    layers, group_of = source.settings.num_hidden_layers, source.family.group_of
    order = {EMBEDDINGS: -1} | {f"layers.{i}": i for i in range(layers)}
    resident = set(source.names) - source.family.streamed(layers)
    names = sorted(resident, key=lambda name: (order[group_of(name)], name))
    with new_safetensors(folder / RESIDENT, {n: (dtype, source.shape(n)) for n in names}) as writer:
        for name in names:
            writer.write(name, source.tensor(name).to(dtype))
    return writer.entry


def _write_ffn(
    source: Source, folder: Path, dtype: torch.dtype, layouts: tuple[str, ...], shape: FFNShape, progress: Progress
) -> tuple[dict[str, dict[str, Any]], str, dict[str, Tensor]]:
    """Returns what the manifest says of each file, the digest of the up projections, and the scales of int8."""
    checksums: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    family, layers, digest = source.family, source.settings.num_hidden_layers, hashlib.sha256()
    with contextlib.ExitStack() as open_files:
        files = {
            layout: new_safetensors(folder / ffn_file(layout), _specs(layout, shape, layers)) for layout in layouts
        }
        writers = {layout: open_files.enter_context(file) for layout, file in files.items()}
        for i in range(layers):
            names = [name.format(i) for name in family.matrices]
            matrices = [source.tensor(name) for name in names]
            digest.update(_rounded(matrices[0]))
            if (bias := family.biases[0].format(i)) in source.names:
                digest.update(_rounded(source.tensor(bias)))
            if dtype == torch.int8:
                matrices, steps = quantize_neurons(names, matrices)
                scales |= dict(zip(map(int8.scale_name, names), steps, strict=True))
            matrices = [matrix.to(dtype) for matrix in matrices]
            for layout, writer in writers.items():
                for piece, rows in _records(layout, matrices, shape).items():
                    writer.write(f"layers.{i}.{piece}", rows)
                    checksums[f"{layout}.layers.{i}.{piece}"] = torch.from_numpy(record_checksums(rows.numpy()))
            progress(f"layer {i + 1} of {layers}")
    entries = {ffn_file(layout): writer.entry for layout, writer in writers.items()}
    return entries | {CHECKSUMS: _write_checksums(folder / CHECKSUMS, checksums)}, digest.hexdigest(), scales


def _rounded(weights: Tensor) -> memoryview:
    """The bytes of weights in bf16, whichever dtype a checkpoint is packed in: what a predictor is bound to."""
    return weights.to(torch.bfloat16).contiguous().view(-1).view(torch.uint8).numpy().data


def _specs(layout: str, shape: FFNShape, layers: int) -> Specs:
    """The tensors of an FFN's file."""
    rows = {piece.name: (torch.uint8, (shape.neurons, piece.nbytes)) for piece in pieces(layout, shape)}
    return {f"layers.{i}.{name}": spec for i in range(layers) for name, spec in rows.items()}


def _records(layout: str, matrices: list[Tensor], shape: FFNShape) -> dict[str, Tensor]:
    """A layer's records by piece: [ffn, nbytes] uint8.

    matrices: first [ffn, d_model], down [d_model, ffn], and second [ffn, d_model] of gated neurons
    """
    first, down, *second = matrices
    if layout == "bundled":
        rest = torch.cat([down, second[0].T]) if second else down
        return {"bundle": torch.from_numpy(pack_bundles(first, rest, shape.record_bytes))}
    rows = zip(pieces(layout, shape), (first, down.T, *second), strict=True)
    return {piece.name: matrix.contiguous().view(torch.uint8) for piece, matrix in rows}


def _write_checksums(path: Path, checksums: dict[str, Tensor]) -> dict[str, Any]:
    specs: Specs = {name: (sums.dtype, tuple(sums.shape)) for name, sums in checksums.items()}
    with new_safetensors(path, specs) as writer:
        for name, sums in checksums.items():
            writer.write(name, sums)
    return writer.entry
