"""What takes long: `make soak`. The sweeps of the tests with many seeds, long texts at every stage, many models.

FLASHLITE_SOAK: seeds of the fault sweep, each some 1300 cases and a minute; 4 unless given.
"""

# ruff: noqa: F811
from __future__ import annotations

import os
from typing import Any

import differential
import pytest
import test_faults
import test_memory
import torch
from conftest import smallest_budget
from test_differential import pairs  # noqa: F401 (fixtures)
from test_faults import dense, expected, store  # noqa: F401
from transformers import AutoModelForCausalLM

import flashlite
from flashlite.bench.decoding import forced, greedy
from flashlite.engine.stages import LADDER
from flashlite.storage.hub import BUNDLED_MODEL
from flashlite.storage.store import Store

SEEDS = int(os.environ.get("FLASHLITE_SOAK", "4"))
PLACES, MODELS, INTERRUPTS = 4, 500, 100
TRIALS, A_TEST = 2000, 100  # random models called in random ways
LONG, PROMPT = 2000, 40
BUDGETS = ("smallest", "50%", "100%")


@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
@pytest.mark.parametrize("backend", test_faults.BACKENDS)
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_faults_by_many_seeds(store: Store, expected: Any, stage: int, backend: str, seed: int) -> None:
    cases = test_faults.sweep(store, stage, backend, seed, PLACES, expected)
    assert cases == 2 * len(test_faults.KINDS) * PLACES


@pytest.mark.parametrize("backend", test_faults.BACKENDS)
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_interrupts_at_many_moments(store: Store, expected: Any, stage: int, backend: str) -> None:
    model = test_faults.load_on(store, stage, lambda inner: inner, backend)
    assert test_faults.interrupt(model, expected, INTERRUPTS, seed=1000 + stage) == INTERRUPTS


@pytest.mark.parametrize("first", range(10_000, 10_000 + TRIALS, A_TEST))
def test_random_models_called_in_random_ways(first: int, pairs: Any) -> None:
    for seed in range(first, first + A_TEST):
        differential.trial(seed, pairs)


@pytest.mark.parametrize("work", [test_memory.use, test_memory.break_off])
@pytest.mark.parametrize("stage", [1, 5, 6])
def test_many_models_leave_nothing(tiny_store: Store, stage: int, work: Any) -> None:
    assert test_memory.cycle(work, tiny_store, stage, MODELS) < test_memory.MIB


@pytest.fixture(scope="module")
def opt_mini(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[list[int]], list[torch.Tensor]]:
    """opt-mini, and texts that fill all of its positions, as the dense model continues them, 2000 tokens in all."""
    store = flashlite.pack("opt-mini", tmp_path_factory.mktemp("soak") / "store")
    dense = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32)
    each = store.config.max_position_embeddings - PROMPT
    shape, seeded = (-(-LONG // each), PROMPT), torch.Generator().manual_seed(0)
    prompts = torch.randint(3, store.config.vocab_size, shape, generator=seeded).tolist()
    texts = [(prompt, *greedy(dense, prompt, each)) for prompt in prompts]
    return store, texts


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_long_texts_of_opt_mini(opt_mini: Any, stage: int, budget: str) -> None:
    """Exact to the last position, and no larger at the end of the last text than at that of the first."""
    store, texts = opt_mini
    nbytes = smallest_budget(store, stage, "oracle") if budget == "smallest" else budget
    model = flashlite.load(store, stage=stage, predictor="oracle", dram_budget=nbytes)
    sizes = []
    for prompt, tokens, logits in texts:
        found = forced(model, prompt, tokens)
        assert found.chosen == tokens
        assert (found.logits - logits).abs().max() < 1e-3
        del found
        sizes.append(test_memory.rss())
    assert len(model.flash.calls) >= LONG
    assert sizes[-1] - sizes[0] < 4 * test_memory.MIB
