"""One call of a streaming model from top to bottom: what is intercepted, whose turn it is, what is refused or counted.

    model(ids)                          _model: one thread at a time; its cost is counted
      decoder(ids)                      _decoder: one thread at a time where it is called by itself, too
        embed_tokens, embed_positions   tokens and positions that the model lacks are refused
        layer 0, layer 1, ...           _layer: at stage 0 its attention weights are read first
          attention                     transformers' own, with its cache
          FlashFFN                      predictor -> window -> flash -> pool -> product: see ffn.py
      lm_head                           _head

Everything is intercepted in one way, by `wrap_forward`. Torch's hooks are not enough, because none of
them runs after an interrupt.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flashlite.engine.kernels import threads
from flashlite.engine.kernels.rows import FEW
from flashlite.engine.resident import EMBEDDINGS
from flashlite.engine.timing import REST, CallCost, Clock, Meter
from flashlite.errors import FlashliteError
from flashlite.families.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OFFSET = 2  # rows of an OPT's position embedding before the first position
Forward = Callable[..., Any]


class Calls:
    """The calls of one model.

    clock: the engine's; it starts anew with each call
    meter: says what the engine has spent so far
    forget: drops all neurons after a call that was broken off, because some of them may be incomplete
    read_group: reads a group of resident weights; None where all of them stay in DRAM
    compiled: whether the compiled products multiply all weights of a few tokens, so that torch needs one thread

    costs: the cost of each call, in order
    sequences, tokens: how many sequences the call under way has, and how many tokens each of them
    """

    def __init__(
        self, clock: Clock, meter: Callable[[], Meter], forget: Callable[[], None],
        read_group: Callable[[str], None] | None, compiled: bool,
    ) -> None:  # fmt: skip
        self._clock, self._meter, self._read_group, self._compiled = clock, meter, read_group, compiled
        self._turns = OneAtATime(forget)
        self.costs: list[CallCost] = []
        self.sequences = self.tokens = 1
        self._decoding = False  # whether a call is under way

    def intercept(self, model: PreTrainedModel, family: Family) -> None:
        """Route every call of a model and of its decoder through this object."""
        decoder, layers = model.get_submodule(family.body), model.get_submodule(family.layers)
        embed_tokens = decoder.get_submodule(family.embedding)
        self._vocabulary = embed_tokens.num_embeddings
        for module, around in ((model, self._model), (decoder, self._decoder)):
            wrap_forward(module, around)
            module.forward = torch.compiler.disable(module.forward)  # reads can't be compiled
        wrap_forward(embed_tokens, self._embed_tokens)
        if family.positions:
            embed_positions = decoder.get_submodule(family.positions)
            self._positions = embed_positions.num_embeddings - OFFSET
            wrap_forward(embed_positions, self._embed_positions)
        for i, layer in enumerate(layers if self._read_group else layers[:1]):
            wrap_forward(layer, functools.partial(self._layer, i))
        wrap_forward(model.lm_head, self._head)

    def _model(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        def counted() -> Any:
            before = self._meter()
            self._clock.start()
            result = forward(*args, **kwargs)
            self._clock.switch(REST)
            self.costs.append(CallCost.between(before, self._meter(), self.tokens))
            return result

        return self._turns.take(counted)

    def _decoder(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        def decode() -> Any:
            if self._read_group:
                self._read_group(EMBEDDINGS)
            try:
                self._decoding = True
                return forward(*args, **kwargs)
            finally:
                try:
                    self._end()
                except BaseException:  # an interrupt came in between
                    self._end()
                    raise

        return self._turns.take(decode)

    def _end(self) -> None:
        """End a call of the decoder. To do that twice changes nothing."""
        self._decoding = False
        threads.give_back(self)

    def _embed_tokens(self, forward: Forward, ids: Tensor) -> Tensor:
        for token in map(int, ids.aminmax()):
            if not 0 <= token < self._vocabulary:
                raise FlashliteError(
                    f"token {token} is not one of the model's {self._vocabulary}: was the text made for another model?"
                )
        return forward(ids)

    def _embed_positions(self, forward: Forward, *args: Any, position_ids: Tensor, **kwargs: Any) -> Tensor:
        last = int(position_ids.max())
        if last >= self._positions:
            raise FlashliteError(
                f"{last + 1} tokens don't fit the model's {self._positions} positions: shorten the text"
            )
        return forward(*args, position_ids=position_ids, **kwargs)

    def _layer(self, i: int, forward: Forward, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Note the shape of a call, and read the attention weights of layer i unless they stay in DRAM. Calls of few
        tokens may leave torch one thread, see kernels/threads.py.

        hidden: [sequences, tokens, d_model]
        """
        self.sequences, self.tokens = hidden.shape[:2]
        few = self.sequences * self.tokens <= FEW
        if i == 0 and few and self._compiled and self._decoding and hidden.device.type == "cpu":
            threads.borrow(self)
        if self._read_group:
            self._read_group(f"layers.{i}")
        return forward(hidden, *args, **kwargs)

    def _head(self, forward: Forward, hidden: Tensor) -> Tensor:
        """Compute the logits from a copy of hidden [sequences, tokens, d_model].

        In a prompt, hidden is the last row of a larger tensor. By that row's stride torch would choose a bf16 product
        that first copies all of the head's weights; the copy has the strides of a new tensor.
        """
        return forward(hidden.clone(memory_format=torch.contiguous_format))


