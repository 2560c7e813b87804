"""Models in int8 against transformers' own model in float32 with the weights that int8 stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, save_checkpoint, smallest_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_model_families import AMPLE, GREEDY, KINDS, forced, ids_of, original, save
from torch import Tensor, nn
from transformers import OPTForCausalLM, PreTrainedModel

import flashlite
from flashlite.bench.dense import load_dense, published_tensors
from flashlite.engine.int8.modules import Int8FlashEmbedding, Int8Linear
from flashlite.engine.int8.product import row_product, row_sum
from flashlite.engine.kernels.rows import FEW
from flashlite.engine.product import EVERY
from flashlite.engine.stages import LADDER
from flashlite.errors import CheckpointError, FlashliteError
from flashlite.storage.int8 import rounding
from flashlite.storage.int8.rounding import dequantize, quantize
from flashlite.storage.pack import pack
from flashlite.storage.store import RESIDENT, Store

STAGES = pytest.mark.parametrize("stage", range(len(LADDER)))
QUICK = settings(deadline=None, max_examples=60)
ODD = {"vocab_size": 127, "hidden_size": 51, "word_embed_proj_dim": 33, "ffn_dim": 157, "num_attention_heads": 3}
Packed = Callable[[str], Store]


def rounded(matrix: Tensor, by_column: bool) -> Tensor:
    """What int8 makes of a matrix, said another way: each row, or column, in steps of a 127th of its largest weight."""
    rows = matrix.float().T if by_column else matrix.float()
    step = rows.abs().amax(1, keepdim=True) / 127
    found = torch.where(step > 0, torch.round(rows / step), 0) * step
    return found.T if by_column else found


def round_all(weights: dict[str, Tensor], store: Store) -> dict[str, Tensor]:
    """A model's weights, as int8 makes them."""
    positions = f"{store.family.body}.{store.family.positions}.weight"
    down = {store.family.matrices[1].format(i) for i in range(store.layers)}
    return {
        name: rounded(tensor, name in down) if tensor.ndim == 2 and name != positions else tensor
        for name, tensor in weights.items()
    }


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The int8 form of a kind, made once."""
    folder = tmp_path_factory.mktemp("int8")

    @cache
    def packed(kind: str) -> Store:
        return pack(save(kind, "safetensors", torch.float32, folder / kind), folder / f"{kind}.store", "int8")

    return packed


@cache
def dense(kind: str, store: Store) -> PreTrainedModel:
    """Transformers' own model in float32 on the weights that int8 stands for."""
    weights = load_file(store.path.with_suffix("") / "model.safetensors")
    model = type(original(kind))(original(kind).config).eval().requires_grad_(False)
    for mine, theirs in zip(model.modules(), original(kind).modules(), strict=True):
        if hasattr(theirs, "act_fn"):
            mine.act_fn = theirs.act_fn
    model.load_state_dict(round_all(weights, store))
    return model


@cache
def expected(kind: str, store: Store) -> tuple[Tensor, list[int]]:
    """The dense model's logits on some tokens, and its own continuation."""
    model, ids = dense(kind, store), ids_of(12)
    return forced(model, ids), model.generate(ids[:, :9], **GREEDY)[0].tolist()


def load(store: Store | Path, stage: int | str, predictor: Any = "oracle", **options: Any) -> PreTrainedModel:
    return flashlite.load(store, stage=stage, predictor=predictor, **{"dram_budget": AMPLE} | options)


# Exactness


