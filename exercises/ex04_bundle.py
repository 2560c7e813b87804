# Exercises 4.1, 4.2, 4.3. With `--impl ref,ex04=mine` this file takes the place of flashlite.storage.bundle.
# Everything without a TODO is provided, and runs as it stands.
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
    # TODO 4.1  a neuron as one record (3 points, 15 minutes, paper section 3.2)
    # Put each neuron's two halves side by side, so that one read fetches both. Neuron i needs row i of `up` and column
    # i of `down`. Row i of the result holds the bytes of up[i], right after them the bytes of down[:, i], and zeros up
    # to record_bytes, which is never less than the two halves take.
    # The result is a NumPy array of uint8, [ffn, record_bytes], that holds the weights' own bytes: nothing is converted
    # or rounded. Weights may be float32, float16 or bfloat16. NumPy has no bfloat16, so turn weights into bytes while
    # they are still a tensor. Don't change `up` and `down`.
    # Example: float16 (2 bytes a weight), d_model = 2, ffn = 3, record_bytes = 12:
    #   up = [[1 2] [3 4] [5 6]], down = [[10 20 30] [40 50 60]]
    #   row 0 holds 1 2 10 40 and 4 bytes of zeros
    #   row 1 holds 3 4 20 50 and 4 bytes of zeros
    #   row 2 holds 5 6 30 60 and 4 bytes of zeros
    # In the engine: flashlite pack opt-mini mine --impl ref,ex04=mine
    raise NotImplementedError("exercise 4.1: delete this line and write pack_bundles, see the TODO above")


def unpack_bundles(rows: Tensor, d_model: int) -> tuple[Tensor, Tensor]:
    """The two projections as views of rows in DRAM; nothing is copied.

    rows: [n, at least 2 * d_model]. Returns up [n, d_model] and the transposed down [n, d_model].
    """
    # TODO 4.2  both projections from loaded rows, without a copy (warm-up, 5 minutes, paper section 3.3)
    # The inverse of packing, for rows of neurons that lie in DRAM. Row i of `rows` holds one neuron's weights: d_model
    # of the up projection, then d_model of the down projection, then perhaps padding, which belongs to neither. Return
    # up and down as a tuple. Both are [n, d_model] with row i for neuron i, so `down` stays transposed.
    # Copy nothing: both must be views, so that weights that a read puts into `rows` later are seen through them. n may
    # be 0.
    # Example: d_model = 2, rows = [[1 2 10 40 0 0] [3 4 20 50 0 0]]:
    #   up = [[1 2] [3 4]], down = [[10 40] [20 50]]
    # In the engine: flashlite bench --stage 4 --impl ref,ex04=mine
    raise NotImplementedError("exercise 4.2: delete this line and write unpack_bundles, see the TODO above")


def closest_friends(fired: Tensor) -> Tensor:
    """For each neuron the other one that fires most often together with it: [ffn] int64.

    fired: [tokens, ffn] bool. If several do so equally often, it is any one of them. Bundling a neuron with its closest
    friend is the paper's negative result: the neurons that fire most are the closest friend of nearly all others, and
    would be loaded again and again. (Paper: 3.2)
    """
    # TODO 4.3  closest friends, and why bundling by them fails (4 points, 15 minutes, paper section 3.2)
    # If two neurons mostly fire together, why not store them together and fetch both with one read? The paper tried it
    # and it failed; find out why. `fired[t, i]` says whether neuron i fired for token t. Two neurons fire together as
    # often as there are tokens for which both fired. For each neuron i return the other neuron that fires together with
    # it most often: an int64 tensor [ffn]. Of several that do so equally often any one will do. A neuron is never its
    # own friend; one that never fired has some other neuron as its friend. There are at least two neurons, and up to
    # some thousands of tokens. Don't change `fired`.
    # The last test makes one neuron fire for 95% of the tokens. It becomes the closest friend of nearly all others, and
    # bundles of two would read it several times for each token: that is the negative result.
    # Example: 5 tokens, 4 neurons; the neurons that fire for each token are [0 1] [0 1] [1 2 3] [0 3] [1 2]
    #   neurons 0 and 1 fire together twice, 1 and 2 twice, every other pair once but for 0 and 2, which never do
    #   friends: 1 for neuron 0, 0 or 2 for neuron 1, 1 for neuron 2, and any of 0, 1, 2 for neuron 3
    # In the engine: the last code cell of chapter 4
    raise NotImplementedError("exercise 4.3: delete this line and write closest_friends, see the TODO above")
