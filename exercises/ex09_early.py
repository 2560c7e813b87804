# Exercises 9.3. With `--impl ref,ex09=mine` this file takes the place of flashlite.engine.early.
# Everything without a TODO is provided, and runs as it stands; where a body is left out, the engine's own runs.
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
        # TODO 9.3  read while the layer attends (7 points, 25 minutes, paper none: this is a step beyond it)
        # In a layer whose attention and FFN run beside each other, the norm's output is the FFN's input. The engine
        # calls this method as soon as the norm has run, with x [sequences, d_model], one token of each sequence.
        # Attention runs next, then the FFN, whose forward asks for the step that you note here and waits for the reads.
        # Move the window on by this token: exactly once, with the neurons that the predictor names for x. Begin to read
        # what the step loads, in place of what it drops, through self.early, which a thread of its own serves:
        # self.file would do the reads at once. Don't wait for them. Then set
        #   self._begun       the step
        #   self._under_way   the tickets of its reads
        # A call can be broken off while the layer attends (the user presses Ctrl-C). Then the FFN never ran:
        # self._begun isn't None when you are called the next time, reads may still be under way, and the window names
        # neurons that memory doesn't have for certain. Begin from an empty state then.
        # What follows is attention's time, so end with self._clock.switch(REST).
        # Example: token 1 needs the neurons [3 8]:  begin(x1): window and memory are empty, load = [3 8], 2 reads are
        # under way
        #   attention runs while the drive reads
        #   forward(x1): waits for 2 reads, multiplies 2 rows, self._begun is None again
        # token 2 needs [3 9]:              begin(x2): load = [9], 1 read is under way
        # Provided: active_set(self.predictor, x) and self.window.step(...), as in chapters 2 and 3; self._submit(step,
        # file) makes room in memory for a step, begins its reads through a file and returns (tickets, rows);
        # self.forget() waits for all reads under way and empties window, memory and the two fields.
        # In the engine: flashlite bench falcon-mini --stage 6 --dram-budget 75% --impl ref,ex09=mine
        raise NotImplementedError("exercise 9.3: delete this line and write begin, see the TODO above")

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
        # Left out, because it would show how to solve an exercise. The engine's own code runs here.
        raise NotImplementedError("left out here: flashlite runs its own code in place of this")

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
