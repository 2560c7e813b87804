"""Exercises 7.1 and 7.2: what a draft gains."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.bench.speculative import expected_speedup, expected_tokens
from flashlite.course.checks import Call, expect_each, rng


def mean_tokens(a: float, draft: int) -> float:
    """Tokens of a round: every number of accepted tokens, weighed with its chance."""
    none_or_some = sum((accepted + 1) * a**accepted * (1 - a) for accepted in range(draft))
    return none_or_some + (draft + 1) * a**draft


def tokens_call(a: float, draft: int) -> Call:
    """A call of expected_tokens."""
    right = mean_tokens(a, draft)
    mistakes = {
        "The large model's own token is missing.": right - 1,
        "The last drafted token is missing.": right - a**draft,
        "After a refused token none is accepted: the chances multiply.": 1 + a * draft,
        "The i-th drafted token needs a^i, not 1 / a^i.": sum(a**-i for i in range(draft + 1)) if a else right,
        "This sums up one drafted token too many.": right + a ** (draft + 1),
        "This is the chance that all are accepted, not a count.": a**draft,
    }
    what = f"acceptance {a:.3f}, draft {draft}: tokens"
    return Call(lambda: expected_tokens(a, draft), right, what, mistakes, 1e-9)


def usual_tokens() -> list[Call]:
    """Calls with a draft that is accepted in part."""
    random = rng()
    return [tokens_call(random.uniform(0.2, 0.9), draft) for draft in (4, int(random.integers(5, 12)), 1)]


def extreme_tokens() -> list[Call]:
    """Calls where nothing or all is accepted, or nothing drafted."""
    draft = int(rng().integers(2, 9))
    return [tokens_call(*given) for given in ((0.0, draft), (1.0, draft), (rng().uniform(), 0), (1.0, 0), (0.0, 0))]


@pytest.mark.points("7.1", 1)
def test_tokens_a_call() -> None:
    expect_each(usual_tokens(), beside=extreme_tokens())


@pytest.mark.points("7.1", 1)
@pytest.mark.filterwarnings("error")
def test_never_always_and_no_draft() -> None:
    expect_each(extreme_tokens(), beside=usual_tokens())


def speedup_call(draft: int, random: np.random.Generator, dear: bool) -> Call:
    """A call of expected_speedup. dear: whether the check costs more than 1, which is what it costs unless given."""
    a, draft_cost = random.uniform(0.3, 0.9), random.uniform(0.05, 0.4)
    check_cost = random.uniform(1.2, 2.5) if dear else 1.0
    tokens = mean_tokens(a, draft)
    right = tokens / (draft * draft_cost + check_cost)
    mistakes = {
        "`draft` tokens are drafted, each at draft_cost.": tokens / (draft_cost + check_cost),
        "The drafted tokens' time is missing.": tokens / check_cost,
        "check_cost was ignored.": tokens / (draft * draft_cost + 1),
        "One call checks the whole draft.": tokens / (draft * (draft_cost + check_cost)) if draft else right,
        "This is time a token; its inverse is asked for.": 1 / right,
        "The check's time is missing.": tokens / (draft * draft_cost) if draft else right,
        "A round has `draft` drafted tokens, not draft + 1.": tokens / ((draft + 1) * draft_cost + check_cost),
        "Refused tokens are no gain: count the expected ones.": (draft + 1) / (draft * draft_cost + check_cost),
    }
    arguments = (a, draft, draft_cost, check_cost) if dear else (a, draft, draft_cost)
    what = f"acceptance {a:.3f}, draft {draft}, costs {draft_cost:.3f} and {check_cost:.3f}: speedup"
    return Call(lambda: expected_speedup(*arguments), right, what, mistakes, 1e-9)


@pytest.mark.points("7.2", 1)
@pytest.mark.parametrize("dear", [True, False], ids=["check costs more", "check costs 1"])
def test_speed_is_tokens_over_time(dear: bool) -> None:
    random = rng()
    drafts = (4, int(random.integers(5, 9)), 1, 0)
    same, other = ([speedup_call(draft, random, which) for draft in drafts] for which in (dear, not dear))
    expect_each(same, beside=other)
