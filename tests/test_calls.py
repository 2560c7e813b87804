"""What a streaming model does where a transformers model would train, be converted, copied or compiled: the same, or
one line that says what to do instead."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, save_checkpoint
from torch import nn
from transformers import OPTForCausalLM

import flashlite
from flashlite.engine import ffn
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store

STAGES = range(7)
IDS = torch.tensor([[5, 17, 99, 4, 64, 23]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


def load(store: Store | Path, stage: int = 5, **options: Any) -> OPTForCausalLM:
    return flashlite.load(store, **{"stage": stage, "predictor": "oracle", "dram_budget": "2MB", **options})


def written(model: OPTForCausalLM, **options: Any) -> list[int]:
    return model.generate(IDS, **GREEDY | options)[0, IDS.shape[1] :].tolist()


# Gradients


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_of_the_input_is_refused(stage: int, tiny_store: Store) -> None:
    model = load(tiny_store, stage)
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with pytest.raises(FlashliteError, match=r"computes no gradients.*torch\.no_grad\(\)"):
        model(inputs_embeds=x, labels=IDS)
    assert written(model) == written(load(tiny_store, stage)), "the refusal left a trace"


class Adapter(nn.Module):
    """A low-rank addition to a linear layer, as LoRA trains it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.a = nn.Parameter(0.1 * torch.randn(2, inner.in_features))
        self.b = nn.Parameter(torch.randn(inner.out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("stage", [1, 3, 5, 6])
def test_a_gradient_of_an_adapter_is_refused_and_its_inference_is_exact(stage: int, tiny_store: Store) -> None:
    dense, model = make_model(), load(tiny_store, stage)
    torch.manual_seed(1)
    for layer, other in zip(dense.model.decoder.layers, model.model.decoder.layers, strict=True):
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
        other.self_attn.q_proj = Adapter(other.self_attn.q_proj)
        other.self_attn.q_proj.a, other.self_attn.q_proj.b = layer.self_attn.q_proj.a, layer.self_attn.q_proj.b
    with pytest.raises(FlashliteError, match="computes no gradients"):
        model(IDS, labels=IDS)
    assert written(model) == written(dense)


@pytest.mark.parametrize("tokens", [3, 12])
def test_a_gradient_of_an_adapter_in_int8_is_refused(tokens: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A prompt and a few tokens are multiplied in different ways, neither of which can pass a gradient on."""
    model = load(flashlite.pack(tiny_checkpoint, tmp_path / "store", "int8"))
    attention, ids = model.model.decoder.layers[-1].self_attn, torch.arange(5, 5 + tokens)[None]
    expected = model(ids).logits
    attention.q_proj = Adapter(attention.q_proj)
    with pytest.raises(FlashliteError, match=r"computes no gradients.*torch\.no_grad\(\)"):
        model(ids, labels=ids)
    with torch.no_grad():
        attention.q_proj.b.zero_()
        torch.testing.assert_close(model(ids).logits, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_without_a_gradient_is_the_dense_models(
    stage: int, tiny_store: Store, tiny_model: OPTForCausalLM
) -> None:
    torch.testing.assert_close(load(tiny_store, stage)(IDS, labels=IDS).loss, tiny_model(IDS, labels=IDS).loss.detach())


# Autocast


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_is_followed_around_the_ffns(
    stage: int, kind: torch.dtype, tiny_store: Store, tiny_model: OPTForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    ffn._said.clear()
    model = load(tiny_store, stage)
    with torch.no_grad(), torch.autocast("cpu", dtype=kind), caplog.at_level(logging.WARNING):
        found, expected = model(IDS).logits, tiny_model(IDS).logits
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found.float(), expected.float(), atol=0.25, rtol=0.05)
        model(IDS)
    assert [r.message for r in caplog.records if "autocast" in r.message] == [
        "flashlite: under torch.autocast the FFNs compute in torch.float32, as they were packed"
    ]


# Conversions, copies, compilers


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_another_dtype_is_refused(convert: str, tiny_store: Store) -> None:
    model = load(tiny_store)
    with pytest.raises(FlashliteError, match=r"stays torch\.float32 on the CPU.*load\(\.\.\., dtype='bf16'\)"):
        getattr(model, convert)()
    with pytest.raises(FlashliteError, match="stays torch"):
        model.to(torch.bfloat16)
    with pytest.raises(FlashliteError, match="on meta"):
        model.to("meta")
    assert written(model) == written(load(tiny_store))


@pytest.mark.parametrize("same", [
    lambda m: m.float(), lambda m: m.to("cpu"), lambda m: m.cpu(), lambda m: m.to(torch.float32), lambda m: m.eval(),
])  # fmt: skip
def test_what_changes_nothing_is_no_error(
    same: Callable[[OPTForCausalLM], OPTForCausalLM], tiny_store: Store, tiny_model: OPTForCausalLM
) -> None:
    model = load(tiny_store)
    assert same(model) is model
    assert written(model) == written(tiny_model)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_are_refused(copied: Callable[[Any], Any], tiny_store: Store) -> None:
    with pytest.raises(FlashliteError, match=r"can't be copied or pickled.*load it again"):
        copied(load(tiny_store))


def test_torch_save_is_refused_and_leaves_nothing(tiny_store: Store, tmp_path: Path) -> None:
    with pytest.raises(FlashliteError, match="can't be copied"):
        torch.save(load(tiny_store), tmp_path / "model.pt")


@pytest.mark.parametrize("stage", [0, 5, 6])
def test_a_compiled_model_is_exact(stage: int, tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    model = torch.compile(load(tiny_store, stage), backend="eager")
    with torch.no_grad():
        for ids in (IDS, IDS[:, :1], IDS[:, :1]):
            torch.testing.assert_close(model(ids).logits, tiny_model(ids).logits, atol=1e-4, rtol=1e-4)


# Arguments of load()


def test_natural_values_are_taken(tiny_store: Store, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(make_model(), tmp_path / "tiny")
    half = load(checkpoint, dtype=torch.bfloat16, dram_budget=0.9)
    assert half.flash.store.dtype_name == "bf16"
    assert half.flash.budget.total == int(0.9 * half.flash.store.weight_bytes)
    assert load(str(tiny_store.path)).flash.store.path == load(tiny_store.path).flash.store.path


@pytest.mark.parametrize(("arguments", "says"), [
    ({"dtype": torch.float64}, "float64"), ({"dtype": "float8"}, "float8"),
    ({"dram_budget": 1.5}, r"budget 1\.5 is not understood.*0\.5"), ({"dram_budget": -0.5}, "not understood"),
    ({"dram_budget": None}, "not understood"), ({"dram_budget": True}, "not understood"),
    ({"window": 2.5}, "window of 2.5 tokens is not understood"), ({"window": "5"}, "whole number"),
    ({"stage": 2.5}, "unknown stage 2.5"), ({"stage": None}, "unknown stage"), ({"stage": "7"}, "choose 0 to 6"),
    ({"predictor": None}, "unknown predictor None"), ({"predictor": 3}, "unknown predictor 3"),
])  # fmt: skip
def test_other_values_are_named(arguments: dict[str, Any], says: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(FlashliteError, match=says) as refused:
        load(tiny_checkpoint, **arguments)
    assert "\n" not in str(refused.value)


def test_a_model_in_place_of_its_name_is_named(tiny_model: OPTForCausalLM) -> None:
    with pytest.raises(FlashliteError, match=r"takes a name or a folder, not a OPTForCausalLM: write load\("):
        load(tiny_model)  # type: ignore[arg-type]
    with pytest.raises(FlashliteError, match="not a NoneType"):
        load(None)  # type: ignore[arg-type]
