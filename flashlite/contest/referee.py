"""The referee: plays traces to a policy, token by token, holds it to the rules, and counts what is read."""

from __future__ import annotations

import numpy as np

from flashlite.contest.traces import Trace
from flashlite.engine.policies.rules import Foul, Held, PolicyKind
from flashlite.errors import FlashliteError


def play(trace: Trace, make: PolicyKind) -> np.ndarray:
    """How many neurons a policy loads: [layers, tokens] int64.

    make: makes the policy of a layer from its number, its neurons and its capacity

    Layers take turns at each token, as in the engine. A policy is told of a token only when it has answered to all
    tokens before. Raises Foul, with layer and token, if it breaks a rule.
    """
    held = [Held(trace.neurons, capacity) for capacity in trace.capacity]
    policies = [make(layer, trace.neurons, capacity) for layer, capacity in enumerate(trace.capacity)]
    loads = np.zeros((trace.layers, trace.tokens), np.int64)
    for token in range(trace.tokens):
        for layer, (rules, policy) in enumerate(zip(held, policies, strict=True)):
            needed, overflow = rules.fit(trace.needed(layer, token))
            change = policy.step(trace.token(layer, token, needed))
            try:
                loaded, _ = rules.move(needed, change)
            except Foul as foul:
                raise Foul(f"layer {layer}, token {token}: {foul}") from None
            loads[layer, token] = len(loaded) + len(overflow)
    return loads


def score(entry: int, zero: int, hundred: int) -> float:
    """Where an entry lies between what earns 0 and what earns 100; below 0 if it reads more than what earns 0.

    entry, zero, hundred: what was read, in neurons. Raises FlashliteError if there is nothing to win.
    """
    if zero <= hundred:
        raise FlashliteError("on these traces nothing can be won: record longer ones")
    return 100 * (zero - entry) / (zero - hundred)
