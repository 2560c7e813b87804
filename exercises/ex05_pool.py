# Exercises 5.1, 5.2, 5.3. With `--impl ref,ex05=mine` this file takes the place of flashlite.engine.pool.
# Everything without a TODO is provided, and runs as it stands; where a body is left out, the engine's own runs.
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
        # TODO 5.1  insert: rows for new neurons (6 points, 25 minutes, paper section 3.3)
        # Drop the neurons `drop` from the pool and give a row to each neuron of `load`; reads will then bring the
        # weights, so don't touch the weights of new rows. Return Landing(self._buffer, rows): neuron load[i] is to be
        # read into row rows[i].
        # Rows 0 to self.num_used - 1 are the ones in use. Afterwards they have no gap again, and self.num_used is the
        # number of neurons held. Where holes remain among them, self._fill_holes closes these by moving weights down
        # from the last rows in use.
        # Which rows the new neurons take is yours to decide, with two conditions. Moving rows costs time: if at least
        # as many neurons are loaded as dropped, no row moves, and else at most one for each neuron that is dropped
        # beyond those. And no row that you return may move, because weights are read into it only afterwards: they
        # would land where their neuron no longer is.
        # For each neuron held self._row_of_neuron, and for each used row self._neuron_of_row and self._bias are right;
        # for all other neurons self._row_of_neuron is -1.
        # All of `drop` are in the pool, and none of `load` are, unless they are in `drop` as well. Both come in any
        # order, without duplicates, and may be empty; don't change them. If more than self.capacity rows would be in
        # use afterwards, raise ValueError and change nothing. Allocate no new buffer.
        # Example: rows 0 to 3 hold the neurons [7 3 9 4], capacity 6
        #   place(load=[5 8], drop=[9])    -> rows 0 to 4 hold 3 4 5 7 8 in some order; no row was moved
        #   place(load=[2], drop=[8 7 3])  -> rows 0 to 2 hold 2 4 5 in some order; at most two were moved,
        #                                     and 2 is still in the row that was returned for it
        # Provided: self._note(neurons, rows) notes in both maps and the bias that neurons lie in rows.
        # self._fill_holes(holes) takes holes in ascending order, lowers self.num_used by their number and counts the
        # rows it moves. It must know the neuron of every used row that isn't a hole.
        # In the engine: flashlite bench --stage 5 --impl ref,5.1=mine
        raise NotImplementedError("exercise 5.1: delete this line and write place, see the TODO above")

    def _note(self, neurons: np.ndarray, rows: np.ndarray) -> None:
        """Note that neuron neurons[i] is in row rows[i], in both maps and the row's bias. neurons, rows: [n] int64."""
        self._row_of_neuron[neurons] = rows
        self._neuron_of_row[rows] = neurons
        self._bias_of_row[..., rows] = self._bias_of_neuron[..., neurons]

    def _fill_holes(self, holes: np.ndarray) -> None:
        """Shrink the used rows to a gapless block: holes below its new end take the rows left above it.

        holes: [n] int64, used rows whose neurons were dropped, ascending.
        """
        # TODO 5.2  evict: close the holes from the tail (5 points, 20 minutes, paper section 3.3)
        # Some of the used rows, 0 to self.num_used - 1, are holes: their neurons were dropped. Close the holes, so that
        # the neurons that remain fill the rows from 0 on without a gap, up to a new end, and set self.num_used to this
        # end. `holes` has at least one row, in ascending order.
        # Move as few rows as possible. Only a hole below the new end needs a neuron, and takes that of a used row from
        # there on that isn't a hole itself. Every other row stays. Holes from the new end on cost nothing.
        # Moving a row means: copy its bytes in self._buffer, then note that the neuron has a new row, in both maps and
        # the bias. Which neuron goes to which hole doesn't matter. Add the number of rows moved to self.moved. Allocate
        # no new buffer.
        # Example: rows 0 to 5 hold the neurons [7 3 9 4 8 5], holes = [1 4]
        #   four neurons remain, so the new end is 4: row 4 is a hole and costs nothing, row 5 moves to row 1
        #   the rows now hold [7 5 9 4], num_used = 4, moved grows by 1
        # with holes = [4 5] nothing moves
        # Provided: self._note(neurons, rows) notes in both maps and the bias that neurons lie in rows;
        # self._neuron_of_row says which neuron lies in a row.
        # In the engine: flashlite bench --stage 5 --impl ref,5.2=mine
        raise NotImplementedError("exercise 5.2: delete this line and write _fill_holes, see the TODO above")

    def commit(self) -> None:
        """Do nothing, because the reads have landed in the rows that are multiplied."""

    def product(self, x: Tensor) -> Tensor:
        """The used rows' part of the FFN, see ffn_product. x: [tokens, d_model]. Returns [tokens, d_model]."""
        # TODO 5.3  multiply the rows in use (2 points, 5 minutes, paper section 3.3)
        # Compute what the pool's neurons contribute to the FFN: relu(x up^T + bias) down, where up, down and bias are
        # those of the neurons in the used rows. x is [tokens, d_model], and so is the result. The down projection's
        # bias isn't added here.
        # Only rows 0 to self.num_used - 1 take part: the rows above still hold former neurons. self._matrix is the
        # pool's memory seen as weights, [capacity, row], each row [up | down | padding]; self._bias holds the bias of
        # the neuron in each row, [capacity]. An empty pool gives zeros. Copy no weights: multiply the rows where they
        # lie. Don't change x.
        # Example: d_model = 1, self.num_used = 2, a capacity of 3
        #   self._matrix = [[1 10] [2 20] [3 30]] without padding, self._bias = [0 -3 5]
        #   x = [[1]]: hidden = relu([1*1 + 0, 1*2 - 3]) = [1 0], the product is [[1*10 + 0*20]] = [[10]]
        # Provided: ffn_product(x, rows, bias, d_model) computes this for rows of neurons and their biases, padding or
        # not; self._d_model. The engine calls it as self._product, which in models of other families is a product of
        # their own.
        # In the engine: flashlite bench --stage 5 --impl ref,5.3=mine
        raise NotImplementedError("exercise 5.3: delete this line and write product, see the TODO above")

    def activations(self, x: Tensor, neurons: np.ndarray) -> Tensor:
        """The values of neurons that are in DRAM or on their way there: [tokens, n]; on a device, of all used rows.

        x: [tokens, d_model]
        neurons: [n] int64, those that the tokens need

        Reads may be under way. The columns of their neurons are wrong until `product_after` replaces them.
        """
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

    def product_after(self, h: Tensor, x: Tensor, neurons: np.ndarray, landed: np.ndarray) -> Tensor:
        """Finish the product that `activations` began, now that the last reads have landed.

        h: from `activations`; it is changed
        x, neurons: those that `activations` got
        landed: [n] int64, the rows of these reads

        Returns [tokens, d_model], as `product` does.
        """
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

    def _needed(self, neurons: np.ndarray) -> Picked:
        """The rows to multiply: on a device all that are in use, which takes it less time than to pick some."""
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

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
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

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
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

    def clear(self) -> None:
        """See NeuronMemory."""
        self._neurons, self.num_used = np.zeros(0, np.int64), 0
        self._buffer = self._memory.rows(0, self._shape.record_bytes)
        self._matrix = torch.as_tensor(self._buffer).view(self._dtype)
        self._bias = self._layer_bias[..., :0]

    def neurons(self) -> np.ndarray:
        """Which neuron each row holds: [num_used] int64."""
        return self._neurons.copy()
