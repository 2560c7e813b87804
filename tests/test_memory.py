"""Memory, open files and threads: what a model takes it gives back, and a long text takes no more than a short one."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import add_predictor, make_model, save_checkpoint, smallest_budget
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.cap import NO_LIMIT, PAGE_TABLE_SHARE, counted_base, memory_cap
from flashlite.bench.ladder import prompt_ids
from flashlite.bench.process.run import WORKER, run_worker
from flashlite.bench.process.task import DenseTask, Setup, StageTask
from flashlite.engine.budget import parse_budget
from flashlite.storage.store import Store

MIB = 2**20
FEW, MANY = 6, 24  # models loaded before what a process has is noted, and after
LONG = 800  # tokens
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system doesn't list open files")


def rss() -> int:
    """Bytes of this process in DRAM, after all that can be given back was."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def reading_threads() -> int:
    """Threads that carry out reads, once those that were told to end have ended."""
    for _ in range(200):
        gc.collect()
        found = sum(thread.name.startswith("flash-early") for thread in threading.enumerate())
        if not found:
            break
        time.sleep(0.01)
    return found


def prompt(length: int) -> torch.Tensor:
    return torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(0))


def use(store: Store, stage: int) -> None:
    flashlite.load(store, stage=stage, dram_budget="2MB")(prompt(8))


def break_off(store: Store, stage: int) -> None:
    """Drop a model whose reads are under way: those of its next part, or of the layer that it guessed for."""
    model = flashlite.load(store, stage=stage, dram_budget="2MB")
    model(prompt(8))
    if stage == 6:
        model.flash.ffns[1].read_and_multiply(torch.zeros(1, store.shape.d_model))
        assert model.flash.early_file.file.under_way
    else:
        model.flash.stream.begin(2, torch.arange(64).numpy(), at_once=2)
        assert model.flash.file.file.under_way


def cycle(work: Callable[[Store, int], None], store: Store, stage: int, times: int) -> int:
    """Load and drop models, and assert that nothing but memory, of which it tells the growth, is left of them."""
    for _ in range(FEW):
        work(store, stage)
    threads, files, before = reading_threads(), open_files(), rss()
    for _ in range(times):
        work(store, stage)
    assert reading_threads() == threads == 0
    gc.collect()
    assert open_files() == files
    return rss() - before


@needs_proc
@pytest.mark.parametrize("work", [use, break_off])
@pytest.mark.parametrize("stage", [1, 5, 6])
def test_a_model_that_is_dropped_leaves_nothing(
    tiny_store: Store, stage: int, work: Callable[[Store, int], None]
) -> None:
    """The bound is less than a fortieth of what the models would have taken together."""
    assert cycle(work, tiny_store, stage, MANY) < MIB


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A model with room for a long text."""
    folder, model = tmp_path_factory.mktemp("long"), make_model(max_position_embeddings=LONG + 100)
    store = flashlite.pack(save_checkpoint(model, folder / "checkpoint"), folder / "store")
    add_predictor(store, model)
    return store


def grown_beyond_the_cache(model: OPTForCausalLM, tokens: int, first: int = 200) -> int:
    """By how many bytes this process grows from the first tokens of a text to its end, without the KV cache's own."""
    sizes: dict[int, int] = {}

    def note(*_: object) -> None:
        if len(model.flash.calls) in (first, tokens - 1):
            sizes[len(model.flash.calls)] = rss()

    hook = model.register_forward_hook(note)
    out = model.generate(prompt(8), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
    hook.remove()
    assert out.shape[1] == 8 + tokens
    assert len(model.flash.calls) == tokens
    cache = 2 * model.flash.store.layers * model.flash.store.shape.half_bytes * (tokens - 1 - first)
    return sizes[tokens - 1] - sizes[first] - cache


@needs_proc
@pytest.mark.parametrize("stage", [5, 6])
def test_a_long_text_takes_no_more_memory_than_a_short_one(long_store: Store, stage: int) -> None:
    """What each call cost is kept, about 400 bytes of it; the cache is copied when it grows, and leaves holes."""
    assert grown_beyond_the_cache(flashlite.load(long_store, stage=stage, dram_budget="2MB"), LONG) < 4 * MIB


# Budgets, enforced


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """opt-mini, what the dense model writes, and the folder where that is."""
    folder = tmp_path_factory.mktemp("capped")
    store = flashlite.pack("opt-mini", folder / "store")
    setup = Setup(str(store.path), str(folder), prompt_ids(store, 32), 16)
    run_worker(DenseTask(setup))
    return setup


@pytest.fixture(scope="module")
def base(setup: Setup) -> int:
    """What a process takes without a model, as the system counts it."""
    with memory_cap(NO_LIMIT) as group:
        if not group.enforced:
            pytest.skip("this system grants no control group")
    return counted_base(Store(setup.store), setup, 0, WORKER)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["smallest", "50%", "100%"])
def test_budgets_are_kept_under_an_enforced_cap(setup: Setup, base: int, budget: str) -> None:
    """A process that took more than the budget and the base would be killed. The smallest of opt-mini is 46 %."""
    store = Store(setup.store)
    nbytes = smallest_budget(store, 5) if budget == "smallest" else parse_budget(budget, store.weight_bytes)
    total = nbytes + base + int(nbytes * PAGE_TABLE_SHARE)
    with memory_cap(total) as group:
        result = run_worker(StageTask(setup, 5, nbytes, check=16), group.wrap(WORKER))
        assert group.peak_bytes is None or group.peak_bytes <= total
    assert result.tokens_equal
    assert result.dram_bytes <= nbytes
