"""One measurement in a process of its own: `python -m flashlite.worker TASK.json` prints one JSON object.

The benchmark starts a fresh process for every stage, so that no stage inherits another's memory or warm caches.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTForCausalLM

from flashlite.cost import copy_speed, product_speed
from flashlite.decoding import compare_logits, exactness, forced, greedy
from flashlite.dense import load_dense
from flashlite.errors import FlashliteError
from flashlite.kernels import BLOCK, WIDE, up_product
from flashlite.model import CallCost, Engine, load
from flashlite.peers import PEERS
from flashlite.predictor import PredictorSet
from flashlite.stages import NAMES
from flashlite.store import PREDICTOR, Store
from flashlite.timing import Timer

WARM_UP = 4  # first tokens, left out of the medians
SMALL_VOCABULARY = 512
LOGITS, CHECKPOINT = "logits.safetensors", "checkpoint"


@dataclass(frozen=True)
class Task:
    """What to measure. stage: None for the dense model; check: how many tokens to compare with the dense model's by the
    oracle predictor; peer: its name, with the same weights as a checkpoint in folder/CHECKPOINT.

    prompt: token ids; folder: where the dense model's logits are; tokens: how many to generate, where 0 means to load
    no model at all and to say what the process itself needs.
    """

    store: str
    stage: int | None
    prompt: list[int]
    tokens: int
    folder: str
    budget: int | str = "50%"
    window: int = 5
    predictor: str = "trained"
    check: int = 0
    peer: str | None = None


def _status(field: str) -> int:
    """A field of this process's memory status in bytes, 0 where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _bytes_from_drive() -> int:
    """What this process made the drive read so far, page faults included; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def _forget_peak() -> None:
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():
        clear_refs.write_text("5")


def _warm_up(store: Store, prompt: list[int]) -> None:
    """Run one random layer of the model's own width, so that what torch and transformers allocate for their work, such
    as copies for matrix products, counts to the base and not to a stage. Its vocabulary and its FFN are small, for the
    layer itself must not count."""
    config = copy.deepcopy(store.config)
    config.num_hidden_layers, config.vocab_size, config.ffn_dim = 1, SMALL_VOCABULARY, config.hidden_size
    torch.set_default_dtype(store.dtype)
    one_layer = OPTForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = [token % SMALL_VOCABULARY for token in prompt]
    forced(one_layer, ids, ids[:WARM_UP])
    rows = torch.zeros(5 * WIDE, config.hidden_size, dtype=store.dtype)
    for n in (*range(BLOCK, WIDE, BLOCK), *range(WIDE, len(rows), WIDE)):  # products are compiled for each shape
        up_product(rows[:1], rows[:n], rows[:n, 0])
    del one_layer, rows
    gc.collect()


def measure_dense(task: Task, store: Store) -> dict[str, Any]:
    """The dense model: its tokens and logits, for the stages to be compared with, and its time."""
    before = _status("VmRSS")
    model = load_dense(store)
    dram = _status("VmRSS") - before
    tokens, logits = greedy(model, task.prompt, task.tokens)
    save_file({"logits": logits.contiguous(), "tokens": torch.tensor(tokens)}, Path(task.folder) / LOGITS)
    ffn_seconds = _watch_ffns(model)
    timed = forced(model, task.prompt, tokens)
    rest = [ms - 1e3 * (b - a) for ms, (a, b) in zip(timed.token_ms, pairwise(ffn_seconds), strict=True)]
    return {
        "total_ms": float(np.median(timed.token_ms[WARM_UP:])), "prompt_ms": timed.prompt_ms, "dram_bytes": dram,
        "base_rss_bytes": before, "rest_ms": float(np.median(rest[WARM_UP:])),
    }  # fmt: skip


def _watch_ffns(model: OPTForCausalLM) -> list[float]:
    """The seconds spent in FFNs so far, noted at the end of each call from now on."""
    timer, seconds = Timer(), []
    for layer in model.model.decoder.layers:
        layer.fc1.register_forward_pre_hook(lambda *_: timer.__enter__())
        layer.fc2.register_forward_hook(lambda *_: timer.__exit__(None, None, None))
    model.register_forward_hook(lambda *_: seconds.append(timer.seconds))
    return seconds


def _reference(task: Task) -> tuple[list[int], Tensor]:
    """What the dense model wrote and the logits that chose it, for as many tokens as the task has."""
    reference = load_file(Path(task.folder) / LOGITS)
    return reference["tokens"].tolist()[: task.tokens], reference["logits"][: task.tokens]


def measure_stage(task: Task, store: Store) -> dict[str, Any]:
    """One stage: times and counts with the trained predictor, after which it must be exact with the oracle."""
    assert task.stage is not None
    tokens, logits = _reference(task)
    base = _status("VmRSS")
    _forget_peak()
    model = load(store, dram_budget=task.budget, stage=task.stage, predictor=task.predictor, window=task.window)
    timed = forced(model, task.prompt, tokens)
    result = {"base_rss_bytes": base, "peak_rss_bytes": _status("VmHWM"), "prompt_ms": timed.prompt_ms}
    result |= per_token(model.flash)
    result["agreement"] = float(np.mean([a == b for a, b in zip(timed.chosen, tokens, strict=True)]))
    counted, sparse = _counted(store, model.flash), model.flash.stage.predictor
    del model  # whose memory what follows needs
    gc.collect()
    if task.check:
        if sparse:
            oracle = load(store, dram_budget=task.budget, stage=task.stage, predictor="oracle", window=task.window)
            result |= exactness(oracle, task.stage, task.prompt, tokens[: task.check], logits[: task.check])
        else:  # every weight took part when it was timed, so that was the exact run already
            who = f"stage {task.stage} ({NAMES[task.stage]})"
            result |= compare_logits(timed.logits, logits, store.dtype_name, who)
    return result | _speeds(store, *counted)


def measure_peer(task: Task, store: Store) -> dict[str, Any]:
    """One peer, which must be exact: times, and what the drive gave for each token."""
    assert task.peer is not None
    tokens, logits = _reference(task)
    _forget_peak()
    model = PEERS[task.peer](store, Path(task.folder) / CHECKPOINT)
    before = _bytes_from_drive()
    timed = forced(model, task.prompt, tokens)
    nbytes = (_bytes_from_drive() - before) / len(tokens)  # the prompt's call needs each weight once too
    return {
        "prompt_ms": timed.prompt_ms, "total_ms": float(np.median(timed.token_ms[WARM_UP:])), "bytes_per_token": nbytes,
        "peak_rss_bytes": _status("VmHWM"), **compare_logits(timed.logits, logits, store.dtype_name, task.peer),
    }  # fmt: skip


def per_token(engine: Engine) -> dict[str, Any]:
    """What an engine that decoded needed for a token: times of the middle half of tokens, so that they add up; counts
    of all."""
    calls = [call for call in engine.calls if call.tokens == 1][WARM_UP:]
    ordered, quarter = sorted(calls, key=lambda call: call.total_ms), len(calls) // 4
    middle = ordered[quarter : len(calls) - quarter]

    def mean(field: str, of: list[CallCost] = calls) -> float:
        return float(np.mean([getattr(call, field) for call in of]))

    times = {field: mean(field, middle) for field in ("io_ms", "memory_ms", "compute_ms", "product_ms", "total_ms")}
    nbytes, io = mean("bytes"), times["io_ms"]
    return {
        "tokens": len(calls), **times, "prefetched_bytes": mean("prefetched"), "wasted_bytes": mean("wasted"),
        "bytes_per_token": nbytes, "reads_per_token": mean("reads"),
        "records_per_token": mean("records"), "read_mb_s": nbytes / io / 1e3 if io else 0.0,
        "dram_bytes": _dram(engine), "rows_moved": engine.rows_moved / len(engine.calls),
        "batches_per_token": _batches(engine),
    }  # fmt: skip


def _batches(engine: Engine) -> int:
    """How often a token waits for reads: once a layer, or, streamed, once a pass."""
    layers, stage = engine.store.layers, engine.stage
    passes = 1 if stage.predictor else -(-engine.store.shape.neurons // engine.stream.rows)
    return layers * passes + (0 if stage.resident else layers + 1)


def _dram(engine: Engine) -> int:
    """DRAM that the budget accounts for, as it was spent."""
    budget, record = engine.budget, engine.store.shape.record_bytes
    rows = sum(budget.layer_rows) + engine.stage.memory.spare * max(budget.layer_rows, default=0)
    return budget.resident + budget.predictors + budget.buffers + rows * record


def _counted(store: Store, engine: Engine) -> tuple[int, int, float | None]:
    """Rows of an FFN that are multiplied at a time, the sum over a token, and the share of them that fires, where the
    product makes use of that."""
    if not engine.stage.predictor:
        return engine.stream.rows, store.layers * store.shape.neurons, None
    rows = max(1, int(np.mean(engine.rows_held)))
    if not (store.path / PREDICTOR).exists():
        return rows, sum(engine.rows_held), 1 / max(1, engine.stage.window)
    reports = PredictorSet.load(store.path / PREDICTOR, store.layers, store.shape).reports
    active = float(np.mean([report.active for report in reports]))
    return rows, sum(engine.rows_held), active * store.shape.neurons / rows


def _speeds(store: Store, rows: int, multiplied: int, fires: float | None) -> dict[str, float]:
    """This processor's speed at what a stage does for a token: rows multiplied and copied."""
    shape = store.shape
    return {
        "product_bytes_a_second": product_speed(shape, store.layers, store.dtype, rows, fires),
        "copy_bytes_a_second": copy_speed(rows * shape.record_bytes),
        "product_bytes": float(multiplied * 2 * shape.half_bytes),
    }


def _measure(task: Task, store: Store) -> dict[str, Any]:
    if task.peer is not None:
        return measure_peer(task, store)
    return measure_dense(task, store) if task.stage is None else measure_stage(task, store)


def main() -> None:
    """Read a task, measure, print the result; errors that flashlite foresees are printed as JSON too."""
    torch.set_grad_enabled(False)
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        store = Store(task.store)
        _warm_up(store, task.prompt)
        if task.tokens == 0:
            result: dict[str, Any] = {"base_rss_bytes": _status("VmRSS")}
        else:
            result = _measure(task, store)
    except (FlashliteError, NotImplementedError) as error:  # NotImplementedError: a stub of the course
        result = {"error": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
