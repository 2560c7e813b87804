"""The model on flash: a folder with a manifest, the resident weights, and the FFN's neurons in one or two layouts.

manifest.json            what the model is; sizes and SHA-256 of everything else
resident.safetensors     embeddings, attention, norms, biases: group by group, in the order in which a token needs them
ffn-split.safetensors    layers.<i>.up [ffn, half_bytes], layers.<i>.down [ffn, half_bytes]
ffn-bundled.safetensors  layers.<i>.bundle [ffn, record_bytes]
predictor.safetensors    which neurons will fire (see predictor.py)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashlite.bundle import LAYOUTS, FFNShape, pack_bundles, pieces
from flashlite.checkpoint import Checkpoint, find_checkpoint, read_config
from flashlite.direct import direct_alignment
from flashlite.errors import StoreError
from flashlite.files import DTYPES, Extent, SafetensorsWriter, Specs, new_folder, read_extents, write_file
from flashlite.flash import Backend, FlashFile

FORMAT = 1
MANIFEST, RESIDENT, PREDICTOR = "manifest.json", "resident.safetensors", "predictor.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
COPIED = (*TOKENIZER, "generation_config.json", PREDICTOR)


def is_store(path: Path | str) -> bool:
    """Whether a folder is a store."""
    return (Path(path) / MANIFEST).is_file()


def ffn_file(layout: str) -> str:
    """The name of the file that holds the FFN in this layout."""
    return f"ffn-{layout}.safetensors"


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
    if dtype not in DTYPES or not layouts or not set(layouts) <= set(LAYOUTS):
        raise StoreError(
            f"unknown dtype {dtype!r} or layouts {layouts}: choose from {list(DTYPES)} and {list(LAYOUTS)}"
        )
    checkpoint, out = Checkpoint(find_checkpoint(model)), Path(out)
    if replace and out.exists() and not is_store(out) and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"{out} is no store, so it isn't replaced: choose another name")
    config = checkpoint.opt
    with new_folder(out, replace) as folder:
        alignment = _grid_of(folder)
        shape = FFNShape(config.ffn_dim, config.hidden_size, DTYPES[dtype].itemsize, alignment)
        digests = {RESIDENT: _write_resident(checkpoint, folder, DTYPES[dtype], config.num_hidden_layers)}
        digests |= _write_ffn(checkpoint, folder, DTYPES[dtype], layouts, shape, config.num_hidden_layers, progress)
        for name in COPIED:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        manifest = {
            "format": FORMAT, "name": Path(str(model)).name, "dtype": dtype, "layouts": list(layouts),
            "alignment": alignment, "config": checkpoint.config,
            "files": {f: {"bytes": (folder / f).stat().st_size, "sha256": d} for f, d in digests.items()},
        }  # fmt: skip
        write_file(folder / MANIFEST, json.dumps(manifest, indent=1))
    return Store(out)


def _grid_of(folder: Path) -> int:
    probe = folder / "grid"
    probe.touch()
    grid = direct_alignment(probe)
    probe.unlink()
    return grid


def group_of(name: str) -> str:
    """The group that a resident tensor is read with: `embeddings`, or `layers.<i>`."""
    parts = name.removeprefix("model.decoder.").split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else "embeddings"


def _write_resident(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, layers: int) -> dict[str, str]:
    ffn = {pattern.format(i) for i in range(layers) for pattern in (checkpoint.family.up, checkpoint.family.down)}
    order = ["embeddings", *(f"layers.{i}" for i in range(layers))]
    names = sorted((n for n in checkpoint.names if n not in ffn), key=lambda n: (order.index(group_of(n)), n))
    writer = SafetensorsWriter(folder / RESIDENT, {n: (dtype, checkpoint.shape(n)) for n in names})
    for name in names:
        writer.write(name, checkpoint.tensor(name).to(dtype))
    writer.close()
    return writer.digests


def _write_ffn(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, layouts: tuple[str, ...], shape: FFNShape, layers: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, str]]:  # fmt: skip
    writers = {}
    for layout in layouts:
        parts = [(f"layers.{i}.{p.name}", p.nbytes) for i in range(layers) for p in pieces(layout, shape)]
        specs: Specs = {name: (torch.uint8, (shape.neurons, nbytes)) for name, nbytes in parts}
        writers[layout] = SafetensorsWriter(folder / ffn_file(layout), specs)
    for i in range(layers):
        up, down = (
            checkpoint.tensor(name.format(i)).to(dtype) for name in (checkpoint.family.up, checkpoint.family.down)
        )
        if "split" in layouts:
            writers["split"].write(f"layers.{i}.up", up.contiguous().view(torch.uint8))
            writers["split"].write(f"layers.{i}.down", down.T.contiguous().view(torch.uint8))
        if "bundled" in layouts:
            bundles = torch.from_numpy(pack_bundles(up, down, shape.record_bytes))
            writers["bundled"].write(f"layers.{i}.bundle", bundles)
        progress(f"layer {i + 1} of {layers}")
    for writer in writers.values():
        writer.close()
    return {ffn_file(layout): writer.digests for layout, writer in writers.items()}


@dataclass(frozen=True)
class Group:
    """Resident tensors that are read together: bytes `begin` to `end` of resident.safetensors."""

    name: str
    begin: int
    end: int
    tensors: dict[str, Extent]


class Store:
    """A packed model. Opening checks the manifest, every file's structure and size, and raises StoreError.

    config: OPTConfig; dtype: torch.dtype; shape: FFNShape of one layer; groups: the resident weights, in order.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = self._read_manifest()
        try:
            self.config = read_config(self.manifest["config"])
            self.dtype_name: str = self.manifest["dtype"]
            self.dtype = DTYPES[self.dtype_name]
            self.layouts: tuple[str, ...] = tuple(self.manifest["layouts"])
            self.layers = int(self.config.num_hidden_layers)
            self.shape = FFNShape(
                self.config.ffn_dim, self.config.hidden_size, self.dtype.itemsize, int(self.manifest["alignment"])
            )
            self._extents = {name: self._check_file(name, entry) for name, entry in self.manifest["files"].items()}
            if not self.layouts:
                raise ValueError("it names no layout")
            for layout in self.layouts:
                self._check_layout(layout)
            self.groups = self._group_resident()
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise StoreError(f"{self.path / MANIFEST} is damaged ({error!r}); pack the model again") from None

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / MANIFEST).read_text())
        except OSError:
            raise StoreError(f"{self.path} is no store: make one with `flashlite pack MODEL {self.path}`") from None
        except ValueError as error:
            raise StoreError(f"{self.path / MANIFEST} is damaged ({error}); pack the model again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise StoreError(f"{self.path} has format {found!r}, this flashlite reads {FORMAT}; pack the model again")
        return manifest

    def _check_file(self, name: str, entry: dict[str, Any]) -> dict[str, Extent]:
        if name not in {RESIDENT, *(ffn_file(layout) for layout in LAYOUTS)}:
            raise StoreError(f"{self.path / MANIFEST} names a file that no store has: {name!r}")
        path = self.path / name
        extents = read_extents(path)
        if path.stat().st_size != entry["bytes"]:
            raise StoreError(f"{path} has {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        if set(extents) != set(entry["sha256"]):
            raise StoreError(f"{path} holds other tensors than the manifest says; pack the model again")
        return extents

    def _check_layout(self, layout: str) -> None:
        for piece in pieces(layout, self.shape):
            for i in range(self.layers):
                extent = self._extents[ffn_file(layout)][f"layers.{i}.{piece.name}"]
                if extent.dtype != torch.uint8 or extent.shape != (self.shape.neurons, piece.nbytes):
                    raise StoreError(f"{self.path}: layer {i} has another shape than the model's configuration says")

    def _group_resident(self) -> list[Group]:
        groups: dict[str, dict[str, Extent]] = {}
        for name, extent in sorted(self._extents[RESIDENT].items(), key=lambda item: item[1].begin):
            groups.setdefault(group_of(name), {})[name] = extent
        ends = {name: max(e.begin + e.nbytes for e in group.values()) for name, group in groups.items()}
        return [Group(n, min(e.begin for e in g.values()), ends[n], g) for n, g in groups.items()]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, the 100 % that a budget's share refers to."""
        return sum(g.end - g.begin for g in self.groups) + self.layers * self.shape.layer_bytes

    def piece_offset(self, layout: str, layer: int, piece: str) -> int:
        """Where a layer's piece begins in its file, in bytes."""
        return self._extents[ffn_file(layout)][f"layers.{layer}.{piece}"].begin

    def open_ffn(self, layout: str, backend: Backend | None = None) -> FlashFile:
        """The FFN's file, open for direct reads. Raises StoreError if the store wasn't packed with this layout."""
        if layout not in self.layouts:
            raise StoreError(f"{self.path} has no {layout} layout: pack it again with --layout {','.join(LAYOUTS)}")
        return FlashFile(self.path / ffn_file(layout), backend)

    def open_resident(self, backend: Backend | None = None) -> FlashFile:
        """The resident weights' file, open for direct reads."""
        return FlashFile(self.path / RESIDENT, backend)

    def verify(self) -> None:
        """Read every byte and compare it with the manifest's checksums. Raises StoreError that names the tensor."""
        for name, entry in self.manifest["files"].items():
            for tensor, extent in self._extents[name].items():
                data = np.memmap(self.path / name, np.uint8, "r", extent.begin, (extent.nbytes,))
                if hashlib.sha256(data.data).hexdigest() != entry["sha256"][tensor]:
                    raise StoreError(f"{self.path / name}: {tensor} was altered; pack the model again")


def open_model(model: str | Path | Store, folder: Path, dtype: str | None = None) -> Store:
    """A store: `model` itself if it is one, else its packed form under `folder`, which is written if need be."""
    if isinstance(model, Store) or is_store(model):
        store = model if isinstance(model, Store) else Store(model)
        if dtype is not None and dtype != store.dtype_name:
            raise StoreError(f"{store.path} was packed as {store.dtype_name}, not {dtype}: pack the checkpoint again")
        return store
    if (Path(model) / MANIFEST).parent.is_dir() and not (Path(model) / "config.json").exists():
        raise StoreError(f"{model} is neither a store nor a checkpoint: it has no {MANIFEST} and no config.json")
    packed = folder / f"{_packed_name(model)}-{dtype or 'fp32'}"
    return Store(packed) if is_store(packed) else pack(model, packed, dtype or "fp32")


def _packed_name(model: str | Path) -> str:
    """What a checkpoint's packed form is called: another name for another or a changed checkpoint."""
    if str(model) != "opt-mini" and not Path(model).is_dir():
        return str(model).strip("/").replace("/", "--")
    checkpoint = find_checkpoint(model).resolve()
    files = [path for path in sorted(checkpoint.iterdir()) if path.suffix in {".json", ".safetensors", ".bin"}]
    if str(model) == "opt-mini":  # the same model in whichever place flashlite is installed
        facts: list[object] = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    else:
        facts = [checkpoint, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)]
    return f"{Path(model).name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
