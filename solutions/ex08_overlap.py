# Solutions of exercises 8.1: flashlite.engine.overlap as the engine runs it.
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
        # 8.1  Everything that changes rows comes when nothing is under way into them: first the early reads land, then
        # the window is corrected and rows change owners, then the missing neurons are on their way, and into these rows
        # nobody looks before they have landed. The next layer's reads are begun before the last product, so that the
        # drive works during it and while the next layer attends. They could begin earlier, but then they would stand in
        # the way of this layer's own reads, for which somebody is waiting. The finally is for a product that is broken
        # off: forget() empties the pool, and a read that still was under way would land in a row that another neuron
        # has by then. For the same reason begun is cleared only when its reads have landed: until then forget() must
        # find them.
        # Usual mistakes: amending the window and giving rows away while early reads are under way; moving the window on
        # by a step where a guess was in it; beginning the next layer's reads after the product, or waiting for them;
        # waiting for the missing neurons before the first product; leaving reads under way after an exception, in a
        # predictor or a wait as well as in a product; swallowing ReadError; reading early all that the predictor names,
        # whose last fifth is mostly wrong.
        active = active_set(self.predictor, x)
        if (begun := self.begun) is None:
            step = self.window.step(active)
        else:
            self.land(begun.tickets)
            self.begun = None
            step = self.window.amend(active)
            self.wasted += int(np.isin(begun.neurons, step.drop).sum())
        tickets, rows = self._submit(step, self.file)
        try:
            h = self.activations(x)
        finally:  # even after an error, no read may land in a row that another neuron has taken
            self.land(tickets)
        for following in self.following:
            guess = following.window.step(following.likely(x))
            early, _ = following._submit(guess, following.early)
            following.begun = Begun(early, guess.load)
        return self.product_after(h, x, rows), step.overflow

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