@STAGES
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_is_exact(kind: str, stage: int, store_of: Packed) -> None:
    """The prompt of 9 tokens enters at once, which is more than the window, the others one by one."""
    logits, tokens = expected(kind, store_of(kind))
    model = load(store_of(kind), stage)
    assert (forced(model, ids_of(12)) - logits).abs().max() <= 1e-4
    assert model.generate(ids_of(12)[:, :9], **GREEDY)[0].tolist() == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_dense_model_is_that_of_the_rounded_weights(kind: str, store_of: Packed) -> None:
    store, wanted = store_of(kind), dense(kind, store_of(kind)).state_dict()
    for name, tensor in published_tensors(store):
        torch.testing.assert_close(tensor, wanted[name], atol=0, rtol=1e-6)
    logits, tokens = expected(kind, store)
    model = load_dense(store)
    assert (forced(model, ids_of(12)) - logits).abs().max() <= 1e-4
    assert (forced(model, ids_of(12)[:, :5]) - logits[:, :5]).abs().max() <= 1e-4  # few tokens
    assert model.generate(ids_of(12)[:, :9], **GREEDY)[0].tolist() == tokens
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("stage", [0, 3, 5, 6])
@pytest.mark.parametrize("kind", ["opt", "falcon-7b", "phi", "llama"])
def test_padded_batches_and_beams(kind: str, stage: int, store_of: Packed) -> None:
    model, reference = load(store_of(kind), stage), dense(kind, store_of(kind))
    ids = ids_of(8, sequences=3)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 1, 0
    for beams in (1, 3):
        options = {"attention_mask": mask, "num_beams": beams, "output_logits": True, "return_dict_in_generate": True}
        found, wanted = (m.generate(ids, **GREEDY, **options) for m in (model, reference))
        assert found.sequences.tolist() == wanted.sequences.tolist()
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4, rtol=0)