def wrap_forward(module: nn.Module, around: Callable[..., Any]) -> None:
    """Make every call `module(...)` a call `around(forward, ...)`, where forward is the module's own."""
    forward, this = type(module).forward, weakref.ref(module)  # a module that held itself would outlive its owner

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(forward, this()), *args, **kwargs)

    call.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
    module.forward = call


class OneAtATime:
    """Threads take turns with a model, one call at a time.

    mend: called at the beginning of the next turn after an error or an interrupt has broken a turn off

    Raises FlashliteError in a forked process that can't compute, see `check_process`.
    """

    def __init__(self, mend: Callable[[], None]) -> None:
        check_process()
        self._mend, self._lock, self._process = mend, threading.RLock(), os.getpid()
        self._caller: int | None = None
        self._broken = False

    def take(self, work: Callable[[], Any]) -> Any:
        """Wait for the other threads' turns, then do the work in a turn of its own. Returns the work's result.

        Work that is given within a turn is done at once, as a part of that turn.

        Raises FlashliteError in a process that was forked off after the model was loaded.
        """
        if self._process != os.getpid():
            raise FlashliteError(
                "the model was loaded in another process, whose reads it needs: load it again in this one"
            )
        if self._caller == (me := threading.get_ident()):
            return work()
        try:  # not `with` or a generator, because an interrupt can come between their beginning and their block
            self._lock.acquire()
            self._caller = me
            if self._broken:
                self._mend()
            self._broken = True
            result = work()
            self._broken = False
            return result
        finally:
            if self._caller == me:
                self._caller = None
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:  # the interrupt came while it waited for the lock
                pass


_first_process: int | None = None  # the first one that loaded a model


def check_process() -> None:
    """Refuse to compute with several threads in a process that was forked off one with a model.

    Torch's threads exist only in the process that started them, and the first product would wait for them for ever.
    Raises FlashliteError.
    """
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise FlashliteError(
            "this process was forked off one with a model, and torch's threads exist only there: "
            "call torch.set_num_threads(1) in this one, or start processes by 'spawn'"
        )


def refuse_copies(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Make a model raise FlashliteError where it would be saved, copied or converted: its FFNs are not in it.

    dtype, device: those that it keeps
    """
    name, here = {"cpu": "the CPU"}, torch.empty(0, dtype=dtype, device=device)

    def save(*_: Any, **__: Any) -> None:
        raise FlashliteError("a streaming model holds no FFN weights to save: copy its store or its checkpoint instead")

    def copy(*_: Any) -> None:
        raise FlashliteError(
            "a streaming model can't be copied or pickled, because its weights are on flash: load it again"
        )

    def convert(change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        changed = change(here)
        if (changed.dtype, changed.device) != (dtype, here.device):
            stays, becomes = (name.get(where.type, str(where)) for where in (here.device, changed.device))
            raise FlashliteError(
                f"a streaming model stays {dtype} on {stays}, as it was loaded, and can't become {changed.dtype} on "
                f"{becomes}: load it with another dtype or device, such as load(..., dtype='bf16')"
            )
        return model

    model.save_pretrained, model.__reduce_ex__, model._apply = save, copy, convert  # type: ignore[assignment]
