"""A short differential trial against transformers; `make soak` has the long one."""

from __future__ import annotations

import pytest
from differential import Pair, make_pairs, trial

TRIALS, A_TEST = 80, 10


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Pair]:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("first", range(0, TRIALS, A_TEST))
def test_random_models_called_in_random_ways_give_transformers_tokens(
    first: int, pairs: dict[tuple[int, str], Pair]
) -> None:
    for seed in range(first, first + A_TEST):
        trial(seed, pairs)
