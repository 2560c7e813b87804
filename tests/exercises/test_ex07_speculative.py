"""Exercises 7.1 and 7.2: what a draft gains."""

from __future__ import annotations

import pytest

from flashlite.bench.speculative import expected_speedup, expected_tokens
from flashlite.course.checks import expect, rng


def mean_tokens(a: float, draft: int) -> float:
    """Tokens of a round: every number of accepted tokens, weighed with its chance."""
    none_or_some = sum((accepted + 1) * a**accepted * (1 - a) for accepted in range(draft))
    return none_or_some + (draft + 1) * a**draft


@pytest.mark.points("7.1", 1)
def test_tokens_a_call() -> None:
    random = rng()
    for draft in (4, int(random.integers(5, 12)), 1):
        a = random.uniform(0.2, 0.9)
        right = mean_tokens(a, draft)
        mistakes = {
            "The large model's own token is missing.": right - 1,
            "The last drafted token is missing.": right - a**draft,
            "After a refused token none is accepted: the chances multiply.": 1 + a * draft,
            "The i-th drafted token needs a^i, not 1 / a^i.": sum(a**-i for i in range(draft + 1)),
            "This sums up one drafted token too many.": right + a ** (draft + 1),
            "This is the chance that all are accepted, not a count.": a**draft,
        }
        expect(expected_tokens(a, draft), right, f"acceptance {a:.3f}, draft {draft}: tokens", mistakes, 1e-9)


@pytest.mark.points("7.1", 1)
@pytest.mark.filterwarnings("error")
def test_never_always_and_no_draft() -> None:
    draft = int(rng().integers(2, 9))
    for a, n, right in ((0.0, draft, 1), (1.0, draft, draft + 1), (rng().uniform(), 0, 1), (1.0, 0, 1), (0.0, 0, 1)):
        mistakes = {"The large model's own token is missing.": right - 1}
        expect(expected_tokens(a, n), right, f"acceptance {a:.3f}, draft {n}: tokens", mistakes, 1e-9)


@pytest.mark.points("7.2", 1)
@pytest.mark.parametrize("dear", [True, False], ids=["check costs more", "check costs 1"])
def test_speed_is_tokens_over_time(dear: bool) -> None:
    random = rng()
    for draft in (4, int(random.integers(5, 9)), 1, 0):
        a, draft_cost = random.uniform(0.3, 0.9), random.uniform(0.05, 0.4)
        check_cost = random.uniform(1.2, 2.5) if dear else 1.0
        tokens = mean_tokens(a, draft)
        right = tokens / (draft * draft_cost + check_cost)
        mistakes = {
            "`draft` tokens are drafted, each at draft_cost.": tokens / (draft_cost + check_cost),
            "The drafted tokens' time is missing.": tokens / check_cost,
            "check_cost was ignored.": tokens / (draft * draft_cost + 1),
            "One call checks the whole draft.": tokens / (draft * (draft_cost + check_cost)) if draft else 0.0,
            "This is time a token; its inverse is asked for.": 1 / right,
            "The check's time is missing.": tokens / (draft * draft_cost) if draft else 0.0,
            "A round has `draft` drafted tokens, not draft + 1.": tokens / ((draft + 1) * draft_cost + check_cost),
            "Refused tokens are no gain: count the expected ones.": (draft + 1) / (draft * draft_cost + check_cost),
        }
        arguments = (a, draft, draft_cost, check_cost) if dear else (a, draft, draft_cost)
        what = f"acceptance {a:.3f}, draft {draft}, costs {draft_cost:.3f} and {check_cost:.3f}: speedup"
        expect(expected_speedup(*arguments), right, what, mistakes, 1e-9)
