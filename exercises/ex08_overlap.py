# Exercises 8.1. With `--impl ref,ex08=mine` this file takes the place of flashlite.engine.overlap.
# Everything without a TODO is provided, and runs as it stands.
"""Reads and computing at the same time: one step beyond the paper.

The drive idles while the processor multiplies, and the processor idles while the drive reads. But a layer's input tells
well which neurons the next layer will need, because a layer changes the residual stream little. So the next layer's
predictor is asked about this layer's input, and the neurons that it names are read early: while this layer multiplies
and the next one attends. When the next layer's own input is known, its predictor names the neurons that are still
missing, and these are read while the neurons in DRAM are multiplied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from flashlite.drive.flash import Ticket, background_backend
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.pool import Pool
from flashlite.engine.predictor import LowRankPredictor, active_set
from flashlite.engine.timing import IO, PRODUCT, REST
from flashlite.errors import ReadError
from flashlite.storage.neurons import NeuronFile, wait_all

SURE = 0.8  # share of a guess's new neurons that is read: the lowest scores are wrong most often
FIRST = 2  # number of the first layer that reads early: layer 0's input tells too little of layer 1's


@dataclass(frozen=True)
class Begun:
    """Reads that were begun for a layer before its own input was known.

    tickets: on which whoever needs the neurons waits
    neurons: [n] int64, those that are read
    """

    tickets: Sequence[Ticket]
    neurons: np.ndarray


class OverlappedFFN(FlashFFN):
    """A FlashFFN whose neurons are read while this layer or the layer before multiplies. Its memory is a Pool.

    following: the next layer if it reads early, else none; a tuple, because torch would make a module a part of this
        one
    early: the same neurons as `file`, read in the background
    begun: the early reads under way for this layer's next token
    """

    memory: Pool
    early: NeuronFile
    following: tuple[OverlappedFFN, ...] = ()
    begun: Begun | None = None

    @staticmethod
    def connect(ffns: Sequence[FlashFFN]) -> NeuronFile:
        """Tell each FFN which one follows it. Returns the file for early reads, which a thread of its own does."""
        early = ffns[0].file.reopen(background_backend())
        for ffn, following in pairwise(ffns):
            assert isinstance(ffn, OverlappedFFN)
            assert isinstance(following, OverlappedFFN)
            following.early = early
            if following.layer >= FIRST:
                ffn.following = (following,)
        return early

    def read_and_multiply(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        """What the neurons that DRAM has room for add to the output, and the neurons that it has no room for.

        x: [sequences, d_model], one token of each. Returns [sequences, d_model], and [n] int64.
        """
        # TODO 8.1  read while you multiply (8 points, 45 minutes, paper none: this is a step beyond it)
        # A token's whole way through a layer of stage 6. x is [sequences, d_model], one token of each sequence. Move
        # the window on by this token, exactly once, with the neurons that the predictor names for x. See that they are
        # in DRAM, and return what these neurons add to the output, [sequences, d_model], and the step's overflow:
        # neurons that DRAM has no room for, which the caller will see to. And begin the reads of the next layer.
        # In which order you do all this is up to you. You are graded by values and counts, on a drive whose reads land
        # when they like: some at once, others not before somebody waits for them. Until then their rows hold garbage.
        # Right numbers: nothing is multiplied that hasn't landed. While a read is under way, its row may neither be
        # given to another neuron nor moved, and self._submit does both.
        # This layer: while the neurons that it lacks are read, through self.file, it multiplies those that are there.
        # The next layer: for each one in self.following (there is one or none), guess from x what it will need, and
        # have the reads of it under way, through following.early, at the latest when this layer's last product begins.
        # Don't wait for them. Note them in following.begun. When that layer's turn comes, it finds them in its own
        # self.begun, which must be None again when it is done. self.wasted grows by the number of neurons that were
        # read early and that this token doesn't need: few of them should be.
        # Faults: a read that fails raises ReadError in whoever waits for it. Let it pass, or mend it, but never
        # multiply what didn't come. And an exception may end your method wherever it spends time (the user presses
        # Ctrl-C): in a predictor, while it waits for early reads, in a product. Then no read through self.file may be
        # under way any more; early reads may be, but only such as are noted in their layer's begun. The engine calls
        # self.forget() for every layer before the next call: it waits for what is in self.begun, and empties window,
        # memory and self.begun.
        # Example: two layers, and a token for which layer 2's predictor named [3 8 9] by the input of layer 1; [3] was
        # in DRAM:
        #   layer 1 multiplies:  2 reads, of 8 and 9, are under way
        #   layer 2 is called:   its predictor names [3 9 12]: 12 is missing, and 8 was read for nothing;
        #                        3 and 9 are multiplied while 12 is read; then 12 is, and 8 is gone: self.wasted += 1
        #                        while layer 2 multiplies, reads of layer 3 are under way
        # Provided: active_set(self.predictor, x), the neurons that x needs. self.window.step(active) moves the window
        # on and gives a step: load, drop, overflow. self.window.amend(active), where the last step was given a guess,
        # puts this token's true neurons in the guess's place: its step loads what is missing and drops what was guessed
        # wrongly. following.likely(x) is a guess for the next layer.
        # self._submit(step, file) drops step.drop from memory, gives rows to step.load, begins to read these through a
        # file, and returns (tickets, rows). self.land(tickets) waits; it raises ReadError if any failed, when all have
        # ended. Begun(tickets, neurons) is what goes into begun.
        # self.activations(x) computes the values h of the neurons that the window's last token needs, [sequences, n];
        # those of rows under way are garbage. self.product_after(h, x, rows) computes the values of `rows` again, when
        # they have landed, and multiplies h by the down projection: the neurons must be those of self.activations, so
        # the window may not have moved on since. self.memory.product(x) multiplies all rows at once, of which a longer
        # window has several times as many.
        # In the engine: flashlite bench --stage 6 --impl ref,8.1=mine
        raise NotImplementedError("exercise 8.1: delete this line and write read_and_multiply, see the TODO above")

    def likely(self, x: Tensor) -> np.ndarray:
        """The neurons that this layer will probably need: [n] int64, sorted.

        x: [sequences, d_model], the input of the layer before

        They are the neurons that the predictor names for x. If it gives scores, then of the neurons that aren't in DRAM
        yet only the share SURE with the highest scores is taken.
        """
        if not isinstance(self.predictor, LowRankPredictor):
            return active_set(self.predictor, x)
        scores = self.predictor.scores(x).amax(0).float().numpy()
        new = self.window.lacks(np.flatnonzero(scores > 0))
        unsure = np.argsort(scores[new])[: int((1 - SURE) * len(new))]
        scores[new[unsure]] = 0
        return np.flatnonzero(scores > 0)

    def land(self, tickets: Sequence[Ticket]) -> None:
        """Wait for reads. Raises ReadError if any failed, once all have ended."""
        self._clock.switch(IO)
        wait_all(tickets)
        self.memory.commit()
        self._clock.switch(REST)

    def activations(self, x: Tensor) -> Tensor:
        """The values of the neurons that the window's last token needs; see Pool.activations."""
        self._clock.switch(PRODUCT)
        return self.memory.activations(x, self.window.newest)

    def product_after(self, h: Tensor, x: Tensor, rows: np.ndarray) -> Tensor:
        """What these neurons add to the output, once the reads of `rows` have landed; see Pool.product_after."""
        self._clock.switch(PRODUCT)
        out = self.memory.product_after(h, x, self.window.newest, rows)
        self._clock.switch(REST)
        return out

    def forget(self) -> None:
        """Drop all neurons, after reads under way have ended."""
        if self.begun is not None:
            with contextlib.suppress(ReadError):
                wait_all(self.begun.tickets)
            self.begun = None
        super().forget()

    def _prompt(self, x: Tensor) -> Tensor:
        if self.begun is not None:  # the call that these reads were for was broken off
            self.forget()
        return super()._prompt(x)

    def _decode(self, x: Tensor) -> Tensor:
        out, overflow = self.read_and_multiply(x)
        if len(overflow):
            passes = self._stream.begin(self.layer, overflow, at_once=1)
            out.add_(self._stream.product(x, passes, self._bias))
        return out
