"""What the predictors cost in quality: perplexity of the dense model and of the model with only predicted neurons."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import OPTForCausalLM

from flashlite.engine.ffn import StreamedFFN
from flashlite.engine.model import build
from flashlite.engine.predictor import LowRankPredictor, Predictor
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import RESIDENT
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


def dense_model(store: Store) -> OPTForCausalLM:
    """The exact model, each FFN streamed whole: any size can be evaluated in little DRAM."""
    return build(store, RESIDENT, "100%", "oracle")


def predicted_model(store: Store, predictors: list[LowRankPredictor]) -> OPTForCausalLM:
    """The model in which only predicted neurons take part."""
    model = dense_model(store)
    for layer, predictor in zip(model.model.decoder.layers, predictors, strict=True):
        layer.fc1 = PredictedFFN(layer.fc1, predictor)
    return model


@torch.no_grad()
def loss(model: OPTForCausalLM, windows: Tensor) -> float:
    """Mean loss in nats a token over windows of tokens [windows, length], each predicted from its beginning."""
    total = 0.0
    for batch in windows.split(8):
        logits = model(batch).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


@dataclass(frozen=True)
class Evaluation:
    """Perplexity on a text, dense and with the trained predictors."""

    tokens: int
    dense_perplexity: float
    predicted_perplexity: float


def evaluate(store: Store, windows: Tensor) -> Evaluation:
    """Both perplexities on windows of tokens. Raises PredictorError if the store has no predictor."""
    predictors = PredictorSet.load(store)
    dense = loss(dense_model(store), windows)
    predicted = loss(predicted_model(store, list(predictors.layers)), windows)
    return Evaluation(windows.numel(), math.exp(dense), math.exp(predicted))
