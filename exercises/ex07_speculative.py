# Exercises 7.1, 7.2. With `--impl ref,ex07=mine` this file takes the place of flashlite.bench.speculative.
# Everything without a TODO is provided, and runs as it stands.
"""Speculative decoding: what a draft of a few tokens gains when the large model checks it. (Paper: section 5.3)

A draft model proposes `draft` tokens, one after the other. The large model scores all of them in one call, keeps those
up to the first that it disagrees with, and adds one token of its own: at least one token a call, at most `draft` + 1.
"""

from __future__ import annotations


def expected_tokens(acceptance: float, draft: int) -> float:
    """Tokens gained by one call of the large model, on average: the accepted ones and its own.

    acceptance: the chance, from 0 to 1, that a drafted token is accepted if all before it were; draft: how many tokens
    are drafted.
    """
    # TODO 7.1  expected accepted length (2 points, 10 minutes, paper section 5.3)
    # The large model checks `draft` drafted tokens in one call. It keeps them up to the first that it disagrees with
    # and adds one token of its own. How many tokens does such a call yield on average? A drafted token is accepted with
    # the chance `acceptance` if all before it were; after the first one refused, none is. Return a number from 1 to
    # draft + 1.
    # `acceptance` may be 0 (the answer is 1) and 1 (draft + 1); `draft` may be 0 (1).
    # Example: acceptance 0.5, draft 2: none accepted with chance 0.5, one with 0.25, both with 0.25
    #   1 * 0.5 + 2 * 0.25 + 3 * 0.25 = 1.75
    # In the engine: the last code cell of chapter 7
    raise NotImplementedError("exercise 7.1: delete this line and write expected_tokens, see the TODO above")


def expected_speedup(acceptance: float, draft: int, draft_cost: float, check_cost: float = 1.0) -> float:
    """How many times faster than without a draft tokens come.

    draft_cost, check_cost: time of one drafted token, and of the large model's call that checks a whole draft, both in
    units of the large model's call for a single token. A check costs more than 1 where the drafted tokens need more
    neurons from flash than a single token does.
    """
    # TODO 7.2  when a draft pays (2 points, 5 minutes, paper section 5.3)
    # How many times faster do tokens come with a draft than without? Without one, each token costs one call of the
    # large model: time 1. With one, a round drafts `draft` tokens one after the other, each taking draft_cost, and then
    # checks them all in one call, which takes check_cost. A round yields expected_tokens(acceptance, draft) tokens. A
    # value above 1 says that the draft pays. `draft` may be 0 and draft_cost may be 0; check_cost is above 0.
    # Example: acceptance 0.8, draft 4, draft_cost 0.1: a round yields 3.3616 tokens
    #   check_cost 1   -> 2.40
    #   check_cost 1.5 -> 1.77     the drafted tokens need more neurons from flash
    # Provided: expected_tokens (exercise 7.1).
    # In the engine: the last code cell of chapter 7
    raise NotImplementedError("exercise 7.2: delete this line and write expected_speedup, see the TODO above")
