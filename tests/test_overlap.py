"""Stage 6: reads ahead of their layer. Guesses cost bytes and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.decoding import forced
from flashlite.engine.pool import Pool
from flashlite.engine.window import Window
from flashlite.errors import ReadError
from flashlite.storage.bundle import FFNShape
from flashlite.storage.store import Store, ffn_file

NEURONS = 24
AMPLE = "2MB"  # every neuron of the tiny model finds room
SETS = st.lists(st.integers(0, NEURONS - 1), unique=True, max_size=NEURONS).map(lambda n: np.array(sorted(n), np.int64))
IDS = [int(i) for i in torch.randint(4, 128, (48,), generator=torch.Generator().manual_seed(3))]


@given(st.lists(st.tuples(SETS, SETS), max_size=12), st.integers(1, 4), st.integers(1, NEURONS))
@settings(deadline=None)
def test_a_guess_leaves_no_trace_but_reads(tokens: list[tuple[np.ndarray, np.ndarray]], k: int, capacity: int) -> None:
    """What is in DRAM is followed by plain sets: exactly the window's neurons, all that the token needs but its
    overflow, and never more than there is room for."""
    window, in_dram = Window(NEURONS, k, capacity), set[int]()
    for guess, active in tokens:
        for move, neurons in ((window.step, guess), (window.amend, active)):
            step = move(neurons)
            assert in_dram >= set(step.drop.tolist())
            in_dram -= set(step.drop.tolist())
            assert not in_dram & set(step.load.tolist())
            in_dram |= set(step.load.tolist())
            assert in_dram == set(window.held.tolist())
            assert window.size == len(in_dram) <= capacity
        assert set(active.tolist()) == (set(active.tolist()) & in_dram) | set(step.overflow.tolist())


@given(st.lists(st.tuples(SETS, SETS), max_size=12), st.integers(1, 4))
@settings(deadline=None)
def test_with_room_for_all_a_guess_changes_nothing(tokens: list[tuple[np.ndarray, np.ndarray]], k: int) -> None:
    told, guessed = Window(NEURONS, k, NEURONS), Window(NEURONS, k, NEURONS)
    for guess, active in tokens:
        told.step(active)
        guessed.step(guess)
        guessed.amend(active)
        assert told.held.tolist() == guessed.held.tolist()


def test_rows_under_way_take_no_part_until_they_have_landed() -> None:
    """What a read in flight has left in its row, even NaN, must not reach the output."""
    shape, rng = FFNShape(32, 64, 4, 512), np.random.default_rng(0)
    pool = Pool(20, shape, torch.float32, torch.zeros(32))
    landing = pool.place(np.arange(12), np.zeros(0, np.int64))
    weights = rng.standard_normal((32, 128)).astype(np.float32)
    landing.buffer[landing.rows] = weights[:12].view(np.uint8)
    late = pool.place(np.arange(12, 20), np.array([3, 7]))
    late.buffer[late.rows] = np.full((8, 128), np.nan, np.float32).view(np.uint8)
    x = torch.from_numpy(rng.standard_normal((2, 64)).astype(np.float32))
    held = np.setdiff1d(np.arange(20), [3, 7])
    for needed in (held, held[2:], np.array([1, 15, 19])):
        late.buffer[late.rows] = np.full((8, 128), np.nan, np.float32).view(np.uint8)
        h = pool.activations(x, needed)
        late.buffer[late.rows] = weights[12:20].view(np.uint8)
        found = pool.product_after(h, x, needed, late.rows)
        up, down = torch.from_numpy(weights[needed]).split(64, 1)
        torch.testing.assert_close(found, (x @ up.T).relu() @ down, atol=1e-4, rtol=1e-4)


def test_rows_that_have_landed_are_copied_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gated neurons all that land in a layer are tens of megabytes, which no budget counts."""
    shape, rng = FFNShape(2000, 32, 4, 512, matrices=3), np.random.default_rng(0)
    bias = torch.from_numpy(rng.standard_normal((2, 2000)).astype(np.float32))
    pool = Pool(2000, shape, torch.float32, bias)
    landing = pool.place(np.arange(2000), np.zeros(0, np.int64))
    landing.buffer[:] = rng.standard_normal((2000, 128)).astype(np.float32).view(np.uint8)
    x = torch.from_numpy(rng.standard_normal((1, 32)).astype(np.float32))
    copied, values = [], pool._values

    def counted(*given: Any) -> torch.Tensor:
        copied.append(len(given[-1]) * 384)
        return values(*given)

    monkeypatch.setattr(pool, "_values", counted)
    monkeypatch.setattr("flashlite.engine.pool.COPIED_BYTES", 200 * 384)
    h, rows = torch.zeros(1, 2000), np.arange(100, 1100)
    pool.product_after(h, x, np.arange(2000), rows)
    assert max(copied) <= 200 * 384
    expected = values(x, pool._matrix, bias, 32)
    torch.testing.assert_close(h[:, 100:1100], expected[:, 100:1100], atol=1e-4, rtol=1e-4)
    assert not h[:, :100].any()
    assert not h[:, 1100:].any()


