"""One FFN that streams: predictor -> window -> flash -> pool -> product."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flashlite.drive.flash import Ticket
from flashlite.engine.calls import Calls
from flashlite.engine.pool import NeuronMemory
from flashlite.engine.predictor import Predictor, active_set
from flashlite.engine.stream import CopyOut, Stream
from flashlite.engine.timing import IO, MEMORY, PRODUCT, REST, Clock
from flashlite.engine.window import Step, Window
from flashlite.errors import FlashliteError
from flashlite.storage.int8.resident import scale_name
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import Store

log = logging.getLogger("flashlite")


class StreamedFFN(nn.Module):
    """An FFN whose every weight is read for every call: the stages before the predictor, and every prompt.

    layer: its number
    stream: the buffer through which its weights pass
    up_bias: [ffn], of the projection that decides which neurons fire
    down_bias: [d_model]
    second_bias: [ffn], of the other projection of gated neurons
    scales: [ffn] of each matrix in int8, in the order of a record
    """

    def __init__(
        self, layer: int, stream: Stream, up_bias: Tensor, down_bias: Tensor, second_bias: Tensor | None = None,
        scales: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.stream = layer, stream
        self.up_bias, self.down_bias = up_bias, down_bias
        self._others = [*([] if second_bias is None else [second_bias]), *scales]

    @classmethod
    def of(
        cls, layer: int, store: Store, stream: Stream, tensors: Mapping[str, Tensor], device: torch.device
    ) -> StreamedFFN:
        """One layer's, with its biases and scales among the resident tensors; a bias that a model lacks is 0."""
        family, shape = store.family, store.shape

        def bias(pattern: str, size: int) -> Tensor:
            found = tensors.get(pattern.format(layer))
            return torch.zeros(size, dtype=store.compute_dtype, device=device) if found is None else found

        biases = [bias(pattern, shape.neurons) for pattern in family.biases]
        second = biases[1] if len(biases) > 1 else None
        matrices = family.matrices if store.quantized else ()
        scales = [tensors[scale_name(matrix.format(layer))] for matrix in matrices]
        return cls(layer, stream, biases[0], bias(family.down_bias, shape.d_model), second, scales)

    @property
    def bias(self) -> Tensor:
        """Of all rows: [ffn], or [2, ffn] of gated neurons, and in int8 with the scales, see int8/neurons.py.

        Several are put together anew, because stage 0 reads them anew.
        """
        return torch.stack([self.up_bias, *self._others]) if self._others else self.up_bias

    def forward(self, x: Tensor, keep: Tensor | None = None, copy_out: CopyOut | None = None) -> Tensor:
        """The FFN's contribution to the residual stream: [tokens, d_model].

        x: [tokens, d_model], the normed input of the FFN
        keep: [tokens, ffn] bool, the neurons that take part; all unless given
        copy_out: neurons to copy elsewhere as they pass

        For a prompt, the next part is read while one is multiplied. For a single token, a part is read and then
        multiplied, as at every stage of the paper: the latency is I/O + memory + compute.
        """
        if x.requires_grad or torch.is_autocast_enabled(x.device.type):
            return unlike_training(self, x, keep, copy_out)
        passes = self.stream.begin(self.layer, np.arange(len(self.up_bias)), at_once=2 if len(x) > 1 else 1)
        return self.stream.product(x, passes, self.bias, keep, copy_out).add_(self.down_bias)


