# Solutions of exercises 10.1: flashlite.storage.int8.rounding as the engine runs it.
"""Rounding matrices to int8, with one scale for each row: value = int8 * scale.

A matrix [out, in] of a linear layer has a scale for each output, and an embedding one for each token. A neuron has one
for its row of the up projection, and one for its column of the down projection, which is a row of its record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flashlite.errors import CheckpointError

LARGEST = 127  # int8 goes down to -128, but a symmetric range has no use for that
BLOCK, FEWEST = 2**17, 128  # weights that are float32 at a time, but no fewer rows: torch multiplies fewer slowly


def block_rows(width: int) -> int:
    """How many rows of so many weights are float32 at a time."""
    return max(FEWEST, BLOCK // max(1, width))


def blocks(rows: int, width: int) -> Iterator[slice]:
    """The rows of a matrix in parts."""
    size = block_rows(width)
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def quantize(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The values [n, width] int8 and the scales [n] float32 of a matrix [n, width].

    Each value times its row's scale is the weight, but for half a step. A row of zeros has the scale 0. Little more
    than the result needs memory. Raises CheckpointError, which says the matrix's name, if a weight is not finite.
    """
    # 10.1  A step that is a 127th of the row's largest weight is the smallest one with which every weight of the row
    # has a value. The range is symmetric, so 0 stays 0, -w is the negative of w, and no product needs an offset; -128
    # is left unused. One outlier makes the steps of its own row coarse, and of no other. The parts keep what is float32
    # as small as a cache, so a matrix of any size can be rounded. NaN and infinity show in the row's largest weight
    # already, so one look at a number a row finds them. Where a row is all zeros, any divisor but 0 gives zeros.
    # Usual mistakes: one scale for the whole matrix, or one a column; the largest weight with its sign, which forgets
    # the negative ones; cutting instead of rounding; 128 in place of 127, so that the largest weight doesn't fit; 0
    # divided by 0, which int8 turns into whatever the processor makes of NaN; values beyond 127, which wrap around to
    # negative ones; all of the matrix in float32 at once; dividing in 16 bits.
    values = torch.empty(matrix.shape, dtype=torch.int8)
    scale = torch.empty(len(matrix), dtype=torch.float32)
    for part in blocks(*matrix.shape):
        rows = matrix[part].float()
        scale[part] = step = rows.abs().amax(1) / LARGEST
        if not step.isfinite().all():
            raise CheckpointError(f"{name} holds a weight that is not a finite number, which int8 can't say")
        divisor = torch.where(step > 0, step, 1.0)[:, None]
        values[part] = (rows / divisor).round_().clamp_(-LARGEST, LARGEST)
    return values, scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """The weights that int8 stands for, float32. values: [n, width] int8; scale: [n]. Returns [n, width]."""
    return values.float().mul_(scale[:, None])


def quantize_neurons(names: Sequence[str], matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's FFN in int8: its matrices in their published shapes, and the scales of each, [ffn] float32.

    names, matrices: first [ffn, d_model], down [d_model, ffn], and second [ffn, d_model] of gated neurons
    """
    by_neuron = [matrix.T if i == 1 else matrix for i, matrix in enumerate(matrices)]
    values, scales = zip(*map(quantize, names, by_neuron), strict=True)
    return [matrix.T if i == 1 else matrix for i, matrix in enumerate(values)], list(scales)
