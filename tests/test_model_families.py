"""Every family against transformers' own dense model: each stage, dtype and published form, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import flashlite
from flashlite.bench import decoding
from flashlite.bench.dense import load_dense
from flashlite.drive.direct import PAGE
from flashlite.engine.early import EarlyFFN
from flashlite.engine.overlap import OverlappedFFN
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.resident import FlashEmbedding, ResidentWeights
from flashlite.engine.stages import LADDER
from flashlite.errors import BudgetError, CheckpointError, FlashliteError, PredictorError
from flashlite.families.activation import Activation
from flashlite.families.known import FAMILIES
from flashlite.storage.pack import pack
from flashlite.storage.store import PREDICTOR, Store, ffn_file
from flashlite.training.evaluate import evaluate
from flashlite.training.train_predictor import train_predictors

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
SMALL = SIZES | {"intermediate_size": 160}
GROUPED = SMALL | {"num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {  # what is published of each family, in small
    "opt": SIZES | {"model_type": "opt", "ffn_dim": 160, "word_embed_proj_dim": 64},
    "falcon-7b": SIZES | {"model_type": "falcon", "activation": "relu", "ffn_hidden_size": 160},
    "falcon-40b": SIZES | {
        "model_type": "falcon", "activation": "relu", "new_decoder_architecture": True, "num_kv_heads": 2,
        "hidden_size": 72, "num_attention_heads": 6, "ffn_hidden_size": 288,
    },
    "falcon-11b": SIZES | {
        "model_type": "falcon", "activation": "relu", "new_decoder_architecture": True, "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 160,
    },
    "falcon-rw": SIZES | {
        "model_type": "falcon", "activation": "relu", "parallel_attn": False, "alibi": True, "bias": True,
        "multi_query": False, "ffn_hidden_size": 160,
    },
    "phi": GROUPED | {"model_type": "phi", "hidden_act": "relu", "partial_rotary_factor": 0.25, "qk_layernorm": True},
    "persimmon": SMALL | {"model_type": "persimmon"},
    "llama": GROUPED | {"model_type": "llama", "hidden_act": "relu"},
    "llama-biases": SMALL | {
        "model_type": "llama", "hidden_act": "relu", "mlp_bias": True, "attention_bias": True,
        "tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral": GROUPED | {"model_type": "mistral", "hidden_act": "relu", "sliding_window": 7, "rope_theta": 1e6},
    "odd-mistral": GROUPED | {
        "model_type": "mistral", "hidden_act": "relu2", "hidden_size": 42, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 14, "intermediate_size": 150,
    },
    "nemotron": GROUPED | {"model_type": "nemotron", "mlp_bias": True},
    "arcee": GROUPED | {"model_type": "arcee"},
    "prosparse": SMALL | {"model_type": "sparsellama", "hidden_act": "fatrelu", "hidden_act_param": 0.05},
    "sparselm": SMALL | {
        "model_type": "llama_sparse_relu", "hidden_act": "silu", "sparsity_gated_mlp": True, "rope_theta": 100000,
        "sparsity_new_intermediate_size": 160, "intermediate_size": 100, "rope_scaling": None,
        "rope_interleaved": False, "tie_word_embeddings": True,
    },
    "minicpm-s": GROUPED | {
        "model_type": "minicpm", "hidden_act": "fatrelu", "hidden_act_param": 0.01, "scale_emb": 12,
        "scale_depth": 1.4, "dim_model_base": 32,
    },
}  # fmt: skip
OWN_CODE = ("sparsellama", "llama_sparse_relu", "minicpm")
PARALLEL = ("falcon-7b", "falcon-40b", "falcon-11b", "phi")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMS = ("safetensors", "bin")
AMPLE = "2MB"  # every neuron finds room, at every stage
GREEDY = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}


def ids_of(length: int, sequences: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(seed))


@cache
def original(kind: str) -> PreTrainedModel:
    """A random model of transformers' own, float32; a family with code of its own as the stock model that it is."""
    content = KINDS[kind]
    family = FAMILIES[content["model_type"]]
    stock = family.stock(content) | ({"hidden_act": "relu"} if content.get("hidden_act") == "fatrelu" else {})
    stock.pop("model_type", None)
    config = CONFIG_MAPPING[family.model_type].from_dict(dict(stock))
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval().requires_grad_(False)
    for weights in model.parameters():
        weights.mul_(4) if weights.ndim == 2 else weights.add_(0.1 * torch.randn_like(weights))
    if content.get("hidden_act") == "fatrelu":
        for layer in model.model.layers:
            layer.mlp.act_fn = nn.Threshold(content["hidden_act_param"], 0.0)
    return model


