"""Several models, threads and processes on one store: every one of them gives the dense model's tokens."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from transformers import OPTForCausalLM

import flashlite
from flashlite.drive import flash
from flashlite.drive.aio import NativeAio
from flashlite.drive.backends import Serial, Threads
from flashlite.drive.background import Background
from flashlite.drive.direct import aligned_buffer
from flashlite.drive.jobs import Job
from flashlite.engine import overlap
from flashlite.engine.model import build
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store

STAGES = range(len(LADDER))
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
HANGS = 60  # seconds after which a child process is taken to hang
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def prompt(seed: int, length: int = 8) -> torch.Tensor:
    return torch.randint(3, TINY["vocab_size"], (1, length), generator=torch.Generator().manual_seed(seed))


def load(store: Store, stage: int) -> OPTForCausalLM:
    return flashlite.load(store, stage=stage, predictor="oracle", dram_budget="2MB")


def write(model: OPTForCausalLM, seed: int) -> list[int]:
    return model.generate(prompt(seed, 3 + seed % 9), **GREEDY)[0].tolist()


@torch.no_grad()
def step(model: OPTForCausalLM, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """One call: the next token [1, 1], and the cache."""
    out = model(ids, past_key_values=cache, use_cache=True)
    return out.logits[:, -1:].argmax(-1), out.past_key_values


@pytest.fixture(params=["aio", "threads"])
def shared_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One backend for all models that are loaded."""
    if request.param == "aio":
        try:
            backend: NativeAio | Threads = NativeAio(16)
        except OSError as error:
            pytest.skip(f"native AIO is refused here: {error}")
    else:
        backend = Threads(4)
    monkeypatch.setattr(flash, "default_backend", lambda: backend)
    monkeypatch.setattr(overlap, "background_backend", lambda: Background(backend))


# In one thread


