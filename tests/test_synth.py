"""Planted models: the published shape, the paper's sparsity, exact against the dense model, and only ever complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, call
from torch import Tensor
from transformers import OPTForCausalLM, PreTrainedConfig

from flashlite.bench.decoding import exactness, forced, greedy, per_token
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import prompt_ids
from flashlite.engine.model import load
from flashlite.engine.predictor_file import PredictorSet
from flashlite.errors import CheckpointError, StoreError
from flashlite.families import opt as families
from flashlite.families import published
from flashlite.families.configured import expected_shapes, read_config
from flashlite.families.known import FAMILIES, family_of
from flashlite.families.opt import published_config, resident_and_streamed
from flashlite.storage.store import Store
from flashlite.training.evaluate import streamed_model, watch
from flashlite.training.planted import PlantedModel, synth, write_planted
from flashlite.training.planted_bias import OwnBias, SharedDirection
from flashlite.training.planted_figures import FIGURES, OPT, figures_of
from flashlite.training.planted_text import LENGTH, SEQUENCES, ChainText, Noise

SMALL = (256, 6, 4, 256)  # too small to be published, large enough for its statistics to hold

SIZES = {  # of the other families in small: the vocabulary is more than one stretch of the chain, and no whole number
    "vocab_size": 1500, "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PROMPT = list(range(5, 1445, 90))
COUNTS = {"falcon-7b": 7217, "llama-2-7b": 6738, "persimmon-8b": 9397, "phi-2": 2780}  # weights, in millions

EARLIER = {  # sums of the absolute values of opt-small's weights, as planted before there were other families
    "model.decoder.embed_tokens.weight": 6496303.090447342,
    "model.decoder.embed_positions.weight": 416109.58466647833,
    "model.decoder.final_layer_norm.weight": 25.298221588134766,
    "model.decoder.layers.0.fc1.bias": 2371.557145655155,
    "model.decoder.layers.5.fc1.bias": 1813.1428570896387,
    "model.decoder.layers.5.fc1.weight": 13063.431130827295,
    "model.decoder.layers.5.fc2.weight": 3267.572318534684,
    "model.decoder.layers.5.self_attn.out_proj.weight": 162.93952112436006,
}


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
        config = published_config("opt-small")
        one, other, third = PlantedModel(config, OPT), PlantedModel(config, OPT), PlantedModel(config, OPT, seed=1)
        for name in ("model.decoder.layers.1.fc1.weight", "model.decoder.layers.0.fc1.bias"):
            assert torch.equal(one.tensor(name), other.tensor(name))
            assert not torch.equal(one.tensor(name), third.tensor(name))
    trained = PredictorSet.load(store)
    assert len(trained.layers) == store.layers


def test_opts_weights_are_those_of_earlier_versions() -> None:
    """Results that were measured with a planted OPT are measured again on the same one."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(families.PUBLISHED, "opt-small", SMALL)
        planted = PlantedModel(published_config("opt-small"), OPT)
        sums = {name: float(planted.tensor(name).double().abs().sum()) for name in EARLIER}
    assert sums == pytest.approx(EARLIER, rel=1e-5)


