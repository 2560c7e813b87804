"""What a draft gains, against a simulation of accepting and rejecting."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.bench.speculative import expected_speedup, expected_tokens


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("draft", [0, 1, 4])
def test_expected_tokens_are_the_mean_of_a_simulation(acceptance: float, draft: int) -> None:
    accepted = np.random.default_rng(0).random((100_000, draft)) < acceptance
    simulated = 1 + np.cumprod(accepted, axis=1).sum(1).mean()
    assert expected_tokens(acceptance, draft) == pytest.approx(simulated, abs=0.02)


def test_speedup_weighs_drafting_and_checking() -> None:
    assert expected_speedup(0.9, 0, draft_cost=0.1) == 1.0
    assert expected_speedup(1.0, 4, draft_cost=0.0) == 5.0
    assert expected_speedup(1.0, 4, draft_cost=0.25, check_cost=1.5) == 2.0
