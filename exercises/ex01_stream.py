# Exercises 1.1. With `--impl ref,ex01=mine` this file takes the place of flashlite.engine.stream.
# Everything without a TODO is provided, and runs as it stands.
"""Many neurons through little memory: passes over a layer, the next part read while this one is multiplied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from flashlite.drive.direct import aligned_buffer
from flashlite.drive.flash import Ticket
from flashlite.engine.product import BLOCK
from flashlite.engine.timing import Timing
from flashlite.errors import ReadError
from flashlite.storage.bundle import round_up, unpack_bundles
from flashlite.storage.neurons import NeuronFile, wait_all


def relu_ffn(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None) -> Tensor:
    """A feed-forward block by hand, without the down projection's bias: relu(x up^T + bias) down.

    x: [tokens, d_model]; up: [n, d_model], one row a neuron; bias: [n]; down: [n, d_model], transposed, so that it has
    one row a neuron too; keep: [tokens, n] bool, False where a token must leave a neuron out, or None for all.
    Returns [tokens, d_model].
    """
    # TODO 1.1  a ReLU feed-forward block by hand (4 points, 10 minutes, paper section 3.1)
    # Compute what n neurons of a feed-forward block add to the output. Neuron j of a token with input x_t is h = max(0,
    # x_t · up[j] + bias[j]), and it adds h * down[j] to that token's output. Return the sum over the n neurons,
    # [tokens, d_model], in x's dtype (float32, bfloat16 or float16). The down projection's bias is not added here.
    # `keep`, if given, says for each token which neurons count: where keep[t, j] is False, neuron j adds nothing to
    # token t. Leave all arguments as they are. up and down may be views into one larger matrix, so they may not be
    # contiguous.
    # Example: x = [[1 2]], up = [[1 1], [1 -1]], bias = [0 0.5], down = [[1 2], [5 5]]:
    #   x·up^T + bias = [[3 -0.5]]    ReLU: [[3 0]]
    #   keep = None             -> [[3 6]]
    #   keep = [[False True]]   -> [[0 0]]
    # Provided: torch.addmm(bias, x, matrix) is bias + x @ matrix in one call.
    # In the engine: flashlite bench --stage 1 --impl ref,ex01=mine
    raise NotImplementedError("exercise 1.1: delete this line and write relu_ffn, see the TODO above")


@dataclass(frozen=True)
class Taking:
    """Neurons to copy out of a stream: neuron neurons[i] to buffer[rows[i]]. neurons: [n] int64, sorted, all of them
    streamed."""

    neurons: np.ndarray
    buffer: np.ndarray
    rows: np.ndarray


def _divide(buffer: np.ndarray, rows: int, file: NeuronFile) -> list[np.ndarray]:
    """A matrix of `rows` rows for each piece of the layout, out of one buffer [rows * record_bytes]: together they may
    fill a huge page, which the drive fills twice as fast as scattered pages."""
    ends = np.cumsum([rows * piece.nbytes for piece in file.pieces])
    return [part.reshape(rows, -1) for part in np.split(buffer, ends)[:-1]]


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
        self._buffers = [_divide(buffer, rows, file) for buffer in aligned_buffer(2, rows * file.shape.record_bytes)]
        self._latest: list[Ticket] = []
        self._matrices = [[torch.from_numpy(b).view(dtype) for b in buffers] for buffers in self._buffers]

    def product(
        self, x: Tensor, layer: int, bias: Tensor, neurons: np.ndarray, keep: Tensor | None = None, ahead: bool = True,
        take: Taking | None = None,
    ) -> Tensor:  # fmt: skip
        """What these neurons of a layer compute, without the down projection's bias.

        x: [tokens, d_model]; bias: [ffn], the up projection's; neurons: [n] int64, sorted; keep: [tokens, ffn] bool,
        neurons to leave out where False, by token; ahead: read the next part while multiplying this one; take: some of
        the neurons to be copied out as they pass. Returns [tokens, d_model].
        """
        with contextlib.suppress(ReadError):
            wait_all(self._latest)  # of a call that was broken off, for the buffers are free only then
        parts = [neurons[i : i + self.rows] for i in range(0, len(neurons), self.rows)]
        out = torch.zeros_like(x)
        tickets = self._submit(layer, parts, 0)
        for i, part in enumerate(parts):
            with self._timing.io:
                following = self._submit(layer, parts, i + 1) if ahead else []
                wait_all(tickets)
            if take is not None:
                with self._timing.memory:
                    self._copy_out(i % 2, part, take)
            with self._timing.product:
                out += self._multiply(x, i % 2, bias, part, keep)
            with self._timing.io:
                tickets = following if ahead else self._submit(layer, parts, i + 1)
        return out

    def _submit(self, layer: int, parts: list[np.ndarray], i: int) -> list[Ticket]:
        if i >= len(parts):
            return []
        file, rows = self._file, np.arange(len(parts[i]))
        self._latest = [
            file.file.submit(begin + parts[i] * piece.nbytes, piece.nbytes, buffer, rows)
            for begin, piece, buffer in zip(file.begins[layer], file.pieces, self._buffers[i % 2], strict=True)
        ]
        return self._latest

    def _copy_out(self, which: int, part: np.ndarray, take: Taking) -> None:
        begin, end = np.searchsorted(take.neurons, (part[0], part[-1] + 1))
        wanted, rows = take.neurons[begin:end], torch.from_numpy(take.rows[begin:end])
        source = torch.from_numpy(np.searchsorted(part, wanted))
        target = torch.from_numpy(take.buffer)
        for piece, buffer in zip(self._file.pieces, self._buffers[which], strict=True):
            landed = torch.from_numpy(buffer)[source]
            target[:, piece.column : piece.column + piece.nbytes].index_copy_(0, rows, landed)

    def _multiply(self, x: Tensor, which: int, bias: Tensor, part: np.ndarray, keep: Tensor | None) -> Tensor:
        """The product of one part, filled up to whole blocks by neurons that are all zero: for each number of rows that
        torch has to multiply in bf16 it compiles a product and keeps it."""
        index, n = torch.from_numpy(part), min(self.rows, round_up(len(part), BLOCK))
        pieces = [matrix[:n] for matrix in self._matrices[which]]
        for piece in pieces:
            piece[len(part) :] = 0
        up, down = pieces if len(pieces) == 2 else unpack_bundles(pieces[0], self._file.shape.d_model)
        empty = (0, n - len(part))
        return relu_ffn(x, up, pad(bias[index], empty), down, None if keep is None else pad(keep[:, index], empty))