def test_an_opt_with_norms_after_its_blocks_is_planted_as_it_runs(tmp_path: Path) -> None:
    """opt-350m's norms come after its blocks, and its embedding is narrower than its layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.PUBLISHED, "opt-350m", (256, 6, 4, 128))
        store = synth("opt-350m", tmp_path / "store", "fp32")
    model, inputs, shares = streamed_model(store), [], []
    watch(model, lambda i, x, fired: (inputs.append(x), shares.append(float(fired.float().mean()))))
    texts = torch.randint(store.config.vocab_size, (16, 64), generator=torch.Generator().manual_seed(5))
    places = torch.linspace(0, store.config.max_position_embeddings - 64, 16).long()
    with torch.no_grad():
        model.base_model(texts, position_ids=places[:, None] + torch.arange(64))
    masks = [
        (predictor.mask(own), predictor.mask(before))
        for predictor, own, before in zip(PredictorSet.load(store).layers[1:], inputs[1:], inputs[:-1], strict=True)
    ]
    ahead = [float((true & early).sum() / true.sum()) for true, early in masks]
    found = store.manifest["planted"]
    assert not store.config.do_layer_norm_before
    assert sum(shares) / len(shares) == pytest.approx(found["active"], rel=0.1)
    assert sum(ahead) / len(ahead) == pytest.approx(found["ahead"], rel=0.1)


@torch.no_grad()
def active_share(store: Store, texts: Tensor) -> float:
    """Which share of all neurons fires in the model as it runs. texts: [texts, length], token ids."""
    model, shares = streamed_model(store), []
    watch(model, lambda i, x, fired: shares.append(float(fired.float().mean())))
    model.base_model(texts)
    return sum(shares) / len(shares)


# Falcon, Llama, Persimmon and Phi


def tiny(name: str) -> PreTrainedConfig:
    """The configuration of a published model in small: large enough for its statistics to hold."""
    content: dict[str, Any] = published.PUBLISHED[name] | SIZES
    content["ffn_hidden_size" if "ffn_hidden_size" in content else "intermediate_size"] = 768
    return read_config(content, family_of(content))


@pytest.fixture(scope="module")
def planted_as(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[PlantedModel, Store]]:
    """A small planted model of a family and its store, made once."""
    folder = tmp_path_factory.mktemp("planted")

    @cache
    def make(name: str, dtype: str) -> tuple[PlantedModel, Store]:
        planted = PlantedModel(tiny(name), figures_of(name))
        return planted, write_planted(planted, name, folder / f"{name}-{dtype}", dtype)

    return lambda name, dtype="fp32": make(name, dtype)


Made = Callable[..., tuple[PlantedModel, Store]]


@pytest.mark.parametrize(("name", "millions"), COUNTS.items())
def test_a_model_known_by_name_has_the_published_shape(name: str, millions: float) -> None:
    config = published.published_config(name)
    family = FAMILIES[config.model_type]
    shapes = expected_shapes(config, family)
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions
    assert family.head in shapes, "a planted head is not the embedding"


def test_rotary_positions_are_the_published_ones() -> None:
    parts = {name: published.published_config(name).rope_parameters for name in published.PUBLISHED}
    assert parts["phi-2"]["partial_rotary_factor"] == 0.4
    assert parts["persimmon-8b"]["partial_rotary_factor"] == 0.5
    assert [parts[name]["rope_theta"] for name in published.PUBLISHED] == [10000.0, 10000.0, 25000.0, 10000.0]


@pytest.mark.parametrize(
    ("name", "zeros", "predicted"),
    [("falcon-7b", 0.95, 0.114), ("llama-2-7b", 0.89, 0.167), ("persimmon-8b", 0.91, 0.149), ("phi-2", 0.81, 0.237)],
)
def test_figures_are_those_of_the_literature(name: str, zeros: float, predicted: float) -> None:
    figures = FIGURES[name]
    assert 1 - figures.mean == pytest.approx(zeros, abs=0.001)
    assert figures.predicted_over_active * figures.mean == pytest.approx(predicted, abs=0.001)


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_each_family_reaches_its_figures(name: str, planted_as: Made) -> None:
    (planted, store), wanted = planted_as(name), figures_of(name)
    store.verify()
    found = store.manifest["planted"]
    assert found["active"] == pytest.approx(wanted.mean, rel=0.1)
    assert found["predicted"] == pytest.approx(wanted.predicted_over_active * wanted.mean, rel=0.1)
    assert found["recall"] > 0.99
    assert found["resident"] == pytest.approx(wanted.resident, rel=0.1)
    assert found["new"] == pytest.approx(wanted.new, rel=0.15)
    assert found["new"] < 0.4 * found["predicted"], "windows overlap"
    assert found["ahead"] > 0.7
    first, middle, last = (layer["active"] for layer in found["layers"])
    assert (first, middle, last) == pytest.approx(wanted.active, rel=0.2)
    assert [layer.rank for layer in planted.reports] == [planted.rank] * store.layers


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_the_model_as_it_runs_fires_as_was_reported(name: str, planted_as: Made) -> None:
    planted, store = planted_as(name)
    assert isinstance(planted.text, ChainText)
    texts = planted.text.order[:512].view(8, 64)
    assert active_share(store, texts) == pytest.approx(store.manifest["planted"]["active"], rel=0.1)


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_each_family_is_exact_and_walks_along_its_chain(name: str, planted_as: Made) -> None:
    planted, store = planted_as(name)
    expected, logits = greedy(load_dense(store), PROMPT, 12)
    assert isinstance(planted.text, ChainText)
    assert expected == walk(planted.text.order.tolist(), PROMPT[-1], 12)
    assert logits.topk(2).values.diff().abs().min() > 1, "no rounding decides between two tokens"
    for stage in range(7):
        exact = load(store, stage=stage, predictor="oracle", dram_budget="150%")
        assert exactness(exact, stage, PROMPT, expected, logits).tokens_equal
    for stage in (2, 5, 6):
        model = load(store, stage=stage, dram_budget="150%")
        assert forced(model, PROMPT, expected).chosen == expected
        if stage == 5:
            read = per_token(model.flash).bytes_per_token / (store.layers * store.shape.layer_bytes)
            assert read == pytest.approx(figures_of(name).new, rel=0.5)
    assert all(ffn.wasted == 0 for ffn in model.flash.sparse) == (name in ("falcon-7b", "phi-2"))


@pytest.mark.parametrize("name", ["falcon-7b", "llama-2-7b"])
def test_a_chain_is_walked_in_bf16_too(name: str, planted_as: Made) -> None:
    planted, store = planted_as(name, "bf16")
    expected, logits = greedy(load_dense(store), PROMPT, 12)
    assert isinstance(planted.text, ChainText)
    assert expected == walk(planted.text.order.tolist(), PROMPT[-1], 12)
    exact = load(store, stage=6, predictor="oracle", dram_budget="150%")
    assert exactness(exact, 6, PROMPT, expected, logits).tokens_equal
    assert forced(load(store, stage=5, dram_budget="150%"), PROMPT, expected).chosen == expected


def walk(order: list[int], token: int, tokens: int) -> list[int]:
    """The tokens that follow one along a chain."""
    begin = order.index(token) + 1
    return [order[(begin + i) % len(order)] for i in range(tokens)]


def test_every_token_feels_the_same_of_what_stands_in_for_a_bias() -> None:
    with torch.no_grad():
        planted = PlantedModel(tiny("falcon-7b"), figures_of("falcon-7b"))
        bias, signs = planted._bias, planted._signs(0)
        assert isinstance(bias, SharedDirection)
        normed = torch.nn.functional.layer_norm(planted.text.hidden(), (SIZES["hidden_size"],)) * signs
        felt = bias.felt(normed.flatten(0, 1), signs)
    assert felt.std() < 0.1 * felt.mean()
    assert felt.mean() == pytest.approx((SIZES["hidden_size"] / 2) ** 0.5, rel=0.02)
    assert isinstance(PlantedModel(tiny("phi-2"), figures_of("phi-2"))._bias, OwnBias)


def test_a_chain_is_made_in_stretches_of_which_the_last_may_be_short() -> None:
    config, family = tiny("phi-2"), FAMILIES["phi"]
    text = ChainText(config, family, Noise(0), 0.2, OwnBias())
    shape = (config.vocab_size, config.hidden_size)
    embedding, head = text.tensor(family.embedding_weight, shape), text.tensor(family.head, shape)
    after = (embedding @ head.T).argmax(1)
    assert after[text.order].tolist() == text.order.roll(-1).tolist()
    assert text.hidden().shape == (2 * SEQUENCES, LENGTH, config.hidden_size)
    assert embedding.std() == pytest.approx(1, rel=0.05)


def test_synth_writes_every_family_that_is_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = published.PUBLISHED["phi-2"] | SIZES | {"intermediate_size": 256, "num_hidden_layers": 2}
    monkeypatch.setitem(published.PUBLISHED, "phi-2", small)
    code, out, _ = call(monkeypatch, capsys, "synth", "phi-2", tmp_path / "out", "--layout", "bundled")
    assert code == 0
    assert "of planted weights as bf16" in out
    store = Store(tmp_path / "out")
    assert (store.family, store.manifest["name"], store.layouts) == (FAMILIES["phi"], "phi-2", ("bundled",))
    assert store.manifest["planted"]["seed"] == 0


def test_unknown_names_and_existing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the name 'opt-7b': choose one of") as refused:
        synth("opt-7b", tmp_path / "out")
    assert all(name in str(refused.value) for name in (*families.PUBLISHED, *published.PUBLISHED))
    with pytest.raises(StoreError, match="exists already"):
        synth("opt-125m", ROOT / "tests")
    assert not list(tmp_path.iterdir())
