# Solutions of exercises 5.1, 5.2, 5.3: flashlite.engine.pool as the engine runs it.
"""Where neurons live in DRAM: the preallocated pool, and the rebuilt matrix that it replaces. (Paper: section 3.3)

Both hold one neuron a row, as bundle.py lays it out, and multiply the rows in use where they lie. Reads land in the
rows that `place` names; `commit` says that they have landed. On a device, the rows lie in its memory, and
device/staged.py sends there what was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flashlite.engine.device.memory import HOST, Memory
from flashlite.engine.int8.neurons import int8_products
from flashlite.engine.product import OfRows, Picked, RowProducts, any_product_of, down_product, ffn_product, values_of
from flashlite.families.activation import RELU, Activation
from flashlite.storage.bundle import FFNShape

COPIED_BYTES = 4 * 2**20  # of scattered rows that a device copies at a time to multiply them: no budget counts the copy


def product_of(activation: Activation, gated: bool) -> OfRows:
    """How such neurons are multiplied where they lie: OPT's by ffn_product. For rows and bias see `values_of`."""
    return ffn_product if activation == RELU and not gated else any_product_of(activation)


def products_of(dtype: torch.dtype, activation: Activation, gated: bool) -> RowProducts:
    """How such neurons with weights of this dtype are multiplied, in whole and in part."""
    if dtype == torch.int8:
        return int8_products(activation)
    product, values = product_of(activation, gated), values_of(activation)
    return RowProducts(values, product, lambda h, rows, bias, d_model, picked: down_product(h, rows, d_model, picked))


@dataclass(frozen=True)
class Landing:
    """Where reads of new neurons must land: neuron i of `load` in buffer[rows[i]]."""

    buffer: np.ndarray
    rows: np.ndarray


class NeuronMemory(Protocol):
    """One layer's neurons in DRAM: a matrix with one neuron a row.

    spare: how many copies of the largest layer's rows this kind needs for a moment, on top of the rows that it keeps
    moved: rows copied inside DRAM so far
    num_used: rows that hold a neuron
    """

    spare: int

    def __init__(
        self, capacity: int, shape: FFNShape, dtype: torch.dtype, bias: Tensor, activation: Activation = RELU,
        memory: Memory = HOST,
    ) -> None: ...  # fmt: skip

    @property
    def moved(self) -> int:
        """See above."""

    @property
    def num_used(self) -> int:
        """See above."""

    def place(self, load: np.ndarray, drop: np.ndarray) -> Landing:
        """Drop neurons and make room for others. load, drop: [n] int64."""

    def commit(self) -> None:
        """Note that the reads have landed: from now on the loaded neurons are multiplied."""

    def product(self, x: Tensor) -> Tensor:
        """The part of the FFN that the neurons in DRAM compute, see ffn_product. x: [tokens, d_model]."""

    def clear(self) -> None:
        """Drop all neurons."""


