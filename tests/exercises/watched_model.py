"""A small model of stage 6 on a slow drive, which sees what its layers do while reads are under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from slow_flash import Array, Flash, Ticket
from torch import Tensor

from flashlite.course.checks import expect, require, rng
from flashlite.engine.ffn import StreamedFFN
from flashlite.engine.overlap import FIRST, OverlappedFFN
from flashlite.engine.pool import Landing, Pool
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.timing import Clock
from flashlite.engine.window import Window
from flashlite.storage.bundle import FFNShape

LAYERS, NEURONS, D_MODEL, K = 4, 96, 32, 2  # layers, and of each its neurons; tokens of the window
QUIET, MARGIN = 1.2 * D_MODEL**0.5, 0.4  # an eighth of the neurons fires; the predictor misses none
TIGHT = 12  # rows for about as many neurons as a token needs
EARLY = "Nothing is read early: begin the next layer's reads, too, for each layer in self.following."
NOTED = "Note in following.begun what you have begun, as soon as it is: forget() waits for that."
LANDED = "NaN is what rows hold whose reads haven't landed: wait before you multiply them."
FAILED = "A read failed, and its neurons were used all the same: let ReadError pass, or read them again."
OVERFLOW = "Return the step's overflow: what has no room in DRAM is read and multiplied by the caller."
Input = list[Tensor]  # of one token, layer by layer: [sequences, D_MODEL] each


class Interrupt(KeyboardInterrupt):
    """The user presses Ctrl-C."""


class WatchedPool(Pool):
    """A pool that sees what is under way when something is done with it. layer: whose it is."""

    layer: Layer
    interrupt = ""  # when Ctrl-C is pressed: at the first product, or at the last one

    def place(self, load: Array, drop: Array) -> Landing:
        """As any pool does."""
        again = np.setdiff1d(load[self._row_of_neuron[load] >= 0], drop)
        text = "What is in DRAM already needn't be read again."
        require(not len(again), f"{self.layer.what}: {len(again)} neurons to be read are in DRAM", "0", text)
        landing = super().place(load, drop)
        for ticket in self.layer.under_way:
            kept = np.array_equal(self._row_of_neuron[ticket.neurons], ticket.rows)
            text = "Wait for reads before place() may give away, or move, the rows that they land in."
            require(kept, f"{self.layer.what}: a row was taken into which a read is under way", "none", text)
        return landing

    def activations(self, x: Tensor) -> Tensor:
        """As any pool does."""
        self._see("first", self.num_used)
        return super().activations(x)

    def product_after(self, h: Tensor, x: Tensor, landed: Array) -> Tensor:
        """As any pool does."""
        self._see("last", len(landed))
        return super().product_after(h, x, landed)

    def product(self, x: Tensor) -> Tensor:
        """As any pool does."""
        self._see("last", self.num_used)
        return super().product(x)

    def _see(self, when: str, rows: int) -> None:
        layer = self.layer
        layer.multiplied += rows
        layer.read_meanwhile |= any(len(ticket.neurons) for ticket in layer.flash.under_way)
        if when == "last":
            layer.next_under_way = bool(layer.next and layer.next.early.under_way)
            text = "The last product takes all rows, so every read of this layer must have landed by then."
            require(not layer.under_way, f"{layer.what}: {len(layer.under_way)} batches are under way", "0", text)
        if self.interrupt and (self.interrupt == when or when == "last"):
            raise Interrupt


class Layer:
    """An FFN of NEURONS neurons on a slow drive. next: the layer that reads early after it."""

    next: Layer | None = None

    def __init__(self, number: int, random: np.random.Generator, capacity: int) -> None:
        self.number, self.what, shape = number, f"layer {number}", FFNShape(NEURONS, D_MODEL, 4, 64)
        self.up, self.down = (self._random(random, NEURONS, D_MODEL) for _ in range(2))
        self.bias, self.down_bias = torch.full((NEURONS,), -QUIET), self._random(random, D_MODEL)
        both = torch.cat([self.up, self.down], 1).numpy().view(np.uint8)
        self.flash, self.early = Flash(both), Flash(both)
        self.window, self.pool = Window(NEURONS, K, capacity), WatchedPool(capacity, shape, torch.float32, self.bias)
        self.pool.layer = self
        self.predictor = LowRankPredictor.of(torch.eye(D_MODEL), self.up, self.bias + MARGIN)
        stream: Any = SimpleNamespace(begin=lambda layer, neurons, at_once: neurons, product=self._streamed)
        calls: Any = SimpleNamespace(tokens=1, sequences=1)
        file: Any = self.flash
        streamed = StreamedFFN(number, stream, self.bias, self.down_bias)
        self.ffn = OverlappedFFN(streamed, self.predictor, self.window, file, self.pool, calls, Clock())
        self.ffn.early = self.early  # type: ignore[assignment]
        self.read_meanwhile, self.next_under_way, self.multiplied = False, False, 0
        self.needed = deque[set[int]](maxlen=K)  # by the last tokens

    @staticmethod
    def _random(random: np.random.Generator, *shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    def _streamed(self, x: Tensor, neurons: Array, bias: Tensor) -> Tensor:
        return (x @ self.up[neurons].T + bias[neurons]).relu() @ self.down[neurons]

    @property
    def under_way(self) -> list[Ticket]:
        """The reads of this layer's neurons that nobody has waited for."""
        return [ticket for ticket in self.flash.under_way + self.early.under_way if len(ticket.neurons)]

    def named(self, x: Tensor) -> set[int]:
        """The neurons that the predictor names."""
        return set(self.predictor.mask(x).any(0).nonzero().flatten().tolist())

    def call(self, x: Tensor) -> None:
        """The FFN's output for one token must be right, and what it leaves behind."""
        given = x.clone()
        self.read_meanwhile, self.next_under_way, self.multiplied = False, False, 0
        self.needed.append(self.named(x))
        out = self.ffn(x)
        expect(x, given, f"{self.what}: x afterwards")
        text = FAILED if self.flash.fails or self.early.fails else LANDED
        require(bool(out.isfinite().all()), f"{self.what}: the output holds NaN", "numbers", text)
        values, held = (x @ self.up.T + self.bias).relu(), self.window.held
        lost = torch.from_numpy(np.isin(np.arange(NEURONS), [*self.needed[-1] - set(held.tolist())]))
        wrong = {OVERFLOW: (values * ~lost) @ self.down + self.down_bias} if lost.any() else {}
        expect(out, values @ self.down + self.down_bias, f"{self.what}: the output", wrong, tolerance=1e-3)
        begun = self.ffn.begun
        require(
            begun is None, f"{self.what}: self.begun is {begun!r:.30} when it is done", "None", "It must be None again."
        )
        if self.pool.capacity == NEURONS:
            text = "A guess leaves no trace in the window: put the token's own neurons in its place."
            trace = set(held.tolist()).difference(*self.needed)
            require(
                not trace,
                f"{self.what}: the window holds {len(trace)} neurons that none of its tokens needs",
                "0",
                text,
            )
        text = "Memory must load and drop what the window's steps say."
        same = np.array_equal(np.sort(self.pool.neurons()), held)
        require(same, f"{self.what}: memory holds other neurons than the window", "the same", text)

    def check_window(self) -> None:
        """The window must hold the neurons of the last K tokens, where there is room for all and no read failed."""
        lacking = set[int]().union(*self.needed).difference(self.window.held.tolist())
        text = "Move the window on exactly once by each token, also where a guess had nothing to load."
        require(not lacking, f"{self.what}: the window lacks {len(lacking)} neurons of its last {K} tokens", "0", text)


