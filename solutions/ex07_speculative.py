# Solutions of exercises 7.1, 7.2: flashlite.bench.speculative as the engine runs it.
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
    # 7.1  The i-th drafted token counts only if all i up to it are accepted, which has the chance a^i; the expected
    # count is the sum of these chances, plus one for the large model's own token. The sum needs no special case at a =
    # 1, where the closed form (1 - a^(draft + 1)) / (1 - a) divides by zero.
    # Usual mistakes: leaving out the large model's own token; 1 + a * draft, as if a token could be accepted after one
    # that was refused; the closed form without its special case at acceptance 1.
    return sum(acceptance**accepted for accepted in range(draft + 1))


def expected_speedup(acceptance: float, draft: int, draft_cost: float, check_cost: float = 1.0) -> float:
    """How many times faster than without a draft tokens come.

    draft_cost, check_cost: time of one drafted token, and of the large model's call that checks a whole draft, both in
    units of the large model's call for a single token. A check costs more than 1 where the drafted tokens need more
    neurons from flash than a single token does.
    """
    # 7.2  Speed is tokens over time, and both are counted for one round. With weights on flash a check costs more than
    # one token, since each drafted token needs neurons of its own; so the best draft is shorter than in DRAM.
    # Usual mistakes: counting one drafted token's time instead of `draft` of them; paying check_cost for every drafted
    # token; ignoring check_cost; giving time a token, which is the inverse.
    return expected_tokens(acceptance, draft) / (draft * draft_cost + check_cost)