class Pool:
    """A matrix allocated once. Its rows are the buffers that reads land in, so a neuron is never copied.

    Fewer rows move than in the paper, where every deletion moves one. `moved` counts them.

    capacity: how many neurons it has room for
    shape: of the layer's FFN
    dtype: of the weights
    bias: [neurons], the up projection's, or [2, neurons] of gated neurons; in int8 with scales, see int8/neurons.py
    activation: what the neurons compute
    memory: where the rows lie
    """

    spare = 0

    def __init__(
        self, capacity: int, shape: FFNShape, dtype: torch.dtype, bias: Tensor, activation: Activation = RELU,
        memory: Memory = HOST,
    ) -> None:  # fmt: skip
        self.capacity, self._d_model = capacity, shape.d_model
        gated = shape.matrices > 2
        products = products_of(dtype, activation, gated)
        self._values, self._product, self._down = products.values, products.product, products.down
        self._decisive = shape.d_model * (3 if gated else 1)  # columns of a row that its value follows from
        self._buffer = memory.rows(capacity, shape.record_bytes)
        self._buffer[:] = 0  # takes the memory now: otherwise the first prompt would wait for every page of it
        self._matrix = torch.as_tensor(self._buffer).view(dtype)  # the same memory as weights
        self._bias = torch.zeros(*bias.shape[:-1], capacity, dtype=bias.dtype, device=memory.device)  # by row
        self._bias_of_row, self._bias_of_neuron = memory.whole(self._bias), memory.whole(bias)
        self._neuron_of_row = np.full(capacity, -1, np.int64)  # valid for rows below num_used
        self._row_of_neuron = np.full(shape.neurons, -1, np.int64)  # -1: not in the pool
        self.num_used = self.moved = 0

    def place(self, load: np.ndarray, drop: np.ndarray) -> Landing:
        """Drop neurons and name the rows into which new ones are to be read.

        load, drop: [n] int64 in any order; a neuron may be in both. Afterwards the used rows have no gap, and each of
        them knows its neuron, the new ones too. Raises ValueError, and changes nothing, if the pool would overflow.
        """
        # 5.1  A dropped neuron's row can be overwritten at once, so in the usual case, about as many in as out, no row
        # moves; the paper deletes first and appends then, which moves one row for each deletion. The new neurons take
        # the lowest free rows: then every hole that remains lies above them, and none of them can sit at the new end or
        # above it: all holes would lie above it there, one more than there are rows from the end on. So _fill_holes,
        # which only moves rows from the end on, can't touch a row whose weights are still on their way.
        # Usual mistakes: closing all holes first and appending then (rows move for nothing); taking free rows in any
        # order, so that _fill_holes moves a row before its read has landed; marking dropped neurons after the new ones
        # were noted, which loses a neuron that is in both; not counting the rows that `drop` sets free when checking
        # for overflow.
        if self.num_used - len(drop) + len(load) > self.capacity:
            raise ValueError(f"{len(load)} neurons don't fit a pool of {self.capacity} rows")
        free = np.sort(self._row_of_neuron[drop])  # lowest first: then no row of a new neuron has to move
        self._row_of_neuron[drop] = -1
        refilled = free[: len(load)]
        appended = np.arange(self.num_used, self.num_used + len(load) - len(refilled))
        rows = np.concatenate([refilled, appended])
        self.num_used += len(appended)
        self._note(load, rows)
        if len(free) > len(load):
            self._fill_holes(free[len(load) :])
        return Landing(self._buffer, rows)

    def _note(self, neurons: np.ndarray, rows: np.ndarray) -> None:
        """Note that neuron neurons[i] is in row rows[i], in both maps and the row's bias. neurons, rows: [n] int64."""
        self._row_of_neuron[neurons] = rows
        self._neuron_of_row[rows] = neurons
        self._bias_of_row[..., rows] = self._bias_of_neuron[..., neurons]

    def _fill_holes(self, holes: np.ndarray) -> None:
        """Shrink the used rows to a gapless block: holes below its new end take the rows left above it.

        holes: [n] int64, used rows whose neurons were dropped, ascending.
        """
        # 5.2  Order doesn't matter to the product, so a hole may take any neuron, and one from the end leaves no new
        # hole. A row is copied only if it would otherwise be cut off, so the cost is one row for each hole below the
        # new end, often fewer than one a deletion; nothing is reallocated, and nothing else moves.
        # Usual mistakes: moving the last rows without a look whether they are holes (a dropped neuron comes back);
        # moving a row for each hole, also for those past the end; shifting all rows down; copying the bytes but not the
        # maps and the bias.
        end = self.num_used - len(holes)
        above = np.ones(len(holes), bool)
        above[holes[holes >= end] - end] = False
        tail, targets = end + np.flatnonzero(above), holes[holes < end]
        self._buffer[targets] = self._buffer[tail]
        self._note(self._neuron_of_row[tail], targets)
        self.moved += len(targets)
        self.num_used = end

    def commit(self) -> None:
        """Do nothing, because the reads have landed in the rows that are multiplied."""

    def product(self, x: Tensor) -> Tensor:
        """The used rows' part of the FFN, see ffn_product. x: [tokens, d_model]. Returns [tokens, d_model]."""
        # 5.3  The used rows are the first ones and have no gap, so one slice, a view, is the whole matrix of active
        # neurons. That is what the holes are closed for: no gather, no copy, one dense product.
        # Usual mistakes: multiplying all rows (former neurons take part); self._bias_of_neuron, whose order is that of
        # neurons and not of rows; indexing with an array, which copies the weights.
        n = self.num_used
        return self._product(x, self._matrix[:n], self._bias[..., :n], self._d_model)

    def activations(self, x: Tensor, neurons: np.ndarray) -> Tensor:
        """The values of neurons that are in DRAM or on their way there: [tokens, n]; on a device, of all used rows.

        x: [tokens, d_model]
        neurons: [n] int64, those that the tokens need

        Reads may be under way. The columns of their neurons are wrong until `product_after` replaces them.
        """
        return self._values(x, self._matrix, self._bias, self._d_model, self._needed(neurons))

    def product_after(self, h: Tensor, x: Tensor, neurons: np.ndarray, landed: np.ndarray) -> Tensor:
        """Finish the product that `activations` began, now that the last reads have landed.

        h: from `activations`; it is changed
        x, neurons: those that `activations` got
        landed: [n] int64, the rows of these reads

        Returns [tokens, d_model], as `product` does.
        """
        needed = self._needed(neurons)
        rows = np.arange(self.num_used) if isinstance(needed, slice) else needed
        is_late = np.zeros(self.capacity, bool)
        is_late[landed] = True
        late = np.flatnonzero(is_late[rows])
        most = max(1, COPIED_BYTES // (self._decisive * self._matrix.itemsize))
        for part in (late[begin : begin + most] for begin in range(0, len(late), most)):
            h[:, part] = self._values(x, self._matrix, self._bias, self._d_model, rows[part])
        return self._down(h, self._matrix, self._bias, self._d_model, needed)

    def _needed(self, neurons: np.ndarray) -> Picked:
        """The rows to multiply: on a device all that are in use, which takes it less time than to pick some."""
        return slice(self.num_used) if self._matrix.is_cuda else self._row_of_neuron[neurons]

    def clear(self) -> None:
        """See NeuronMemory."""
        self._row_of_neuron[:] = -1
        self.num_used = 0

    def neurons(self) -> np.ndarray:
        """Which neuron each used row holds: [num_used] int64."""
        return self._neuron_of_row[: self.num_used].copy()


class RebuiltMatrix:
    """The simple way, which the pool replaces: each token gets a new matrix, into which old and new rows are copied.

    Its arguments are those of Pool. `moved` counts the rows that were copied.
    """

    spare = 2  # during a rebuild the new matrix and the buffer of new rows exist beside the old matrix

    def __init__(
        self, capacity: int, shape: FFNShape, dtype: torch.dtype, bias: Tensor, activation: Activation = RELU,
        memory: Memory = HOST,
    ) -> None:  # fmt: skip
        self._product, self._memory = products_of(dtype, activation, shape.matrices > 2).product, memory
        self.capacity, self._shape, self._dtype, self._layer_bias = capacity, shape, dtype, bias
        self.moved = self.num_used = 0
        self._neurons: np.ndarray
        self._buffer: np.ndarray
        self.clear()

    def place(self, load: np.ndarray, drop: np.ndarray) -> Landing:
        """See NeuronMemory. Raises ValueError if more rows than the capacity would be needed."""
        if self.num_used - len(drop) + len(load) > self.capacity:
            raise ValueError(f"{len(load)} neurons don't fit {self.capacity} rows")
        self._kept = np.flatnonzero(~np.isin(self._neurons, drop))
        self._loaded = load
        self._landing = self._memory.rows(len(load), self._shape.record_bytes)
        return Landing(self._landing, np.arange(len(load)))

    def commit(self) -> None:
        """Build the new matrix out of the rows that stay and those that were read."""
        kept = len(self._kept)
        new = self._memory.rows(kept + len(self._loaded), self._shape.record_bytes)
        self._memory.take(self._buffer, self._kept, out=new[:kept])
        new[kept:] = self._landing
        self._buffer, self._matrix = new, torch.as_tensor(new).view(self._dtype)
        self._neurons = np.concatenate([self._neurons[self._kept], self._loaded])
        self._bias = self._layer_bias[..., torch.from_numpy(self._neurons)]
        self.num_used = len(self._neurons)
        self.moved += self.num_used
        self._landing = self._memory.rows(0, self._shape.record_bytes)

    def product(self, x: Tensor) -> Tensor:
        """See NeuronMemory."""
        return self._product(x, self._matrix, self._bias, self._shape.d_model)

    def clear(self) -> None:
        """See NeuronMemory."""
        self._neurons, self.num_used = np.zeros(0, np.int64), 0
        self._buffer = self._memory.rows(0, self._shape.record_bytes)
        self._matrix = torch.as_tensor(self._buffer).view(self._dtype)
        self._bias = self._layer_bias[..., :0]

    def neurons(self) -> np.ndarray:
        """Which neuron each row holds: [num_used] int64."""
        return self._neurons.copy()
