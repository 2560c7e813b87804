"""Exercise 2.6: a threshold for each layer within a loss budget, on models that are made up of numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from flashlite.course.checks import SEED, Wrong, diagnosed, engines_own, require, rng
from flashlite.training.thresholds import choose_levels

LEVELS, CALLS = 12, 10  # CALLS: for each layer, as in the engine
LAYERS = (8, 12, 16)
MISSED = np.geomspace(0.75, 0.004, LEVELS)  # share of the firing neurons, by level


Choose = Callable[..., Sequence[int]]


@dataclass(frozen=True)
class Kind:
    """What models have in common; see Model.

    noise: of the losses
    calls: for each layer
    """

    bend: float = 1.0
    noise: float = 0.0
    calls: int = CALLS


ADDED_UP, BENT, NOISY = Kind(bend=0.0), Kind(), Kind(noise=0.3)


@dataclass
class Model:
    """What layers read and lose at each level, [layers, levels].

    own: what a layer loses if all others lose nothing, in nats
    bend: how much faster than their sum the losses of layers grow; with 1 a loss of `knee` is twice the sum
    knee: see bend
    calls: how often it may be measured
    """

    nbytes: np.ndarray
    own: np.ndarray
    bend: float
    knee: float
    calls: int
    measured: int = 0

    def loss(self, choice: Sequence[int]) -> float:
        """What a choice loses."""
        total = float(self.own[np.arange(len(self.own)), list(choice)].sum())
        return total * (1 + self.bend * max(total, 0) / self.knee)

    def measure(self, choice: Sequence[int]) -> float:
        """The same, counted."""
        self.measured += 1
        check_form(choice, self.own.shape, "measure was called with")
        times = f"measure was called {self.measured} times for {len(self.own)} layers"
        require(self.measured <= self.calls, times, f"{self.calls}")
        return self.loss(choice)

    def size(self, choice: Sequence[int]) -> float:
        """What a choice reads."""
        return float(self.nbytes[np.arange(len(self.own)), list(choice)].sum())

    def common(self, budget: float) -> list[int]:
        """The lowest level that keeps the budget if all layers have it."""
        levels = ([level] * len(self.own) for level in range(LEVELS))
        return next(choice for choice in levels if self.loss(choice) <= budget)

    def bound(self, budget: float) -> float:
        """No choice within the budget reads less."""
        total = budget if not self.bend else (np.sqrt(1 + 4 * self.bend * budget / self.knee) - 1) * self.knee / 2
        prices = self.nbytes.sum() / budget * np.geomspace(1e-3, 1e3, 2000)[:, None, None]
        least = (self.nbytes + prices * self.own).min(2).sum(1)
        return float((least - prices[:, 0, 0] * total).max())


def made(layers: int, bend: float = 0.0, noise: float = 0.0, calls: int = CALLS, seed: int = 0) -> Model:
    """A model whose layers differ in what they read, in what they lose, and in how fast both change by level."""
    chance = np.random.default_rng((int(rng().integers(2**31)), layers, seed))
    steep, size = chance.uniform(0.3, 0.7, layers), 1e5 * np.exp(chance.normal(0, 0.6, layers))
    curve, weight = chance.uniform(1.2, 2.5, layers), np.exp(chance.normal(0, 1.0, layers)) / layers
    nbytes = size[:, None] * (1 - MISSED) / MISSED ** steep[:, None]
    own = 0.05 * weight[:, None] * MISSED ** curve[:, None]
    own += noise * own.mean() * chance.normal(size=own.shape) * np.sqrt(MISSED)
    return Model(nbytes, own, bend, float(own[:, 3].sum()), calls * layers)


def check_form(choice: Sequence[int], shape: tuple[int, ...], what: str) -> None:
    """Raise Wrong unless this is a level for each layer."""
    try:
        levels = np.asarray(choice)
        right = levels.shape == shape[:1] and levels.dtype.kind in "iu" and 0 <= levels.min() <= levels.max() < shape[1]
    except (TypeError, ValueError):
        right = False
    require(bool(right), f"{what} {str(choice)[:80]}", f"{shape[0]} whole numbers from 0 to {shape[1] - 1}")


def chosen(model: Model, budget: float, what: str, choose: Choose | None = None) -> list[int]:
    """What is chosen, once it is known to be valid. choose: by whom, by what is graded unless given."""
    before, model.measured = model.nbytes.copy(), 0
    choice = (choose or choose_levels)(model.nbytes, model.measure, budget, model.calls)
    check_form(choice, model.own.shape, f"{what}: the answer is")
    require(np.array_equal(before, model.nbytes), f"{what}: nbytes was changed", "no change")
    if (lost := model.loss(choice)) > budget:
        text = f"{what}: the answer loses {lost:.5f} nats, allowed {budget:.5f}, which is more than the budget"
        top = [LEVELS - 1] * len(choice)
        alone = [model.loss([*top[:i], level, *top[i + 1 :]]) for i, level in enumerate(choice)]
        adds_up = sum(alone) - len(top) * model.loss(top) <= budget
        mistake = "Losses that were measured one layer at a time add up to less than what all of them lose together."
        raise Wrong(diagnosed(text, [mistake] if adds_up else []))
    return [int(level) for level in choice]


@dataclass(frozen=True)
class Judged:
    """What an answer is worth.

    layers: how many the model has
    saved: which share of the bytes that can be saved is saved: 0 is the best common level, 1 no choice can pass
    common: whether all layers got the same level
    """

    layers: int
    saved: float
    common: bool


@cache
def judged(seed: str, kind: Kind, choose: Choose | None = None) -> list[Judged]:
    """The answers for models of a kind, each asked for once. seed: of this grading, on which `rng` depends."""
    found = []
    for model in some(kind):
        layers = len(model.own)
        budget = 1.1 * model.loss([4] * layers)
        choice = chosen(model, budget, f"{layers} layers", choose)
        common = model.size(model.common(budget))
        share = (common - model.size(choice)) / (common - model.bound(budget))
        found.append(Judged(layers, share, len(set(choice)) == 1))
    return found


def of_kinds(kinds: Sequence[Kind], choose: Choose | None = None) -> list[Judged]:
    """The answers for all models of these kinds."""
    return [answer for kind in kinds for answer in judged(os.environ.get(SEED, "0"), kind, choose)]


def mean_saved(answers: Sequence[Judged]) -> float:
    """The mean of what they save."""
    return float(np.mean([answer.saved for answer in answers]))


def check_saved(kinds: Sequence[Kind], least: float) -> None:
    """Raise Wrong unless the mean of what is saved is at least this."""
    answers = of_kinds(kinds)
    worst, mean = min(answers, key=lambda answer: answer.saved), mean_saved(answers)
    require(
        mean >= least - 1e-9,
        f"of the bytes that can be saved beside the best common level, this saves {mean:.1%}, least of all "
        f"{worst.saved:.1%}, with {worst.layers} layers",
        f"{least:.0%} or more",
        "All layers have the same level." if all(answer.common for answer in answers) else "",
    )


def some(kind: Kind) -> list[Model]:
    """Models of a kind, of several sizes."""
    return [made(layers, kind.bend, kind.noise, kind.calls, seed) for layers in LAYERS for seed in range(2)]


@pytest.mark.points("2.6", 1)
def test_budget_and_calls_are_kept() -> None:
    models = [model for kind in (ADDED_UP, Kind(bend=3.0), NOISY) for model in some(kind)]
    for i, model in enumerate(models):
        layers = len(model.own)
        by_level, top = (
            [model.loss([level] * layers) for level in range(LEVELS)],
            max(model.loss([LEVELS - 1] * layers), 0),
        )
        budget, what = (
            (max(1.05 * by_level[5], top) + 1e-6, "a budget like level 5"),
            (max(1.05 * by_level[9], top) + 1e-6, "a budget like level 9"),
            (max(by_level) * 1.01, "a budget that lets all layers have level 0"),
            (top + 1e-7, "a budget that leaves no room below the last level"),
        )[i % 4]
        choice = chosen(model, budget, f"{layers} layers, {what}")
        if i % 4 == 2 and model.bend != 1.0:
            require(choice == [0] * layers, f"with room for level 0 in all layers: {choice[:8]}", "all 0")


@pytest.mark.points("2.6", 2)
def test_as_good_as_the_best_common_level() -> None:
    check_saved([ADDED_UP, BENT, NOISY], 0.0)
    one = made(1, calls=30)
    for level in (2, 6):
        budget = one.loss([level]) * 1.01
        choice = chosen(one, budget, "one layer")
        require(choice == [level], f"one layer: level {choice[0]}", f"level {level}, the lowest that keeps the budget")


@pytest.mark.points("2.6", 2)
def test_half_of_what_can_be_saved() -> None:
    check_saved([ADDED_UP, BENT], 0.5)


@pytest.mark.points("2.6", 2)
def test_most_of_what_can_be_saved(record_property: Callable[[str, object], None]) -> None:
    check_saved([ADDED_UP, BENT], 0.8)
    reference = of_kinds([ADDED_UP, BENT], engines_own("flashlite.training.thresholds").choose_levels)
    shares = mean_saved(of_kinds([ADDED_UP, BENT])), mean_saved(reference)
    record_property("saved", f"{shares[0]:.1%} of the bytes that can be, by the engine's own {shares[1]:.1%}")


@pytest.mark.points("2.6", 1)
def test_few_measurements_and_noise() -> None:
    check_saved([Kind(calls=5)], 0.5)
    check_saved([NOISY], 0.5)
