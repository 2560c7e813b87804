"""How good predictors are: perplexity, dense and with only predicted neurons, and how often each layer is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashlite.engine.ffn import StreamedFFN
from flashlite.engine.model import build
from flashlite.engine.predictor import LowRankPredictor, OraclePredictor, Predictor
from flashlite.engine.predictor_file import LayerReport
from flashlite.engine.predictors.choice import Chosen, choose
from flashlite.engine.stages import PREDICTOR, RESIDENT
from flashlite.engine.window import LONGEST_UNION, union_sizes
from flashlite.errors import StoreError
from flashlite.families.configured import install
from flashlite.storage.neurons import NeuronFile
from flashlite.storage.store import Store


class PredictedFFN(nn.Module):
    """An FFN that leaves out, for each token, every neuron that the predictor didn't name.

    The engine does a little better: neurons that its window holds for other tokens take part as well.
    """

    def __init__(self, whole: StreamedFFN, predictor: Predictor) -> None:
        super().__init__()
        self.whole, self.predictor = whole, predictor

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, d_model]. Returns the FFN's output, the same shape."""
        return self.whole(x, self.predictor.mask(x))


def streamed_model(store: Store) -> PreTrainedModel:
    """The exact model, each FFN streamed whole from a layout that the store has: any size fits in little DRAM."""
    return build(store, replace(RESIDENT, layout=store.layouts[0]), "100%", "oracle")


def predicted_model(store: Store, predictors: Sequence[Predictor]) -> PreTrainedModel:
    """The model in which only predicted neurons take part."""
    model = streamed_model(store)
    layers = model.get_submodule(store.family.layers)
    for layer, ffn, predictor in zip(layers, model.flash.ffns, predictors, strict=True):
        install(store.family, layer, PredictedFFN(ffn, predictor))
    return model


def watch(model: PreTrainedModel, see: Callable[[int, Tensor, Tensor], None]) -> None:
    """Have a dense model tell what enters each layer's FFN, and which neurons fire, whenever it is called.

    see: called with the layer's number, x [tokens, d_model] and fired [tokens, ffn] bool.
    """
    store = model.flash.store
    file = NeuronFile(store, store.layouts[0])
    for i, ffn in enumerate(model.flash.ffns):
        oracle = OraclePredictor(file, i, ffn.up_bias, store.activation)

        def tell(module: nn.Module, args: tuple[Tensor, ...], i: int = i, oracle: OraclePredictor = oracle) -> None:
            see(i, args[0], oracle.mask(args[0]))

        ffn.register_forward_pre_hook(tell)


@dataclass
class Tally:
    """What one layer's predictor said of a text's tokens beside what fired, counted in neurons of all tokens."""

    texts: int = 0
    neurons: int = 0
    fired: int = 0
    predicted: int = 0
    hits: int = 0  # both
    unions: np.ndarray = field(default_factory=lambda: np.zeros(LONGEST_UNION))  # s_agg(k), summed over texts

    def add(self, mask: Tensor, fired: Tensor, length: int) -> None:
        """Count tokens of texts that have `length` each. mask, what was predicted, and fired: [tokens, ffn] bool."""
        texts = len(mask) // length
        self.texts += texts
        self.neurons += fired.numel()
        self.fired += int(fired.sum())
        self.predicted += int(mask.sum())
        self.hits += int((mask & fired).sum())
        self.unions += texts * np.array(union_sizes(mask, length))

    def report(self, rank: int) -> LayerReport:
        """The counts as shares."""
        recall = self.hits / max(1, self.fired)
        wrong = (self.predicted - self.hits) / max(1, self.neurons - self.fired)
        shares = (self.fired / self.neurons, self.predicted / self.neurons)
        return LayerReport(rank, *shares, recall, 1 - recall, wrong, tuple((self.unions / self.texts).tolist()))


@torch.no_grad()
def loss(model: PreTrainedModel, windows: Tensor) -> float:
    """Mean loss in nats a token over windows of tokens [windows, length], each predicted from its beginning."""
    total = 0.0
    for batch in windows.split(8):
        logits = model(batch).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


@dataclass(frozen=True)
class Evaluation:
    """What a text says of a model's predictors: perplexity, dense and with them, and a report a layer.

    original_perplexity: the dense perplexity of what the store was rounded from, if that was asked for
    """

    tokens: int
    dense_perplexity: float
    predicted_perplexity: float
    layers: tuple[LayerReport, ...]
    original_perplexity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def evaluate(store: Store, windows: Tensor, predictor: Chosen = "auto", original: Store | None = None) -> Evaluation:
    """Measure predictors on windows of tokens [windows, length]; each layer's on what enters it in the dense model.

    predictor: as `load` takes it
    original: the same model in another dtype, to be compared with

    Raises PredictorError if the store has none such, and StoreError if `original` holds another model.
    """
    if original is not None and original.up_projections != store.up_projections:
        raise StoreError(f"{original.path} holds another model than {store.path}, so they can't be compared")
    model, choice = streamed_model(store), choose(store, PREDICTOR, predictor)
    found = judge(store, windows, [choice.make(i, ffn.up_bias) for i, ffn in enumerate(model.flash.ffns)])
    before = None if original is None else math.exp(loss(streamed_model(original), windows))
    return replace(found, original_perplexity=before)


def judge(store: Store, windows: Tensor, predictors: Sequence[Predictor]) -> Evaluation:
    """The same of predictors that are at hand, one for each layer."""
    model, tallies = streamed_model(store), [Tally() for _ in predictors]
    watch(model, lambda i, x, fired: tallies[i].add(predictors[i].mask(x), fired, windows.shape[1]))
    dense = loss(model, windows)
    predicted = loss(predicted_model(store, predictors), windows)
    ranks = [predictor.rank if isinstance(predictor, LowRankPredictor) else 0 for predictor in predictors]
    reports = tuple(tally.report(rank) for tally, rank in zip(tallies, ranks, strict=True))
    return Evaluation(windows.numel(), math.exp(dense), math.exp(predicted), reports)