@pytest.mark.parametrize("stage", STAGES)
def test_two_models_on_one_store_take_turns_token_by_token(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    models = [load(tiny_store, stage), load(tiny_store, stage), tiny_model, tiny_model]
    states = [(prompt(seed), None) for seed in (1, 2, 1, 2)]
    for _ in range(6):
        states = [step(model, *state) for model, state in zip(models, states, strict=True)]
        assert [state[0].item() for state in states[:2]] == [state[0].item() for state in states[2:]]


@pytest.mark.parametrize("stage", STAGES)
def test_two_texts_on_one_model_take_turns_token_by_token(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    model = load(tiny_store, stage)
    states, expected = ([(prompt(seed), None) for seed in (1, 2)] for _ in range(2))
    for _ in range(6):
        states, expected = ([step(m, *s) for s in of] for m, of in ((model, states), (tiny_model, expected)))
        assert [s[0].item() for s in states] == [s[0].item() for s in expected]


# Threads


@pytest.mark.usefixtures("shared_backend")
@pytest.mark.parametrize("stage", STAGES)
def test_threads_on_one_model_take_turns(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    model, texts = load(tiny_store, stage), range(8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: write(model, seed), texts))
    assert found == [write(tiny_model, seed) for seed in texts]
    assert len(model.flash.calls) == len(texts) * GREEDY["max_new_tokens"]
    for call in model.flash.calls:
        assert call.io_ms + call.memory_ms + call.compute_ms == pytest.approx(call.total_ms)


@pytest.mark.usefixtures("shared_backend")
@pytest.mark.parametrize("stage", STAGES)
def test_threads_each_with_a_model_of_their_own(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    models = [load(tiny_store, stage) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: [write(models[n], seed) for seed in (n, n + 4)], range(4)))
    assert found == [[write(tiny_model, seed) for seed in (n, n + 4)] for n in range(4)]


@pytest.mark.parametrize("stage", [1, 5, 6])
def test_a_thread_whose_call_fails_lets_the_others_on(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    """By errors that torch's hooks are told of, and by interrupts, which they aren't."""
    model = load(tiny_store, stage)
    broken, failures = threading.Event(), [RuntimeError, KeyboardInterrupt]

    def fail(*_: Any) -> None:
        if threading.current_thread().name == "fails":
            broken.set()
            raise failures[0]

    model.model.decoder.layers[1].register_forward_pre_hook(fail)

    def fails() -> None:
        with pytest.raises(failures[0]):
            write(model, 1)

    for _ in range(2):
        thread = threading.Thread(target=fails, name="fails")
        thread.start()
        found = [write(model, seed) for seed in (2, 3)]
        thread.join(HANGS)
        assert not thread.is_alive()
        assert broken.is_set()
        assert [*found, write(model, 4)] == [write(tiny_model, seed) for seed in (2, 3, 4)]
        failures.reverse()


def test_a_call_of_the_decoder_alone_waits_for_its_turn(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    model = load(tiny_store, 0)
    with ThreadPoolExecutor(2) as pool:
        hidden = pool.submit(lambda: [model.model(prompt(7)).last_hidden_state for _ in range(4)])
        found = write(model, 1)
    assert found == write(tiny_model, 1)
    for state in hidden.result():
        torch.testing.assert_close(state, tiny_model.model(prompt(7)).last_hidden_state, atol=1e-5, rtol=0)


# Processes


class Child:
    """A forked process that runs a function and tells what it returned, or the error that it raised, as text."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answer, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(HANGS)
            try:
                told = repr(work())
            except FlashliteError as error:
                told = f"FlashliteError: {error}"
            except BaseException as error:
                told = f"unforeseen {error!r}"
            os.write(end, told.encode())
            os._exit(0)
        os.close(end)

    def result(self) -> str:
        ready, _, _ = select.select([self._answer], [], [], HANGS)
        told = os.read(self._answer, 1 << 16).decode() if ready else "hangs"
        os.close(self._answer)
        os.waitpid(self.pid, 0)
        return told


@needs_fork
@pytest.mark.parametrize("stage", STAGES)
def test_processes_on_one_store(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    """Each loads a model of its own; that both were forked off a process that reads as well must not matter."""
    write(load(tiny_store, stage), 1)
    children = [Child(lambda seed=seed: write(load(tiny_store, stage), seed)) for seed in (2, 3)]
    found = write(load(tiny_store, stage), 4)
    assert [child.result() for child in children] == [repr(write(tiny_model, seed)) for seed in (2, 3)]
    assert found == write(tiny_model, 4)


@needs_fork
@pytest.mark.parametrize("stage", STAGES)
def test_a_model_is_refused_in_a_forked_process_and_goes_on_in_its_own(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    model = load(tiny_store, stage)
    before = write(model, 1)
    refused = "FlashliteError: the model was loaded in another process, whose reads it needs: load it again in this one"
    assert Child(lambda: write(model, 2)).result() == refused
    assert Child(lambda: model.model(prompt(2))).result() == refused

    def again() -> list[int]:
        nonlocal model
        del model  # its files and queues are the other process's
        return write(load(tiny_store, stage), 3)

    assert Child(again).result() == repr(write(tiny_model, 3))
    assert [before, write(model, 4)] == [write(tiny_model, seed) for seed in (1, 4)]


@needs_fork
@pytest.mark.parametrize("stage", [1, 5, 6])
def test_a_fork_in_the_middle_of_a_call(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    """The child can neither wait for the reads under way nor take the turn, so it must do neither."""
    model, children = load(tiny_store, stage), []

    def fork(*_: Any) -> None:
        if not children:
            children.append(Child(lambda: write(model, 2)))
            children.append(Child(lambda: write(load(tiny_store, stage), 3)))

    model.model.decoder.layers[2].self_attn.register_forward_pre_hook(fork)
    assert write(model, 1) == write(tiny_model, 1)
    assert children[0].result().startswith("FlashliteError: the model was loaded in another process")
    assert children[1].result() == repr(write(tiny_model, 3))


@needs_fork
@pytest.mark.parametrize("stage", [0, 5, 6])
def test_a_forked_process_whose_torch_would_wait_for_threads_is_told_so(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    """Torch's threads stay behind in the process that was forked, which torch doesn't notice."""
    torch.set_num_threads(2)
    try:
        before = write(load(tiny_store, stage), 1)  # only now there are threads
        refused = Child(lambda: load(tiny_store, stage)).result()

        def alone() -> list[int]:
            torch.set_num_threads(1)
            return write(load(tiny_store, stage), 2)

        found = Child(alone).result()
        after = write(load(tiny_store, stage), 3)
    finally:
        torch.set_num_threads(1)
    assert refused.startswith("FlashliteError: this process was forked off one with a model")
    assert "torch.set_num_threads(1) in this one, or start processes by 'spawn'" in refused
    assert [before, found, after] == [write(tiny_model, 1), repr(write(tiny_model, 2)), write(tiny_model, 3)]


@needs_fork
@pytest.mark.parametrize("how", ["load", "build"])
def test_a_forked_process_is_told_so_before_torch_computes(how: str, tiny_store: Store, tmp_path: Path) -> None:
    """Packing would be the first to wait."""
    torch.set_num_threads(2)
    try:
        load(tiny_store, 5)
        works = {
            "load": lambda: flashlite.load(tmp_path),
            "build": lambda: build(tiny_store, LADDER["pool"], "2MB", "oracle"),
        }
        refused = Child(works[how]).result()
    finally:
        torch.set_num_threads(1)
    assert refused.startswith("FlashliteError: this process was forked off one with a model")


@needs_fork
def test_each_process_has_a_backend_of_its_own() -> None:
    mine = flash.default_backend()
    assert Child(lambda: flash.default_backend() is mine).result() == "False"
    assert flash.default_backend() is mine


@needs_fork
def test_a_forked_process_waits_for_no_read_of_the_other(tiny_store: Store) -> None:
    """Only the other one's threads or queues could end it."""
    waited = []

    class Watched(Serial):
        class _Batch(Serial._Batch):
            def let_go(self) -> Sequence[Job]:
                waited.append(os.getpid())
                return super().let_go()

    def drop() -> list[int]:
        tickets.clear()
        gc.collect()
        return waited

    none = np.zeros(1, np.int64)
    tickets = [tiny_store.open_ffn("bundled", Watched()).submit(none, 4096, aligned_buffer(1, 4096), none)]
    assert Child(drop).result() == "[]"
    assert drop() == [os.getpid()]
