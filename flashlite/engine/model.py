"""load(): a transformers model whose FFN weights stream from flash.

model = flashlite.load("opt-mini", dram_budget="50%")
model.generate(...)             # as with any transformers model
model.flash.last_token          # where the last token's time went
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import OPTForCausalLM

from flashlite.arguments import stage_number
from flashlite.drive.flash import Counters
from flashlite.engine.budget import Budget, plan_budget
from flashlite.engine.ffn import Call, FlashFFN, StreamedFFN
from flashlite.engine.guards import guard
from flashlite.engine.predictor import OraclePredictor, Predictor
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.resident import EMBEDDINGS, ResidentWeights
from flashlite.engine.stages import LADDER, NAMES, Stage
from flashlite.engine.stream import Stream
from flashlite.engine.timing import CallCost, Timing
from flashlite.engine.turns import Turns, check_process, within
from flashlite.engine.window import Window
from flashlite.errors import FlashliteError, StoreError
from flashlite.storage.find import open_model
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import PREDICTOR, Store
from flashlite.storage.tokenizer import generation_config
from flashlite.storage.verified import VerifiedStore

log = logging.getLogger("flashlite")


class Engine:
    """What `model.flash` is: the parts under a streaming model, its budget, and what its calls cost.

    budget: Budget; stage: Stage; ffns: one module a layer; last_token: CallCost of the last call; calls: all of them.
    Threads may call the model, one at a time.
    """

    def __init__(self, store: Store, stage: Stage, budget: Budget, predictors: Sequence[Predictor] | str) -> None:
        self.store, self.stage, self.budget = store, stage, budget
        self.timing, self.call = Timing(), Call()
        self.calls: list[CallCost] = []
        self.turns = Turns(self._begin_anew)
        self.resident = ResidentWeights(store, stage.resident)
        self.file = NeuronFile(store, stage.layout)
        self.stream = Stream(self.file, budget.stream_rows, store.dtype, self.timing)
        tensors = self.resident.tensors()
        self.weights = {name: t for name, t in tensors.items() if not name.endswith((".fc1.bias", ".fc2.bias"))}
        self.ffns = [self._build_ffn(i, tensors, predictors) for i in range(store.layers)]
        self.ahead = stage.ffn.connect(self._sparse)

    def _build_ffn(self, i: int, tensors: dict[str, Tensor], predictors: Sequence[Predictor] | str) -> nn.Module:
        name, shape, dtype = f"model.decoder.layers.{i}.", self.store.shape, self.store.dtype
        up_bias = tensors.get(name + "fc1.bias", torch.zeros(shape.neurons, dtype=dtype))
        down_bias = tensors.get(name + "fc2.bias", torch.zeros(shape.d_model, dtype=dtype))
        whole = StreamedFFN(i, self.stream, up_bias, down_bias)
        if not self.stage.predictor:
            return whole
        if isinstance(predictors, str):
            predictor: Predictor = OraclePredictor(NeuronFile(self.store, self.store.layouts[0]), i, up_bias)
        else:
            predictor = predictors[i]
        rows = self.budget.layer_rows[i]
        window = Window(shape.neurons, self.stage.window, rows)
        memory = self.stage.memory(rows, shape, dtype, up_bias)
        return self.stage.ffn(whole, predictor, window, self.file, memory, self.call, self.timing)

    @property
    def _sparse(self) -> list[FlashFFN]:
        return [ffn for ffn in self.ffns if isinstance(ffn, FlashFFN)]

    @property
    def prefetched_bytes(self) -> int:
        """Bytes read so far ahead of the layer that needs them."""
        return self.ahead.counters.bytes if self.ahead else 0

    @property
    def wasted_bytes(self) -> int:
        """Those of them that no layer then needed."""
        return self.store.shape.record_bytes * sum(ffn.wasted for ffn in self._sparse)

    @property
    def counters(self) -> Counters:
        """Everything read since the model was loaded, FFN and resident weights together."""
        ahead = self.ahead.counters if self.ahead else Counters()
        return self.file.counters + ahead + self.resident.file.counters

    @property
    def last_token(self) -> CallCost:
        """What the last call cost. Raises FlashliteError if there was none."""
        if not self.calls:
            raise FlashliteError("the model has not been called yet")
        return self.calls[-1]

    @property
    def rows_moved(self) -> int:
        """Rows copied inside DRAM so far, over all layers: rebuilding copies all, the pool only what fills holes."""
        return sum(ffn.memory.moved for ffn in self._sparse)

    @property
    def rows_held(self) -> list[int]:
        """Neurons in DRAM now, by layer."""
        return [ffn.memory.num_used for ffn in self._sparse]

    def install(self, model: OPTForCausalLM) -> None:
        """Put the streaming FFNs into a model on the meta device and give it the resident weights."""
        for layer, ffn in zip(model.model.decoder.layers, self.ffns, strict=True):
            layer.fc1, layer.activation_fn, layer.fc2 = ffn, nn.Identity(), nn.Identity()
        result = model.load_state_dict(self.weights, strict=False, assign=True)
        missing = set(result.missing_keys) - {"lm_head.weight"}
        if missing or result.unexpected_keys:
            raise StoreError(
                f"{self.store.path} doesn't fit its configuration: missing {sorted(missing)}, "
                f"unexpected {result.unexpected_keys}; pack the model again"
            )
        model.tie_weights()
        model.requires_grad_(False).eval()
        guard(model)
        within(model, self._count)
        within(model.model.decoder, self._decode)
        model.model.decoder.layers[0].register_forward_pre_hook(self._see_shape)
        model.lm_head.register_forward_pre_hook(_compact)
        if not self.stage.resident:
            for i, layer in enumerate(model.model.decoder.layers):
                layer.register_forward_pre_hook(lambda *_, name=f"layers.{i}": self._read_group(name))

    def _read_group(self, name: str) -> None:
        with self.timing.io:
            self.resident.read(name)

    def _begin_anew(self) -> None:
        """After a call that was broken off: its reads end, and nothing that it said to be in DRAM is believed."""
        for file in (self.file, self.ahead, self.resident):
            if file is not None:
                file.file.settle()
        for ffn in self._sparse:
            ffn.forget()

    def _decode(self, decoder: Callable[[], Any]) -> Any:
        """One call of the decoder, which may be all of it that is called."""

        def read_and_decode() -> Any:
            if not self.stage.resident:
                self._read_group(EMBEDDINGS)
            return decoder()

        return self.turns.take(read_and_decode)

    def _see_shape(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.call.sequences, self.call.tokens = args[0].shape[:2]  # hidden states: [sequences, tokens, d_model]

    def _count(self, model: Callable[[], Any]) -> Any:
        """One call of the model, and what it costs."""

        def counted() -> Any:
            began, timing, counters = time.perf_counter(), self.timing.seconds(), self.counters
            prefetched, wasted = self.prefetched_bytes, self.wasted_bytes
            result = model()
            total = 1e3 * (time.perf_counter() - began)
            io, memory, product = (1e3 * (b - a) for a, b in zip(timing, self.timing.seconds(), strict=True))
            read = self.counters - counters
            self.calls.append(CallCost(
                self.call.tokens, io, memory, total - io - memory, total, product, read.records, read.reads,
                read.bytes, self.prefetched_bytes - prefetched, self.wasted_bytes - wasted,
            ))  # fmt: skip
            return result

        return self.turns.take(counted)


def _compact(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The head's input with the strides of a new tensor. Of a prompt it is the last row of many, and by that row's
    stride torch chooses a bf16 product that first copies all of the head's weights."""
    return (args[0].clone(memory_format=torch.contiguous_format),)


