"""Stages side by side: in this process, taking turns, as the chapters show them; or on somebody else's code."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from flashlite.bench.decoding import agreement, exactness, feed, greedy, per_token
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import prompt_ids
from flashlite.bench.process.run import run_worker
from flashlite.bench.process.task import DenseTask, Setup, StageTask
from flashlite.bench.row import Exactness, StageRow
from flashlite.engine.model import load
from flashlite.engine.predictors.choice import Chosen
from flashlite.engine.stages import NAMES
from flashlite.storage.store import Store

CHECKED = 24  # tokens that the oracle must get right before anything is timed


def compare(
    store: Store, stages: Sequence[int], *, tokens: int = 48, prompt_tokens: int = 32, budget: int | str = "50%",
    window: int = 5, predictor: Chosen = "auto",
) -> list[StageRow]:  # fmt: skip
    """Measure stages that write the same text, token by token in turn. Returns a row for each stage.

    tokens, prompt_tokens: how many to generate, after a prompt of how many
    budget, window, predictor: as `load` takes them

    Taking turns at each token, the stages share whatever the drive and the processor do meanwhile. Before anything is
    timed, every stage must give the dense model's tokens with the oracle predictor. Raises FlashliteError if one
    doesn't.
    """
    return compare_dtypes(
        [store], stages, tokens=tokens, prompt_tokens=prompt_tokens, budget=budget, window=window, predictor=predictor
    )


def compare_dtypes(
    stores: Sequence[Store], stages: Sequence[int], *, tokens: int = 48, prompt_tokens: int = 32,
    budget: int | str = "50%", window: int = 5, predictor: Chosen = "auto",
) -> list[StageRow]:  # fmt: skip
    """`compare` for one model in several dtypes, all of which are fed the text that the first one's dense model writes.

    Returns a row for each stage of each store, a store's stages together. Each is compared with its own dense model;
    only its `agreement` is with the tokens of the first one.
    """
    prompt = prompt_ids(stores[0], prompt_tokens)
    pairs = [(store, stage) for store in stores for stage in stages]
    expected: list[int] = []
    checked: list[Exactness] = []
    for store in stores:
        written, logits = greedy(load_dense(store), prompt, tokens)
        expected = expected or written
        for stage in stages:
            oracle = load(store, dram_budget=budget, stage=stage, predictor="oracle", window=window)
            checked.append(exactness(oracle, stage, prompt, written[:CHECKED], logits[:CHECKED]))
    models = [
        load(store, dram_budget=budget, stage=stage, predictor=predictor, window=window) for store, stage in pairs
    ]
    return [
        StageRow(
            stage=stage, name=NAMES[stage], agreement=agreement(chosen, expected), **vars(exact),
            **vars(per_token(model.flash)),
        )
        for (_, stage), exact, model, chosen in zip(
            pairs, checked, models, _take_turns(models, prompt, expected), strict=True
        )
    ]  # fmt: skip


def _take_turns(models: Sequence[PreTrainedModel], prompt: list[int], tokens: list[int]) -> list[list[int]]:
    """Feed the same tokens to all models, each token to one after the other. Returns what each would have chosen."""
    fed = [feed(model, prompt, tokens) for model in models]
    chosen: list[list[int]] = [[] for _ in models]
    for t in range(len(tokens)):
        for i in range(len(models)) if t % 2 == 0 else reversed(range(len(models))):
            _, logits = next(fed[i])
            chosen[i].append(int(logits.argmax()))
    return chosen


def beside_reference(
    store: Store, stage: int, worker: Sequence[str], *, tokens: int = 24, budget: int | str = "50%",
    window: int | str = 5, predictor: str = "trained", theirs: Path | None = None,
) -> list[StageRow]:  # fmt: skip
    """A stage by the engine's own code and by what `worker` runs, each in a fresh process and checked for exactness.

    store: the model; the dense model's tokens are those of its weights
    stage, tokens, budget, window, predictor: what to measure, see `bench`
    worker: the command that runs somebody else's code
    theirs: the store that this command reads; the same unless given

    Returns two rows. Raises FlashliteError if either is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="flashlite-beside-") as folder:
        setup = Setup(str(store.path), folder, prompt_ids(store, 32), tokens)
        run_worker(DenseTask(setup))
        ours = StageTask(setup, stage, budget, window, predictor, check=tokens)
        other = replace(ours, setup=replace(setup, store=str(theirs or store.path)))
        return [run_worker(ours), run_worker(other, worker)]


def check_stage(
    store: Store, stage: int, budget: int | str, window: int | str, worker: Sequence[str], tokens: int = 8
) -> None:
    """Raise FlashliteError unless a stage, run by this command, gives the dense model's tokens with the oracle."""
    with tempfile.TemporaryDirectory(prefix="flashlite-check-") as folder:
        setup = Setup(str(store.path), folder, prompt_ids(store, 32), tokens)
        run_worker(DenseTask(setup))
        run_worker(StageTask(setup, stage, budget, window, "oracle", check=tokens), worker)
