"""Attention of one new token over the cache, beside torch's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor, nn
from transformers.cache_utils import Cache

import flashlite
from flashlite.bench.decoding import Reserved
from flashlite.engine.kernels import attention as kernel
from flashlite.engine.kernels.attention import attend, attention
from flashlite.engine.kernels.rows import SHARED_BYTES
from flashlite.storage.store import Store

ERROR = 1e-5
SHAPES = [  # sequences, heads, heads of keys and values, tokens, width, room of the cache
    (1, 8, 8, 40, 64, 40), (2, 8, 2, 33, 16, 50), (1, 6, 1, 7, 20, 7), (3, 4, 4, 1, 80, 5), (1, 32, 32, 300, 128, 320),
]  # fmt: skip


def anything(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    sequences, heads, held, tokens, width, room = shape
    torch.manual_seed(0)
    query = torch.randn(sequences, 1, heads, width).to(dtype).transpose(1, 2)
    keys, values = torch.randn(2, sequences, held, room, width).to(dtype)[:, :, :, :tokens]
    return query, keys, values


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_attention(shape: tuple[int, ...]) -> None:
    query, keys, values = anything(shape, torch.float32)
    for scaling in (1.0, shape[4] ** -0.5):
        exact = F.scaled_dot_product_attention(
            query.double(), keys.double(), values.double(), scale=scaling, enable_gqa=True
        )
        found = attend(query, keys, values, scaling)
        torch.testing.assert_close(found.double(), exact.transpose(1, 2), atol=ERROR, rtol=ERROR)


def test_threads_share_the_heads_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = anything(SHAPES[-1], torch.float32)
    assert 2 * keys.numel() * keys.itemsize > SHARED_BYTES
    parts: list[int] = []
    run = kernel.run

    def noted(body: Any, matrix: int, count: int, *rest: Any) -> None:
        parts.append(count)
        run(body, matrix, count, *rest)

    monkeypatch.setattr(kernel, "run", noted)
    attend(query, keys, values, 1.0)
    attend(query[:, :8], keys[:, :8, :9], values[:, :8, :9], 1.0)
    assert parts == [32, 1]


def test_scores_far_from_zero_neither_overflow_nor_vanish() -> None:
    query, keys, values = anything(SHAPES[0], torch.float32)
    for size in (1e4, -1e4):
        exact = F.scaled_dot_product_attention(query * size, keys, values, scale=1.0).transpose(1, 2)
        torch.testing.assert_close(attend(query * size, keys, values, 1.0), exact)


SAID: list[dict[str, Any]] = [
    {"position_bias": torch.zeros(1, 8, 1, 40)}, {"dropout": 0.5}, {"softcap": 30.0}, {"output_attentions": True},
]  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_what_only_torch_has_is_left_to_it(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_torch(anything(SHAPES[0], torch.float32), None, said, monkeypatch)
    for harmless in ({"position_ids": torch.ones(1)}, {"dropout": 0.0}, {"output_attentions": False}):
        assert not asked_torch(anything(SHAPES[0], torch.float32), None, harmless, monkeypatch)


def test_prompts_masks_and_training_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = anything(SHAPES[0], torch.float32)
    mask = torch.ones(1, 1, 1, 40, dtype=torch.bool)
    assert asked_torch((query, keys, values), mask, {}, monkeypatch)
    assert asked_torch((torch.cat([query, query], 2), keys, values), None, {}, monkeypatch)
    for i in range(3):  # a learned beginning of a text is keys and values
        given = [t.clone().requires_grad_(i == n) for n, t in enumerate((query, keys.clone(), values.clone()))]
        assert asked_torch((given[0], given[1], given[2]), None, {}, monkeypatch)
    assert asked_torch((query, keys, values.transpose(2, 3).contiguous().transpose(2, 3)), None, {}, monkeypatch)
    assert asked_torch((query, keys.double(), values.double()), None, {}, monkeypatch)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert asked_torch(anything(SHAPES[0], dtype), None, {}, monkeypatch)
    with torch.autocast("cpu"):
        assert asked_torch((query, keys, values), None, {}, monkeypatch)


def test_what_is_not_on_the_cpu_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a dense model that is made of a streaming model's configuration: there is no such memory here to read."""
    monkeypatch.setattr(kernel, "attend", lambda *_: (None, None))
    query, keys, values = (tensor.to("meta") for tensor in anything(SHAPES[0], torch.float32))
    assert asked_torch((query, keys, values), None, {}, monkeypatch)


def asked_torch(
    given: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Whether a call reaches torch's attention, with all that was said."""
    reached: list[dict[str, Any]] = []
    monkeypatch.setattr(
        kernel, "sdpa_attention_forward", lambda *args, **kwargs: reached.append(kwargs) or (None, None)
    )
    attention(nn.Module(), *given, mask, scaling=1.0, **said)
    assert reached in ([], [{"scaling": 1.0, **said}])
    return bool(reached)


def test_a_models_tokens_take_it_and_padded_batches_do_not(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = flashlite.load(tiny_store, predictor="oracle", dram_budget="2MB"), []
    attends = kernel.attend
    monkeypatch.setattr(kernel, "attend", lambda *args: seen.append(args[1].shape[2]) or attends(*args))
    ids = torch.tensor([[5, 6, 7, 8]])
    written = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert seen == [n for n in (5, 6, 7) for _ in range(tiny_store.layers)]
    seen.clear()
    both, mask = torch.tensor([[5, 6, 7, 8], [1, 5, 6, 7]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    batch = model.generate(both, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert not seen
    assert torch.equal(batch[:1], written)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False), written)
    assert not seen


def test_memory_that_is_taken_once_holds_what_a_growing_cache_holds(tiny_store: Store) -> None:
    model = flashlite.load(tiny_store, predictor="oracle", dram_budget="2MB")
    cache, ids = Cache(layers=[Reserved(9) for _ in range(tiny_store.layers)]), torch.arange(5, 14)[None]
    at_once = model(ids).logits[0]
    assert cache.get_seq_length() == 0
    begun = model(ids[:, :4], past_key_values=cache).logits[0]
    memory = {layer.keys.data_ptr() for layer in cache.layers}
    rest = [model(ids[:, i : i + 1], past_key_values=cache).logits[0] for i in range(4, 9)]
    assert {layer.keys.data_ptr() for layer in cache.layers} == memory
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat([begun, *rest]), at_once)


ROUNDED = """
import numpy as np
import torch
from flashlite.engine.kernels.attention import attend
from flashlite.engine.kernels.rows import products, weighted_sum

torch.manual_seed(0)
query, kept = torch.randn(1, 32, 1, 128), torch.randn(2, 1, 32, 200, 128)
matrix, x, rows = torch.randn(150, 999), torch.randn(1, 999), np.arange(150)
found = [attend(query, kept[0, :, :, :n], kept[1, :, :, :n], 1.0) for n in (150, 7)]
found += [products(x, matrix, rows), weighted_sum(x[:, :150], matrix, rows, 999)]
print([tensor.numpy().tobytes().hex() for tensor in found])
"""


def test_the_process_that_compiles_a_kernel_rounds_as_those_that_read_it_back(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ROUNDED]
    first, second = (subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(2))
    assert list(tmp_path.rglob("*.nbc"))
    assert len(first) > 1000
    assert first == second