def load(store: Store, stage: str, predictor: str = "trained") -> OPTForCausalLM:
    return flashlite.load(store, stage=stage, predictor=predictor, dram_budget=AMPLE)


def logits_of(model: OPTForCausalLM) -> torch.Tensor:
    return forced(model, IDS[:16], IDS[16:]).logits


def test_what_is_read_ahead_is_counted_apart(tiny_store: Store) -> None:
    exact = [logits_of(load(tiny_store, stage, "oracle")) for stage in ("overlap", "pool")]
    torch.testing.assert_close(*exact, atol=1e-4, rtol=1e-4)
    pool, overlap = load(tiny_store, stage="pool"), load(tiny_store, stage="overlap")
    logits_of(pool), logits_of(overlap)
    engine, calls = overlap.flash, overlap.flash.calls
    assert sum(call.prefetched for call in calls) == engine.meter().prefetched > 0
    assert 0 < engine.meter().wasted == sum(call.wasted for call in calls) < engine.meter().prefetched
    assert sum(call.bytes for call in calls) > engine.meter().prefetched
    assert all(call.prefetched == call.wasted == 0 for call in pool.flash.calls)
    needed = sum(call.bytes for call in calls) - engine.meter().wasted
    assert needed == pytest.approx(sum(call.bytes for call in pool.flash.calls), rel=0.05)


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_call_that_breaks_off_leaves_no_wrong_neurons(
    tiny_store: Store, tiny_model: OPTForCausalLM, tokens: int
) -> None:
    """Layer 2's neurons are guessed and under way when its attention fails; the next call may be of any length."""
    model = load(tiny_store, stage="overlap", predictor="oracle")
    cache = model(torch.tensor([IDS[:16]]), use_cache=True).past_key_values
    attention = model.model.decoder.layers[2].self_attn

    def fail(*_: Any) -> None:
        raise InterruptedError

    hook = attention.register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        model(torch.tensor([[IDS[16]]]), past_key_values=cache)
    hook.remove()
    ids = torch.tensor([IDS[20 : 20 + tokens]])
    torch.testing.assert_close(model(ids).logits, tiny_model(ids).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(model), logits_of(tiny_model), atol=1e-4, rtol=1e-4)


def test_a_read_that_fails_in_the_background_is_an_error_and_no_wrong_token(tiny_store: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(tiny_store.path, tmp_path / "copied"))
    model = load(store, stage="overlap")
    expected = logits_of(model)
    whole = (store.path / ffn_file("bundled")).read_bytes()
    engine = model.flash
    begin = engine.file.begins[2][0]
    cache = model(torch.tensor([IDS[:16]]), use_cache=True).past_key_values
    with (store.path / ffn_file("bundled")).open("r+b") as file:
        file.truncate(begin)  # only the last layer's neurons are gone, and they are read ahead
    with pytest.raises(ReadError, match="ffn-bundled"):
        [model(torch.tensor([[token]]), past_key_values=cache) for token in IDS[16:32]]
    (store.path / ffn_file("bundled")).write_bytes(whole)
    torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=1e-4)


def test_a_guess_whose_read_failed_unseen_is_not_believed(
    tiny_store: Store, tiny_model: OPTForCausalLM, tmp_path: Path
) -> None:
    """The call that would have met the error breaks off before."""
    store = Store(shutil.copytree(tiny_store.path, tmp_path / "copied"))
    model, path = load(store, "overlap", "oracle"), store.path / ffn_file("bundled")
    whole = path.read_bytes()

    def fail(*_: Any) -> None:
        raise InterruptedError

    hook = model.model.decoder.layers[2].self_attn.register_forward_pre_hook(fail)
    os.truncate(path, model.flash.file.begins[2][0])
    with pytest.raises(InterruptedError):
        model(torch.tensor([IDS[:1]]))
    model.flash.early_file.file.finish_reads()
    path.write_bytes(whole)
    hook.remove()
    for token in IDS[:3]:
        ids = torch.tensor([[token]])
        torch.testing.assert_close(model(ids).logits, tiny_model(ids).logits, atol=1e-4, rtol=1e-4)
