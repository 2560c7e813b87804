# Solutions of exercises 1.1: flashlite.engine.stream as the engine runs it.
"""A layer through little memory: it passes part by part, and the next part is read while one is multiplied."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from flashlite.drive.direct import aligned_buffer
from flashlite.drive.flash import Ticket
from flashlite.engine.int8.neurons import int8_ffn_of
from flashlite.engine.timing import IO, MEMORY, PRODUCT, REST, Clock
from flashlite.errors import ReadError
from flashlite.families.activation import RELU, Activation
from flashlite.storage.bundle import round_up, unpack_bundles
from flashlite.storage.neurons import NeuronFile, wait_all

BLOCK = 64  # rows; torch compiles a bf16 product for each number of rows, so there are few such numbers


def relu_ffn(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None) -> Tensor:
    """A feed-forward block by hand, without the down projection's bias: relu(x up^T + bias) down.

    x: [tokens, d_model]
    up: [n, d_model], one row a neuron
    bias: [n]
    down: [n, d_model], transposed, so that it has one row a neuron too
    keep: [tokens, n] bool, False where a token must leave a neuron out; None keeps all

    Returns [tokens, d_model].
    """
    # 1.1  Both matrices have one row a neuron, so any subset of neurons is a subset of rows, and a sum over all neurons
    # can be taken in parts. That is all that streaming needs. A neuron whose ReLU gives zero adds nothing: its rows
    # needn't be read, which the next chapters use.
    # Usual mistakes: applying the ReLU to the output, or not at all; adding the bias after the ReLU; applying `keep`
    # before the bias, so that neurons left out still give relu(bias); changing bfloat16 to float32 by multiplying with
    # a float mask.
    h = torch.addmm(bias, x, up.T).relu_()
    return (h if keep is None else h * keep) @ down


def ffn_of(
    activation: Activation, x: Tensor, first: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None,
    second: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`relu_ffn` for neurons of any kind.

    activation: what they compute
    second: [n, d_model] of gated neurons, whose bias is [2, n], that of `first` before that of `second`
    """
    if second is None:
        h = activation(torch.addmm(bias, x, first.T))
    else:
        h = activation(torch.addmm(bias[0], x, first.T), torch.addmm(bias[1], x, second.T))
    return (h if keep is None else h * keep) @ down


def streamed_product(dtype: torch.dtype, activation: Activation, gated: bool) -> Callable[..., Tensor]:
    """How such neurons with weights of this dtype are multiplied as they stream: OPT's by relu_ffn."""
    if dtype == torch.int8:
        return partial(int8_ffn_of, activation)
    return relu_ffn if activation == RELU and not gated else partial(ffn_of, activation)


@dataclass(frozen=True)
class CopyOut:
    """Neurons to copy out of a stream: neuron neurons[i] goes to buffer[rows[i]].

    neurons: [n] int64, sorted; all of them are streamed
    buffer: [capacity, row_bytes] uint8
    rows: [n] int64
    """

    neurons: np.ndarray
    buffer: np.ndarray
    rows: np.ndarray


@dataclass
class Passes:
    """Neurons of a layer on their way through a stream.

    layer: its number
    parts: the neurons of each pass, [n] int64
    size: the most neurons of a pass
    tickets: the reads of each pass that was begun
    """

    layer: int
    parts: list[np.ndarray]
    size: int
    tickets: list[list[Ticket]] = field(default_factory=list)


