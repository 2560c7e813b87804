"""Exercises 2.1 and 2.2: which neurons will fire."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import Call, expect, expect_each, require, rng
from flashlite.engine.kernels.rows import FEW
from flashlite.engine.predictor import Int8Matrix, LowRankPredictor, active_set

TOKENS, D_MODEL, RANK, NEURONS = 6, 64, 32, 96


class Rule:
    """A predictor: a neuron is needed where x's projection on it is above a limit."""

    nbytes = 0

    def __init__(self, weight: Tensor, limit: float) -> None:
        self._weight, self._limit = weight, limit

    def mask(self, x: Tensor) -> Tensor:
        """By token: [tokens, ffn] bool."""
        return x @ self._weight > self._limit


def whole_numbers(*shape: int) -> Tensor:
    """Small whole numbers, whose sums are exact."""
    return torch.from_numpy(rng().integers(-3, 4, shape)).float()


def listed_twice(mask: list[list[bool]]) -> list[int]:
    """A neuron once for each token that needs it, token by token."""
    return [neuron for token in mask for neuron, needed in enumerate(token) if needed]


def needed_by(mask: list[list[bool]], test: Callable[..., bool]) -> list[int]:
    """The neurons that any or all of these tokens need."""
    return [neuron for neuron in range(len(mask[0])) if test(token[neuron] for token in mask)]


@pytest.mark.points("2.1", 1)
def test_active_set_of_several_tokens() -> None:
    weight = torch.from_numpy(rng().integers(-2, 3, (D_MODEL, NEURONS))).float()
    weight[:, :TOKENS] = 0  # nobody needs these: a token's own number is not a neuron
    calls = []
    for tokens in (2, 3, TOKENS):
        x, rule = whole_numbers(tokens, D_MODEL), Rule(weight, 20.5)
        mask = rule.mask(x).tolist()
        mistakes = {
            "A neuron is needed if any token needs it, not only if all do.": needed_by(mask, all),
            "Only the last token was looked at.": needed_by(mask[-1:], any),
            "Only the first token was looked at.": needed_by(mask[:1], any),
            "The last token was left out.": needed_by(mask[:-1], any),
            "The first token was left out.": needed_by(mask[1:], any),
            "A neuron is listed once for each token that needs it.": listed_twice(mask),
            "A neuron is listed once for each token that needs it, in order.": sorted(listed_twice(mask)),
            "This is a mask over all neurons: return the numbers of those that are needed.": np.any(mask, 0),
        }
        if tokens == 2:
            mistakes["Of two tokens only the first was looked at."] = needed_by(mask[:1], any)
        wrong = {text: np.array(neurons) for text, neurons in mistakes.items()}
        right, what = np.array(needed_by(mask, any), np.int64), f"active set of {tokens} tokens"
        calls.append(Call(partial(active_set, rule, x), right, what, wrong))
    expect_each(calls)
    check_active_set(active_set(rule, x), needed_by(mask, any), what, {})


@pytest.mark.points("2.1", 1)
def test_active_set_of_one_token_and_of_none_that_fires() -> None:
    x = whole_numbers(1, D_MODEL)
    weight = torch.from_numpy(rng().integers(-2, 3, (D_MODEL, NEURONS))).float()
    one, none = Rule(weight, 0.5), Rule(weight, 1e6)
    check_active_set(active_set(one, x), needed_by(one.mask(x).tolist(), any), "active set of one token", {})
    for tokens in (x, whole_numbers(TOKENS, D_MODEL)):
        check_active_set(active_set(none, tokens), [], f"active set of {len(tokens)} tokens that need nothing", {})
    for count in (1, 9):
        few, wide = rng().permutation(4000)[:count].tolist(), torch.zeros(D_MODEL, 4000)
        wide[:, few] = x.T  # x on itself is above 0
        what = f"active set of one token that needs {count} of 4000 neurons"
        check_active_set(active_set(Rule(wide, 0.5), x), sorted(few), what, {"The order must be a rising one.": few})


def check_active_set(found: np.ndarray, expected: list[int], what: str, mistakes: dict[str, object]) -> None:
    """The right neurons, in order, as an array that can be used as an index."""
    wrong = {text: np.array(neurons) for text, neurons in mistakes.items()}
    expect(found, np.array(expected, np.int64), what, wrong)
    kind = f"{type(found).__name__} of {getattr(found, 'dtype', 'objects')}"
    require(isinstance(found, np.ndarray) and found.dtype == np.int64, f"{what} is a {kind}", "a NumPy array of int64")


