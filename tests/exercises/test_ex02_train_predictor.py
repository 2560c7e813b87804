"""Exercises 2.3, 2.4 and 2.7: the loss, the threshold and the training of a predictor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashlite.course.checks import SEED, Call, Wrong, diagnosed, engines_own, expect, expect_each, require, rng
from flashlite.engine.predictor import LowRankPredictor
from flashlite.training.train_predictor import (
    BATCH,
    Activations,
    balanced_loss,
    fit,
    initial_factors,
    threshold_for,
)

TOKENS, NEURONS = 20, 100


def sparse(share: float = 0.1) -> np.ndarray:
    """Which neurons fired: [TOKENS, NEURONS] bool, at least one of them."""
    fired = rng().random((TOKENS, NEURONS)) < share
    fired[0, 0] = True
    return fired


def plain_loss(scores: np.ndarray, fired: np.ndarray, positive: float, negative: float = 1.0) -> np.ndarray:
    """Each entry's loss, in float64, with one weight for neurons that fired and one for the others."""
    return np.where(fired, positive * np.logaddexp(0, -scores), negative * np.logaddexp(0, scores))


def loss_mistakes(scores: np.ndarray, fired: np.ndarray, weight: float) -> dict[str, object]:
    """What usual mistakes give."""
    right = plain_loss(scores, fired, weight)
    probability = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    cut_off = np.minimum(plain_loss(scores, fired, 1), 100) * np.where(fired, weight, 1)
    return {
        "positive_weight has no effect.": plain_loss(scores, fired, 1).mean(),
        "All neurons weigh more, not only those that fired.": plain_loss(scores, fired, weight, weight).mean(),
        "Those that did not fire weigh more; it must be those that fired.": plain_loss(scores, fired, 1, weight).mean(),
        "Sigmoid was applied twice: the function for logits applies it itself.": plain_loss(
            probability, fired, weight
        ).mean(),
        "This is the sum; the loss is the mean.": right.sum(),
        "Divide by the number of entries, not by the sum of weights.": right.sum() / np.where(fired, weight, 1).sum(),
        "This is each entry's loss; the loss is their mean.": right,
        "Logarithms were cut off at -100, as F.binary_cross_entropy does: start from the score.": cut_off.mean(),
    }


@pytest.mark.points("2.3", 1)
def test_value_of_the_loss() -> None:
    scores, fired = rng().normal(-1, 2, (TOKENS, NEURONS)), sparse()
    tensors = torch.from_numpy(scores).float(), torch.from_numpy(fired)
    weight = float(rng().integers(2, 10))
    calls = []
    for run, w in ((partial(balanced_loss, *tensors, weight), weight), (partial(balanced_loss, *tensors), 4.0)):
        right, wrong = plain_loss(scores, fired, w).mean(), loss_mistakes(scores, fired, w)
        calls.append(Call(run, right, f"loss with positive_weight = {w:g}", wrong, 1e-4))
    expect_each(calls)


@pytest.mark.points("2.3", 1)
def test_loss_of_very_large_scores() -> None:
    scores, fired = rng().choice([-200.0, 200.0], (TOKENS, NEURONS)), sparse(0.5)
    found = balanced_loss(torch.from_numpy(scores).float(), torch.from_numpy(fired), 3.0)
    mistake = "sigmoid(s) is exactly 0 or 1 there, and log(0) is infinite: start from the score."
    require(bool(found.isfinite().all()), "the loss of scores of +-200 is infinite or NaN", "finite", mistake)
    expect(found, plain_loss(scores, fired, 3).mean(), "loss of scores of +-200", loss_mistakes(scores, fired, 3), 1e-2)


@pytest.mark.points("2.3", 1)
def test_gradient_of_the_loss() -> None:
    scores, fired, weight = rng().normal(-1, 3, (TOKENS, NEURONS)), sparse(), 6.0
    scores[:2] = rng().choice([-200.0, 200.0], (2, NEURONS))
    tensor = torch.from_numpy(scores).float().requires_grad_()
    loss = balanced_loss(tensor, torch.from_numpy(fired), weight)
    require(
        loss.shape == (), f"the loss has the shape {list(loss.shape)}", "one number", "Take the mean of all entries."
    )
    require(
        loss.requires_grad,
        "the loss has no gradient",
        "one for scores",
        "It was computed outside of torch, or detached.",
    )
    loss.backward()
    probability = 1 / (1 + np.exp(-scores))
    gradient = np.where(fired, weight * (probability - 1), probability)
    mistakes = {
        "positive_weight has no effect.": np.where(fired, probability - 1, probability) / gradient.size,
        "This is the sum's; the loss is the mean.": gradient,
    }
    expect(tensor.grad, gradient / gradient.size, "gradient of the loss", mistakes, 1e-6)


