"""The model on flash: a folder with a manifest, the resident weights, and the FFN's neurons in one or two layouts.

manifest.json            what the model is; sizes and SHA-256 of everything else, and a SHA-256 of its own
resident.safetensors     embeddings, attention, norms, biases: group by group, in the order in which a token needs them
ffn-split.safetensors    layers.<i>.up [ffn, half_bytes], layers.<i>.down [ffn, half_bytes]; gated: gate, down, up
ffn-bundled.safetensors  layers.<i>.bundle [ffn, record_bytes]
checksums.safetensors    <layout>.layers.<i>.<piece> [ffn]: the CRC-32 of each record (see verified.py)
predictor.safetensors    which neurons will fire (see predictor_file.py); trained later, so it has a checksum of its own

Besides these there are the checkpoint's own config.json, its tokenizer's files and its settings (see side_files.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashlite.arguments import LAYOUTS, MANIFEST
from flashlite.drive.backends import Backend
from flashlite.drive.flash import FlashFile
from flashlite.errors import CheckpointError, StoreError, one_line
from flashlite.families.configured import expected_shapes, read_config
from flashlite.families.family import Family
from flashlite.families.known import activation_of, family_of
from flashlite.storage.bundle import FFNShape, pieces
from flashlite.storage.int8.resident import resident_specs, scale_name
from flashlite.storage.safetensors_file import REPACK, STORED, Extent, digest_of, read_extents
from flashlite.storage.side_files import is_side_file
from flashlite.storage.strict_json import parse_object, read_bounded

FORMAT, OLDEST = 3, 2  # of the stores that are written, and of the oldest that are read
INT8_FORMAT = NEWEST = 4  # of stores in int8, which flashlite reads since then
LARGEST_GRID = 2**20  # bytes
RESIDENT, PREDICTOR = "resident.safetensors", "predictor.safetensors"
CHECKSUMS = "checksums.safetensors"
PACKED_BY = "packed_by"  # in a manifest: the files whose code packed the store in place of the engine's
PACKED_FROM = "packed_from"  # and the hub id and the commit of the checkpoint, where it came from the hub


def ffn_file(layout: str) -> str:
    """The name of the file that holds the FFN in this layout."""
    return f"ffn-{layout}.safetensors"


def shape_of(config: Any, family: Family, dtype: torch.dtype, grid: int) -> FFNShape:
    """The size of one layer's FFN. config: transformers' own; grid: the drive's, in bytes."""
    neurons, matrices = getattr(config, family.neurons), len(family.matrices)
    return FFNShape(neurons, config.hidden_size, dtype.itemsize, grid, matrices)


def sealed(manifest: dict[str, Any]) -> str:
    """A manifest's text, with a SHA-256 of all that it says."""
    return json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1)


