"""Exercises 2.3 and 2.4: the loss and the threshold of a predictor."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import Call, Wrong, diagnosed, expect, expect_each, require, rng
from flashlite.training.train_predictor import balanced_loss, threshold_for

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
    n, lowest = len(firing), firing[missed]
    needed = sum(score >= lowest for score in firing)
    found = sum(score > threshold for score in firing)
    if found != needed:
        text = f"{what}: of {n} fired entries above the threshold: found {found}, expected {needed}"
        share = every[int((missed + 0.75) / n * len(every))]
        raise Wrong(diagnosed(text, [usual_mistake(threshold, lowest, firing[n - 1 - missed], share, found < needed)]))
    superfluous = int((scores[~fired] > threshold).sum())
    mistakes = {"The threshold is lower than this recall needs, and superfluous neurons are read.": superfluous}
    expect(superfluous, int((scores[~fired] >= lowest).sum()), f"{what}: superfluous entries above it", mistakes)


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
