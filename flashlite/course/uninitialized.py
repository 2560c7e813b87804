"""Memory that nobody has filled, made what it may be anywhere: garbage, the same for the same seed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

CHUNK = 4096  # bytes of garbage, repeated


def spoil_empty_memory(seed: int) -> None:
    """Let np.empty and torch.empty give garbage from now on in this process; torch's only if it is imported already.

    What they give is left to chance, and most often happens to be zeros or what an answer needs; so an answer that
    forgets to fill some of it would be right here and wrong elsewhere. Every other time all bits are the other way
    round, so that no number is right twice.
    """
    garbage, torch = _Garbage(seed), sys.modules.get("torch")
    for name in ("empty", "empty_like"):
        setattr(np, name, _spoiled(getattr(np, name), garbage.fill_array))
        if torch is not None:
            setattr(torch, name, _spoiled(getattr(torch, name), garbage.fill_tensor))


def _spoiled(empty: Callable[..., Any], fill: Callable[[Any], None]) -> Callable[..., Any]:
    def spoiled(*args: Any, **kwargs: Any) -> Any:
        made = empty(*args, **kwargs)
        fill(made)
        return made

    return spoiled


class _Garbage:
    def __init__(self, seed: int) -> None:
        self._bytes = np.frombuffer(random.Random(seed).randbytes(CHUNK), np.uint8)

    def fill_array(self, array: np.ndarray) -> None:
        if array.dtype.kind in "biufc":
            array[...] = self._numbers(array.size, array.dtype).reshape(array.shape)

    def fill_tensor(self, tensor: torch.Tensor) -> None:
        import torch

        if tensor.device.type == "cpu" and tensor.numel():
            kind = np.dtype(bool if tensor.dtype == torch.bool else np.uint8)
            memory = tensor.untyped_storage()
            memory.copy_(torch.from_numpy(self._numbers(memory.nbytes(), kind)).untyped_storage())

    def _numbers(self, count: int, dtype: np.dtype) -> np.ndarray:
        self._bytes = ~self._bytes
        if dtype.kind == "b":
            return np.resize(self._bytes % 2 == 1, count)
        return np.resize(self._bytes, count * dtype.itemsize).view(dtype)
