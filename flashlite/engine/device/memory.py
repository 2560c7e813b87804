"""Where rows of weights lie: in the host's memory, where reads can land, or in a device's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashlite.drive.direct import aligned_buffer


@dataclass(frozen=True)
class Memory:
    """A place for rows of weights, and how they are made and moved there.

    device: as torch calls it
    rows: a new matrix [rows, row_bytes] uint8, which indices of NumPy read and write
    take: copies some rows of a matrix into another one, take(source, index, out=target)
    whole: a tensor of weights as what indices of NumPy read and write fastest, the same memory
    """

    device: torch.device
    rows: Callable[[int, int], Any]
    take: Callable[..., Any]
    whole: Callable[[Tensor], Any]

    @classmethod
    def on(cls, device: torch.device) -> Memory:
        """That of a device, in which matrices are tensors."""
        return cls(device, partial(_zeros, device), _take, lambda weights: weights)


def _bits(weights: Tensor) -> np.ndarray:
    """The same memory as integers: NumPy has no bf16, and copies a few elements faster than torch."""
    return weights.view({2: torch.int16, 4: torch.int32}[weights.itemsize]).numpy()


def _zeros(device: torch.device, rows: int, row_bytes: int) -> Tensor:
    return torch.zeros(rows, row_bytes, dtype=torch.uint8, device=device)


def _take(source: Tensor, index: np.ndarray, *, out: Tensor) -> None:
    torch.index_select(source, 0, torch.from_numpy(index).to(source.device), out=out)


HOST = Memory(torch.device("cpu"), aligned_buffer, partial(np.take, axis=0, mode="clip"), _bits)