def load(
    model: str | Path | Store,
    *,
    dram_budget: int | str = "50%",
    stage: int | str = "pool",
    predictor: str | Sequence[Predictor] = "trained",
    window: int = 5,
    dtype: str | None = None,
    verify_reads: bool = False,
) -> OPTForCausalLM:
    """A transformers OPT whose FFN weights stay on flash.

    model: `opt-mini`, a hub id, a checkpoint folder or a store; anything but a store is packed first, under
    `storage.find.home()`.
    dram_budget: bytes, "4GiB" or "50%" of the weights, for all but KV cache and interpreter. stage: of the ladder, by
    name or number.
    predictor: "trained", "oracle", or one Predictor a layer. window: tokens whose neurons stay in DRAM, for stages that
    have a window. dtype: fp32 (default), bf16 or fp16. verify_reads: compare everything with its checksum when it is
    read; see VerifiedStore for what that costs. Raises FlashliteError if anything is wrong.
    """
    check_process()
    store = open_model(model, dtype)
    if verify_reads:
        store = VerifiedStore(store.path)
    return build(store, choose_stage(stage, window), dram_budget, predictor)


def choose_stage(stage: int | str, window: int) -> Stage:
    """A stage of the ladder, by number or name, with a window of this many tokens if it has one. Raises FlashliteError
    if there is no such stage or window."""
    chosen = LADDER[NAMES[stage_number(stage)]]
    if window < 1:
        raise FlashliteError(f"a window of {window} tokens keeps nothing: use 1 or more, or stage='predictor'")
    return replace(chosen, window=window) if chosen.window else chosen


def build(store: Store, stage: Stage, dram_budget: int | str, predictor: str | Sequence[Predictor]) -> OPTForCausalLM:
    """`load` for a store that is open and a stage put together by hand."""
    predictors, budget = plan(store, stage, dram_budget, predictor)
    engine = Engine(store, stage, budget, predictors)
    with torch.device("meta"):
        model = OPTForCausalLM(store.config)
    engine.install(model)
    if (generation := generation_config(store)) is not None:
        model.generation_config = generation
    model.name_or_path = str(store.path)
    model.flash = engine
    return model


def plan(
    store: Store, stage: Stage, dram_budget: int | str, predictor: str | Sequence[Predictor]
) -> tuple[Sequence[Predictor] | str, Budget]:
    """The predictors of a model that is to be loaded, and how its budget is spent. Raises FlashliteError if the model
    can't be loaded so; no weights are read to find out."""
    predictors, needs = _choose_predictors(store, stage, predictor)
    nbytes = 0 if isinstance(predictors, str) else sum(p.nbytes for p in predictors)
    return predictors, plan_budget(store, stage, dram_budget, nbytes, needs)


def _choose_predictors(
    store: Store, stage: Stage, predictor: str | Sequence[Predictor]
) -> tuple[Sequence[Predictor] | str, list[float]]:
    """The predictors of a stage, and how many rows each layer's window would like."""
    equal = [1.0] * store.layers
    if not stage.predictor or predictor == "oracle":
        return "oracle", equal
    if predictor == "trained":
        trained = PredictorSet.load(store.path / PREDICTOR, store.layers, store.shape)
        k = max(1, stage.window)
        return trained.layers, [report.window_rows[min(k, len(report.window_rows)) - 1] for report in trained.reports]
    if isinstance(predictor, str):
        raise FlashliteError(f"unknown predictor {predictor!r}: use 'trained', 'oracle', or one predictor a layer")
    if len(predictor) != store.layers:
        raise FlashliteError(f"{len(predictor)} predictors were given for {store.layers} layers")
    return predictor, equal
