"""The bundled Falcons: what their cards say, and that the relufied one streams."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import flashlite
from flashlite.errors import CheckpointError
from flashlite.storage.hub import BUNDLED
from flashlite.storage.store import Store
from flashlite.storage.tokenizer import token_windows
from flashlite.training.evaluate import evaluate
from flashlite.training.relufy import RECORD, Relufied, activation_of, open_to_relufy

GELU, RELU = BUNDLED["falcon-mini-gelu"], BUNDLED["falcon-mini"]
LIBRARY = Path(flashlite.__file__).parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("falcon-mini", tmp_path_factory.mktemp("falcon") / "store")


@pytest.fixture(scope="module")
def result() -> Relufied:
    return Relufied.from_json(json.loads((RELU / RECORD).read_text()))


def test_relufying_gave_zeros_and_brought_perplexity_back(result: Relufied) -> None:
    after = result.log[-1]
    assert result.activation == "gelu"
    assert sum(after.zeros) / len(after.zeros) >= 0.85
    assert after.perplexity <= 1.03 * result.born.perplexity < result.log[0].perplexity
    assert Relufied.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_cards_say_what_the_records_say(result: Relufied) -> None:
    card = (RELU / "README.md").read_text()
    for point in (result.born, result.log[0], result.log[-1]):
        assert f"{point.perplexity:.3f}" in card
    last = json.loads((GELU / RECORD).read_text())["log"][-1]
    assert re.search(rf"\*\*{last['perplexity']:.3f}\*\*", (GELU / "README.md").read_text())


@pytest.mark.parametrize("folder", [GELU, RELU], ids=lambda folder: folder.name)
def test_they_are_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6


def test_the_one_with_gelu_is_refused_and_can_be_relufied() -> None:
    with pytest.raises(CheckpointError, match=r"'gelu' is not supported: only ReLU.*`flashlite relufy MODEL OUT "):
        flashlite.load("falcon-mini-gelu")
    assert activation_of(open_to_relufy(GELU)) == "gelu"


def test_it_is_sparse_on_text_that_it_never_saw_in_training(store: Store) -> None:
    """The course's own source: perplexity is higher on it, but zeros are as many."""
    windows = token_windows((path.read_text() for path in sorted(LIBRARY.glob("*.py"))), store, 4 * 512)
    found = evaluate(store, windows)
    assert sum(layer.active for layer in found.layers) / len(found.layers) < 0.15
    assert all(layer.recall > 0.9 for layer in found.layers)
    assert found.predicted_perplexity < 1.02 * found.dense_perplexity


@pytest.mark.parametrize("stage", [2, 5, 6])
def test_it_writes_what_transformers_writes(store: Store, stage: int) -> None:
    dense = AutoModelForCausalLM.from_pretrained(RELU, dtype=torch.float32)
    model = flashlite.load(store, stage=stage, dram_budget="75%", predictor="oracle")
    ids = torch.arange(100, 140)[None]
    settings = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    assert model.generate(ids, **settings).tolist() == dense.generate(ids, **settings).tolist()
    if stage == 6:
        assert model.flash.last_token.wasted == 0
