"""One measurement in a process of its own: `python -m flashlite.bench.measure_one TASK.json` prints one JSON object.

The benchmark starts a fresh process for every stage, so that no stage inherits another's memory or warm caches.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import OPTForCausalLM

from flashlite.bench.decoding import Decoding, compare_logits, exactness, forced, greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.peers import PEERS
from flashlite.bench.row import WARM_UP, Rows, per_token, speeds
from flashlite.engine.model import load
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.product import BLOCK, WIDE, up_product
from flashlite.engine.stages import LADDER, NAMES
from flashlite.engine.timing import Timer
from flashlite.errors import FlashliteError
from flashlite.storage.store import PREDICTOR, Store

SMALL_VOCABULARY = 512
LOGITS, CHECKPOINT = "logits.safetensors", "checkpoint"


@dataclass(frozen=True)
class Task:
    """What to measure. stage: None for the dense model; check: how many tokens to compare with the dense model's by the
    oracle predictor; peer: its name, with the same weights as a checkpoint in folder/CHECKPOINT; verify_reads: whether
    a stage compares what it reads with its checksums.

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
    verify_reads: bool = False


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
    rows = torch.zeros(5 * WIDE, store.shape.record_bytes // store.shape.itemsize, dtype=store.dtype)
    x, up = torch.zeros(1, store.shape.d_model, dtype=store.dtype), rows[:, : store.shape.d_model]
    for n in (*range(BLOCK, WIDE, BLOCK), *range(WIDE, len(rows), WIDE)):  # products are compiled for each shape
        up_product(x, up[:n], rows[:n, 0])
    del one_layer, rows, up
    gc.collect()


def _free() -> None:
    """Give the memory of what was deleted back to the system, whose cap counts it else."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def measure_dense(task: Task, store: Store) -> dict[str, Any]:
    """The dense model: its tokens and logits, for the stages to be compared with, and its time."""
    before = _status("VmRSS")
    model = load_dense(store)
    dram = _status("VmRSS") - before
    tokens, logits = greedy(model, task.prompt, task.tokens)
    save_file({"logits": logits.contiguous(), "tokens": torch.tensor(tokens)}, Path(task.folder) / LOGITS)
    ffn_seconds = _watch(model, [(layer.fc1, layer.fc2) for layer in model.model.decoder.layers])
    timed = forced(model, task.prompt, tokens)
    rest = [ms - ffn for ms, ffn in zip(timed.token_ms, _token_ms(ffn_seconds), strict=True)]
    return {
        "total_ms": float(np.median(timed.token_ms[WARM_UP:])), "prompt_ms": timed.prompt_ms, "dram_bytes": dram,
        "base_rss_bytes": before, "rest_ms": float(np.median(rest[WARM_UP:])),
    }  # fmt: skip


def _watch(model: OPTForCausalLM, spans: Sequence[tuple[nn.Module, nn.Module]]) -> list[float]:
    """The seconds spent so far from each first module to its last one, noted at the end of each call from now on."""
    timer, seconds = Timer(), []
    for first, last in spans:
        first.register_forward_pre_hook(lambda *_: timer.__enter__())
        last.register_forward_hook(lambda *_: timer.__exit__(None, None, None))
    model.register_forward_hook(lambda *_: seconds.append(timer.seconds))
    return seconds


def _token_ms(seconds: list[float]) -> list[float]:
    """What was watched, by token after the prompt."""
    return [1e3 * (after - before) for before, after in pairwise(seconds)]


def _reference(task: Task, kept: int) -> tuple[list[int], Tensor]:
    """What the dense model wrote for as many tokens as the task has, and the logits that chose the first of them."""
    with safe_open(Path(task.folder) / LOGITS, "pt") as file:
        return file.get_tensor("tokens").tolist()[: task.tokens], file.get_slice("logits")[:kept]


def measure_stage(task: Task, stage: int, store: Store) -> dict[str, Any]:
    """One stage: times and counts with the trained predictor, after which it must be exact with the oracle. Only one
    model is in memory at a time, and none while the processor's speed is measured."""
    chosen = LADDER[NAMES[stage]]
    tokens, logits = _reference(task, task.check if chosen.predictor else task.tokens)
    model = partial(
        load, store, dram_budget=task.budget, stage=stage, window=task.window, verify_reads=task.verify_reads
    )
    result, timed, counted = _time_stage(model, task, tokens, 0 if chosen.predictor else task.tokens)
    _free()
    if not chosen.predictor:  # every weight took part when it was timed, so that was the exact run already
        result |= compare_logits(timed.logits, logits, store.dtype_name, f"stage {stage} ({NAMES[stage]})")
    elif task.check:
        result |= exactness(model(predictor="oracle"), stage, task.prompt, tokens[: task.check], logits)
        _free()
    fires = _fires(store, counted.at_a_time, task.window if chosen.window else 1) if chosen.predictor else None
    return result | speeds(store, counted, fires)


def _time_stage(
    load: Callable[..., OPTForCausalLM], task: Task, tokens: list[int], kept: int
) -> tuple[dict[str, Any], Decoding, Rows]:  # fmt: skip
    """Decode with the trained predictor. Returns times and counts, and what was decoded and multiplied."""
    base = _status("VmRSS")
    _forget_peak()
    model = load(predictor=task.predictor)
    linear_seconds = _watch(model, [(part, part) for part in model.modules() if isinstance(part, nn.Linear)])
    timed = forced(model, task.prompt, tokens, kept)
    result = {"base_rss_bytes": base, "peak_rss_bytes": _status("VmHWM"), "prompt_ms": timed.prompt_ms}
    result |= per_token(model.flash) | {"linear_ms": float(np.median(_token_ms(linear_seconds)[WARM_UP:]))}
    result["agreement"] = float(np.mean([a == b for a, b in zip(timed.chosen, tokens, strict=True)]))
    return result, timed, Rows.of(model.flash)


def _fires(store: Store, rows: int, window: int) -> float:
    """The share of the rows in DRAM that fires, for the product reads the down columns of no others."""
    if not (store.path / PREDICTOR).exists():
        return 1 / window
    reports = PredictorSet.load(store).reports
    return float(np.mean([report.active for report in reports])) * store.shape.neurons / rows


def measure_peer(task: Task, store: Store) -> dict[str, Any]:
    """One peer, which must be exact: times, and what the drive gave for each token."""
    assert task.peer is not None
    tokens, logits = _reference(task, task.tokens)
    _forget_peak()
    model = PEERS[task.peer](store, Path(task.folder) / CHECKPOINT)
    before = _bytes_from_drive()
    timed = forced(model, task.prompt, tokens)
    nbytes = (_bytes_from_drive() - before) / len(tokens)  # the prompt's call needs each weight once too
    return {
        "prompt_ms": timed.prompt_ms, "total_ms": float(np.median(timed.token_ms[WARM_UP:])), "bytes_per_token": nbytes,
        "peak_rss_bytes": _status("VmHWM"), **compare_logits(timed.logits, logits, store.dtype_name, task.peer),
    }  # fmt: skip


def _measure(task: Task, store: Store) -> dict[str, Any]:
    if task.peer is not None:
        return measure_peer(task, store)
    return measure_dense(task, store) if task.stage is None else measure_stage(task, task.stage, store)


def main() -> None:
    """Read a task, measure, print the result; errors that flashlite foresees are printed as JSON too."""
    torch.set_grad_enabled(False)
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        store = Store(task.store)
        _warm_up(store, task.prompt)
        if task.tokens == 0:
            result: dict[str, Any] = {"base_rss_bytes": _status("VmRSS"), "peak_rss_bytes": _status("VmHWM")}
        else:
            result = _measure(task, store)
    except (FlashliteError, NotImplementedError) as error:  # NotImplementedError: a stub of the course
        result = {"error": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
