# Solutions of exercises 2.6: flashlite.training.thresholds as the engine runs it.
"""A threshold for each layer, so that a token reads the least for what the model may lose. (Beyond the paper)

`calibrate` reaches one recall in every layer. But layers differ: a missed neuron costs more in one than in another, and
so do the bytes of the last per cent of recall. Here each layer has levels, which are recalls, each with its threshold,
and gets one of them. What a choice of levels reads is known at once; what it loses only a run of the model over a text
tells, because the losses of layers add up only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from flashlite.engine.predictor import LowRankPredictor
from flashlite.errors import PredictorError
from flashlite.storage.store import Store
from flashlite.training.evaluate import loss, predicted_model, streamed_model
from flashlite.training.train_predictor import collect, report, with_recall

RECALLS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.85, 0.9, 0.94, 0.97, 0.985, 0.995)  # a layer's levels
CALLS = 10  # most runs over the text, for each layer of the model


def choose_levels(
    nbytes: np.ndarray, measure: Callable[[Sequence[int]], float], budget: float, calls: int
) -> list[int]:  # fmt: skip
    """Choose a level for each layer: the fewest bytes for which the model loses at most `budget`.

    nbytes: [layers, levels] float64, bytes that a token reads of a layer at each level; never less at the next level
    measure: says what the model loses with a choice, a level for each layer, in nats a token more than the dense model
    budget: the most that it may lose, in nats a token; with the last level in all layers it loses less
    calls: how often `measure` may be called

    Returns a level for each layer.
    """
    # 2.6  Where no exchange helps any more, the last byte saved costs the same loss in every layer. So one price of
    # loss, in bytes a nat, decides in all layers at once: each takes the level at which bytes plus price times loss are
    # least, and only the price has to be found, by bisection. The answer starts from the best common level, measures in
    # each layer what a few levels up and down would change, with all others as they are, lets a price choose among
    # these, and measures what it chose. Then it does the same around the new choice with smaller steps. Nothing relies
    # on losses adding up: each choice that is kept was itself measured.
    # Usual mistakes: measuring each layer alone and adding up, so that the answer passes the budget; comparing losses
    # instead of losses for each byte saved; the same loss for each layer; a walk of single steps from the last level,
    # which runs out of calls before it arrives; trusting that a lower level always loses more.
    rows, levels, known = np.arange(len(nbytes)), nbytes.shape[1], dict[tuple[int, ...], float]()

    def size(choice: np.ndarray) -> float:
        return float(nbytes[rows, choice].sum())

    def lost(choice: np.ndarray) -> float:
        key = tuple(choice.tolist())
        if key not in known and len(known) < calls:
            known[key] = measure(key)
        return known.get(key, math.inf)

    def smallest(choices: Sequence[np.ndarray]) -> np.ndarray:  # of choices in order of size, the last of which will do
        low, high = 0, len(choices) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if lost(choices[middle]) <= budget else (middle + 1, high)
        return choices[high]

    best = smallest([np.full(len(nbytes), level) for level in range(levels)])
    for stride in (3, 1, 1, 1):
        near = np.clip(best[:, None] + np.array([-stride, 0, stride]), 0, levels - 1)
        losses = np.array([[lost(np.where(rows == i, level, best)) for level in near[i]] for i in rows])
        if not np.isfinite(losses).all():
            break
        read, scale = np.take_along_axis(nbytes, near, 1), size(best) / max(budget, 1e-9)
        priced = [near[rows, (read + price * losses).argmin(1)] for price in scale * np.geomspace(1e-3, 1e3, 600)]
        smaller = [choice for choice in np.unique(priced, axis=0) if size(choice) < size(best)]
        best = smallest([*sorted(smaller, key=size), best])
    within = [np.array(key) for key, nats in known.items() if nats <= budget]
    return min([*within, best], key=size).tolist()


def set_thresholds(
    store: Store, predictors: Sequence[LowRankPredictor], text: Tensor, budget: float,
    progress: Callable[[str], None] = lambda line: None,
) -> list[LowRankPredictor]:  # fmt: skip
    """The same predictors with the thresholds with which a token reads the least while a text loses at most `budget`.

    store: the packed model
    predictors: trained for it, one for each layer
    text: [texts, length] token ids
    budget: in nats a token more than the dense model
    progress: is told of each run over the text

    Raises PredictorError if even the highest of RECALLS in all layers loses more.
    """
    choices, nbytes = [], np.zeros((store.layers, len(RECALLS)))
    for i, (predictor, data) in enumerate(zip(predictors, collect(store, text), strict=True)):
        levels = [with_recall(predictor, predictor.bias.float(), data, recall) for recall in RECALLS]
        shares = [report(level, data, text.shape[1]).predicted for level in levels]
        nbytes[i] = np.array(shares) * data.neurons * store.shape.record_bytes
        choices.append(levels)
    dense = loss(streamed_model(store), text)

    def chosen(choice: Sequence[int]) -> list[LowRankPredictor]:
        return [levels[level] for levels, level in zip(choices, choice, strict=True)]

    def measure(choice: Sequence[int]) -> float:
        added = loss(predicted_model(store, chosen(choice)), text) - dense
        recalls = " ".join(f"{100 * RECALLS[level]:g}" for level in choice)
        megabytes = nbytes[np.arange(store.layers), list(choice)].sum() / 1e6
        progress(f"recalls of {recalls} %: {megabytes:.2f} MB a token, {added:+.5f} nats")
        return added

    if (least := measure([len(RECALLS) - 1] * store.layers)) > budget:
        raise PredictorError(
            f"with a recall of {RECALLS[-1]:.1%} in all layers a token loses {least:.5f} nats already: allow more than "
            f"{budget:g}, or train better predictors"
        )
    return chosen(choose_levels(nbytes, measure, budget, CALLS * store.layers))
