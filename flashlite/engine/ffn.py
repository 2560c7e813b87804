"""One FFN that streams: predictor -> window -> flash -> pool -> product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flashlite.engine.pool import NeuronMemory
from flashlite.engine.predictor import Predictor, active_set
from flashlite.engine.stream import Stream, Taking
from flashlite.engine.timing import Timing
from flashlite.engine.window import Step, Window
from flashlite.storage.neurons import NeuronFile


@dataclass
class Call:
    """The model call under way: how many sequences, and how many new tokens each has."""

    sequences: int = 1
    tokens: int = 1


class StreamedFFN(nn.Module):
    """An FFN whose every weight is read for every call: the stages before the predictor, and every prompt.

    layer: its number; up_bias: [ffn]; down_bias: [d_model].
    """

    def __init__(self, layer: int, stream: Stream, up_bias: Tensor, down_bias: Tensor) -> None:
        super().__init__()
        self.layer, self.stream = layer, stream
        self.up_bias, self.down_bias = up_bias, down_bias

    def forward(self, x: Tensor, keep: Tensor | None = None, take: Taking | None = None) -> Tensor:
        """x: [tokens, d_model], the normed input of the FFN. Returns its output, the same shape.

        keep: [tokens, ffn] bool, which neurons take part; all unless given; take: neurons to copy out as they pass. A
        prompt reads ahead while it multiplies. A single token reads, then multiplies, as at every stage of the paper:
        its latency is I/O + memory + compute.
        """
        neurons, ahead = np.arange(len(self.up_bias)), len(x) > 1
        return self.stream.product(x, self.layer, self.up_bias, neurons, keep, ahead, take) + self.down_bias

    def part(self, x: Tensor, neurons: np.ndarray) -> Tensor:
        """What these neurons ([n] int64, sorted) contribute, without the bias. x: [tokens, d_model]."""
        return self.stream.product(x, self.layer, self.up_bias, neurons)


class FlashFFN(nn.Module):
    """An FFN that reads only the neurons that a token needs and doesn't have in DRAM yet.

    whole: the same layer read as a whole, for prompts; file: where its neurons are; memory: where they go.
    """

    wasted = 0  # neurons that were read ahead so far and then not used

    @staticmethod
    def connect(ffns: Sequence[FlashFFN]) -> NeuronFile | None:
        """Tell a model's FFNs what they must know of each other. Returns what they read ahead from, here nothing."""
        return None

    def __init__(
        self, whole: StreamedFFN, predictor: Predictor, window: Window, file: NeuronFile, memory: NeuronMemory,
        call: Call, timing: Timing,
    ) -> None:  # fmt: skip
        super().__init__()
        self.whole, self.predictor, self.window, self.file, self.memory = whole, predictor, window, file, memory
        self._call, self._timing = call, timing

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x: [sequences * tokens, d_model], the normed input of the FFN. Returns its output, the same shape."""
        try:
            return self._forward(x)
        except BaseException:  # what the window says and what has landed may differ now: begin anew with the next call
            self.forget()
            raise

    def _forward(self, x: Tensor) -> Tensor:
        if self._is_prompt:
            return self._prompt(x)
        step = self._step(x)
        out = self._product(x, step)
        if len(step.overflow):
            out += self.whole.part(x, step.overflow)
        return out + self.whole.down_bias

    @property
    def _is_prompt(self) -> bool:
        return self._call.tokens > max(1, self.window.tokens)

    def _step(self, x: Tensor) -> Step:
        """What this call changes in the window."""
        return self.window.step(active_set(self.predictor, x))

    def _product(self, x: Tensor, step: Step) -> Tensor:
        """What the neurons in the window compute, once they are in DRAM."""
        self._exchange(step.load, step.drop)
        with self._timing.product:
            return self.memory.product(x)

    def forget(self) -> None:
        """Drop all neurons."""
        self.window.clear()
        self.memory.clear()

    def _prompt(self, x: Tensor) -> Tensor:
        """A prompt needs most neurons, so the whole layer passes through. Afterwards the window holds what the last
        tokens need, as if they had been decoded one by one; those neurons are copied as they pass."""
        load, drop = self._remember_last(x)
        with self._timing.memory:
            landing = self.memory.place(load, drop)
        out = self.whole(x, take=Taking(load, landing.buffer, landing.rows))
        with self._timing.memory:
            self.memory.commit()
        return out

    def _remember_last(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Move the window on by the last tokens of a prompt. Returns what that loads and drops: [n] int64 each."""
        before = self.window.resident
        by_position = x.view(self._call.sequences, self._call.tokens, -1).transpose(0, 1)
        for position in by_position[len(by_position) - self.window.tokens :]:
            self.window.step(active_set(self.predictor, position))
        after = self.window.resident if self.window.tokens else before
        return np.setdiff1d(after, before, True), np.setdiff1d(before, after, True)

    def _exchange(self, load: np.ndarray, drop: np.ndarray) -> None:
        """Read neurons from flash to DRAM, in place of others."""
        with self._timing.memory:
            landing = self.memory.place(load, drop)
        with self._timing.io:
            self.file.read(self.whole.layer, load, landing.buffer, landing.rows)
        with self._timing.memory:
            self.memory.commit()
