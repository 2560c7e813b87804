"""The resident weights of a store in int8: matrices in int8, and all else in float32.

Within each group they lie in this order, so that float32 numbers lie on their grid:

    norms, biases, position embeddings           float32
    matrices                                     int8
    filler                                       up to 3 bytes, only where the matrices end off the grid
    NAME_scale of each matrix NAME               float32, [rows]; those of the layer's FFN too, [ffn] each
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flashlite.families.family import EMBEDDINGS, Family
from flashlite.storage.int8.rounding import quantize
from flashlite.storage.safetensors_file import Specs, new_safetensors

FILLER, GRID = "filler", torch.float32.itemsize
Shapes = Mapping[str, tuple[int, ...]]


class Weights(Protocol):
    """Gives tensors of a model by name."""

    def tensor(self, name: str) -> Tensor:
        """One tensor."""


def scale_name(matrix: str) -> str:
    """What the scales of a matrix are called."""
    return f"{matrix}_scale"


def resident_specs(shapes: Shapes, family: Family, layers: int) -> Specs:
    """The tensors of resident.safetensors, in their order. shapes: of all of the model's tensors, by name."""
    streamed = family.streamed(layers)
    groups: dict[str, list[str]] = {name: [] for name in (EMBEDDINGS, *(f"layers.{i}" for i in range(layers)))}
    for name in sorted(shapes):
        groups[family.group_of(name)].append(name)
    specs: Specs = {}
    for number, names in enumerate(groups.values(), start=-1):
        matrices = [name for name in names if _is_matrix(name, shapes, family) and name not in streamed]
        scaled = [name for name in names if name in streamed or name in matrices]
        specs |= {name: (torch.float32, shapes[name]) for name in names if name not in scaled}
        specs |= {name: (torch.int8, shapes[name]) for name in matrices}
        if missing := -sum(shapes[name][0] * shapes[name][1] for name in matrices) % GRID:
            specs[(family.layer.format(number) if number >= 0 else "") + FILLER] = (torch.uint8, (missing,))
        specs |= {scale_name(name): (torch.float32, (_scales(name, shapes, family),)) for name in scaled}
    return specs


def _is_matrix(name: str, shapes: Shapes, family: Family) -> bool:
    """Whether a tensor is multiplied, or looked up as a token's embedding."""
    return len(shapes[name]) == 2 and name != f"{family.body}.{family.positions}.weight"


def _scales(name: str, shapes: Shapes, family: Family) -> int:
    """How many scales a matrix has: one for each row, but for each column, which is a neuron, of a down projection."""
    return shapes[name][1 if name.endswith(f".{family.down}.weight") else 0]


def write_resident(source: Weights, path: Path, specs: Specs, scales: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write the file, one tensor at a time, and return what a manifest says of it.

    specs: from `resident_specs`
    scales: of the FFNs' matrices, by their own names
    """
    found = dict(scales)
    with new_safetensors(path, specs) as writer:
        for name, (dtype, shape) in specs.items():
            if dtype == torch.int8:
                content, found[scale_name(name)] = quantize(name, source.tensor(name))
            elif dtype == torch.uint8:
                content = torch.zeros(shape, dtype=dtype)
            else:
                content = found.pop(name) if name in found else source.tensor(name).float()
            writer.write(name, content)
    return writer.entry
