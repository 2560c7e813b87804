"""Planted models: the published shape, the paper's sparsity, exact against the dense model, and only ever complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import OPTForCausalLM

from flashlite.bench.decoding import exactness, forced, greedy, per_token
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import prompt_ids
from flashlite.engine.model import load
from flashlite.engine.predictor_file import PredictorSet
from flashlite.errors import CheckpointError, StoreError
from flashlite.families import opt as families
from flashlite.families.opt import published_config, resident_and_streamed
from flashlite.storage.store import Store
from flashlite.training.planted import PlantedModel, synth

SMALL = (256, 6, 4, 256)  # too small to be published, large enough for its statistics to hold


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(families.PUBLISHED, "opt-small", SMALL)
        return synth("opt-small", tmp_path_factory.mktemp("synth") / "store", "fp32")


@pytest.mark.parametrize("name", families.PUBLISHED)
def test_a_planted_model_has_the_published_shape(name: str) -> None:
    with torch.device("meta"):
        model = OPTForCausalLM(published_config(name))
    expected = {n: tuple(p.shape) for n, p in model.named_parameters()}
    count = sum(p.numel() for p in model.parameters())
    assert sum(resident_and_streamed(published_config(name))) == count
    millions = {"opt-125m": 125, "opt-350m": 331, "opt-1.3b": 1316, "opt-2.7b": 2652, "opt-6.7b": 6658}
    if name in millions:
        assert round(count / 1e6) == millions[name]
        assert len(expected) > 100


def test_its_sparsity_is_the_papers(store: Store) -> None:
    planted = store.manifest["planted"]
    assert 0.025 < planted["active"] < 0.045
    assert 0.08 < planted["predicted"] < 0.12
    assert planted["recall"] > 0.99
    assert 0.019 < planted["new"] < 0.029
    assert 0.20 < planted["resident"] < 0.28
    active = [layer["active"] for layer in planted["layers"]]
    assert active[-1] > 2 * active[0], "later layers are less sparse"


def test_it_is_exact_and_reads_what_was_planned(store: Store) -> None:
    prompt = prompt_ids(store, 48)
    expected, logits = greedy(load_dense(store), prompt, 40)
    assert len(set(expected)) > 10, "a text that repeats one token would make windows look better than they are"
    for stage in (1, 5):
        exact = load(store, stage=stage, predictor="oracle", dram_budget="99%")
        assert exactness(exact, stage, prompt, expected, logits).tokens_equal
    model = load(store, dram_budget="150%")
    forced(model, prompt, expected)
    read = per_token(model.flash).bytes_per_token / (store.layers * store.shape.layer_bytes)
    assert read == pytest.approx(store.manifest["planted"]["new"], rel=0.4)


def test_the_same_seed_gives_the_same_weights(store: Store) -> None:
    store.verify()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.PUBLISHED, "opt-small", SMALL)
        one, other, third = PlantedModel("opt-small"), PlantedModel("opt-small"), PlantedModel("opt-small", seed=1)
        for name in ("model.decoder.layers.1.fc1.weight", "model.decoder.layers.0.fc1.bias"):
            assert torch.equal(one.tensor(name), other.tensor(name))
            assert not torch.equal(one.tensor(name), third.tensor(name))
    trained = PredictorSet.load(store)
    assert len(trained.layers) == store.layers


def test_unknown_names_and_existing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no OPT named 'opt-7b'.*opt-6\.7b"):
        synth("opt-7b", tmp_path / "out")
    with pytest.raises(StoreError, match="exists already"):
        synth("opt-125m", ROOT / "tests")
    assert not list(tmp_path.iterdir())
