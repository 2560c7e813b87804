"""Training and calibrating predictors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import make_model, save_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from transformers import OPTForCausalLM

import flashlite
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.predictor_file import LayerReport
from flashlite.engine.window import union_sizes
from flashlite.errors import BudgetError
from flashlite.storage.store import Store
from flashlite.training import train_predictor
from flashlite.training.choose_rank import Trained, choose_within, room_in
from flashlite.training.distributed import Group
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


# For a budget


def trained(store: Store, rank: int, rows: float) -> Trained:
    """A predictor with a report: each token more in the window needs a row less than the one before."""
    d, neurons = store.shape.d_model, store.shape.neurons
    predictor = LowRankPredictor.of(torch.zeros(rank, d), torch.zeros(neurons, rank), torch.zeros(neurons))
    return predictor, LayerReport(rank, 0.1, 0.2, 1.0, 0.0, 0.1, tuple(rows * k - k * (k - 1) / 2 for k in range(1, 9)))


def one_gains(store: Store) -> list[list[Trained]]:
    """Layer 1's larger predictor names half as many neurons, that of the others hardly fewer."""
    return [[trained(store, 32, 20), trained(store, 64, better)] for better in (19.9, 10, 19.9)]


def of_two(rank: int, other: bytes) -> Group:
    """One process of two, which gets what the other one gives."""

    class OfTwo(Group):
        def gather(self, content: bytes) -> list[bytes]:
            """As if the other one gave something, too."""
            return [content, other] if self.first else [other, content]

    return OfTwo(rank, 2)


def test_layers_that_gain_by_a_better_predictor_get_one(tiny_store: Store) -> None:
    lines, budget = list[str](), "75%"
    chosen = choose_within(budget, one_gains(tiny_store), tiny_store, lines.append)
    assert [predictor.rank for predictor, _ in chosen] == [32, 64, 32]
    window = int(lines[0].split("--window ")[1].partition(",")[0])
    sizes, record = [report.window_rows for _, report in chosen], tiny_store.shape.record_bytes
    left = room_in(tiny_store, budget) - sum(predictor.nbytes for predictor, _ in chosen)
    assert sum(rows[window - 1] for rows in sizes) * record <= left < sum(rows[window] for rows in sizes) * record
    read = sum(rows[window] - rows[window - 1] for rows in sizes) * record
    assert lines == [f"chosen for a DRAM budget of 75%: --window {window}, a token reads about {read / 1e6:.2f} MB"]


def test_processes_that_share_the_layers_choose_together(tiny_store: Store) -> None:
    layers = one_gains(tiny_store)
    alone = choose_within("75%", layers, tiny_store)
    sizes = [
        json.dumps(
            [[(predictor.nbytes, quality.window_rows) for predictor, quality in layer] for layer in part]
        ).encode()
        for part in (layers[::2], layers[1::2])
    ]
    for rank, lines in enumerate((list[str](), list[str]())):
        group = of_two(rank, sizes[1 - rank])
        assert choose_within("75%", layers[rank::2], tiny_store, lines.append, group) == alone[rank::2]
        assert len(lines) == (rank == 0), "one process speaks"


def test_where_no_window_fits_the_least_is_chosen_and_it_is_said(tiny_store: Store) -> None:
    layers = [[trained(tiny_store, 64, 250), trained(tiny_store, 32, 255)] for _ in range(3)]
    lines = list[str]()
    assert [predictor.rank for predictor, _ in choose_within("65%", layers, tiny_store, lines.append)] == [32] * 3
    assert lines == ["chosen for a DRAM budget of 65%: --window 1, which is more than it has room for"]


def test_for_a_budget_every_rank_is_trained_and_one_a_layer_chosen(
    windows: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wide")
    model = make_model(hidden_size=256, word_embed_proj_dim=256, ffn_dim=256, num_hidden_layers=2)
    store = flashlite.pack(save_checkpoint(model, folder / "checkpoint"), folder / "store")
    lines = list[str]()
    chosen = train_predictors(store, windows, windows[:4], progress=lines.append, steps=2, budget="90%")
    assert [line.split(", rank ")[1].split(":")[0] for line in lines[:-1]] == ["32", "64", "128"] * 2
    assert lines[-1].startswith("chosen for a DRAM budget of 90%: --window ")
    assert [report.rank for report in chosen.reports] == [predictor.rank for predictor in chosen.layers]
    with pytest.raises(BudgetError, match="smallest that works"):
        train_predictors(store, windows, windows[:4], progress=lines.append, steps=2, budget="1%")
    assert len(lines) == 7, "it was refused before anything was trained"