def save(kind: str, form: str, dtype: torch.dtype, folder: Path) -> Path:
    """A checkpoint as it would be published: safetensors, or `.bin` in shards with what else such files hold."""
    model = original(kind)
    folder.mkdir(parents=True)
    config = KINDS[kind] | {"torch_dtype": str(dtype).removeprefix("torch."), "architectures": ["Anything"]}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: weights.to(dtype).clone() for name, weights in model.state_dict().items()}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder
    layers = FAMILIES[KINDS[kind]["model_type"]].layers
    state |= {f"{layers}.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": sorted(state)[i::2] for i in range(2)}
    for file, names in shards.items():
        torch.save({name: state[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """The packed form of a kind, made once."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def packed(kind: str, dtype: str, form: str) -> Store:
        name = f"{kind}-{dtype}-{form}"
        return pack(save(kind, form, DTYPES[dtype], folder / name), folder / f"{name}.store")

    return lambda kind, dtype="fp32", form="safetensors": packed(kind, dtype, form)


def dense(kind: str, store: Store) -> PreTrainedModel:
    """What transformers makes of the checkpoint that a store was packed from."""
    if KINDS[kind]["model_type"] in OWN_CODE:
        return original(kind) if store.dtype_name == "fp32" else load_dense(store)
    loaded = AutoModelForCausalLM.from_pretrained(store.path.with_suffix(""), dtype=store.dtype).eval()
    return loaded.requires_grad_(False)


def load(store: Store | Path, stage: int | str, predictor: str = "oracle") -> PreTrainedModel:
    return flashlite.load(store, stage=stage, predictor=predictor, dram_budget=AMPLE)


@torch.no_grad()
def forced(model: PreTrainedModel, ids: Tensor, prompt: int = 9) -> Tensor:
    """Logits at all positions; the first `prompt` enter at once, which is more than the window, the others by one."""
    out = model(ids[:, :prompt], use_cache=True)
    logits = [out.logits]
    for i in range(prompt, ids.shape[1]):
        out = model(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1).float()


@cache
def expected(kind: str, store: Store) -> tuple[Tensor, list[int]]:
    """The dense model's logits on some tokens, and its own continuation."""
    model, ids = dense(kind, store), ids_of(12)
    return forced(model, ids), model.generate(ids[:, :9], **GREEDY)[0].tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", range(len(LADDER)))
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_is_exact(kind: str, stage: int, dtype: str, form: str, store_of: Callable[..., Store]) -> None:
    """In float32 the same tokens and logits; in bf16 as near to float32's logits as the dense model in bf16 is."""
    store = store_of(kind, dtype, form)
    logits, tokens = expected(kind, store)
    model = load(store, stage)
    found = forced(model, ids_of(12))
    if dtype == "fp32":
        assert (found - logits).abs().max() <= 1e-4
        assert model.generate(ids_of(12)[:, :9], **GREEDY)[0].tolist() == tokens
    else:
        exact = in_float32(kind)
        assert rms(found - exact) <= 1.3 * rms(logits - exact) + 0.02 * rms(exact)


@cache
def in_float32(kind: str) -> Tensor:
    return forced(original(kind), ids_of(12))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# However it is called


@pytest.mark.parametrize("stage", [0, 3, 5, 6])
@pytest.mark.parametrize("kind", ["falcon-7b", "falcon-40b", "falcon-rw", "phi", "llama", "nemotron", "prosparse"])
def test_padded_batches_and_beams(kind: str, stage: int, store_of: Callable[..., Store]) -> None:
    model, reference = load(store_of(kind), stage), original(kind)
    ids = ids_of(8, sequences=3)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 1, 0
    for beams in (1, 3):
        options = {"attention_mask": mask, "num_beams": beams, "output_logits": True, "return_dict_in_generate": True}
        found, wanted = (m.generate(ids, **GREEDY, **options) for m in (model, reference))
        assert found.sequences.tolist() == wanted.sequences.tolist()
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "falcon-7b", "phi"])
def test_a_small_pool_streams_what_finds_no_room(kind: str, store_of: Callable[..., Store]) -> None:
    store = store_of(kind)
    for stage in (2, 5, 6):
        with pytest.raises(BudgetError) as refused:
            flashlite.load(store, stage=stage, predictor="oracle", dram_budget=1)
        smallest = refused.value.smallest
        model = flashlite.load(store, stage=stage, predictor="oracle", dram_budget=smallest)
        assert (forced(model, ids_of(12)) - in_float32(kind)).abs().max() <= 1e-4


@pytest.mark.parametrize("layout", ["split", "bundled"])
def test_gated_neurons_stream_from_one_layout(layout: str, store_of: Callable[..., Store], tmp_path: Path) -> None:
    folder = store_of("llama").path.with_suffix("")
    store = pack(folder, tmp_path / "store", layouts=(layout,))
    store.verify()
    stage = "pool" if layout == "bundled" else "window"
    assert (forced(load(store, stage), ids_of(12)) - in_float32("llama")).abs().max() <= 1e-4


def test_gated_neurons_are_read_with_their_checksums(store_of: Callable[..., Store]) -> None:
    model = flashlite.load(store_of("llama"), stage=5, predictor="oracle", dram_budget=AMPLE, verify_reads=True)
    assert (forced(model, ids_of(12)) - in_float32("llama")).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_benchmark_decodes_every_family(kind: str, store_of: Callable[..., Store]) -> None:
    """It allocates the cache of keys and values once, which not every family can do."""
    logits, _ = expected(kind, store_of(kind))
    ids = ids_of(12)[0].tolist()
    found = decoding.forced(load(store_of(kind), 5), ids[:9], [*ids[9:], 5])
    assert (found.logits - logits[0, 8:]).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["phi", "persimmon", "llama"])