class FlashFFN(nn.Module):
    """An FFN that reads only the neurons that a token needs and that are not in DRAM yet.

    streamed: the same layer read as a whole, for prompts; its stream also takes neurons that find no room in DRAM
    predictor: says which neurons a token needs
    window: says which neurons stay in DRAM
    file: the neurons on flash
    memory: the neurons in DRAM
    calls: tells the shape of the call under way
    clock: the engine's
    """

    wasted = 0  # so far: neurons that were read early and then not used

    def __init__(
        self, streamed: StreamedFFN, predictor: Predictor, window: Window, file: NeuronFile, memory: NeuronMemory,
        calls: Calls, clock: Clock,
    ) -> None:  # fmt: skip
        super().__init__()
        self.streamed, self.predictor, self.window, self.file, self.memory = streamed, predictor, window, file, memory
        self.layer, self._stream = streamed.layer, streamed.stream
        self._bias, self._down_bias = streamed.bias, streamed.down_bias
        self._calls, self._clock = calls, clock

    @staticmethod
    def connect(ffns: Sequence[FlashFFN]) -> NeuronFile | None:
        """Tell a model's FFNs what they must know of each other. Returns the file that they read early from, which is
        None here, because nothing is read early."""
        return None

    def hear(self, norm: nn.Module) -> None:
        """Be told of a norm that gives this FFN's input before the layer attends. Nothing is made of it here."""

    def forward(self, x: Tensor) -> Tensor:
        """The FFN's contribution to the residual stream: [sequences * tokens, d_model].

        x: [sequences * tokens, d_model], the normed input of the FFN
        """
        if x.requires_grad or torch.is_autocast_enabled(x.device.type):
            return unlike_training(self, x)
        try:
            if self._calls.tokens > max(1, self.window.tokens):
                return self._prompt(x)
            return self._decode(x).add_(self._down_bias)
        except BaseException:  # the window may name neurons that haven't landed: the next call begins anew
            self.forget()
            raise

    def _decode(self, x: Tensor) -> Tensor:
        """What the neurons add that are needed: [sequences, d_model]. x: [sequences, d_model], one token of each."""
        step = self._step(x)
        rest = self._stream.begin(self.layer, step.overflow, at_once=1) if len(step.overflow) else None
        out = self._product(x, step)
        return out if rest is None else out.add_(self._stream.product(x, rest, self._bias))

    def _step(self, x: Tensor) -> Step:
        """Move the window on by this call. x: [sequences, d_model], one token of each."""
        return self.window.step(active_set(self.predictor, x))

    def _product(self, x: Tensor, step: Step) -> Tensor:
        """Load the step's neurons in place of those that it drops, and multiply all that are in DRAM then.

        x: [tokens, d_model]. Returns [tokens, d_model].
        """
        clock, memory = self._clock, self.memory
        clock.switch(MEMORY)
        landing = memory.place(step.load, step.drop)
        clock.switch(IO)
        self.file.read(self.layer, step.load, landing.buffer, landing.rows)
        clock.switch(MEMORY)
        memory.commit()
        clock.switch(PRODUCT)
        out = memory.product(x)
        clock.switch(REST)
        return out

    def _submit(self, step: Step, file: NeuronFile) -> tuple[list[Ticket], np.ndarray]:
        """Begin to read the step's neurons in place of those that it drops, for stages that compute meanwhile.

        file: the neurons on flash; it says in which way they are read

        Returns the reads, and the rows in which they land: [n] int64.
        """
        self._clock.switch(MEMORY)
        landing = self.memory.place(step.load, step.drop)
        self._clock.switch(IO)
        return file.submit(self.layer, step.load, file.columns(landing.buffer), landing.rows), landing.rows

    def forget(self) -> None:
        """Drop all neurons."""
        self.window.clear()
        self.memory.clear()

    def _prompt(self, x: Tensor) -> Tensor:
        """Stream the whole layer, because a prompt needs most neurons. x: [sequences * tokens, d_model].

        Afterwards the window holds the neurons of the last tokens, as if these had been decoded one by one. Neurons
        that are new to it are copied to their rows as they pass.
        """
        load, drop = self._remember_last(x)
        self._clock.switch(MEMORY)
        landing = self.memory.place(load, drop)
        out = self.streamed(x, copy_out=CopyOut(load, landing.buffer, landing.rows))
        self._clock.switch(MEMORY)
        self.memory.commit()
        self._clock.switch(REST)
        return out

    def _remember_last(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Move the window on by the last tokens of a prompt. Returns what to load and to drop: [n] int64 each."""
        before = self.window.held
        by_position = x.view(self._calls.sequences, self._calls.tokens, -1).transpose(0, 1)
        for position in by_position[len(by_position) - self.window.tokens :]:
            self.window.step(active_set(self.predictor, position))
        after = self.window.held if self.window.tokens else before
        return np.setdiff1d(after, before, True), np.setdiff1d(before, after, True)


def refuse_gradient(x: Tensor) -> None:
    """Raise FlashliteError where a gradient of x is asked for."""
    if x.requires_grad:
        raise FlashliteError(
            "a streaming model computes no gradients, because most of its weights are on flash: call it under "
            "torch.no_grad(), or train the dense model"
        )


def unlike_training(ffn: StreamedFFN | FlashFFN, x: Tensor, *args: object) -> Tensor:
    """Run an FFN where torch would train.

    Under autocast the FFN computes in its own dtype and returns the dtype that autocast's products have. Raises
    FlashliteError where a gradient is asked for.
    """
    refuse_gradient(x)
    kind = ffn.streamed.down_bias.dtype if isinstance(ffn, FlashFFN) else ffn.down_bias.dtype
    _say_once(f"flashlite: under torch.autocast the FFNs compute in {kind}, as they were packed")
    with torch.autocast(x.device.type, enabled=False):
        return ffn(x.to(kind), *args).to(torch.get_autocast_dtype(x.device.type))


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        log.warning(line)