def distinct_scores(fired: Tensor) -> Tensor:
    """Scores that all differ, by 1/128 at least, none of them 0; those of entries that fired are higher on average."""
    order = rng().permutation(fired.numel()).reshape(fired.shape)
    return (torch.from_numpy(order - 0.5 * order.size + 0.25).float() + 512.5 * fired) / 64


def wanted_recall(fired: Tensor) -> tuple[int, float]:
    """How many entries may be missed, and a recall that says so beyond doubt of rounding."""
    n = int(fired.sum())
    missed = int(rng().integers(n // 8, n // 3))
    return missed, 1 - (missed + 0.75) / n


def check_threshold(threshold: float, scores: Tensor, fired: Tensor, missed: int, what: str) -> None:
    """It predicts as many fired entries as it must, and no others than it has to."""
    require(type(threshold) is float and math.isfinite(threshold), f"{what}: {threshold!r}", "a float")
    every, firing = sorted(scores.ravel().tolist()), sorted(scores[fired].tolist())
    threshold, n, lowest = float(np.float32(threshold)), len(firing), firing[missed]
    needed = sum(score >= lowest for score in firing)
    found = sum(score > threshold for score in firing)
    if found != needed:
        text = f"{what}: of {n} fired entries, {found} are above the threshold, expected {needed}"
        share = every[int((missed + 0.75) / n * len(every))]
        raise Wrong(diagnosed(text, [usual_mistake(threshold, lowest, firing[n - 1 - missed], share, found < needed)]))
    superfluous = int((scores[~fired] > threshold).sum())
    mistakes = {"The threshold is lower than this recall needs, and superfluous neurons are read.": superfluous}
    expect(superfluous, int((scores[~fired] >= lowest).sum()), f"{what}: superfluous entries above it", mistakes)
    largest = float(np.nextafter(np.float32(lowest), np.float32(-np.inf)))
    text = f"{what}: found {threshold:.9g}, expected the float32 {largest:.9g}"
    if threshold != largest:
        raise Wrong(diagnosed(text, ["A higher threshold has this recall as well."]))


def usual_mistake(threshold: float, lowest: float, mixed_up: float, of_all: float, too_high: bool) -> str:
    """What a wrong threshold looks like.

    lowest: the lowest score that must be above it; mixed_up, of_all: this score if the share to keep is taken for the
    share to miss, and if all scores count; too_high: or else it is too low
    """
    if np.float32(threshold) == lowest:
        return "A score equal to the threshold is not above it: the threshold must be lower, however little."
    if abs(threshold - mixed_up) < 1e-3:
        return "The share to be missed is 1 - recall, not recall."
    if abs(threshold - of_all) < 1e-3:
        return "Only scores of entries that fired count for recall, not all."
    return "That is too few for this recall." if too_high else "A higher threshold has this recall as well."


@pytest.mark.points("2.4", 1)
def test_threshold_reaches_the_recall_and_no_more() -> None:
    fired = torch.from_numpy(sparse())
    scores = distinct_scores(fired)
    missed, recall = wanted_recall(fired)
    before = scores.clone(), fired.clone()
    check_threshold(threshold_for(scores, fired, recall), scores, fired, missed, f"recall {recall:.3f}")
    unchanged = torch.equal(scores, before[0]) and torch.equal(fired, before[1])
    require(unchanged, "scores or fired were changed", "no change")


@pytest.mark.points("2.4", 1)
def test_threshold_among_equal_and_large_scores() -> None:
    fired = torch.from_numpy(sparse(0.3))
    missed, recall = wanted_recall(fired)
    coarse = (distinct_scores(fired) / 8).round() + 0.5
    for scores, what in ((coarse, "many equal scores"), (coarse + 300, "scores around 300")):
        check_threshold(threshold_for(scores, fired, recall), scores, fired, missed, f"{what}, recall {recall:.3f}")


@pytest.mark.points("2.4", 1)
def test_threshold_that_misses_nothing() -> None:
    fired = torch.from_numpy(sparse(0.02))
    scores, recall = distinct_scores(fired), 1 - 0.75 / int(fired.sum())
    check_threshold(threshold_for(scores, fired, recall), scores, fired, 0, f"recall {recall:.4f}, none may be missed")


@pytest.mark.points("2.4", 1)
def test_threshold_of_a_layer_in_which_nothing_fires() -> None:
    fired = torch.zeros(TOKENS, NEURONS, dtype=torch.bool)
    expect(threshold_for(distinct_scores(fired), fired, 0.97), 0.0, "threshold if nothing fired")


# 2.7


STEPS, RANK, RECALL = 60, 32, 0.97
COMPONENTS, LAYER_NEURONS, TOPICS = 64, 256, 40  # of the components, so many are topics
EACH, QUIETED = 2, 0.6  # topics of a token, and how often something else keeps neurons quiet
FEWER, FEW, VERY_FEW = 0.3, 0.15, 0.12  # shares of the neurons; without training it is 0.45, by a formula 0.17 at best


@dataclass
class Counted(Activations):
    """Activations that note for which tokens it was asked what fired."""

    asked: list[np.ndarray] = field(default_factory=list)

    def mask(self, tokens: slice | np.ndarray) -> Tensor:
        """See Activations."""
        rows = np.arange(len(self.x))[tokens if isinstance(tokens, slice) else np.asarray(tokens)]
        self.asked.append(np.atleast_1d(rows))
        return super().mask(tokens)


@dataclass(frozen=True)
class Layer:
    """A layer each of whose neurons fires for one topic, unless a component that is no topic keeps it quiet.

    Those components vary most, and all that follows from them is how far below 0 a product lies. So the factors that
    reproduce the products best, which need no training, are not those that tell best what fires.

    It is the same in every grading, so that the same limits hold; its tokens are others each time.
    """

    up: Tensor
    bias: Tensor
    turned: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, seed: int) -> Layer:
        """The layer of this number."""
        chance, neurons = np.random.default_rng(seed), np.arange(LAYER_NEURONS)
        turned, _ = np.linalg.qr(chance.normal(size=(COMPONENTS, COMPONENTS)))
        up = np.empty((LAYER_NEURONS, COMPONENTS))
        up[:, :TOPICS] = 0.1 * chance.normal(size=(LAYER_NEURONS, TOPICS))
        up[neurons, chance.permutation(neurons % TOPICS)] += 1
        up[:, TOPICS:] = -chance.uniform(0.2, 1.8, (LAYER_NEURONS, COMPONENTS - TOPICS))
        up = up * chance.uniform(0.7, 1.5, (LAYER_NEURONS, 1)) @ turned.T
        made = cls(torch.from_numpy(up).float(), torch.zeros(LAYER_NEURONS), turned, 6 * turned[:, 0])
        products = F.linear(made.inputs(chance, 4096).float(), made.up).numpy()
        rate = EACH / TOPICS * chance.uniform(0.3, 0.6, LAYER_NEURONS)
        bias = [-np.quantile(products[:, i], 1 - share) for i, share in enumerate(rate)]
        return replace(made, bias=torch.tensor(bias, dtype=torch.float32))

    def inputs(self, chance: np.random.Generator, tokens: int) -> Tensor:
        """What enters the layer: [tokens, COMPONENTS] float16."""
        parts, token = 0.15 * chance.normal(size=(tokens, COMPONENTS)), np.arange(tokens)
        for _ in range(EACH):
            parts[token, chance.integers(0, TOPICS, tokens)] += 1 + chance.exponential(0.5, tokens)
        quieted = chance.random(tokens) < QUIETED
        parts[token, chance.integers(TOPICS, COMPONENTS, tokens)] += quieted * chance.exponential(4, tokens)
        return torch.from_numpy((parts @ self.turned.T + self.shift).astype(np.float16))

    def tokens(self, chance: np.random.Generator, tokens: int) -> Counted:
        """Inputs, and which neurons fire for them."""
        x = self.inputs(chance, tokens)
        fired = F.linear(x.float(), self.up, self.bias) > 0
        return Counted(x, np.packbits(fired.numpy(), axis=1), LAYER_NEURONS)


@torch.no_grad()
def predicted(factors: tuple[Tensor, Tensor, Tensor], data: Counted) -> float:
    """The share of neurons that a predictor names at the threshold that reaches the recall."""
    return share_at_recall(LowRankPredictor.of(*factors).scores(data.x.float()).float(), data)


def share_at_recall(scores: Tensor, data: Counted) -> float:
    """The share of entries whose scores are as high as the recall needs."""
    needed = scores[Activations.mask(data, slice(None))].sort().values
    return float((scores >= needed[int((1 - RECALL) * len(needed))]).float().mean())


@dataclass
class Trained:
    """What training gave, as means over the layers: shares of neurons that are predicted.

    share: with what was trained
    start: with the factors before training
    distinct: of how many tokens it was asked what fired
    """

    share: float
    start: float
    distinct: int


@cache
def trained(seed: str, train: Callable[..., Any] | None = None) -> Trained:
    """Train on two layers. seed: of this grading, on which `rng` depends; train: by what, by `fit` unless given."""
    chance, shares, seen = rng(), [], []
    for number in (11, 12):
        layer = Layer.of(number)
        data, test = layer.tokens(chance, 4096), layer.tokens(chance, 2048)
        found = fitted(layer, data, STEPS, train=train)
        require(all(bool(p.isfinite().all()) for p in found), "NaN or infinite numbers after training", "finite ones")
        seen.append(len(np.unique(np.concatenate(data.asked))) if data.asked else 0)
        start = (*initial_factors(layer.up, RANK), layer.bias)
        shares.append((predicted(found, test), predicted(start, test)))
    return Trained(*np.mean(shares, axis=0).tolist(), max(seen))


def fitted(
    layer: Layer, data: Counted, steps: int, seed: int = 7, train: Callable[..., Any] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The factors that training gives, once their form is known to be right. train: see `trained`."""
    found = (train or fit)(layer.up, layer.bias, RANK, data, seed, steps)
    require(isinstance(found, tuple) and len(found) == 3, f"the result is {type(found).__name__}", "a tuple of three")
    shapes = (RANK, COMPONENTS), (LAYER_NEURONS, RANK), (LAYER_NEURONS,)
    for name, tensor, shape in zip(("a", "b", "bias"), found, shapes, strict=True):
        form = f"{tuple(tensor.shape)} {tensor.dtype}"
        require(form == f"{shape} torch.float32", f"{name} is {form}", f"{shape} torch.float32")
        require(not tensor.requires_grad, f"{name} still has gradients", "a tensor without: detach it")
    return found


def check_share(at_most: float) -> None:
    """Raise Wrong if more than this share is predicted after training."""
    found, mistake = trained(os.environ.get(SEED, "0")), ""
    if 0 < found.distinct <= BATCH:
        mistake = f"All steps saw the same {found.distinct} tokens."
    elif found.share > 0.95 * found.start:
        mistake = (
            "That is hardly better than without training, if at all: the steps are far too large or far too small, "
            "training begins elsewhere than with the layer's own factors, or the inputs are of other tokens than what "
            "fired."
        )
    measured = f"{found.share:.1%} of neurons are predicted, without training {found.start:.1%}"
    require(found.share <= at_most, measured, f"{at_most:.1%}", mistake)


class Backwards:
    """Counts backward passes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("backward", "grad"):
            patch.setattr(torch.autograd, name, self._counting(getattr(torch.autograd, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return counted


@pytest.mark.points("2.7", 1)
def test_training_keeps_its_limits_and_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, steps = Layer.of(11), 9
    data, backwards = layer.tokens(rng(), 4096), Backwards(monkeypatch)
    before = layer.up.clone(), layer.bias.clone(), data.x.clone(), torch.from_numpy(data.fired.copy())
    torch.manual_seed(1)
    with torch.no_grad():
        first = fitted(layer, data, steps)
    for name, old, new in zip(
        ("up", "bias", "data.x", "data.fired"), before, (layer.up, layer.bias, data.x, torch.from_numpy(data.fired)),
        strict=True,
    ):  # fmt: skip
        require(torch.equal(old, new) and not new.requires_grad, f"{name} was changed", "no change")
    require(backwards.count <= steps, f"{backwards.count} backward passes in {steps} steps", f"{steps}")
    rows = sum(map(len, data.asked))
    require(rows <= steps * BATCH, f"data.mask was asked for {rows} rows in {steps} steps", f"{steps * BATCH}")
    torch.manual_seed(2)
    again, other = fitted(layer, data, steps), fitted(layer, data, steps, seed=8)
    same = all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    require(same, "the same seed gives another result the second time", "the same result")
    differs = any(not torch.equal(p, q) for p, q in zip(first, other, strict=True))
    require(differs, "another seed gives the same result", "another one, of other batches")


@pytest.mark.points("2.7", 1)
def test_all_three_are_trained() -> None:
    layer = Layer.of(12)
    data = layer.tokens(rng(), 4096)
    short, long = (fitted(layer, data, steps) for steps in (1, 30))
    for name, p, q in zip(("a", "b", "bias"), short, long, strict=True):
        require(not torch.equal(p, q), f"{name} is the same after 1 step and after 30", "change", "It isn't trained.")


@pytest.mark.points("2.7", 1)
def test_training_beats_its_start() -> None:
    check_share(FEWER)


@pytest.mark.points("2.7", 2)
def test_training_leaves_few() -> None:
    check_share(FEW)


@pytest.mark.points("2.7", 1)
def test_training_leaves_very_few(record_property: Callable[[str, object], None]) -> None:
    check_share(VERY_FEW)
    seed = os.environ.get(SEED, "0")
    mine, reference = trained(seed), trained(seed, engines_own("flashlite.training.train_predictor").fit)
    told = f"after training by the engine's own loop {reference.share:.1%}, without training {mine.start:.1%}"
    record_property("predicted", f"{mine.share:.1%} of the neurons, {told}")
