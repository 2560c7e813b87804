# Solutions of exercises 4.1, 4.2, 4.3: flashlite.storage.bundle as the engine runs it.
"""How a neuron lies on flash: up row and down column apart, or bundled into one record. (Paper: section 3.2)

Neuron i of a layer needs row i of the up projection and column i of the down projection. In DRAM both always form one
row `[up | down | padding]`. On flash they are two pieces, each with a read of its own, or one bundle and one read:

    split     up    [ffn, d_model]   down  [ffn, d_model]
    bundled   bundle [ffn, 2 * d_model + padding]

A gated neuron has a third row: `[gate | down | up | padding]`. The row that decides whether a neuron fires comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def round_up(size: int, grid: int) -> int:
    """The smallest multiple of `grid` that is not below `size`."""
    return -(-size // grid) * grid


@dataclass(frozen=True)
class FFNShape:
    """The size of one layer's FFN.

    neurons: rows of the up projection, ffn_dim.
    d_model: its columns, hidden_size.
    itemsize: bytes of one weight.
    alignment: the drive's grid in bytes.
    matrices: how many there are, each with d_model weights of every neuron: 2, or 3 where neurons are gated.
    """

    neurons: int
    d_model: int
    itemsize: int
    alignment: int
    matrices: int = 2

    @property
    def half_bytes(self) -> int:
        """Bytes of a neuron's part of one matrix: a row of the up, or a column of the down projection."""
        return self.d_model * self.itemsize

    @property
    def record_bytes(self) -> int:
        """Bytes of one neuron's bundle, padded to the drive's grid."""
        return round_up(self.neuron_bytes, self.alignment)

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer's FFN weights as published, without padding."""
        return self.neuron_bytes * self.neurons

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one neuron's weights, without padding."""
        return self.matrices * self.half_bytes


@dataclass(frozen=True)
class Piece:
    """One matrix [neurons, nbytes] on flash; its rows land in these columns, bytes, of the neuron's row in DRAM."""

    name: str
    nbytes: int
    columns: slice


def pieces(layout: str, shape: FFNShape) -> tuple[Piece, ...]:
    """The matrices that a layout stores for each layer. Raises KeyError for an unknown layout."""
    half, names = shape.half_bytes, ("up", "down") if shape.matrices == 2 else ("gate", "down", "up")
    return {
        "split": tuple(Piece(name, half, slice(i * half, (i + 1) * half)) for i, name in enumerate(names)),
        "bundled": (Piece("bundle", shape.record_bytes, slice(shape.record_bytes)),),
    }[layout]


def pack_bundles(up: Tensor, down: Tensor, record_bytes: int) -> np.ndarray:
    """Neurons as rows [up | down | zeros].

    up: [ffn, d_model]; down: [d_model, ffn], as published, both of one dtype. Returns [ffn, record_bytes] uint8, the
    bytes of the weights.
    """
    # 4.1  A column of the published down projection is scattered over the whole matrix, one weight in every row;
    # transposed, it is one piece of memory that can follow the up row. One read of twice the size takes much less time
    # than two reads. The padding makes every record begin on the drive's grid, which direct I/O demands.
    # Usual mistakes: reshaping `down` where it must be transposed (the shape is right, the weights are not); converting
    # values to uint8 where the bytes must be reinterpreted; putting padding between the halves.
    both = torch.cat([up, down.T], dim=1).contiguous()
    content = both.view(torch.uint8).numpy()
    return np.pad(content, ((0, 0), (0, record_bytes - content.shape[1])))


def unpack_bundles(rows: Tensor, d_model: int) -> tuple[Tensor, Tensor]:
    """The two projections as views of rows in DRAM; nothing is copied.

    rows: [n, at least 2 * d_model]. Returns up [n, d_model] and the transposed down [n, d_model].
    """
    # 4.2  The sparse product needs the up rows and the transposed down projection, and in this layout both are plain
    # slices of the same rows. A copy here would move every loaded weight once more for every token.
    # Usual mistakes: taking the padding for weights (rows[:, d_model:]); transposing `down` back; .contiguous() or
    # .clone(), which copy.
    return rows[:, :d_model], rows[:, d_model : 2 * d_model]


def closest_friends(fired: Tensor) -> Tensor:
    """For each neuron the other one that fires most often together with it: [ffn] int64.

    fired: [tokens, ffn] bool. If several do so equally often, it is any one of them. Bundling a neuron with its closest
    friend is the paper's negative result: the neurons that fire most are the closest friend of nearly all others, and
    would be loaded again and again. (Paper: 3.2)
    """
    # 4.3  Counts of all pairs are one matrix product, fired^T fired. The diagonal counts a neuron with itself and would
    # always win, so it must go below every count, 0 included. Neurons that fire for nearly every token win everywhere:
    # bundled with everybody they are read again and again, so flashlite bundles only a neuron's own two halves, as the
    # paper does.
    # Usual mistakes: leaving the diagonal in; setting it to 0, which can still win for a neuron that never fires;
    # counting in uint8, which wraps at 256; dividing by how often the other neuron fires, which is another measure.
    together = fired.float().T @ fired.float()
    return together.fill_diagonal_(-1).argmax(1)