def _seal(manifest: dict[str, Any]) -> str:
    """A manifest's SHA-256. Every format has it, so that a newer format can be told from a damaged manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Group:
    """Resident tensors that are read together: bytes `begin` to `end` of resident.safetensors."""

    name: str
    begin: int
    end: int
    tensors: dict[str, Extent]

    @classmethod
    def of(cls, name: str, tensors: dict[str, Extent]) -> Group:
        """The group of some tensors, from the first byte of them to the last."""
        return cls(name, min(e.begin for e in tensors.values()), max(e.end for e in tensors.values()), tensors)


class Store:
    """A packed model. Opening checks the manifest, every file's structure and size, and raises StoreError.

    config: transformers' own configuration.
    family: what its weights are called.
    activation: what its neurons compute.
    dtype, dtype_name: the matrices' torch.dtype, and what flashlite calls it.
    compute_dtype: the torch.dtype that a model computes in: the same, or float32 where matrices are int8.
    shape: FFNShape of one layer.
    layouts: those that it has, in LAYOUTS' order.
    groups: the resident weights, in the order in which a token needs them.
    up_projections: a digest of the weights that a predictor foresees, the same in every dtype and layout (see pack.py);
        None in stores of format 2, which have no such digest.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = self._read_manifest()
        try:
            self.family: Family = family_of(self.manifest["config"])
            self.config = read_config(self.manifest["config"], self.family)
            self.activation = activation_of(self.config, self.family)
            self.dtype_name: str = self.manifest["dtype"]
            self.dtype = STORED[self.dtype_name]
            self.compute_dtype = torch.float32 if self.quantized else self.dtype
            self.layouts: tuple[str, ...] = tuple(sorted(self.manifest["layouts"], key=LAYOUTS.index))
            self.layers = int(self.config.num_hidden_layers)
            grid = _grid(self.manifest["alignment"])
            self.shape = shape_of(self.config, self.family, self.dtype, grid)
            self._extents = {name: self._check_file(name, entry) for name, entry in self.manifest["files"].items()}
            if not self.layouts or not isinstance(self.manifest["name"], str):
                raise ValueError("it names no layout, or no model")
            if (self.manifest["format"] == INT8_FORMAT) != self.quantized:
                raise ValueError(f"format {INT8_FORMAT} and int8 belong together")
            for layout in self.layouts:
                self._check_layout(layout)
            self._check_resident()
            self.groups = self._group_resident()
            if not all(map(is_side_file, self.manifest["copied"].keys())):
                raise ValueError("it names a copy that no store has")
            self.up_projections: str | None = self.manifest.get("up_projections")
            if not isinstance(self.up_projections, str if self.manifest["format"] > OLDEST else type(None)):
                raise ValueError("its up_projections are not a digest")
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, CheckpointError) as error:
            raise StoreError(f"{self.path / MANIFEST} is damaged ({error!r}){REPACK}") from None

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        with one_line(path, StoreError):
            try:
                content = read_bounded(path)
                manifest = parse_object(content)
            except (FileNotFoundError, NotADirectoryError):
                make = f"make one with `flashlite pack MODEL {self.path}`"
                raise StoreError(f"{self.path} is not a store: {make}") from None
            except ValueError as error:
                raise StoreError(f"{path} is damaged ({error}){REPACK}") from None
        seal = manifest.pop("sha256", None)
        if seal in (None, _seal(manifest)):  # else the format may be what was altered
            self._check_format(manifest.get("format"))
        if content != sealed(manifest).encode():
            raise StoreError(f"{path} was altered{REPACK}")
        return manifest

    def _check_format(self, found: object) -> None:
        if type(found) is int and found > NEWEST:
            raise StoreError(f"{self.path} has the newer format {found}, this one reads {NEWEST}: update flashlite")
        if type(found) is not int or found < OLDEST:
            raise StoreError(f"{self.path} has format {found!r:.40}, this flashlite reads {FORMAT}{REPACK}")

    def _check_file(self, name: str, entry: dict[str, Any]) -> dict[str, Extent]:
        if name not in {RESIDENT, CHECKSUMS, *(ffn_file(layout) for layout in LAYOUTS)}:
            raise StoreError(f"{self.path / MANIFEST} names a file that no store has: {name!r}")
        path = self.path / name
        extents = read_extents(path)
        if path.stat().st_size != entry["bytes"]:
            raise StoreError(f"{path} has {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        if extents.keys() != entry["sha256"].keys():
            raise StoreError(f"{path} holds other tensors than the manifest says{REPACK}")
        if digest_of(path, 0, min(extent.begin for extent in extents.values())) != entry["header"]:
            raise StoreError(f"{path}: its header was altered{REPACK}")
        return extents

    def _check_layout(self, layout: str) -> None:
        for piece in pieces(layout, self.shape):
            for i in range(self.layers):
                rows = self._extents[ffn_file(layout)][f"layers.{i}.{piece.name}"]
                sums = self._extents[CHECKSUMS][f"{layout}.layers.{i}.{piece.name}"]
                if (rows.dtype, rows.shape) != (torch.uint8, (self.shape.neurons, piece.nbytes)):
                    raise StoreError(f"{self.path}: layer {i} has another shape than the model's configuration says")
                if (sums.dtype, sums.shape) != (torch.uint32, (self.shape.neurons,)):
                    raise StoreError(f"{self.path / CHECKSUMS} does not have one checksum a record{REPACK}")

    def _check_resident(self) -> None:
        shapes, streamed = expected_shapes(self.config, self.family), self.family.streamed(self.layers)
        specs = {name: (self.dtype, shape) for name, shape in shapes.items() if name not in streamed}
        if self.quantized:
            specs = resident_specs(shapes, self.family, self.layers)
        found = self._extents[RESIDENT]
        if {name: extent.shape for name, extent in found.items()} != {name: spec[1] for name, spec in specs.items()}:
            raise StoreError(f"{self.path / RESIDENT} holds other weights than the manifest's configuration asks for")
        if any(extent.dtype != specs[name][0] for name, extent in found.items()):
            raise StoreError(f"{self.path / RESIDENT} is not {self.dtype_name} throughout{REPACK}")

    def _group_resident(self) -> list[Group]:
        groups: dict[str, dict[str, Extent]] = {}
        for name, extent in sorted(self._extents[RESIDENT].items(), key=lambda item: item[1].begin):
            groups.setdefault(self.family.group_of(name), {})[name] = extent
        return [Group.of(name, tensors) for name, tensors in groups.items()]

    @property
    def quantized(self) -> bool:
        """Whether matrices are int8, with scales."""
        return self.dtype == torch.int8

    @property
    def looked_up(self) -> str | None:
        """The name of the token embedding if a token needs only its row, because the head is another matrix."""
        return self.family.embedding_weight if self.family.head in self._extents[RESIDENT] else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, the 100 % that a budget's share refers to."""
        return sum(g.end - g.begin for g in self.groups) + self.layers * self.shape.layer_bytes

    def piece_offset(self, layout: str, layer: int, piece: str) -> int:
        """Where a layer's piece begins in its file, in bytes."""
        return self._extents[ffn_file(layout)][f"layers.{layer}.{piece}"].begin

    def checksums(self, layout: str, layer: int, piece: str) -> np.ndarray:
        """The CRC-32 of each record of a layer's piece: [ffn] uint32."""
        extent = self._extents[CHECKSUMS][f"{layout}.layers.{layer}.{piece}"]
        with one_line(self.path / CHECKSUMS, StoreError):
            return np.fromfile(self.path / CHECKSUMS, "<u4", self.shape.neurons, offset=extent.begin)

    def open_ffn(self, layout: str, backend: Backend | None = None) -> FlashFile:
        """The FFN's file, open for direct reads. Raises StoreError if the store wasn't packed with this layout."""
        self.check_layout(layout)
        return self._open_records(layout, backend)

    def check_layout(self, layout: str) -> None:
        """Raise StoreError if the store wasn't packed with this layout."""
        if layout not in self.layouts:
            raise StoreError(f"{self.path} has no {layout} layout: pack it again with --layout {','.join(LAYOUTS)}")

    def _open_records(self, layout: str, backend: Backend | None) -> FlashFile:
        return FlashFile(self.path / ffn_file(layout), backend)

    def open_resident(self, backend: Backend | None = None) -> FlashFile:
        """The resident weights' file, open for direct reads."""
        return FlashFile(self.path / RESIDENT, backend)

    def scales(self, matrix: str) -> Tensor:
        """The scales of a matrix in int8, read by themselves: [rows] float32; of an FFN's matrix [ffn]."""
        extent = self._extents[RESIDENT][scale_name(matrix)]
        with one_line(self.path / RESIDENT, StoreError):
            return torch.from_numpy(np.fromfile(self.path / RESIDENT, "<f4", extent.shape[0], offset=extent.begin))

    def check_read(self, group: Group, views: Callable[[Group], dict[str, Tensor]]) -> None:
        """Called for each group of resident weights that was read, with the function that gives its tensors.

        Only a VerifiedStore compares them with anything.
        """

    def verify(self) -> None:
        """Read every byte and compare it with the manifest's checksums. Raises StoreError that names the tensor.

        The predictor is not among them: PredictorSet.load checks it.
        """
        for name in self.manifest["files"]:
            self.verify_file(name)
        for name, digest in self.manifest["copied"].items():
            if digest_of(self.path / name) != digest:
                raise StoreError(f"{self.path / name} was altered{REPACK}")

    def verify_file(self, name: str) -> None:
        """Compare one of the manifest's files with its checksums. Raises StoreError that names the tensor."""
        entry = self.manifest["files"][name]
        for tensor, extent in self._check_file(name, entry).items():
            if digest_of(self.path / name, extent.begin, extent.nbytes) != entry["sha256"][tensor]:
                raise StoreError(f"{self.path / name}: {tensor} was altered{REPACK}")


def _grid(alignment: object) -> int:
    if type(alignment) is not int or not 1 <= alignment <= LARGEST_GRID or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment!r:.40} is not a power of two up to {LARGEST_GRID}")
    return alignment
