"""The model on flash: a folder with a manifest, the resident weights, and the FFN's neurons in one or two layouts.

manifest.json            what the model is; sizes and SHA-256 of everything else
resident.safetensors     embeddings, attention, norms, biases: group by group, in the order in which a token needs them
ffn-split.safetensors    layers.<i>.up [ffn, half_bytes], layers.<i>.down [ffn, half_bytes]
ffn-bundled.safetensors  layers.<i>.bundle [ffn, record_bytes]
predictor.safetensors    which neurons will fire (see predictor.py)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashlite.bundle import LAYOUTS, FFNShape, pieces
from flashlite.checkpoint import expected_shapes, read_config
from flashlite.errors import CheckpointError, StoreError
from flashlite.families import family_of
from flashlite.files import DTYPES, Extent, read_extents
from flashlite.flash import Backend, FlashFile
from flashlite.objects import read_object

FORMAT = 1
LARGEST_GRID = 2**20  # bytes
MANIFEST, RESIDENT, PREDICTOR = "manifest.json", "resident.safetensors", "predictor.safetensors"


def is_store(path: Path | str) -> bool:
    """Whether a folder is a store."""
    return os.path.isfile(Path(path) / MANIFEST)


def ffn_file(layout: str) -> str:
    """The name of the file that holds the FFN in this layout."""
    return f"ffn-{layout}.safetensors"


def group_of(name: str) -> str:
    """The group that a resident tensor is read with: `embeddings`, or `layers.<i>`."""
    parts = name.removeprefix("model.decoder.").split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else "embeddings"


@dataclass(frozen=True)
class Group:
    """Resident tensors that are read together: bytes `begin` to `end` of resident.safetensors."""

    name: str
    begin: int
    end: int
    tensors: dict[str, Extent]


class Store:
    """A packed model. Opening checks the manifest, every file's structure and size, and raises StoreError.

    config: OPTConfig; dtype: torch.dtype; shape: FFNShape of one layer; layouts: those it has, in LAYOUTS' order;
    groups: the resident weights, in order.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = self._read_manifest()
        try:
            self.config, family = read_config(self.manifest["config"]), family_of(self.manifest["config"])
            self.dtype_name: str = self.manifest["dtype"]
            self.dtype = DTYPES[self.dtype_name]
            self.layouts: tuple[str, ...] = tuple(sorted(self.manifest["layouts"], key=LAYOUTS.index))
            self.layers = int(self.config.num_hidden_layers)
            grid = _grid(self.manifest["alignment"])
            self.shape = FFNShape(self.config.ffn_dim, self.config.hidden_size, self.dtype.itemsize, grid)
            self._extents = {name: self._check_file(name, entry) for name, entry in self.manifest["files"].items()}
            if not self.layouts or not isinstance(self.manifest["name"], str):
                raise ValueError("it names no layout, or no model")
            for layout in self.layouts:
                self._check_layout(layout)
            self._check_resident({family.up, family.down})
            self.groups = self._group_resident()
        except (KeyError, TypeError, ValueError, AttributeError, CheckpointError) as error:
            raise StoreError(f"{self.path / MANIFEST} is damaged ({error!r}); pack the model again") from None

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = read_object(self.path / MANIFEST)
        except OSError:
            raise StoreError(f"{self.path} is no store: make one with `flashlite pack MODEL {self.path}`") from None
        except ValueError as error:
            raise StoreError(f"{self.path / MANIFEST} is damaged ({error}); pack the model again") from None
        if (found := manifest.get("format")) != FORMAT:
            raise StoreError(
                f"{self.path} has format {found!r:.40}, this flashlite reads {FORMAT}; pack the model again"
            )
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

    def _check_resident(self, ffn: set[str]) -> None:
        """Whether all weights that aren't the FFN's, `ffn` by name, are there in the model's shapes and dtype."""
        streamed = {name.format(i) for name in ffn for i in range(self.layers)}
        expected = {n: (self.dtype, shape) for n, shape in expected_shapes(self.config).items() if n not in streamed}
        if {name: (e.dtype, e.shape) for name, e in self._extents[RESIDENT].items()} != expected:
            raise StoreError(f"{self.path / RESIDENT} holds other tensors than the manifest's configuration asks for")

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


def _grid(alignment: object) -> int:
    if type(alignment) is not int or not 1 <= alignment <= LARGEST_GRID or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment!r:.40} is no power of two up to {LARGEST_GRID}")
    return alignment