def test_an_embedding_that_is_not_the_head_stays_on_flash(kind: str, store_of: Callable[..., Store]) -> None:
    store, weights = store_of(kind), original(kind).get_input_embeddings().weight
    resident = load(store, 1)
    embedding, file = resident.get_input_embeddings(), resident.flash.resident.file
    assert isinstance(embedding, FlashEmbedding)
    before = file.counters.records
    ids = torch.tensor([[7, 7], [9, 7]])
    assert torch.equal(embedding(ids), weights[ids])
    assert file.counters.records - before == 2  # each row once
    assert weights.shape == (embedding.num_embeddings, weights.shape[1])
    with pytest.raises(FlashliteError, match="is not one of the model's"):
        resident(torch.tensor([[len(weights)]]))


def test_dram_without_the_embedding_is_as_much_smaller(
    store_of: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of("persimmon")
    size, pages = original("persimmon").get_input_embeddings().weight.nbytes, 3 * PAGE
    needed, kept = ResidentWeights.bytes_needed(store, True), ResidentWeights(store, True)
    assert store.family.embedding_weight not in kept.tensors()
    assert kept.nbytes <= needed
    monkeypatch.setattr(Store, "looked_up", None)
    assert abs(ResidentWeights.bytes_needed(store, True) - needed - size) <= pages
    assert store.family.embedding_weight in ResidentWeights(store, True).tensors()


def test_an_embedding_stays_in_dram_where_it_is_the_head_is_verified_or_read_for_each_token(
    store_of: Callable[..., Store],
) -> None:
    untied, tied = store_of("persimmon"), store_of(next(k for k, c in KINDS.items() if c.get("tie_word_embeddings")))
    verified = flashlite.load(untied, stage=5, predictor="oracle", dram_budget=AMPLE, verify_reads=True)
    for model in (verified, load(untied, 0), load(tied, 5)):
        assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert (forced(verified, ids_of(12)) - in_float32("persimmon")).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["falcon-40b", "mistral", "persimmon"])
