"""Stages side by side: in this process, taking turns, as the chapters show them; or on somebody else's code."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import OPTForCausalLM

from flashlite.bench.decoding import exactness, greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import prompt_ids, run_worker
from flashlite.bench.measure_one import Task
from flashlite.bench.row import per_token
from flashlite.engine.model import load
from flashlite.engine.stages import NAMES
from flashlite.storage.store import Store

CHECKED = 24  # tokens that the oracle must get right before anything is timed


def compare(
    store: Store, stages: Sequence[int], *, tokens: int = 48, prompt_tokens: int = 32, budget: int | str = "50%",
    window: int = 5,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure stages that write the same text, token by token in turn; a row a stage, with the keys of `bench`.

    Taking turns at each token, they share whatever the drive and the processor do meanwhile. Before anything is timed,
    every stage must give the dense model's tokens with the oracle predictor. Raises FlashliteError if one doesn't.
    """
    prompt = prompt_ids(store, prompt_tokens)
    expected, logits = greedy(load_dense(store), prompt, tokens)
    rows = []
    for stage in stages:
        oracle = load(store, dram_budget=budget, stage=stage, predictor="oracle", window=window)
        row = exactness(oracle, stage, prompt, expected[:CHECKED], logits[:CHECKED])
        rows.append({"stage": stage, "name": NAMES[stage], **row})
    models = [load(store, dram_budget=budget, stage=stage, window=window) for stage in stages]
    for row, model, chosen in zip(rows, models, _take_turns(models, prompt, expected), strict=True):
        agreement = float(np.mean([a == b for a, b in zip(chosen, expected, strict=True)]))
        row |= per_token(model.flash) | {"agreement": agreement}
    return rows


@torch.no_grad()
def _take_turns(models: Sequence[OPTForCausalLM], prompt: list[int], tokens: list[int]) -> list[list[int]]:
    """Feed the same tokens to all models, each token to one after the other. Returns what each would have chosen."""
    outs = [model(torch.tensor([prompt]), use_cache=True) for model in models]
    chosen = [[int(out.logits[0, -1].argmax())] for out in outs]
    for t, token in enumerate(tokens[:-1]):
        for i in range(len(models)) if t % 2 == 0 else reversed(range(len(models))):
            outs[i] = models[i](torch.tensor([[token]]), past_key_values=outs[i].past_key_values, use_cache=True)
            chosen[i].append(int(outs[i].logits[0, -1].argmax()))
    return chosen


def beside_reference(
    store: Store, stage: int, worker: Sequence[str], *, tokens: int = 24, budget: int | str = "50%",
    window: int | str = 5, theirs: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A stage by the engine's own code and by what `worker` runs, each in a fresh process and checked for exactness.

    store: the model; the dense model's tokens are those of its weights
    stage, tokens, budget, window: what to measure, see `bench`
    worker: the command that runs somebody else's code
    theirs: the store that this command reads; the same unless given

    Two rows with the keys of `bench`. Raises FlashliteError if either is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="flashlite-beside-") as folder:
        task = Task(str(store.path), None, prompt_ids(store, 32), tokens, folder, budget, window)
        run_worker(task)
        ours = replace(task, stage=stage, check=tokens)
        runs = [run_worker(ours), run_worker(replace(ours, store=str(theirs or store.path)), worker)]
    return [{"stage": stage, "name": NAMES[stage], **run} for run in runs]