def exact_matrix(random: np.random.Generator, out: int, inside: int, uses: int, scales: list[float]) -> Int8Matrix:
    """A matrix with `uses` times 1 or -1 a row, scaled by powers of two, so that products are exact in bfloat16."""
    values = np.zeros((out, inside), np.int8)
    for row in values:
        row[random.permutation(inside)[:uses]] = random.choice([-1, 1], uses)
    return Int8Matrix(torch.from_numpy(values), torch.from_numpy(random.choice(scales, out)).bfloat16())


def exact_predictor() -> LowRankPredictor:
    """A predictor whose scores of whole numbers from -3 to 3 are exact in bfloat16."""
    random = rng()
    a = exact_matrix(random, RANK, D_MODEL, 5, [0.5, 1.0, 2.0])
    b = exact_matrix(random, NEURONS, RANK, 3, [0.5, 1.0])
    return LowRankPredictor(a, b, torch.from_numpy(random.integers(-8, 9, NEURONS) / 2))


def plain_matrix(matrix: Int8Matrix) -> np.ndarray:
    """The numbers that a matrix stands for."""
    return matrix.values.double().numpy() * matrix.scale.double().numpy()[:, None]


def plain_scores(predictor: LowRankPredictor, x: Tensor) -> tuple[np.ndarray, dict[str, object]]:
    """The scores in float64, and what usual mistakes give."""
    a, b, bias = plain_matrix(predictor.a), plain_matrix(predictor.b), predictor.bias.double().numpy()
    narrow = x.double().numpy() @ a.T
    right = narrow @ b.T + bias
    unscaled = x.double().numpy() @ predictor.a.values.double().numpy().T @ predictor.b.values.double().numpy().T
    return right, {
        "The bias is missing, and with it the threshold.": right - bias,
        "The bias must be added, not subtracted.": right - 2 * bias,
        "There is no ReLU between the two matrices.": np.maximum(narrow, 0) @ b.T + bias,
        "There is nothing after the second matrix: scores keep their sign.": np.maximum(right, 0),
        "No sigmoid is needed: a neuron should fire where its score is above 0.": torch.tensor(right)
        .bfloat16()
        .sigmoid(),
        "These are the predictions; scores are numbers.": right > 0,
        "The scales of the int8 matrices are missing: call self.a and self.b like functions.": unscaled + bias,
    }


@pytest.mark.points("2.2", 0)
def test_scores_of_several_tokens() -> None:
    predictor, x = exact_predictor(), whole_numbers(TOKENS, D_MODEL)
    expected, mistakes = plain_scores(predictor, x)
    expect(predictor.scores(x), expected, f"scores of {TOKENS} tokens", mistakes)


@pytest.mark.points("2.2", 0)
def test_scores_of_few_and_many_tokens_in_each_dtype_are_bfloat16() -> None:
    predictor = exact_predictor()
    for tokens, dtype in itertools.product((1, 2 * FEW), (torch.float32, torch.float16, torch.bfloat16)):
        x = whole_numbers(tokens, D_MODEL).to(dtype)
        found, (expected, mistakes) = predictor.scores(x), plain_scores(predictor, x)
        expect(found, expected, f"scores of {tokens} tokens in {dtype}", mistakes)
        require(found.dtype == torch.bfloat16, f"scores are {found.dtype}", "torch.bfloat16")


@pytest.mark.points("2.2", 0)
def test_scoring_changes_nothing() -> None:
    predictor, x = exact_predictor(), whole_numbers(TOKENS, D_MODEL).bfloat16()
    parts = {
        "x": x, "bias": predictor.bias, "a.values": predictor.a.values, "a.scale": predictor.a.scale,
        "b.values": predictor.b.values, "b.scale": predictor.b.scale,
    }  # fmt: skip
    before = {name: part.clone() for name, part in parts.items()}
    expected, mistakes = plain_scores(predictor, x)
    for time in ("first", "second"):
        expect(predictor.scores(x), expected, f"scores when called the {time} time", mistakes)
    for name, part in parts.items():
        require(torch.equal(part, before[name]), f"{name} was changed", "no change", f"Don't work in place on {name}.")