class Model:
    """LAYERS layers, those from FIRST on read early, and a text whose tokens and layers resemble those before."""

    def __init__(self, capacity: int = NEURONS, sequences: int = 1) -> None:
        self.random = rng()
        self.layers = [Layer(i, self.random, capacity) for i in range(LAYERS)]
        for before, layer in pairwise(self.layers):
            if layer.number >= FIRST:
                before.next, before.ffn.following = layer, (layer.ffn,)
        self._text = self._tokens(sequences)

    def _tokens(self, sequences: int) -> Iterator[Input]:
        shape = (sequences, D_MODEL)
        token = Layer._random(self.random, *shape)
        while True:
            token = 0.7 * token + 0.71 * Layer._random(self.random, *shape)
            inputs = [token]
            while len(inputs) < LAYERS:
                inputs.append(0.9 * inputs[-1] + 0.44 * Layer._random(self.random, *shape))
            yield inputs

    def token(self) -> list[tuple[Layer, Tensor]]:
        """The next token: its layers in order, with what each gets."""
        return list(zip(self.layers, next(self._text), strict=True))

    def write(self, tokens: int) -> None:
        """Run the model on some tokens."""
        for _ in range(tokens):
            for layer, x in self.token():
                layer.call(x)

    def settle(self) -> None:
        """What the engine does after a call that was broken off, before the next one."""
        for layer in self.layers:
            text = "However you leave, wait for this layer's reads: the rows that they land in get other neurons."
            require(not layer.flash.under_way, f"{layer.what}: reads are under way after an exception", "none", text)
            layer.ffn.forget()
            layer.needed.clear()
            require(not layer.early.under_way, f"{layer.what}: early reads are under way after forget()", "0", NOTED)
