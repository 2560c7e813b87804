"""Stages side by side: in this process, alternating, as the chapters show them; or on somebody else's code."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flashlite.bench import WORKER, medians, prompt_ids, run_worker
from flashlite.dense import load_dense
from flashlite.model import load
from flashlite.stages import NAMES
from flashlite.store import Store
from flashlite.worker import Task, exactness, forced, greedy, per_token


def compare(
    store: Store, stages: Sequence[int], *, tokens: int = 24, prompt_tokens: int = 32, budget: int | str = "50%",
    window: int = 5, rounds: int = 3,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure stages in turn, with a new engine for each of the rounds; a row a stage, with the keys of `bench`.

    Before anything is timed, every stage must give the dense model's tokens with the oracle predictor. Raises
    FlashliteError if one doesn't.
    """
    prompt = prompt_ids(store, prompt_tokens)
    expected, logits = greedy(load_dense(store), prompt, tokens)
    exact = {}
    for stage in stages:
        model = load(store, dram_budget=budget, stage=stage, predictor="oracle", window=window)
        exact[stage] = exactness(model, stage, prompt, expected, logits)
    runs: dict[int, list[dict[str, Any]]] = {stage: [] for stage in stages}
    for number in range(rounds):
        for stage in stages if number % 2 == 0 else reversed(stages):
            model = load(store, dram_budget=budget, stage=stage, window=window)
            total_ms, _, chosen = forced(model, prompt, expected)
            agreement = float(np.mean([a == b for a, b in zip(chosen, expected, strict=True)]))
            runs[stage].append(per_token(model.flash, total_ms) | {"agreement": agreement})
    return [medians(stage, runs[stage]) | exact[stage] for stage in stages]


def beside_reference(
    store: Store, stage: int, worker: Sequence[str], *, tokens: int = 24, budget: int | str = "50%"
) -> list[dict[str, Any]]:  # fmt: skip
    """A stage by the engine's own code and by what `worker` runs, each in a fresh process and checked for exactness.

    Two rows with the keys of `bench`. Raises FlashliteError if either is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="flashlite-beside-") as folder:
        task = Task(str(store.path), None, prompt_ids(store, 32), tokens, folder, budget)
        run_worker(task)
        staged = replace(task, stage=stage, check=True)
        return [{"stage": stage, "name": NAMES[stage], **run_worker(staged, command)} for command in (WORKER, worker)]
