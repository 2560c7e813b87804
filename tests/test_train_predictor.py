"""Training and calibrating predictors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import OPTForCausalLM

from flashlite.engine.window import union_sizes
from flashlite.storage.store import Store
from flashlite.training import train_predictor
from flashlite.training.evaluate import loss, predicted_model, streamed_model
from flashlite.training.train_predictor import (
    balanced_loss,
    collect,
    initial_factors,
    threshold_for,
    train_predictors,
    up_projection,
)


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 128, (12, 64), generator=torch.Generator().manual_seed(0))


def test_collected_activations_are_the_models_own(
    tiny_store: Store, tiny_model: OPTForCausalLM, windows: torch.Tensor
) -> None:
    found = collect(tiny_store, windows[:2])
    seen = []
    hook = tiny_model.model.decoder.layers[1].fc1.register_forward_hook(lambda _m, x, z: seen.append((x[0], z > 0)))
    with torch.no_grad():
        tiny_model(windows[:2])
    hook.remove()
    x, fired = seen[0]
    assert torch.allclose(found[1].x.float(), x.reshape(-1, 64), atol=1e-2)
    assert (found[1].mask(slice(None)) == fired.reshape(-1, 256)).float().mean() > 0.999


def test_up_projection_is_read_back(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    assert torch.equal(up_projection(tiny_store, 2), tiny_model.model.decoder.layers[2].fc1.weight)


def test_full_rank_factors_give_the_matrix_back() -> None:
    up = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    a, b = initial_factors(up, 16)
    assert torch.allclose(b @ a, up, atol=1e-4)
    a, b = initial_factors(up, 4)
    assert a.shape == (4, 16)
    assert b.shape == (32, 4)


def test_loss_weighs_a_missed_neuron_four_times() -> None:
    missed = balanced_loss(torch.tensor([[-2.0]]), torch.tensor([[True]]))
    superfluous = balanced_loss(torch.tensor([[2.0]]), torch.tensor([[False]]))
    assert missed.item() == pytest.approx(4 * superfluous.item())


@given(st.integers(0, 10_000), st.floats(0.5, 0.999))
def test_threshold_reaches_the_recall_and_no_more_than_needed(seed: int, recall: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, fired = torch.randn(20, 30, generator=generator), torch.rand(20, 30, generator=generator) < 0.3
    threshold = threshold_for(scores, fired, recall)
    above = scores[fired] > threshold
    assert above.float().mean() >= recall - 1e-6
    assert (above.sum() - 1) / len(above) < recall + 1 / len(above)


def test_threshold_of_a_layer_that_never_fires() -> None:
    assert threshold_for(torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool), 0.97) == 0.0


@given(st.integers(0, 10_000))
def test_union_sizes_against_plain_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((2 * 12, 20)) < 0.2
    sizes = union_sizes(torch.from_numpy(mask), 12)
    texts = mask.reshape(2, 12, 20)
    for k in range(1, 9):
        expected = [text[i : i + k].any(0).sum() for text in texts for i in range(12 - k + 1)]
        assert sizes[k - 1] == pytest.approx(np.mean(expected), rel=1e-5)


def test_trained_predictors_reach_the_recall_and_keep_the_loss(
    tiny_store: Store, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_predictor, "STEPS", 60)
    held_out = torch.randint(3, 128, (16, 64), generator=torch.Generator().manual_seed(1))
    lines: list[str] = []
    predictors = train_predictors(tiny_store, windows, held_out, recall=0.95, progress=lines.append)
    assert len(predictors.layers) == len(predictors.reports) == tiny_store.layers
    for report in predictors.reports:
        assert report.recall > 0.93
        assert report.recall + report.false_negatives == pytest.approx(1)
        assert report.predicted >= report.active * report.recall
        assert list(report.window_rows) == sorted(report.window_rows)
    dense = loss(streamed_model(tiny_store), held_out)
    assert loss(predicted_model(tiny_store, list(predictors.layers)), held_out) == pytest.approx(dense, rel=0.05)
    assert any("rank" in line for line in lines)
