# Solutions of exercises 9.3: flashlite.engine.early as the engine runs it.
"""Reading while a layer attends, where its FFN's input is known by then: nothing is guessed. One step beyond the paper.

In Falcon and Phi, attention and the FFN run beside each other: both get the output of a norm, and neither waits for the
other. So the predictor is asked as soon as the norm has run, and the drive reads while the processor attends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flashlite.drive.flash import Ticket, background_backend
from flashlite.engine.calls import wrap_forward
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.pool import Pool
from flashlite.engine.predictor import active_set
from flashlite.engine.timing import IO, MEMORY, PRODUCT, REST
from flashlite.engine.window import NONE, Step
from flashlite.errors import ReadError
from flashlite.storage.neurons import NeuronFile, wait_all


class EarlyFFN(FlashFFN):
    """A FlashFFN whose reads begin when the norm before it has run."""

    memory: Pool
    early: NeuronFile  # the same neurons, read in the background
    _begun: Step | None = None  # of the token whose reads are under way
    _under_way: Sequence[Ticket] = ()
    _rows = NONE  # in which these reads land

    @staticmethod
    def connect(ffns: Sequence[FlashFFN]) -> NeuronFile:
        """Returns the file for early reads, which a thread of its own does."""
        early = ffns[0].file.reopen(background_backend())
        for ffn in ffns:
            assert isinstance(ffn, EarlyFFN)
            ffn.early = early
        return early

    def hear(self, norm: nn.Module) -> None:
        """Begin to read whenever this norm has run."""

        def run(forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
            normed = forward(hidden)
            if self._calls.tokens <= max(1, self.window.tokens) and not self._unlike_decoding(normed):
                self.begin(normed.reshape(-1, normed.shape[-1]))
            return normed

        wrap_forward(norm, run)

    def begin(self, x: Tensor) -> None:
        """Move the window on by a token and begin to read its neurons. x: [sequences, d_model], the FFN's input."""
        # 9.3  Stage 6 of chapter 8 guesses what the next layer needs, and some of what it reads is wasted. Here nothing
        # is guessed: attention doesn't change the FFN's input, so the very set that the FFN will use is known before
        # attention begins, and the drive has all of attention's time to read it. The bytes are those of stage 5, to the
        # last one. Waiting is left to the FFN, as late as it can be.
        # Usual mistakes: waiting for the reads here, which is stage 5 in another place; reading through self.file; not
        # noting the step, so that the FFN moves the window on once more; going on after a call that was broken off as
        # if its neurons had landed; leaving the clock at I/O, so that attention counts as waiting for flash.
        if self._begun is not None:  # a call was broken off before it used what it had begun
            self.forget()
        step = self.window.step(active_set(self.predictor, x))
        self._under_way, self._rows = self._submit(step, self.early)
        self._clock.switch(REST)
        self._begun = step

    def forget(self) -> None:
        """Drop all neurons, after reads under way have ended."""
        with contextlib.suppress(ReadError):
            wait_all(self._under_way)
        self._begun, self._under_way = None, ()
        super().forget()

    def _unlike_decoding(self, x: Tensor) -> bool:
        """Whether this is no input as the FFN takes it: `unlike_training` changes it, or refuses it."""
        return x.requires_grad or torch.is_autocast_enabled(x.device.type)

    def _prompt(self, x: Tensor) -> Tensor:
        if self._begun is not None:
            self.forget()
        return super()._prompt(x)

    def _step(self, x: Tensor) -> Step:
        return super()._step(x) if self._begun is None else self._begun

    def _product(self, x: Tensor, step: Step) -> Tensor:
        if step is not self._begun:
            return super()._product(x, step)
        clock, memory, needed = self._clock, self.memory, self.window.newest
        clock.switch(PRODUCT)
        h = memory.activations(x, needed)
        clock.switch(IO)
        wait_all(self._under_way)
        self._begun, self._under_way = None, ()
        clock.switch(MEMORY)
        memory.commit()
        clock.switch(PRODUCT)
        out = memory.product_after(h, x, needed, self._rows)
        clock.switch(REST)
        return out