def reference_of(model: OPTForCausalLM, store: Store) -> OPTForCausalLM:
    """A tiny OPT on the weights that int8 stands for."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    found = OPTForCausalLM(model.config).eval().requires_grad_(False)
    found.load_state_dict(round_all(state, store), strict=False)
    return found


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, OPTForCausalLM]:
    """A model whose sizes no grid divides, some of whose rows are zeros, and the dense model of it."""
    folder, model = tmp_path_factory.mktemp("odd"), make_model(**ODD)
    with torch.no_grad():
        layer = model.model.decoder.layers[1]
        layer.fc1.weight[::7] = layer.fc2.weight[:, ::5] = layer.self_attn.k_proj.weight[3] = 0
        model.model.decoder.embed_tokens.weight[5] = 0
    store = pack(save_checkpoint(model, folder / "checkpoint"), folder / "store", "int8")
    return store, reference_of(model, store)


@STAGES
def test_odd_sizes_and_rows_of_zeros(stage: int, odd: tuple[Store, OPTForCausalLM]) -> None:
    store, reference = odd
    ids = ids_of(12) + torch.tensor([0] * 11 + [5 - int(ids_of(12)[0, -1])])  # the last one's embedding is zeros
    logits = forced(reference, ids)
    assert logits.isfinite().all()
    assert (forced(load(store, stage), ids) - logits).abs().max() <= 1e-4


def test_what_lies_off_the_grid_is_filled_up(odd: tuple[Store, OPTForCausalLM]) -> None:
    store, _ = odd
    assert store.shape.neuron_bytes % store.shape.alignment
    extents, matrices = store._extents[RESIDENT], 127 * 33 + 2 * 51 * 33  # the embedding and two projections
    assert extents["filler"].nbytes == 4 - matrices % 4 < 4
    assert all(extent.begin % extent.dtype.itemsize == 0 for extent in extents.values())
    store.verify()


# Rounding and products


@QUICK
@given(rows=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**20), exponent=st.integers(-44, 30))
def test_no_weight_moves_by_more_than_half_a_step(rows: int, width: int, seed: int, exponent: int) -> None:
    """In blocks of any size. A scale that is too small for float32's grid is wrong by half of that grid at most."""
    matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "block_rows", lambda width: 1 + seed % 5)
        values, scale = quantize("matrix", matrix)
    assert values.dtype == torch.int8
    assert values.min() >= -127
    assert ((dequantize(values, scale) - matrix).abs() <= (0.5001 * scale + 127 * 2.0**-149)[:, None]).all()
    assert (matrix.abs().amax(1) / 127 == scale).all()


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["fc2.weight", "self_attn.q_proj.weight"])
def test_a_weight_that_is_not_finite_is_refused(name: str, weight: float, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_parameter(f"model.decoder.layers.2.{name}")[4, 6] = weight
    save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(
        CheckpointError, match=rf"layers\.2\.{name} holds a weight that is not a finite number"
    ) as error:
        pack(tmp_path / "checkpoint", tmp_path / "store", "int8")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("picks", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_products_of_rows_in_a_pool(n: int, tokens: int, picks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of records, in blocks that don't divide them."""
    monkeypatch.setattr(rounding, "block_rows", lambda width: 7)
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(-127, 128, (n, 64), dtype=torch.int8, generator=generator)
    up, down = records[:, :24], records[:, 24:48]
    x, scale = torch.randn(tokens, 24, generator=generator), torch.rand(n, generator=generator)
    bias = torch.randn(n, generator=generator)
    picked = np.random.default_rng(0).permutation(n)[: n // 2] if picks else EVERY
    values = row_product(x, up, scale, bias, picked)
    wanted = (x.double() @ (up.double() * scale.double()[:, None]).T + bias.double())[:, picked]
    torch.testing.assert_close(values.double(), wanted, atol=1e-4, rtol=1e-6)
    unbiased = row_product(x, up, scale, picked=picked)
    torch.testing.assert_close(unbiased.double(), wanted - bias[picked].double(), atol=1e-4, rtol=1e-6)
    h = values.relu()
    wanted = h.double() @ (down.double() * scale.double()[:, None])[picked]
    torch.testing.assert_close(row_sum(h, down, scale, picked).double(), wanted, atol=1e-2, rtol=1e-5)


# The modules


def test_all_matrices_are_int8_and_a_tied_head_shares_the_embeddings_memory(odd: tuple[Store, OPTForCausalLM]) -> None:
    model = load(odd[0], 5)
    matrices = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    assert matrices == ["model.decoder.embed_positions"]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, Int8Linear)
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    assert head.weight_scale.data_ptr() == embedding.weight_scale.data_ptr()
    assert model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["phi", "persimmon", "llama"])
def test_an_embedding_that_is_not_the_head_stays_on_flash(kind: str, store_of: Packed) -> None:
    resident = load(store_of(kind), 1)
    embedding, file = resident.get_input_embeddings(), resident.flash.resident.file
    assert isinstance(embedding, Int8FlashEmbedding)
    before, ids = file.counters.bytes, torch.tensor([[7, 7], [9, 7]])
    wanted = dense(kind, store_of(kind)).get_input_embeddings().weight[ids]
    torch.testing.assert_close(embedding(ids), wanted, atol=0, rtol=1e-6)
    assert file.counters.bytes > before
    assert store_of(kind).family.embedding_weight not in resident.flash.resident.tensors()
    with pytest.raises(FlashliteError, match="is not one of the model's"):
        resident(torch.tensor([[embedding.num_embeddings]]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stage", [0, 5])
def test_under_autocast_it_computes_as_a_dense_model_does(stage: int, store_of: Packed) -> None:
    model, reference = load(store_of("llama"), stage), dense("llama", store_of("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        found = forced(model, ids_of(12))
    wanted = forced(reference, ids_of(12))
    assert (found - wanted).square().mean() < 0.01 * wanted.square().mean()


def test_it_stays_in_float32(store_of: Packed) -> None:
    model = load(store_of("opt"), 5)
    assert model.to(torch.float32) is model
    with pytest.raises(FlashliteError, match=r"stays torch\.float32 on the CPU"):
        model.bfloat16()


# Memory


def test_a_share_of_the_weights_is_one_of_the_int8_weights(store_of: Packed) -> None:
    store = store_of("llama")
    resident = sum(extent.nbytes for extent in store._extents[RESIDENT].values())
    matrices = 2 * 3 * 160 * 64  # layers, matrices, neurons, width: a byte each
    assert store.weight_bytes == resident + matrices
    model = load(store, 5, dram_budget="150%")
    assert model.flash.budget.total == int(1.5 * store.weight_bytes)


@STAGES
@pytest.mark.parametrize("kind", ["opt", "phi"])
def test_the_smallest_budget_works(kind: str, stage: int, store_of: Packed) -> None:
    store = store_of(kind)
    smallest = smallest_budget(store, stage, "oracle")
    model = load(store, stage, dram_budget=smallest)
    assert (forced(model, ids_of(12)) - expected(kind, store)[0]).abs().max() <= 1e-4
    budget, stacked = model.flash.budget, sum(ffn._bias.nbytes for ffn in model.flash.sparse)
    rows = sum(budget.layer_rows) * store.shape.record_bytes
    assert model.flash.resident.nbytes + stacked <= budget.resident
    assert budget.resident + budget.buffers + rows <= smallest
