"""Exercise 9.2: how far rounding may move a product."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import Call, expect, expect_each, require, rng, same
from flashlite.engine.predictor import Int8Matrix
from flashlite.engine.predictors.copy_predictor import ERRORS, STEP_ERROR, CopyPredictor, margin
from flashlite.families.activation import RELU

TOKENS, D_MODEL, NEURONS = 7, 64, 96
Array = np.ndarray


def steps(neurons: int = NEURONS) -> Tensor:
    """Sizes of steps: [neurons] bfloat16."""
    return torch.from_numpy(rng().uniform(0.001, 0.05, neurons)).bfloat16()


def inputs(tokens: int = TOKENS) -> Tensor:
    """Whole numbers, so that they are the same in 16 bits; each token's are larger than those before: [tokens, d]."""
    size = 3 * np.arange(1, tokens + 1)[:, None]
    return torch.from_numpy(rng().integers(-size, size + 1, (tokens, D_MODEL))).float()


def any_errors() -> float:
    """How many standard deviations are asked for: another number than ERRORS."""
    return float(rng().uniform(1.5, 2.5)) * ERRORS


def right(x: Array, scale: Array, errors: float = ERRORS) -> Array:
    """Neuron by neuron, from the variance of each weight's error."""
    found = np.zeros((len(x), len(scale)))
    for token, components in enumerate(x):
        for neuron, step in enumerate(scale):
            variance = sum((component * step * STEP_ERROR) ** 2 for component in components)
            found[token, neuron] = errors * variance**0.5
    return found


def mistakes(x: Array, scale: Array, errors: float = ERRORS) -> dict[str, Array]:
    """What usual mistakes give."""
    norm, steps = np.sqrt((x**2).sum(1, keepdims=True)), scale[None]
    found, worst = errors * STEP_ERROR * norm * steps, np.abs(x).sum(1, keepdims=True) * steps / 2
    return {
        "This is the worst case. Errors mostly cancel: take the standard deviation of their sum.": worst,
        "This is the worst case. Errors mostly cancel: take the standard deviation of their sum. ": 2 * worst,
        "This is the worst case. Errors mostly cancel: take the standard deviation of their sum.  ": errors
        * STEP_ERROR * 2 * worst,
        "This is a variance: the standard deviation is its root.": errors * (STEP_ERROR * norm * steps) ** 2,
        "This is a variance: the standard deviation is its root. ": errors * STEP_ERROR * norm**2 * steps,
        "The variances add up: the sum of squares counts, not their mean.": found / D_MODEL**0.5,
        "x is missing: the larger the input, the further its products move.": errors * STEP_ERROR * np.ones_like(norm)
        * steps,
        "Each token has a norm of its own.": errors * STEP_ERROR * np.sqrt((x**2).sum()) * steps + 0 * norm,
        "The margin is `errors` standard deviations, not one.": found / errors,
        "The margin is `errors` standard deviations; ERRORS is what it is unless given.": ERRORS * found / errors,
        "An error of a whole step was taken: STEP_ERROR is the standard deviation in steps.": found / STEP_ERROR,
        "The scale is missing: each row has steps of its own.": errors * STEP_ERROR * norm + 0 * steps,
        "The margin is a distance, so it is never below 0.": -found,
    }  # fmt: skip


@pytest.mark.points("9.2", 2)
def test_the_margin_is_that_of_independent_errors() -> None:
    calls = []
    for tokens, neurons, given in ((TOKENS, NEURONS, True), (1, NEURONS, False), (TOKENS, 1, True)):
        x, scale, errors = inputs(tokens), steps(neurons), any_errors() if given else ERRORS
        plain = x.double().numpy(), scale.double().numpy(), errors
        expected, what = right(*plain), f"margin of {tokens} tokens and {neurons} neurons, errors = {errors:.3g}"
        run = partial(margin, x, scale, errors) if given else partial(margin, x, scale)
        calls.append(Call(run, expected, what, mistakes(*plain), 1e-4 * float(expected.max())))
    expect_each(calls)


@pytest.mark.points("9.2", 1)
def test_inputs_of_each_dtype_large_and_zero() -> None:
    scale = steps()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for factor in (0.0, 1.0, 64.0):
            x = (factor * inputs().clamp(-16, 16)).to(dtype)
            before = x.clone(), scale.clone()
            found, expected = margin(x, scale), right(x.double().numpy(), scale.double().numpy())
            require(found.dtype == torch.float32, f"the margin of x in {dtype} is {found.dtype}", "torch.float32")
            tolerance, text = 1e-4 * float(expected.max()), "Take the norm in float32: 16 bits are too few for squares."
            near = bool(found.isinf().any()) or same(found, expected, 100 * tolerance)
            narrow = {text: found} if near and dtype != torch.float32 else {}
            expect(found, expected, f"margin of x times {factor:g} in {dtype}", narrow, tolerance)
            expect((x, scale), before, "x and scale afterwards")


@pytest.mark.points("9.2", 1)
def test_hardly_a_neuron_is_missed_and_few_are_named_for_nothing() -> None:
    """Rows with one large weight, as real ones have: their steps are coarse, and rounding decides much."""
    random = rng()
    weight = random.standard_normal((NEURONS, D_MODEL)).astype(np.float32)
    weight[np.arange(NEURONS), random.integers(0, D_MODEL, NEURONS)] = 40.0
    x = torch.from_numpy(random.standard_normal((2000, D_MODEL))).bfloat16().float()
    matrix, zero = Int8Matrix.of(torch.from_numpy(weight)), torch.zeros(NEURONS)
    fires = x @ torch.from_numpy(weight).T > 0
    named = CopyPredictor(matrix, zero, RELU).mask(x)
    rounded = x.bfloat16().float() @ (matrix.values.float() * matrix.scale.float()[:, None]).T > 0
    recall, plain = (float((mask & fires).sum() / fires.sum()) for mask in (named, rounded))
    told = f"recall {recall:.2%}, {plain:.2%} by rounding alone"
    require(recall >= 0.9995, told, "at least 99.95%", "The margin is too small.")
    share = float(named.sum() / fires.sum())
    require(
        share <= 1.05, f"{share:.2f} times as many neurons named as fire", "at most 1.05", "The margin is too large."
    )