def test_what_save_pretrained_wrote_runs_on_the_command_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    original(kind).save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(SIZES["vocab_size"])}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w2", eos_token="w2", pad_token="w1")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ("--prompt", "w5 w6 w7", "--max-new-tokens", 4, "--dram-budget", AMPLE, "--predictor", "oracle")
    code, out, err = call(monkeypatch, capsys, "run", tmp_path / "model", *arguments)
    assert code == 0, err
    ids = original(kind).generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=4)[0].tolist()
    assert out.split("[")[0].split()[:4] == [f"w{i}" for i in ids[3:7]] or " ".join(f"w{i}" for i in ids[3:]) in out


# Reading early


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_is_read_early_and_nothing_is_wasted(
    kind: str, store_of: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "looked_up", None)  # so that all reads are neurons
    pool, early = load(store_of(kind), 5), load(store_of(kind), 6)
    for model in (pool, early):
        forced(model, ids_of(12))
    if kind not in PARALLEL:
        assert early.flash.stage.ffn is OverlappedFFN
        return
    assert early.flash.stage.ffn is EarlyFFN
    for before, now in zip(pool.flash.calls, early.flash.calls, strict=True):
        assert (now.bytes, now.records, now.wasted) == (before.bytes, before.records, 0)
        assert now.prefetched == (0 if now.tokens > 5 else now.bytes)
    assert early.flash.meter().prefetched > 0


