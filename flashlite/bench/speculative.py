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
    return sum(acceptance**accepted for accepted in range(draft + 1))


def expected_speedup(acceptance: float, draft: int, draft_cost: float, check_cost: float = 1.0) -> float:
    """How many times faster than without a draft tokens come.

    draft_cost, check_cost: time of one drafted token, and of the large model's call that checks a whole draft, both in
    units of the large model's call for a single token. A check costs more than 1 where the drafted tokens need more
    neurons from flash than a single token does.
    """
    return expected_tokens(acceptance, draft) / (draft * draft_cost + check_cost)