class Stream:
    """A buffer of 2 * `rows` neurons, shared by all layers, through which a layer's FFN passes.

    file: the neurons on flash
    rows: how many neurons each half of the buffer has room for
    dtype: of the weights
    clock: the engine's
    activation: what the neurons compute
    allocate: makes the buffer, as aligned_buffer does

    Each piece of the layout has a matrix of its own in the buffer. So neighbours on flash are neighbours in DRAM, and
    they arrive in one long stretch. Halves of neurons that are scattered over a pool's rows arrive at half that speed.

    Whole layers are read this way at the stages without a predictor, and for prompts, whose tokens together use most
    neurons. A token that needs more neurons than DRAM has room for reads the rest this way.
    """

    def __init__(
        self, file: NeuronFile, rows: int, dtype: torch.dtype, clock: Clock, activation: Activation = RELU,
        allocate: Callable[[int, int], np.ndarray] = aligned_buffer,
    ) -> None:  # fmt: skip
        self.rows = rows
        self._ffn = streamed_product(dtype, activation, file.shape.matrices > 2)
        self._file, self._clock = file, clock
        flat = allocate(1, 2 * rows * file.shape.record_bytes)[0]  # one row, so that it lies on huge pages
        ends = np.cumsum([2 * rows * piece.nbytes for piece in file.pieces])
        self._buffers = [part.reshape(2 * rows, -1) for part in np.split(flat, ends)[:-1]]
        self._matrices: list[Tensor] = [torch.from_numpy(buffer).view(dtype) for buffer in self._buffers]
        self._under_way: list[Ticket] = []

    def begin(self, layer: int, neurons: np.ndarray, at_once: int) -> Passes:
        """Start reading some neurons of a layer, for `product`.

        layer: its number
        neurons: [n] int64, sorted
        at_once: how many passes are under way together: 2, so that the next part is read while one is multiplied, or 1
            of twice the size
        """
        self._clock.switch(IO)
        if self._under_way:  # a call was broken off, and the buffer is free only when its reads have ended
            with contextlib.suppress(ReadError):
                wait_all(self._under_way)
        size = 2 * self.rows // at_once
        passes = Passes(layer, np.split(neurons, range(size, len(neurons), size)), size)
        self._under_way = []
        for _ in passes.parts[:at_once]:
            self._submit(passes)
        self._clock.switch(REST)
        return passes

    def product(
        self, x: Tensor, passes: Passes, bias: Tensor, keep: Tensor | None = None, copy_out: CopyOut | None = None
    ) -> Tensor:
        """The part of the FFN that these neurons compute, without the down projection's bias: [tokens, d_model].

        x: [tokens, d_model]
        passes: from `begin`
        bias: [ffn], the up projection's, or [2, ffn] of gated neurons; in int8 with scales, see int8/neurons.py
        keep: [tokens, ffn] bool, False where a token must leave a neuron out; None keeps all
        copy_out: some of the neurons, to be copied elsewhere as they pass
        """
        clock, out = self._clock, torch.zeros_like(x)
        for i, part in enumerate(passes.parts):
            clock.switch(IO)
            wait_all(passes.tickets[i])
            begin = i * passes.size % (2 * self.rows)
            landed = slice(begin, begin + passes.size)  # the part's rows, and the rest of the pass's
            if copy_out is not None:
                clock.switch(MEMORY)
                self._copy_out(landed, part, copy_out)
            clock.switch(PRODUCT)
            out += self._multiply(x, landed, bias, part, keep)
            if len(passes.tickets) < len(passes.parts):
                clock.switch(IO)
                self._submit(passes)
        clock.switch(REST)
        self._under_way = []
        return out

    def _submit(self, passes: Passes) -> None:
        """Start to read the next pass."""
        i = len(passes.tickets)
        rows = i * passes.size % (2 * self.rows) + np.arange(len(passes.parts[i]))
        tickets = self._file.submit(passes.layer, passes.parts[i], self._buffers, rows)
        passes.tickets.append(tickets)
        self._under_way += tickets

    def _copy_out(self, landed: slice, part: np.ndarray, wanted: CopyOut) -> None:
        """Copy the wanted neurons among those of a part that has landed."""
        begin, end = np.searchsorted(wanted.neurons, (part[0], part[-1] + 1))
        rows = torch.from_numpy(wanted.rows[begin:end])
        source = torch.from_numpy(np.searchsorted(part, wanted.neurons[begin:end]))
        for column, buffer in zip(self._file.columns(wanted.buffer), self._buffers, strict=True):
            torch.from_numpy(column).index_copy_(0, rows, torch.from_numpy(buffer[landed])[source])

    def _multiply(self, x: Tensor, landed: slice, bias: Tensor, part: np.ndarray, keep: Tensor | None) -> Tensor:
        """The product of one part: [tokens, d_model].

        In bf16 the part is filled up to whole blocks with neurons of zeros, because torch compiles a product for each
        number of rows and keeps it.
        """
        index, n = torch.from_numpy(part), len(part)
        bias, keep = bias[..., index], None if keep is None else keep[:, index]
        if x.dtype != torch.float32:
            n = min(landed.stop - landed.start, round_up(n, BLOCK))
            empty = (0, n - len(part))
            bias, keep = pad(bias, empty), None if keep is None else pad(keep, empty)
            for matrix in self._matrices:
                matrix[landed][len(part) : n] = 0
        pieces, shape = [matrix[landed][:n] for matrix in self._matrices], self._file.shape
        if len(pieces) == 1:
            rows, d = pieces[0], shape.d_model
            pieces = [*unpack_bundles(rows, d), rows[:, 2 * d : 3 * d]][: shape.matrices]
        first, down, *second = pieces
        return self._ffn(x, first, bias, down, keep, *second)