def test_a_call_that_breaks_off_while_it_attends_leaves_no_wrong_neurons(store_of: Callable[..., Store]) -> None:
    model = load(store_of("falcon-7b"), 6)
    cache = model(ids_of(9), use_cache=True).past_key_values

    def fail(*_: Any) -> None:
        raise InterruptedError

    hook = model.transformer.h[1].self_attention.register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        model(ids_of(1), past_key_values=cache)
    hook.remove()
    assert (forced(model, ids_of(12)) - in_float32("falcon-7b")).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_early_reads_under_autocast(store_of: Callable[..., Store]) -> None:
    model = load(store_of("phi"), 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert rms(forced(model, ids_of(12)) - in_float32("phi")) < 0.1 * rms(in_float32("phi"))


# The predictor that needs no training


@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_copy_predicts_for_every_family(
    kind: str, store_of: Callable[..., Store], caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(kind)
    model = load(store, 5, predictor="auto")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has no trained predictor" in caplog.text
    assert rms(forced(model, ids_of(12)) - in_float32(kind)) <= 0.02 * rms(in_float32(kind))
    oracle = load(store, 5)
    for ffn, exact in zip(model.flash.sparse, oracle.flash.sparse, strict=True):
        x = torch.randn(64, store.shape.d_model, generator=torch.Generator().manual_seed(1))
        predicted, fires = ffn.predictor.mask(x), exact.predictor.mask(x)
        assert (predicted & fires).sum() >= 0.995 * fires.sum()
        assert predicted.sum() <= 1.1 * fires.sum()
        assert ffn.predictor.nbytes == model.flash.budget.predictors // store.layers


def test_a_copy_counts_to_the_budget_and_training_is_the_way_out(store_of: Callable[..., Store]) -> None:
    store = store_of("llama")
    with pytest.raises(
        BudgetError, match="; a trained predictor is smaller: run `flashlite train-predictor "
    ) as refused:
        flashlite.load(store, predictor="copy", dram_budget=1)
    with pytest.raises(BudgetError) as without:
        flashlite.load(store, predictor="oracle", dram_budget=1)
    assert "train-predictor" not in str(without.value)
    copies = refused.value.smallest - without.value.smallest
    assert copies == load(store, 5, "copy").flash.budget.predictors > 0
    with pytest.raises(PredictorError, match="has no predictor"):
        load(store, 5, "trained")


@pytest.mark.parametrize("kind", ["llama", "prosparse", "falcon-7b", "nemotron"])
def test_predictors_are_trained_for_every_family(kind: str, store_of: Callable[..., Store], tmp_path: Path) -> None:
    store = Store(shutil.copytree(store_of(kind).path, tmp_path / "store"))
    texts = torch.cat([ids_of(32, 12), in_float32(kind).argmax(-1).repeat(12, 3)[:, :32]])
    trained = train_predictors(store, texts[:16], texts[16:], recall=0.9, steps=20)
    trained.save(store.path / PREDICTOR)
    measured = evaluate(store, texts[16:], "trained")
    assert [layer.rank for layer in measured.layers] == [layer.rank for layer in trained.reports]
    assert min(layer.recall for layer in measured.layers) >= 0.8
    copies = evaluate(store, texts[16:], "copy")
    assert min(layer.recall for layer in copies.layers) >= 0.99
    assert max(layer.predicted / layer.active for layer in copies.layers) <= 1.1
    assert copies.predicted_perplexity == pytest.approx(copies.dense_perplexity, rel=0.02)
    assert isinstance(load(store, 5, "auto").flash.sparse[0].predictor, LowRankPredictor)


# What is refused


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "llama",
            {"hidden_act": "silu"},
            "only ReLU leaves neurons at exactly zero.*flashlite relufy MODEL OUT --text",
        ),
        ("llama", {"hidden_act": ...}, "activation 'silu' is not supported"),
        ("falcon-7b", {"activation": ...}, "activation 'gelu' is not supported"),
        ("phi", {"hidden_act": "gelu_new"}, "activation 'gelu_new' is not supported"),
        ("opt", {"activation_function": "gelu"}, "activation 'gelu' is not supported"),
        ("prosparse", {"hidden_act_param": ...}, "needs a hidden_act_param"),
        ("prosparse", {"hidden_act_param": -1.0}, "needs a hidden_act_param"),
        ("llama", {"model_type": "gpt2"}, "model type 'gpt2' is not supported: flashlite streams opt, falcon"),
        ("llama", {"model_type": ["llama"]}, "model type .* is not supported"),
        ("llama", {"head_dim": 10**9}, "head_dim is 1000000000"),
        ("phi", {"partial_rotary_factor": 1e9}, "does not describe a model of type phi: .*inv_freq would have"),
        ("llama", {"rope_scaling": {"rope_type": "nonsense"}}, "does not describe a model of type llama"),
        ("sparselm", {"sparsity_gated_mlp": False}, "does not describe a .*: sparsity_gated_mlp is false"),
        ("sparselm", {"intermediate_size": ..., "sparsity_new_intermediate_size": ...}, "does not describe a model"),
        ("minicpm-s", {"hidden_size": ...}, "does not describe a model of type minicpm"),
        ("minicpm-s", {"dim_model_base": 0}, "does not describe a model of type minicpm"),
    ],
    ids=str,
)
def test_what_cannot_stream_is_refused_in_one_line(
    kind: str, changes: dict[str, Any], words: str, store_of: Callable[..., Store], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(store_of(kind).path.with_suffix(""), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    with pytest.raises(CheckpointError, match=words) as refused:
        pack(folder, tmp_path / "store")
    assert "\n" not in str(refused.value)


# What a neuron computes


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_activations(power: int, threshold: float, both: bool, gated: bool) -> None:
    activation = Activation(power, threshold, both)
    first, second = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.where(first > threshold, first, 0.0) ** power
    if gated:
        expected = expected * (second.relu() if both else second)
    fires = activation.fires(first)
    found = activation(first.clone(), second.clone() if gated else None)
    torch.testing.assert_close(found, expected)
    assert (found[~fires] == 0).all()


@pytest.mark.parametrize("kind", ["opt", "falcon-7b", "llama", "odd-mistral"])
def test_a_record_is_first_row_down_column_second_row(kind: str, store_of: Callable[..., Store]) -> None:
    """So OPT's stores are what they were, and any family's down columns lie where OPT's do."""
    store = store_of(kind)
    assert store.manifest["format"] == 3
    weights, family = load_file(store.path.with_suffix("") / "model.safetensors"), store.family
    first, down, *second = (weights[name.format(1)] for name in family.matrices)
    record = torch.cat([first, down.T, *second], 1).contiguous().view(torch.uint8)
    bundles = load_file(store.path / ffn_file("bundled"))["layers.1.bundle"]
    assert torch.equal(bundles[:, : record.shape[1]], record)
    assert not bundles[:, record.shape[1] :].any()
    names = ["up", "down"] if not second else ["gate", "down", "up"]
    pieces = load_file(store.path / ffn_file("split"))
    assert torch.equal(torch.cat([pieces[f"layers.1.{name}"] for name in names], 1), record)
