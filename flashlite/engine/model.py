"""load(): a transformers model whose FFN weights stream from flash.

model = flashlite.load("opt-mini", dram_budget="50%")
model.generate(...)             # as with any transformers model
model.flash.last_token          # where the last token's time went
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from flashlite.arguments import check_window, stage_number
from flashlite.drive.flash import Counters
from flashlite.engine.budget import Budget, longest_window, plan_budget
from flashlite.engine.calls import Calls, check_process, refuse_copies
from flashlite.engine.device.place import HERE, Place, place_of
from flashlite.engine.ffn import FlashFFN, StreamedFFN
from flashlite.engine.int8.modules import install_int8
from flashlite.engine.kernels.attention import use_attention
from flashlite.engine.kernels.linear import use_rows
from flashlite.engine.kernels.others import Others, warn_if_busy
from flashlite.engine.policies.kept import keeper
from flashlite.engine.predictor import Predictor
from flashlite.engine.predictors.choice import Choice, Chosen, choose
from flashlite.engine.resident import leave_embedding
from flashlite.engine.stages import LADDER, NAMES, Stage, stage_for
from flashlite.engine.timing import IO, REST, CallCost, Meter, spent
from flashlite.errors import FlashliteError
from flashlite.families.configured import empty_model, install, move_buffers
from flashlite.storage.find import open_model
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.safetensors_file import STORED
from flashlite.storage.store import Store
from flashlite.storage.tokenizer import generation_config
from flashlite.storage.verified import VerifiedStore


class Engine:
    """The engine under a streaming model, as `model.flash`: its parts, its budget, and the cost of its calls.

    store: the packed model
    stage: of the ladder
    budget: how its DRAM is spent, or with a device the device's memory
    place: where its weights lie and are multiplied
    file: the neurons on flash
    early_file: the same for early reads; None at the stages that read nothing early
    stream: the buffer through which whole layers pass
    resident: the resident weights
    ffns: one FFN a layer
    calls: one CallCost for each call so far
    last_token: the CallCost of the last call

    Threads may share the model: their calls take turns.
    """

    def __init__(self, store: Store, stage: Stage, budget: Budget, predictors: Choice, place: Place) -> None:
        self.store, self.stage, self.budget, self.place = store, stage, budget, place
        self._parts = place.parts(store, stage, budget)
        self.clock = self._parts.clock
        self.resident = self._parts.resident()
        self.file = NeuronFile(store, stage.layout)
        self.stream = self._parts.stream(self.file)
        read_group = None if stage.resident else self._read_group
        self.way_in = Calls(self.clock, self.meter, self._forget, read_group, stage.predictor or store.quantized)
        tensors = self.resident.tensors()
        patterns = (*store.family.biases, store.family.down_bias)
        biases = {pattern.format(i) for i in range(store.layers) for pattern in patterns}
        self.weights = {name: tensor for name, tensor in tensors.items() if name not in biases}
        streamed = [StreamedFFN.of(i, store, self.stream, tensors, place.device) for i in range(store.layers)]
        self.ffns: list[nn.Module] = [*streamed]
        if stage.predictor:  # all are made first: what that takes is free again when neurons get their memory
            made = [predictors.make(ffn.layer, ffn.up_bias) for ffn in streamed]
            self.ffns = [self._flash_ffn(ffn, predictor) for ffn, predictor in zip(streamed, made, strict=True)]
        self.sparse = [ffn for ffn in self.ffns if isinstance(ffn, FlashFFN)]
        self.early_file = stage.ffn.connect(self.sparse)

    def _flash_ffn(self, streamed: StreamedFFN, predictor: Predictor) -> FlashFFN:
        rows = self.budget.layer_rows[streamed.layer]
        predictor, window = keeper(streamed.layer, self.stage, self.store.shape.neurons, rows, predictor)
        memory = self._parts.neurons(streamed.layer, streamed.bias)
        return self.stage.ffn(streamed, predictor, window, self.file, memory, self.way_in, self.clock)

    @property
    def calls(self) -> list[CallCost]:
        """The cost of each call, in order."""
        return self.way_in.costs

    @property
    def last_token(self) -> CallCost:
        """The cost of the last call. Raises FlashliteError if there was none."""
        if not self.calls:
            raise FlashliteError("the model has not been called yet")
        return self.calls[-1]

    def __repr__(self) -> str:
        """What its calls cost so far: the line with which `flashlite run` ends."""
        return spent(self.calls, self.budget.total)

    @property
    def counters(self) -> Counters:
        """All reads since the model was loaded, of neurons and resident weights together."""
        read = self.file.file.counters + self.resident.file.counters
        return read + self.early_file.counters if self.early_file else read

    def meter(self) -> Meter:
        """The time and the reads spent so far."""
        seconds, read = tuple(self.clock.seconds), self.counters
        if self.early_file is None:
            return Meter(seconds, read, 0, 0)
        wasted = self.store.shape.record_bytes * sum(ffn.wasted for ffn in self.sparse)
        return Meter(seconds, read, self.early_file.counters.bytes, wasted)

    @property
    def rows_moved(self) -> int:
        """Rows copied inside DRAM so far, in all layers: rebuilding copies all rows, the pool those that fill holes."""
        return sum(ffn.memory.moved for ffn in self.sparse)

    @property
    def rows_held(self) -> list[int]:
        """Neurons in DRAM now, by layer."""
        return [ffn.memory.num_used for ffn in self.sparse]

    def install(self, model: PreTrainedModel) -> None:
        """Put the streaming FFNs into a model without weights and give it the resident ones."""
        family = self.store.family
        layers = model.get_submodule(family.layers)
        for layer, ffn in zip(layers, self.ffns, strict=True):
            install(family, layer, ffn)
        if self.stage.resident:
            leave_embedding(model, self.store, self.resident.file, self.clock, self.place.device)
        if self.store.quantized:
            install_int8(model, family, self.weights)
        elif self.place.device.type == "cpu":
            use_rows(model)
        model.load_state_dict(self.weights, strict=False, assign=True)
        model.tie_weights()
        model.requires_grad_(False).eval()
        move_buffers(model, self.place.device)
        if self.place.device.type == "cpu":
            use_attention(model)
        self.way_in.intercept(model, family)
        if (norm := family.early_norm(self.store.config)) is not None:
            for layer, ffn in zip(layers, self.sparse, strict=False):  # stages without a predictor have none
                ffn.hear(layer.get_submodule(norm))
        refuse_copies(model, self.store.compute_dtype, self.place.device)

    def _read_group(self, name: str) -> None:
        self.clock.switch(IO)
        self.resident.read(name)
        self.clock.switch(REST)

    def _forget(self) -> None:
        """Wait for the reads of a call that was broken off, and drop all neurons, because some may be incomplete."""
        for file in (self.file, self.early_file, self.resident):
            if file is not None:
                file.file.finish_reads()
        self._parts.finish()
        for ffn in self.sparse:
            ffn.forget()


def load(
    model: str | Path | Store,
    *,
    dram_budget: int | float | str = "50%",
    stage: int | str = "pool",
    predictor: Chosen = "auto",
    window: int | str = 5,
    dtype: str | torch.dtype | None = None,
    verify_reads: bool = False,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """A transformers model whose FFN weights stay on flash.

    model: `opt-mini`, a checkpoint folder, a store, or the hub id of either; anything but a store is packed first,
        under `storage.shelf.home()`
    dram_budget: bytes, "4GiB", "50%" or 0.5 of the weights, for all but the KV cache and the interpreter; with a device
        it is the device's memory, and `model.flash.budget.host` says what the host needs beside it
    stage: of the ladder, by name or number
    predictor: "trained", "copy" (a rounded copy of the weights that decide, which needs no training), "oracle", or one
        Predictor a layer; "auto" is "trained" where the store has a trained one, else "copy"
    window: tokens whose neurons stay in DRAM, where a stage has a window, or "auto": as many as the budget has room for
    dtype: fp32, bf16, fp16, or int8, which is computed in float32
    verify_reads: compare everything with its checksum when it is read; see VerifiedStore for what that costs
    revision: of a hub model, a branch, a tag or a commit
    device: "cpu", or "cuda" or "cuda:1" for a GPU in whose memory weights lie and are multiplied; generate() then takes
        ids that are there too

    Raises FlashliteError if anything is wrong.
    """
    others = Others()
    check_process()
    if not isinstance(model, (str, Path, Store)):
        name = getattr(model, "name_or_path", "") or "opt-mini"
        raise FlashliteError(f"load() takes a name or a folder, not a {type(model).__name__}: write load({name!r})")
    if isinstance(dtype, torch.dtype):
        dtype = next((name for name, kind in STORED.items() if kind == dtype), str(dtype))
    stage_number(stage), check_window(window)  # so that what can't work is refused before anything is packed
    place = place_of(device)
    place.check_dtype(dtype)
    store = open_model(model, dtype, revision)
    if verify_reads:
        store = VerifiedStore(store.path)
    built = build(store, choose_stage(store, stage, window, dram_budget, place), dram_budget, predictor, place)
    warn_if_busy(others, torch.get_num_threads())
    return built


def choose_stage(
    store: Store, stage: int | str, window: int | str, dram_budget: int | float | str, place: Place = HERE
) -> Stage:
    """The stage that `load` is asked for, with its window if it has one.

    store: the packed model
    stage: of the ladder, by name or number
    window: tokens, or "auto" for as many as the budget has room for
    dram_budget: see `load`
    place: where the model will run

    Raises FlashliteError if there is no such stage or window.
    """
    chosen = LADDER[NAMES[stage_number(stage)]]
    window = check_window(window)
    if not chosen.window:
        return chosen
    tokens = longest_window(store, chosen, dram_budget, place.int8_bytes) if isinstance(window, str) else window
    return replace(chosen, window=tokens)


def build(
    store: Store, stage: Stage, dram_budget: int | float | str, predictor: Chosen, place: Place = HERE
) -> PreTrainedModel:
    """The same as `load`, of a store that is open and a stage that may be put together by hand."""
    stage = stage_for(stage, store.family.early_norm(store.config) is not None)
    predictors, budget = plan(store, stage, dram_budget, predictor, place)
    engine = Engine(store, stage, budget, predictors, place)
    model = empty_model(store.config, store.family)
    engine.install(model)
    if (generation := generation_config(store)) is not None:
        model.generation_config = generation
    model.name_or_path = str(store.path)
    model.flash = engine
    return model


def plan(
    store: Store, stage: Stage, dram_budget: int | float | str, predictor: Chosen, place: Place = HERE
) -> tuple[Choice, Budget]:
    """The predictors of a model that is to be loaded, and the split of its budget.

    No weights are read to find out. Raises FlashliteError if the model can't be loaded so.
    """
    store.check_layout(stage.layout)
    place.check_dtype(store.dtype_name)
    chosen = place.predictors(choose(store, stage, predictor))
    budget = plan_budget(store, stage, dram_budget, chosen.nbytes, chosen.needs, chosen.advice)
    return chosen, place.budget(budget, store, stage)
