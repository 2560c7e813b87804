# Exercises 10.1. With `--impl ref,ex10=mine` this file takes the place of flashlite.storage.int8.rounding.
# Everything without a TODO is provided, and runs as it stands.
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
    # TODO 10.1  a row in steps of its own (5 points, 20 minutes, paper none: this is a step beyond it)
    # Round a matrix to int8, each row in steps of its own. matrix: [n, width], float32, bfloat16 or float16. Return two
    # tensors:
    #   values   [n, width] int8
    #   scale    [n] float32, the size of each row's step
    # A row's scale is the absolute value of its largest weight (largest without its sign), divided by LARGEST, which is
    # 127. Each weight divided by its row's scale, both in float32, and rounded to the nearest whole number, is its
    # value; where two are equally near, take the even one, as torch.round does. So no weight moves by more than half a
    # step.
    # Four things can go wrong. A row of zeros has the scale 0 and values of 0: nothing may be divided by 0 on the way.
    # A value is never below -127 or above 127, not even where weights are so small (1e-44) that float32 itself has
    # coarse steps, and a row's largest weight comes out at more than 127 scales. int8 has no word for NaN or infinity:
    # if a weight isn't finite, raise CheckpointError with a text that names the matrix, name. And the largest matrix of
    # a model may be larger than the memory that is left: go through the rows in the parts that blocks gives, so that no
    # tensor has more weights in float32 than one part.
    # Leave matrix as it is.
    # Example: matrix = [[1.27 -0.5 0.004], [0 0 0], [-254 2 127]]:
    #   scale  -> [0.01 0 2]
    #   values -> [[127 -50 0], [0 0 0], [-127 1 64]]      127 / 2 is as near to 63 as to 64
    # Provided: LARGEST and CheckpointError, above. blocks(n, width), above, gives the rows of a matrix in parts, as
    # slices. torch.where chooses element by element between two values.
    # In the engine: flashlite pack opt-mini mine --dtype int8 --impl ref,10.1=mine
    raise NotImplementedError("exercise 10.1: delete this line and write quantize, see the TODO above")


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
