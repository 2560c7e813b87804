"""Many neurons through little memory: passes over a layer, the next part read while this one is multiplied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flashlite.bundle import unpack_bundles
from flashlite.direct import aligned_buffer
from flashlite.flash import Ticket
from flashlite.neurons import NeuronFile, wait_all
from flashlite.timing import Timing


def relu_ffn(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None) -> Tensor:
    """A feed-forward block by hand, without the down projection's bias: relu(x up^T + bias) down.

    x: [tokens, d_model]; up: [n, d_model], one row a neuron; bias: [n]; down: [n, d_model], transposed, so that it has
    one row a neuron too; keep: [tokens, n] bool, False where a token must leave a neuron out, or None for all.
    Returns [tokens, d_model].
    """
    h = torch.addmm(bias, x, up.T).relu_()
    return (h if keep is None else h * keep) @ down


class Stream:
    """Two buffers of `rows` neurons each, shared by all layers, through which a layer's FFN passes.

    Each piece of the layout has a buffer of its own, so that neighbours on flash are neighbours in DRAM and arrive in
    one long stretch; halves of neurons scattered to a pool's rows arrive at half of that speed.

    A prompt, whose tokens together use most neurons, and the stages without a predictor read whole layers this way; a
    token that needs more neurons than the pool holds reads the rest this way.
    """

    def __init__(self, file: NeuronFile, rows: int, dtype: torch.dtype, timing: Timing) -> None:
        self.rows = rows
        self._file, self._timing = file, timing
        self._buffers = [[aligned_buffer(rows, piece.nbytes) for piece in file.pieces] for _ in range(2)]
        self._matrices = [[torch.from_numpy(b).view(dtype) for b in buffers] for buffers in self._buffers]

    def product(
        self, x: Tensor, layer: int, bias: Tensor, neurons: np.ndarray, keep: Tensor | None = None, ahead: bool = True,
    ) -> Tensor:  # fmt: skip
        """What these neurons of a layer compute, without the down projection's bias.

        x: [tokens, d_model]; bias: [ffn], the up projection's; neurons: [n] int64, sorted; keep: [tokens, ffn] bool,
        neurons to leave out where False, by token; ahead: read the next part while multiplying this one. Returns
        [tokens, d_model].
        """
        parts = [neurons[i : i + self.rows] for i in range(0, len(neurons), self.rows)]
        out = torch.zeros_like(x)
        tickets = self._submit(layer, parts, 0)
        for i, part in enumerate(parts):
            with self._timing.io:
                following = self._submit(layer, parts, i + 1) if ahead else []
                wait_all(tickets)
            with self._timing.product:
                out += self._multiply(x, i % 2, bias, part, keep)
            with self._timing.io:
                tickets = following if ahead else self._submit(layer, parts, i + 1)
        return out

    def _submit(self, layer: int, parts: list[np.ndarray], i: int) -> list[Ticket]:
        if i >= len(parts):
            return []
        file, rows = self._file, np.arange(len(parts[i]))
        return [
            file.file.submit(begin + parts[i] * piece.nbytes, piece.nbytes, buffer, rows)
            for begin, piece, buffer in zip(file.begins[layer], file.pieces, self._buffers[i % 2], strict=True)
        ]

    def _multiply(self, x: Tensor, which: int, bias: Tensor, part: np.ndarray, keep: Tensor | None) -> Tensor:
        index = torch.from_numpy(part)
        pieces = [matrix[: len(part)] for matrix in self._matrices[which]]
        up, down = pieces if len(pieces) == 2 else unpack_bundles(pieces[0], self._file.shape.d_model)
        return relu_ffn(x, up, bias[index], down, None if keep is None else keep[:, index])
