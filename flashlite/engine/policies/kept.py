"""A policy in the window's place: the engine asks it as it asks the window, and holds it to the rules.

What breaks a rule ends in an error, and what keeps them is exact: needed neurons are always in DRAM, and a neuron that
is there without need is multiplied as it is. What a policy remembers of a text lies outside of the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
from torch import Tensor

from flashlite.arguments import POLICY_STAGES
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.policies import entry
from flashlite.engine.policies.rules import LARGEST_SCORE, NONE, Held, PolicyKind, PolicyLike, Token, rounded
from flashlite.engine.predictor import LowRankPredictor, Predictor
from flashlite.engine.stages import Stage
from flashlite.engine.window import Step, Window
from flashlite.errors import FlashliteError


class Remembering:
    """A predictor that remembers what it said last, so that a policy can ask for it.

    Where the predictor itself gives no scores, as the oracle, all that it names have the largest, and all others the
    smallest.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.nbytes, self.predictor = predictor.nbytes, predictor
        self._said: Tensor | None = None

    def mask(self, x: Tensor) -> Tensor:
        """See Predictor."""
        if isinstance(self.predictor, LowRankPredictor):
            self._said = self.predictor.scores(x)
            return self._said > 0
        self._said = self.predictor.mask(x)
        return self._said

    def scores(self) -> np.ndarray:
        """The last scores as a policy sees them, of several sequences the largest: [neurons] int8."""
        assert self._said is not None
        said = self._said.amax(0).float().numpy()
        if isinstance(self.predictor, LowRankPredictor):
            return rounded(said)
        return np.where(said > 0, LARGEST_SCORE, -LARGEST_SCORE).astype(np.int8)


class KeptByPolicy(Window):
    """The neurons of one layer that a policy keeps.

    layer: its number
    neurons: how many it has
    tokens: how many of a prompt's last tokens the policy is told
    capacity: how many neurons DRAM has room for
    make: makes the policy, anew for each text
    scores: gives the scores of the token at hand
    """

    def __init__(
        self, layer: int, neurons: int, tokens: int, capacity: int, make: PolicyKind, scores: Callable[[], np.ndarray]
    ) -> None:
        self.layer, self.tokens, self.capacity = layer, tokens, capacity
        self._rules, self._make, self._scores = Held(neurons, capacity), make, scores
        self._policy: PolicyLike | None = None

    @property
    def size(self) -> int:  # type: ignore[override]
        """How many neurons are in DRAM."""
        return self._rules.size

    @property
    def held(self) -> np.ndarray:
        """The neurons in DRAM, sorted: [size] int64."""
        return self._rules.held

    def step(self, active: np.ndarray) -> Step:
        """See Window. Raises FlashliteError if the policy breaks a rule."""
        needed, overflow = self._rules.fit(active)
        if self._policy is None:
            self._policy = self._make(self.layer, self._rules.neurons, self.capacity)
        change = self._policy.step(Token(needed.copy(), self._scores))
        try:
            return Step(*self._rules.move(needed, change), overflow)
        except FlashliteError as error:
            raise FlashliteError(f"the policy of layer {self.layer} broke a rule: {error}") from None

    def amend(self, active: np.ndarray) -> NoReturn:
        """A policy can't take back what it was told."""
        raise FlashliteError(POLICY_STAGES)

    def clear(self) -> np.ndarray:
        """Empty the window, and forget the policy with all that it knows of the text."""
        self._policy = None
        return self._rules.clear() if self.size else NONE


def keeper(layer: int, stage: Stage, neurons: int, capacity: int, predictor: Predictor) -> tuple[Predictor, Window]:
    """The predictor and the window of one layer: the engine's own, unless an entry has a policy and the stage a window.

    Raises FlashliteError if the stage is one at which a policy can't run, or if an entry has none.
    """
    if not hasattr(entry, "Policy"):
        raise FlashliteError(f"{entry.__file__} defines no Policy: restore it from the file that you were given")
    if entry.Policy is None or not stage.window:
        return predictor, Window(neurons, stage.window, capacity)
    if stage.ffn is not FlashFFN:
        raise FlashliteError(POLICY_STAGES)
    remembering = Remembering(predictor)
    kept = KeptByPolicy(layer, neurons, stage.window, capacity, entry.Policy, remembering.scores)
    return remembering, kept
