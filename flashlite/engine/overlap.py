"""Reads and computing at the same time: one step beyond the paper.

The drive idles while the processor multiplies, and the processor idles while the drive reads. But a layer's input tells
well which neurons the next layer will need, because a layer changes the residual stream little. So the next layer's
predictor is asked about this layer's input, and the neurons that it names are read early: while this layer multiplies
and the next one attends. When the next layer's own input is known, its predictor names the neurons that are still
missing, and these are read while the neurons in DRAM are multiplied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from flashlite.drive.flash import Ticket, background_backend
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.pool import Pool
from flashlite.engine.predictor import LowRankPredictor, active_set
from flashlite.engine.timing import IO, PRODUCT, REST
from flashlite.engine.window import NONE, Step
from flashlite.errors import ReadError
from flashlite.storage.neurons import NeuronFile, wait_all

SURE = 0.8  # share of a guess's new neurons that is read: the lowest scores are wrong most often
FIRST = 2  # number of the first layer that reads early: layer 0's input tells too little of layer 1's


class OverlappedFFN(FlashFFN):
    """A FlashFFN that lets the next layer read early. Its memory is a Pool."""

    tell_next: Callable[[Tensor], None] | None = None  # `guess` of the next layer
    memory: Pool
    early: NeuronFile  # the same neurons, read in the background
    _under_way: Sequence[Ticket] | None = None  # this layer's early reads
    _guessed = NONE  # the neurons that these reads load

    @staticmethod
    def connect(ffns: Sequence[FlashFFN]) -> NeuronFile:
        """Tell each FFN which one follows it. Returns the file for early reads, which a thread of its own does."""
        early = ffns[0].file.reopen(background_backend())
        for ffn, following in pairwise(ffns):
            assert isinstance(ffn, OverlappedFFN)
            assert isinstance(following, OverlappedFFN)
            following.early = early
            if following.layer >= FIRST:
                ffn.tell_next = following.guess  # the method alone: torch would make a module a part of this one
        return early

    def guess(self, x: Tensor) -> None:
        """Begin to read the neurons that this layer will probably need.

        x: [tokens, d_model], the input of the layer before
        """
        step = self.window.step(self._likely(x))
        self._under_way, _ = self._submit(step, self.early)
        self._clock.switch(REST)
        self._guessed = step.load

    def _likely(self, x: Tensor) -> np.ndarray:
        """The neurons that this layer will probably need: [n] int64, sorted.

        x: [tokens, d_model], the input of the layer before

        They are the neurons that the predictor names for x. If it gives scores, then of the neurons that aren't in DRAM
        yet only the share SURE with the highest scores is taken.
        """
        if not isinstance(self.predictor, LowRankPredictor):
            return active_set(self.predictor, x)
        scores = self.predictor.scores(x).amax(0).float().numpy()
        named = np.flatnonzero(scores > 0)
        new = np.setdiff1d(named, self.window.held, True)
        unsure = np.argsort(scores[new])[: int((1 - SURE) * len(new))]
        return np.setdiff1d(named, new[unsure], True)

    def forget(self) -> None:
        """Drop all neurons, after reads under way have ended."""
        if self._under_way is not None:
            with contextlib.suppress(ReadError):
                wait_all(self._under_way)
            self._under_way = None
        super().forget()

    def _prompt(self, x: Tensor) -> Tensor:
        if self._under_way is not None:  # the call that these reads were for was broken off
            self.forget()
        return super()._prompt(x)

    def _step(self, x: Tensor) -> Step:
        if self._under_way is None:
            return super()._step(x)
        active = active_set(self.predictor, x)
        under_way, self._under_way = self._under_way, None
        self._clock.switch(IO)
        wait_all(under_way)
        self.memory.commit()
        self._clock.switch(REST)
        step = self.window.amend(active)
        self.wasted += int(np.isin(self._guessed, step.drop).sum())
        return step

    def _product(self, x: Tensor, step: Step) -> Tensor:
        clock, memory = self._clock, self.memory
        tickets, rows = self._submit(step, self.file)
        try:
            clock.switch(PRODUCT)
            h = memory.activations(x)
        finally:  # even after an error, no read may land in a row that another neuron has taken
            clock.switch(IO)
            wait_all(tickets)
            clock.switch(REST)
        memory.commit()
        if self.tell_next is not None:
            self.tell_next(x)
        clock.switch(PRODUCT)
        out = memory.product_after(h, x, rows)
        clock.switch(REST)
        return out
