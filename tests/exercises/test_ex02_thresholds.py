"""Exercise 2.6: a threshold for each layer within a loss budget, on models that are made up of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from flashlite.course.checks import Wrong, diagnosed, require, rng
from flashlite.training.thresholds import choose_levels

LEVELS, CALLS = 12, 10  # CALLS: for each layer, as in the engine
LAYERS = (8, 12, 16)
MISSED = np.geomspace(0.75, 0.004, LEVELS)  # share of the firing neurons, by level


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


def chosen(model: Model, budget: float, what: str) -> list[int]:
    """What is chosen, once it is known to be valid."""
    before, model.measured = model.nbytes.copy(), 0
    choice = choose_levels(model.nbytes, model.measure, budget, model.calls)
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


def saved(model: Model, budget: float, what: str) -> float:
    """Which share of the bytes that can be saved is saved: 0 is the best common level, 1 no choice can pass."""
    choice, common = chosen(model, budget, what), model.size(model.common(budget))
    return (common - model.size(choice)) / (common - model.bound(budget))


def check_saved(models: Sequence[Model], least: float) -> None:
    """Raise Wrong unless the mean of what is saved of each model is at least this."""
    shares, same = [], True
    for model in models:
        what = f"{len(model.own)} layers"
        budget = 1.1 * model.loss([4] * len(model.own))
        shares.append(saved(model, budget, what))
        same &= len(set(chosen(model, budget, what))) == 1
    worst = int(np.argmin(shares))
    require(
        float(np.mean(shares)) >= least - 1e-9,
        f"of the bytes that can be saved beside the best common level, this saves {np.mean(shares):.1%}, least of all "
        f"{shares[worst]:.1%}, with {len(models[worst].own)} layers",
        f"{least:.0%} or more",
        "All layers have the same level." if same else "",
    )


def some(bend: float = 1.0, noise: float = 0.0, calls: int = CALLS) -> list[Model]:
    """Models of several sizes."""
    return [made(layers, bend, noise, calls, seed) for layers in LAYERS for seed in range(2)]


@pytest.mark.points("2.6", 1)
def test_budget_and_calls_are_kept() -> None:
    for model in [*some(0.0), *some(3.0), *some(1.0, 0.3)]:
        layers, low, top = len(model.own), [0] * len(model.own), [LEVELS - 1] * len(model.own)
        for level in (5, 9):
            budget = max(1.05 * model.loss([level] * layers), model.loss(top), 0.0) + 1e-6
            chosen(model, budget, f"{layers} layers, a budget like level {level}")
        ample = max(model.loss([level] * layers) for level in range(LEVELS)) * 1.01
        choice = chosen(model, ample, "a budget that lets all layers have level 0")
        require(model.bend == 1.0 or choice == low, f"with room for level 0 in all layers: {choice[:8]}", "all 0")
        chosen(model, max(model.loss(top), 0.0) + 1e-7, "a budget that leaves no room below the last level")


@pytest.mark.points("2.6", 2)
def test_as_good_as_the_best_common_level() -> None:
    check_saved([*some(0.0), *some(1.0), *some(1.0, 0.3)], 0.0)
    one = made(1, calls=30)
    for level in (2, 6):
        budget = one.loss([level]) * 1.01
        choice = chosen(one, budget, "one layer")
        require(choice == [level], f"one layer: level {choice[0]}", f"level {level}, the lowest that keeps the budget")


@pytest.mark.points("2.6", 2)
def test_half_of_what_can_be_saved() -> None:
    check_saved([*some(0.0), *some(1.0)], 0.5)


@pytest.mark.points("2.6", 2)
def test_most_of_what_can_be_saved() -> None:
    check_saved([*some(0.0), *some(1.0)], 0.8)


@pytest.mark.points("2.6", 1)
def test_few_measurements_and_noise() -> None:
    check_saved(some(1.0, calls=5), 0.5)
    check_saved(some(1.0, noise=0.3), 0.5)
